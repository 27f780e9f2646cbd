//! Signs of life of whoever has the turn, for those that wait for it: each is given for something that got done, a device that was swapped or read, and
//! never because time has passed. One that hangs gives none, however many of its threads are well.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::Journal;

/// More of them in that time are one: thousands of devices may be swapped in a second.
const EVERY: Duration = Duration::from_millis(100);

/// Gives signs, as long as the turn is had for which they are. All clones give the same; nobody sees those of the default.
#[derive(Clone, Debug, Default)]
pub struct Signs(Option<Arc<Given>>);

#[derive(Debug)]
struct Given {
    /// The turn's file: when it was changed last is the sign. Not held: it is locked for as long as anybody holds it.
    file: Weak<File>,
    since: Instant,
    count: AtomicU64,
    /// Milliseconds from then on.
    latest: AtomicU64,
    shown: AtomicU64,
}

impl Signs {
    /// In the file of a turn.
    pub(super) fn on(file: &Arc<File>) -> Self {
        Self(Some(Arc::new(Given {
            file: Arc::downgrade(file),
            since: Instant::now(),
            count: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            shown: AtomicU64::new(0),
        })))
    }

    /// Something got done. Takes no lock, and no time but for a system call every [`EVERY`].
    pub fn give(&self) {
        let Some(given) = &self.0 else {
            return;
        };
        given.count.fetch_add(1, Ordering::Relaxed);
        let now = millis(given.since.elapsed());
        given.latest.fetch_max(now, Ordering::Relaxed);
        let shown = given.shown.load(Ordering::Relaxed);
        if now < shown.saturating_add(millis(EVERY)) {
            return;
        }
        let of = &given.shown;
        let first = of.compare_exchange(shown, now, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok()
            && let Some(file) = given.file.upgrade()
            && let Err(error) = file.set_modified(SystemTime::now())
        {
            tracing::warn!(%error, "whoever waits for the turn cannot see that this process is at work");
        }
    }

    /// How many were given.
    #[must_use]
    pub fn given(&self) -> u64 {
        let given = self.0.as_ref();
        given.map_or(0, |g| g.count.load(Ordering::Relaxed))
    }

    /// Since when none was given; from the beginning of the turn on.
    pub(super) fn silent_for(&self) -> Duration {
        let silent = |g: &Arc<Given>| {
            let latest = Duration::from_millis(g.latest.load(Ordering::Relaxed));
            g.since.elapsed().saturating_sub(latest)
        };
        self.0.as_ref().map(silent).unwrap_or_default()
    }
}

impl Journal {
    /// To be given for whatever gets done in this turn.
    #[must_use]
    pub fn signs(&self) -> Signs {
        self.turn
            .as_ref()
            .map(|turn| turn.signs.clone())
            .unwrap_or_default()
    }

    /// Who has taken the turn away, and how long nothing had got done here when that was seen. In words; None while it is this one's.
    #[must_use]
    pub fn taken_by(&self) -> Option<String> {
        let turn = self.turn.as_ref().filter(|turn| !turn.mine())?;
        Some(format!(
            "{} fences on this node now, and this process no longer: a turn is taken from who gets nothing done, or for a volume group whose own lease \
             has run out. The last that got done here was {:.1} s before that was seen",
            turn.holder(),
            turn.signs.silent_for().as_secs_f64()
        ))
    }
}

fn millis(of: Duration) -> u64 {
    of.as_millis().try_into().unwrap_or(u64::MAX)
}
