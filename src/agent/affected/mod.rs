//! Tells of each fence that stands which pods hold its volumes open: `status.affectedPods` of its request. Evidence for whoever moves them.
//!
//! A pod counts once two searches in a row have met it: many a program looks at every disk of the node for a moment (lsblk, blkid), and no pod is to be
//! evicted for that.
//!
//! Never on the way of a fence: nothing is searched before the locks are settled, and nothing at all while no fence stands. procfs is read by a thread
//! that may hang, since whatever a process has open may lie on a storage that does not answer. It is one at a time.

mod subject;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

pub use self::subject::Subject;
use self::subject::{Stands, list};
use super::decide::Uid;
use super::executor::limited::Pending;
use super::journal::Standing;
use super::metrics::Metrics;
use crate::api::eviction::AffectedPods;
use crate::api::{AGENT_PODS_FIELD_MANAGER, StorageFenceRequest};
use crate::fence::affected::{Affected, Doors};
use crate::host::{Bell, Host};
use crate::kubernetes::apply::{Target, apply_status};
use crate::kubernetes::backoff::Backoff;

/// How long a search may take. What was found by then is told.
pub const SEARCH: Duration = Duration::from_secs(10);
/// Between two searches while somebody was met by one only.
const CONFIRM: Duration = Duration::from_secs(1);
/// How often it is looked whether a search has ended.
const POLL: Duration = Duration::from_millis(50);
/// Something was written just now: the watch brings it soon.
const SETTLES: Duration = Duration::from_secs(5);
/// What the API server does not understand is tried again after this time: the CRD may be upgraded.
const REFUSED: Duration = Duration::from_mins(10);
/// Between two looks at no request at all.
const IDLE: Duration = Duration::from_mins(10);

/// What the task needs.
pub struct Task {
    /// To write with.
    pub client: Client,
    /// To search on.
    pub host: Host,
    /// Boot ID of the running kernel.
    pub boot_id: String,
    /// Fences that stand.
    pub standing: watch::Receiver<Vec<Standing>>,
    /// The requests of this node.
    pub subjects: watch::Receiver<Vec<Subject>>,
    /// Between two searches.
    pub pause: Duration,
    /// How long one may take: [`SEARCH`].
    pub limit: Duration,
    /// Counters.
    pub metrics: Metrics,
}

/// What the API server said last of a request's list.
enum Said {
    /// It took this.
    Took(Option<AffectedPods>, Instant),
    /// It does not know such a list.
    Refused(Instant),
}

impl Task {
    /// Works for ever.
    pub async fn run(mut self) {
        let mut search = Searcher::new(self.host.clone(), self.limit);
        let mut said: BTreeMap<Uid, Said> = BTreeMap::new();
        let mut backoff = Backoff::agent();
        loop {
            let standing = self.standing.borrow_and_update().clone();
            let subjects = self.subjects.borrow_and_update().clone();
            said.retain(|uid, _| subjects.iter().any(|s| s.uid == *uid));
            if subjects.iter().any(|s| s.stands(&standing) == Stands::Yes) {
                search.search(&standing, self.pause).await;
            } else {
                search.forget();
            }
            let mut failed = false;
            for subject in &subjects {
                let wanted = match subject.stands(&standing) {
                    Stands::NotYet => continue,
                    Stands::No => None,
                    Stands::Yes => match search.list(&subject.groups, &self.boot_id) {
                        Some(list) => Some(list),
                        // Nothing is known yet, so nothing is said.
                        None => continue,
                    },
                };
                if is_known(subject, said.get(&subject.uid), wanted.as_ref()) {
                    continue;
                }
                match self.write(subject, wanted).await {
                    Some(answer) => {
                        said.insert(subject.uid.clone(), answer);
                    }
                    None => failed = true,
                }
            }
            let wait = if failed {
                backoff.wait()
            } else if subjects.is_empty() {
                // There is nothing to search for until another one comes.
                backoff.reset();
                IDLE
            } else {
                backoff.reset();
                search.pause(self.pause)
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = self.standing.changed(), if !failed => {}
                Ok(()) = self.subjects.changed(), if !failed => {}
            }
        }
    }

    /// None: it is to be tried again.
    async fn write(&self, subject: &Subject, wanted: Option<AffectedPods>) -> Option<Said> {
        let api = Api::<StorageFenceRequest>::all(self.client.clone());
        let target = Target {
            name: &subject.name,
            uid: Some(&subject.uid),
            manager: AGENT_PODS_FIELD_MANAGER,
        };
        let status = match &wanted {
            Some(pods) => json!({ "affectedPods": pods }),
            None => json!({}),
        };
        match apply_status(&api, target, &status).await {
            Ok(_) => Some(Said::Took(wanted, Instant::now())),
            // It was deleted, or made again under the same name.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                Some(Said::Took(wanted, Instant::now()))
            }
            Err(error) if error.is_invalid() => {
                tracing::error!(request = subject.name, %error, "affected pods refused; are the installed CRDs of this version?");
                self.metrics.api_error(error.class());
                Some(Said::Refused(Instant::now()))
            }
            Err(error) => {
                tracing::warn!(request = subject.name, %error, "affected pods not written yet");
                self.metrics.api_error(error.class());
                None
            }
        }
    }
}

/// Whether the API server holds it already, or will not have it.
fn is_known(subject: &Subject, said: Option<&Said>, wanted: Option<&AffectedPods>) -> bool {
    match said {
        Some(Said::Took(took, at)) if at.elapsed() < SETTLES => took.as_ref() == wanted,
        Some(Said::Refused(at)) if at.elapsed() < REFUSED => true,
        _ => subject.stored.as_ref() == wanted,
    }
}

/// What a search's thread finds, as it goes.
#[derive(Debug, Default)]
struct Found {
    /// None until the devices are listed.
    doors: Option<Arc<Doors>>,
    affected: Affected,
}

/// A search that goes on.
struct UnderWay {
    pending: Pending<()>,
    found: Arc<Mutex<Found>>,
    groups: BTreeSet<String>,
    /// What the one before has met, and of which volume groups: however often it is looked at, this one is one search.
    before: Option<(Affected, BTreeSet<String>)>,
}

/// What a search has found.
struct Sighting {
    affected: Affected,
    /// UUIDs of the volume groups that it was of.
    groups: BTreeSet<String>,
    at: Instant,
    /// It came to its end.
    complete: bool,
}

/// Searches, one at a time.
struct Searcher {
    host: Host,
    limit: Duration,
    under_way: Option<UnderWay>,
    /// What the last one met.
    met: Option<Sighting>,
    /// What the last two have met.
    known: Option<Sighting>,
}

impl Searcher {
    fn new(host: Host, limit: Duration) -> Self {
        Self {
            host,
            limit,
            under_way: None,
            met: None,
            known: None,
        }
    }

    fn forget(&mut self) {
        self.met = None;
        self.known = None;
    }

    /// How long to wait for the next search, where `pause` is usual.
    fn pause(&self, pause: Duration) -> Duration {
        let known = self.known.as_ref().map(|k| (&k.affected, &k.groups));
        match &self.met {
            Some(met) if known != Some((&met.affected, &met.groups)) => CONFIRM.min(pause),
            _ => pause,
        }
    }

    /// The list for some volume groups. None: nothing is known yet.
    fn list(&self, groups: &BTreeSet<String>, boot_id: &str) -> Option<AffectedPods> {
        let known = self.known.as_ref()?;
        let list = || list(&known.affected, groups, boot_id, !known.complete);
        known.groups.is_superset(groups).then(list)
    }

    /// Searches, unless that was done for the same volume groups just now.
    async fn search(&mut self, standing: &[Standing], pause: Duration) {
        let settled = standing
            .iter()
            .filter(|s| s.locks != crate::fence::report::LocksOutcome::Pending);
        let groups: BTreeSet<String> = settled.clone().map(|s| s.group.uuid.clone()).collect();
        let lvmlock: BTreeSet<String> = settled.filter_map(|s| s.group.lvmlock.clone()).collect();
        let wait = self.pause(pause);
        let met = self.met.as_ref();
        if met.is_some_and(|met| met.groups == groups && met.at.elapsed() < wait) {
            return;
        }
        if self.under_way.is_none() {
            self.start(groups, lvmlock);
        }
        let began = Instant::now();
        // One that hung may have been of other volume groups.
        let Some(UnderWay {
            pending,
            found,
            groups,
            before,
        }) = &self.under_way
        else {
            return;
        };
        let ended = loop {
            if let Some(answer) = pending.take() {
                break Some(answer);
            }
            if began.elapsed() >= self.limit {
                break None;
            }
            tokio::time::sleep(POLL).await;
        };
        let (doors, mut affected) = {
            let found = lock(found);
            (found.doors.clone(), found.affected.clone())
        };
        let (groups, before) = (groups.clone(), before.clone());
        let complete = matches!(ended, Some(Ok(())));
        if let Some(answer) = ended {
            self.under_way = None;
            if let Err(error) = answer {
                tracing::warn!(%error, "who holds fenced volumes open is not known");
            }
        }
        let Some(doors) = doors else {
            // What is known stays as it is.
            return;
        };
        if let Some(known) = self.known.as_ref().filter(|_| !complete) {
            affected.keep(&known.affected, &doors);
        }
        let at = Instant::now();
        if let Some((before, of)) = before {
            self.known = Some(Sighting {
                affected: affected.both(&before),
                groups: groups.intersection(&of).cloned().collect(),
                at,
                complete,
            });
        }
        self.met = Some(Sighting {
            affected,
            groups,
            at,
            complete,
        });
    }

    fn start(&mut self, groups: BTreeSet<String>, lvmlock: BTreeSet<String>) {
        let found = Arc::new(Mutex::new(Found::default()));
        let tell = Arc::clone(&found);
        let what = "searching for affected pods";
        let of = groups.clone();
        let search = move |host: &Host| {
            let devices = host.device_mapper.devices()?;
            let doors = Arc::new(Doors::of(&of, &lvmlock, &devices));
            let open: Vec<_> = devices.into_iter().filter(|d| doors.has(d)).collect();
            lock(&tell).doors = Some(Arc::clone(&doors));
            host.openers.of(&open, &mut |opener| {
                lock(&tell).affected.found(&doors, &opener);
            });
            Ok(())
        };
        let pending = Pending::start(&self.host, &Bell::default(), what, search);
        let before = self.met.as_ref();
        self.under_way = Some(UnderWay {
            pending,
            found,
            groups,
            before: before.map(|met| (met.affected.clone(), met.groups.clone())),
        });
    }
}

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
