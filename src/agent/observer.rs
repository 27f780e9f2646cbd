//! Looks at the node again and again, on a thread of its own: as often as is wanted, and never so often that others do not get to their work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::journal::Standings;
use super::observe::{Kept, observe_again};
use crate::fence::{Inventory, unlocked};
use crate::host::urgency::rest_after;
use crate::host::{Bell, Host};

/// A look that takes longer than this hangs.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// An inventory, or why there is none.
pub type Observation = Arc<Result<Inventory, String>>;

/// Looks at the node again and again.
#[derive(Clone)]
pub struct Observer {
    bell: Bell,
    pause: Arc<AtomicU64>,
    latest: watch::Receiver<Option<Observation>>,
    /// When the present look began.
    looks: Arc<Mutex<Option<Instant>>>,
    /// Whether changes of devices are heard of, and how many were.
    hears: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
}

impl Observer {
    /// Begins to look, on a thread of its own: also below what stands fenced, as far as it is recorded. `took` is told how long each look took.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        host: Host,
        standings: Option<Standings>,
        pause: Duration,
        took: impl Fn(Duration) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (tell, latest) = watch::channel(None);
        let me = Self {
            bell: Bell::default(),
            pause: Arc::default(),
            latest,
            looks: Arc::default(),
            hears: Arc::default(),
            heard: Arc::default(),
        };
        me.every(pause);
        let thread = me.clone();
        // Not one of the host's own threads: it waits on the wall's clock, for as long as the process lives.
        std::thread::Builder::new()
            .name("observe".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                let mut kept = Kept::listening(&host, standings);
                let mut before = None;
                let mut failing = None;
                let mut without_lock = BTreeSet::new();
                loop {
                    let seen = thread.bell.rings();
                    let began = Instant::now();
                    thread.looks_since(Some(began));
                    let swapped = host.underway.swapped();
                    // Who rings wants to know what is so now.
                    let rung = before.replace(seen) != Some(seen);
                    // In this order: what is counted before anything is heard of counts for nothing.
                    let hears = thread.hears.load(Ordering::Acquire);
                    let heard = thread.heard.load(Ordering::Acquire);
                    let heard = (hears && !rung).then_some(heard);
                    let observation = observe_again(&host, &mut kept, heard);
                    let mut observation = observation.map_err(|e| e.to_string());
                    if let Ok(inventory) = &mut observation {
                        unlocked::mark(inventory, &mut without_lock);
                    }
                    tell_failure(&mut failing, observation.as_ref().err());
                    let length = began.elapsed();
                    took(length);
                    thread.looks_since(None);
                    if tell.send(Some(Arc::new(observation))).is_err() {
                        return;
                    }
                    // However often somebody rings.
                    std::thread::sleep(rest_after(length));
                    let pause = Duration::from_millis(thread.pause.load(Ordering::Relaxed));
                    thread.bell.wait(seen, pause);
                    give_way(
                        || host.underway.swapped(),
                        swapped,
                        length,
                        std::thread::sleep,
                    );
                }
            })?;
        Ok(me)
    }

    /// Sets the pause between two looks.
    pub fn every(&self, pause: Duration) {
        let milliseconds = pause.as_millis().try_into().unwrap_or(u64::MAX);
        if self.pause.swap(milliseconds, Ordering::Relaxed) > milliseconds {
            // The present pause may be a longer one.
            self.bell.ring();
        }
    }

    /// Whether changes of devices are heard of from now on; and that there was one. While all are heard of, and none was, a look does not read
    /// every device anew.
    pub fn hear(&self, hears: bool, changed: bool) {
        if changed {
            self.heard.fetch_add(1, Ordering::AcqRel);
        }
        self.hears.store(hears, Ordering::Release);
    }

    #[cfg(test)]
    pub(super) fn hears(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Looks now.
    pub fn look(&self) {
        self.bell.ring();
    }

    /// The latest inventory and its successors.
    #[must_use]
    pub fn latest(&self) -> watch::Receiver<Option<Observation>> {
        self.latest.clone()
    }

    fn looks_since(&self, began: Option<Instant>) {
        *self.looks.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// Whether a look hangs: what the last one has seen may not be so any more.
    #[must_use]
    pub fn hangs(&self) -> bool {
        let began = *self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|at| at.elapsed() > LOOK_LIMIT)
    }
}

/// A look gives way for so many times as long as it takes itself, and thousands of devices...
const GIVES_WAY: u32 = 4;
/// ...for no longer than that.
const AT_MOST: Duration = Duration::from_secs(4);
/// A fence that gets on swaps some device within that time.
const STEP: Duration = Duration::from_millis(100);

/// As long as a fence gets on with its swaps, which change what the next look would read again: thousands of devices take seconds to swap as to read,
/// and both want the same cores. `before`: how many were swapped when the last look began, which took that `length`.
fn give_way(
    swapped: impl Fn() -> u64,
    mut before: u64,
    length: Duration,
    sleep: impl Fn(Duration),
) {
    let mut left = (length * GIVES_WAY).min(AT_MOST);
    while !left.is_zero() {
        let now = swapped();
        if now == before {
            return;
        }
        before = now;
        let step = left.min(STEP);
        sleep(step);
        left -= step;
    }
}

/// Says once that the node cannot be looked at, and why; and once that it can again. With the API server away, the log is where people look.
fn tell_failure(before: &mut Option<String>, now: Option<&String>) {
    if before.as_ref() == now {
        return;
    }
    if let Some(why) = now {
        tracing::error!(why, "the node cannot be looked at, so nothing is fenced");
    } else {
        tracing::info!("the node can be looked at again");
    }
    *before = now.cloned();
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
