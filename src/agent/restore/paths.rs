//! The paths of un-fences that wait while another one has its turn: how long they have been healthy is told by looks, and a turn may take longer than two
//! looks may be apart.

use std::time::Duration;

use crate::agent::decide::Uid;
use crate::agent::executor::limited::Pending;
use crate::agent::observe::physical_volumes_of;
use crate::fence::Monotonic;
use crate::fence::unfence::{Health, Standing, UnfenceReport};
use crate::host::{Bell, Host, Result};

/// Between two looks, from the end of one to the beginning of the next.
const EVERY: Duration = Duration::from_secs(2);

/// A volume group that waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Of the request.
    pub uid: Uid,
    /// The volume group.
    pub group: Standing,
    /// How long its paths have been healthy.
    pub health: Health,
}

/// Looks at the paths of all that wait, again and again, on a thread of its own: whoever asks is never held up.
pub struct Paths {
    waiting: Vec<Waiting>,
    looking: Option<Pending<Vec<Waiting>>>,
    next: Monotonic,
}

impl Paths {
    /// Of those whose attempts have looked at theirs.
    pub fn of<'a>(reports: impl Iterator<Item = &'a UnfenceReport>) -> Self {
        let groups = |report: &'a UnfenceReport| {
            let uid = &report.order.uid;
            report.groups.iter().map(move |g| Waiting {
                uid: uid.clone(),
                group: g.standing.clone(),
                health: g.health.clone(),
            })
        };
        let looked_at = |w: &Waiting| w.health != Health::default();
        Self {
            waiting: reports.flat_map(groups).filter(looked_at).collect(),
            looking: None,
            next: Monotonic::default(),
        }
    }

    /// What the last look has found, once; and begins the next, when it is time.
    pub fn look(&mut self, host: &Host) -> Option<Vec<Waiting>> {
        let found = self.looking.as_ref().and_then(Pending::take);
        if self.waiting.is_empty() {
            return None;
        }
        let now = host.system.monotonic();
        let seen = found.and_then(|found| {
            self.looking = None;
            self.next = now + EVERY;
            // What is not seen leaves a gap.
            found.ok()
        });
        if let Some(seen) = &seen {
            self.waiting.clone_from(seen);
        }
        if self.looking.is_none() && now >= self.next {
            let waiting = self.waiting.clone();
            let call = move |h: &Host| with_one_more_look(h, waiting);
            let what = "looking at the paths of those that wait";
            self.looking = Some(Pending::start(host, &Bell::default(), what, call));
        }
        seen
    }
}

fn with_one_more_look(host: &Host, waiting: Vec<Waiting>) -> Result<Vec<Waiting>> {
    let paths = physical_volumes_of(host, waiting.iter().map(|w| &w.group))?;
    let now = host.system.monotonic();
    let seen = waiting.into_iter().zip(paths).map(|(w, pvs)| Waiting {
        health: Health::look(Some(&w.health), &pvs, now),
        ..w
    });
    Ok(seen.collect())
}
