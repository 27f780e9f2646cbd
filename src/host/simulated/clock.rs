//! The clock: it moves when every thread waits.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::build::START;
use super::{COUNTS, Daemon, InFlight, Simulation, State, die_if_killed};
use crate::fence::DevNo;
use crate::host::Bell;

/// How long a thread on the wall's clock sleeps at a time: nobody wakes one that waits for a bell when its agent is killed. A hundred agents in one
/// process that looked every millisecond took two cores for nothing.
const NAP: Duration = Duration::from_millis(100);

/// What a thread waits for: any of these.
#[derive(Default)]
pub(super) struct Waiter {
    pub(super) until: Option<Duration>,
    pub(super) bell: Option<(Bell, u64)>,
    pub(super) drained: Option<DevNo>,
    /// This one no longer hangs.
    pub(super) daemon: Option<fn(&State) -> Daemon>,
}

impl State {
    fn ready(&self, w: &Waiter) -> bool {
        w.until.is_some_and(|t| self.now >= t)
            || w.bell
                .as_ref()
                .is_some_and(|(bell, seen)| bell.rings() > *seen)
            || w.drained.is_some_and(|dev| self.drained(dev))
            || w.daemon.is_some_and(|which| which(self) != Daemon::Hangs)
    }

    /// Whether all I/O of a device has ended: its own, and what a map below holds back, or a device there that somebody left suspended.
    pub(super) fn drained(&self, dev: DevNo) -> bool {
        let Some(d) = self.devices.get(&dev) else {
            return true;
        };
        let own = match d.in_flight {
            InFlight::None => true,
            InFlight::Until(t) => self.now >= t,
            InFlight::Forever => false,
        };
        own && !d.dm.deps.iter().any(|below| self.holds_back(*below))
    }

    fn holds_back(&self, dev: DevNo) -> bool {
        let Some(d) = self.devices.get(&dev) else {
            return false;
        };
        let queues =
            d.dm.targets
                .iter()
                .any(|t| t.params.contains("queue_if_no_path"));
        let stops = d.dm.suspended || (queues && d.active_paths == 0);
        stops || d.dm.deps.iter().any(|below| self.holds_back(*below))
    }

    /// Moves on to the next thing that happens. Whether there was one.
    fn advance(&mut self) -> bool {
        let waits = self.waiters.values().filter_map(|w| w.until);
        let drains = self.devices.values().filter_map(|d| match d.in_flight {
            InFlight::Until(t) if t > self.now => Some(t),
            _ => None,
        });
        let events = self.events.keys().map(|k| k.0);
        let Some(next) = waits.chain(drains).chain(events).min() else {
            return false;
        };
        self.move_to(next);
        true
    }

    /// Follows the wall's clock, if that is the one.
    pub(super) fn follow_the_wall(&mut self) {
        if let Some(began) = self.real_time {
            self.move_to(Duration::from_secs(START) + began.elapsed());
        }
    }

    /// Moves the clock, and has happen what happens until then.
    fn move_to(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.calls_at_last_tick = self.calls;
        while let Some(first) = self.events.first_entry() {
            if first.key().0 > self.now {
                break;
            }
            let event = first.remove();
            event(self);
        }
    }
}

impl Simulation {
    /// Waits for any of these on the simulated clock.
    pub(super) fn wait_until(
        &self,
        until: Option<Duration>,
        bell: Option<(Bell, u64)>,
        drained: Option<DevNo>,
    ) -> MutexGuard<'_, State> {
        self.wait(Waiter {
            until,
            bell,
            drained,
            daemon: None,
        })
    }

    /// Lets the others on, until what is waited for may have come.
    fn doze<'a>(&'a self, state: MutexGuard<'a, State>, id: u64) -> MutexGuard<'a, State> {
        let waiter = state.waiters.get(&id);
        // What rings a bell, and what drains by itself, notifies nobody here: look for it.
        let look_again = Duration::from_millis(1);
        if state.real_time.is_none() || waiter.is_none_or(|w| w.drained.is_some()) {
            let waited = self.0.wake.wait_timeout(state, look_again);
            return waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let event = state.events.keys().next().map(|k| k.0);
        let next = waiter.and_then(|w| w.until).into_iter().chain(event).min();
        let limit = next.map_or(NAP, |t| t.saturating_sub(state.now).clamp(look_again, NAP));
        if let Some((bell, seen)) = waiter.and_then(|w| w.bell.clone()) {
            drop(state);
            bell.wait(seen, limit);
            return self.lock();
        }
        let waited = self.0.wake.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for any of these.
    pub(super) fn wait(&self, what: Waiter) -> MutexGuard<'_, State> {
        let mut state = die_if_killed(self.lock());
        if state.real_time.is_none() && !COUNTS.get() {
            // The clock would run ahead of the others, or stand still for ever.
            state.violate("a thread waits that was not started by System::spawn".into());
        }
        let id = state.next_waiter;
        state.next_waiter += 1;
        state.waiters.insert(id, what);
        // On the wall's clock nobody counts who works.
        state.running = state.running.saturating_sub(1);
        self.0.wake.notify_all();
        loop {
            state.follow_the_wall();
            let ready = state.waiters.get(&id).is_none_or(|w| state.ready(w));
            if ready || state.crashed {
                state.waiters.remove(&id);
                state.running += 1;
                return die_if_killed(state);
            }
            let nobody = state.real_time.is_none()
                && state.running == 0
                && !state.waiters.values().any(|w| state.ready(w));
            if nobody {
                if !state.advance() {
                    // A real agent would stand like that until the watchdog fires.
                    state.violations.push("every thread waits for ever".into());
                    state.crashed = true;
                }
                self.0.wake.notify_all();
                continue;
            }
            state = self.doze(state, id);
        }
    }
}
