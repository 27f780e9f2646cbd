//! Swapping every table for the error target, and proving it.
//!
//! A loop over three kinds of news: a device's thread has ended, the kernel's list of devices has been read, time has passed. It ends with a
//! list that was begun after all devices were settled and shows nothing but the error target (S1), or when time is up.
//!
//! Time is up twice. At the deadline the fence is reported as not proven. Then it is still tried for as long as the host lives: I/O that ends
//! late completes the fence, and a release after proof is right at any time. From then on it gives way to others ([`super::giveway`]).

use std::time::Duration;

use super::expedite::Expedited;
use super::giveway::TRIED_ON;
use super::limited::Pending;
use super::quiesce::Guard;
use super::telling::telling;
use super::track::{Book, Proof, STUCK};
use super::worker::{Attempt, Crew, Letter};
use super::{Fence, LIST_LIMIT, LOOK_AGAIN};
use crate::fence::budget;
use crate::fence::report::{LocksOutcome, Outcome, StepKind, StepResult, VolumeGroupReport};
use crate::fence::{DmDevice, Monotonic};
use crate::host::Host;

/// Where the swaps do not get on, the list is read again at least that often: new devices may have appeared...
const LIST_EVERY: Duration = Duration::from_secs(1);
/// ...but where there are thousands the threads that swap have so many times as long to themselves as a list takes.
const LIST_REST: u32 = 4;
/// How often a fence that takes long tells what it waits for.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// So many devices are named in a step's message; each has its own besides.
const NAMED: usize = 3;

/// Everything that the loop holds.
pub(super) struct Swap {
    book: Book,
    crew: Crew,
    list: Option<(u64, Pending<Vec<DmDevice>>)>,
    last_list: Option<Monotonic>,
    /// From then to the next, while something is not settled.
    list_rest: Duration,
    /// Epoch of the book when the last list was begun.
    listed_epoch: Option<u64>,
    began: Monotonic,
    told: Monotonic,
    deadline: Monotonic,
    given_up: bool,
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.crew.stop();
    }
}

impl Fence<'_> {
    /// The proof, unless time was up before.
    pub(super) fn swap(&mut self, mut guard: Guard) -> Option<Proof> {
        let _expedited = Expedited::raise(self.host, self.journal);
        let now = self.host.system.monotonic();
        let mut swap = Swap {
            book: Book::default(),
            crew: Crew::new(self.host, self.journal.signs()),
            list: None,
            last_list: None,
            list_rest: LIST_EVERY,
            listed_epoch: None,
            began: now,
            told: now,
            deadline: budget::swap_deadline(now, self.order.drain_timeout, self.reset),
            given_up: false,
        };
        swap.book.leave_out(&self.handed_on);
        for (group, devices) in std::mem::take(&mut self.planned).iter().enumerate() {
            swap.book.plan(group, devices, now);
        }
        for group in 0..self.groups.len() {
            self.begin(self.step(StepKind::Swap, group));
        }
        loop {
            if self.taken_away() {
                return None;
            }
            let bell = swap.crew.bell.clone();
            let seen = bell.rings();
            let now = self.host.system.monotonic();
            for letter in swap.crew.letters() {
                if let Letter::Ended(at, Attempt::Resumed) = &letter {
                    let name = swap.book.name(*at);
                    self.note(format!("{name} had been left suspended, and what is stacked on it waited for it: it was resumed"));
                }
                swap.book.told(letter, now);
            }
            if let Some(proof) = self.take_list(&mut swap, now) {
                self.proven(&swap, now);
                return Some(proof);
            }
            self.steps_of_groups(&swap);
            self.guard(&mut guard, &bell);
            if now >= swap.deadline && !self.more_time(&mut swap, now) {
                return None;
            }
            if self.gives_way(&swap, now) {
                return None;
            }
            self.tell_what_is_missing(&mut swap, now);
            swap.start_devices(self.host, now);
            swap.start_list(self.host, now);
            self.host
                .system
                .wait(&bell, seen, swap.wake_at(now, guard.due()));
        }
    }

    /// Takes the list in, if it has come.
    fn take_list(&mut self, swap: &mut Swap, now: Monotonic) -> Option<Proof> {
        let (epoch, pending) = swap.list.as_ref()?;
        let (epoch, started) = (*epoch, pending.started());
        match pending.take() {
            None => {
                if now.since(started) >= LIST_LIMIT {
                    self.note("Listing the devices took too long and was tried again".into());
                    swap.list = None;
                }
                None
            }
            Some(Ok(list)) => {
                swap.list = None;
                swap.last_list = Some(now);
                self.hand_on_open(&list);
                swap.book.leave_out(&self.handed_on);
                swap.list_rest = (now.since(started) * LIST_REST).clamp(LIST_EVERY, LIST_LIMIT);
                let mark = |dev| self.host.system.mark(dev);
                let proof = swap
                    .book
                    .see(&mut self.groups, &list, epoch, &mark, started, now);
                if proof.is_none() && self.report.outcome == Outcome::Proven {
                    self.tell_reopened(&list, &mark);
                }
                proof
            }
            Some(Err(e)) => {
                swap.list = None;
                swap.last_list = Some(now);
                self.note(format!(
                    "Listing the devices failed and was tried again: {e}"
                ));
                None
            }
        }
    }

    fn steps_of_groups(&mut self, swap: &Swap) {
        for group in 0..self.groups.len() {
            let settled = swap.book.group_settled(group);
            if settled && self.result(StepKind::Swap, group) == Some(StepResult::Running) {
                self.end(
                    self.step(StepKind::Swap, group),
                    StepResult::Done,
                    "all tables are swapped".into(),
                );
            }
            if settled && self.result(StepKind::Verify, group) == Some(StepResult::Planned) {
                self.begin(self.step(StepKind::Verify, group));
            }
        }
    }

    /// I/O may take its whole time to end: whoever waits for the fence is told what it waits for, and not only in the end.
    fn tell_what_is_missing(&mut self, swap: &mut Swap, now: Monotonic) {
        if self.report.outcome != Outcome::InProgress || now.since(swap.told) < TELL_EVERY {
            return;
        }
        swap.told = now;
        swap.book
            .report(&mut self.report.volume_groups, false, false, now);
        for group in 0..self.groups.len() {
            let missing = swap.missing(group, now);
            for kind in [StepKind::Swap, StepKind::Verify] {
                let step = self.step(kind, group);
                let step = step.and_then(|i| self.report.steps.get_mut(i));
                if let Some(step) = step.filter(|s| s.result == StepResult::Running) {
                    step.message = Some(missing.clone());
                }
            }
        }
        self.publish();
    }

    fn proven(&mut self, swap: &Swap, now: Monotonic) {
        swap.book
            .report(&mut self.report.volume_groups, true, false, now);
        for group in 0..self.groups.len() {
            if self.handed_on.contains(&group) {
                continue;
            }
            let n = self
                .report
                .volume_groups
                .get(group)
                .map_or(0, |g| g.devices.len());
            for (kind, message) in [
                (StepKind::Swap, format!("{n} devices swapped or gone")),
                (
                    StepKind::Verify,
                    format!("{n} devices read back: one error target each, or gone"),
                ),
            ] {
                self.begin(self.step(kind, group));
                self.end(self.step(kind, group), StepResult::Done, message);
            }
        }
    }

    /// The deadline has passed: whether to go on.
    fn more_time(&mut self, swap: &mut Swap, now: Monotonic) -> bool {
        if !swap.given_up {
            // Leases that were renewed meanwhile leave more time.
            self.reset = self.current_reset().or(self.reset);
            let deadline = budget::swap_deadline(swap.began, self.order.drain_timeout, self.reset);
            if deadline > now {
                swap.deadline = deadline;
                return true;
            }
            swap.given_up = true;
            self.not_proven(swap, now);
            if self.lives(now) {
                self.report.message.push_str(TRIED_ON);
            }
            // Whoever resumes it knows that it may give way.
            if let Err(e) = self.journal.finish(&self.report) {
                self.note_journal(&e);
            }
            self.publish();
        }
        let mut lives = self.lives(now);
        if !lives {
            // By what was known when it was reported. Where the leases lie on a physical volume that lives they go on being renewed, and the host is not reset.
            self.reset = self.current_reset().or(self.reset);
            lives = self.lives(self.host.system.monotonic());
        }
        if !lives {
            self.not_proven(swap, now);
        }
        swap.deadline = now + LOOK_AGAIN;
        lives
    }

    /// Whether it is worth trying: as long as the host lives. After that it does not matter. Nothing resets it for what nobody has locked.
    fn lives(&self, now: Monotonic) -> bool {
        (0..self.groups.len()).any(|g| self.unlocked(g) || self.unguarded.contains(&g))
            || self.report.watchdog.armed && self.reset.is_some_and(|r| now < r.latest)
    }

    pub(super) fn not_proven(&mut self, swap: &Swap, now: Monotonic) {
        swap.book
            .report(&mut self.report.volume_groups, false, true, now);
        let mut short = Vec::new();
        for group in 0..self.groups.len() {
            let of_group = swap.book.shortcomings(group);
            let kind = if swap.book.group_settled(group) {
                StepKind::Verify
            } else {
                StepKind::Swap
            };
            if !of_group.is_empty() && self.result(kind, group) != Some(StepResult::Failed) {
                let why = format!("not proven by the deadline: {}", of_group.join(", "));
                self.begin(self.step(kind, group));
                self.end(self.step(kind, group), StepResult::Failed, why);
            }
            short.extend(of_group);
        }
        if short.is_empty() {
            short.push("the devices could not be read back in time".into());
        }
        self.report.outcome = Outcome::NotProven;
        let short = short.join(", ");
        let groups = || self.report.volume_groups.iter().enumerate();
        let of = |gone: bool| -> Vec<&str> {
            let is = |at, g: &VolumeGroupReport| {
                g.released_after.is_some() || self.unguarded.contains(&at)
            };
            let those =
                groups().filter(|(at, g)| is(*at, g) == gone && !self.handed_on.contains(at));
            those.map(|(_, g)| g.name.as_str()).collect()
        };
        let (gone, kept) = (of(true).join(", "), of(false).join(", "));
        if gone.is_empty() {
            self.report.message = format!(
                "Not proven: {short}. Nothing was released, so the watchdog resets the host if its lease runs out; reset it yourself if it does not"
            );
            self.report.locks = LocksOutcome::Kept;
            self.report.locks_message =
                "Nothing was released: at least one device may still reach the SAN".into();
            return;
        }
        // Proven once, released, and open since: no watchdog waits for these any more.
        self.report.message = format!(
            "Not proven: {short}. The locks of {gone} had been released before, so another host may use its volumes: reset this host now"
        );
        let by_us = groups().all(|(_, g)| g.released_after.is_some());
        (self.report.locks, self.report.locks_message) = if by_us {
            let message =
                format!("The locks of {gone} had been released when its fence was proven before");
            (LocksOutcome::Released, message)
        } else if kept.is_empty() {
            let message =
                format!("The locks of {gone} had been released before, and not by this fence");
            (LocksOutcome::Kept, message)
        } else {
            let message =
                format!("The locks of {gone} had been released before; those of {kept} are kept");
            (LocksOutcome::Kept, message)
        };
    }
}

impl Swap {
    pub(super) const fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether a listing of this turn shows that something is left to be waited for. A kernel that does not list is not waited for.
    pub(super) fn has_looked(&self, now: Monotonic) -> bool {
        let falls_short = self.last_list.is_some() && !self.book.all_settled();
        falls_short || now.since(self.began) >= LIST_LIMIT
    }

    /// What a group's proof waits for, in words.
    fn missing(&self, group: usize, now: Monotonic) -> String {
        let all = self.book.shortcomings(group);
        if all.is_empty() {
            let Some((_, list)) = &self.list else {
                return "not proven yet: its devices are swapped, and have to be read back".into();
            };
            let waited = now.since(list.started()).as_secs();
            return format!(
                "not proven yet: the kernel has been listing the devices for {waited} s"
            );
        }
        let (named, more) = all.split_at(NAMED.min(all.len()));
        let more = match more.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        format!("not proven yet: {}{more}", named.join(", "))
    }

    pub(super) const fn began(&self) -> Monotonic {
        self.began
    }

    fn start_devices(&mut self, host: &Host, now: Monotonic) {
        let jobs = self.book.start(now);
        if !jobs.is_empty() {
            self.crew.add(jobs);
        }
        self.crew.work(host, self.book.threads(now));
    }

    fn start_list(&mut self, host: &Host, now: Monotonic) {
        let due = match self.last_list {
            // Of a planned fence the first list can be the proof: it waits for the swaps as long as they get on, but not for those that hang.
            None => !self.book.planned || self.book.planned_settled() || now >= self.first_list(),
            // Settled: only the proof is missing, at once if it was not asked for yet.
            Some(at) if self.book.all_settled() => {
                self.listed_epoch != Some(self.book.epoch()) || now.since(at) >= LOOK_AGAIN
            }
            Some(at) => now.since(at) >= self.list_rest,
        };
        if self.list.is_none() && due {
            self.book.ask();
            let epoch = Some(self.book.epoch());
            // One that is listed again though nothing was settled since gets nothing done: the fence hangs.
            let signs = (self.listed_epoch != epoch).then_some(&self.crew.signs);
            let telling = signs.map(|signs| telling(host, signs));
            let host = telling.as_ref().unwrap_or(host);
            let list = |h: &Host| h.device_mapper.devices();
            let pending = Pending::start(host, &self.crew.bell, "listing the devices", list);
            self.listed_epoch = epoch;
            self.list = Some((self.book.epoch(), pending));
        }
    }

    /// When a planned fence lists the devices though some are still at it: they do not get on, or take long. In time before the deadline, since something
    /// may have to be done about what is seen.
    fn first_list(&self) -> Monotonic {
        let moved = self.book.settled_last().max(self.began);
        let time = self.deadline.since(self.began);
        let least = LIST_EVERY.min(time / 2);
        let patience = self.book.takes().min(time / 4).max(least);
        (moved + LIST_EVERY).min(self.began + patience)
    }

    fn wake_at(&self, now: Monotonic, guard: Monotonic) -> Monotonic {
        let mut at = self
            .deadline
            .min(guard.max(now + LOOK_AGAIN))
            .min(now + LIST_EVERY);
        if self.last_list.is_none() && self.list.is_none() {
            at = at.min(self.first_list().max(now + LOOK_AGAIN));
        }
        if let Some(retry) = self.book.next_retry(now) {
            at = at.min(retry);
        }
        if self.crew.has_jobs() {
            // All threads may be stuck.
            at = at.min(now + STUCK);
        }
        if self.book.all_settled() {
            at = at.min(now + LOOK_AGAIN);
        }
        at
    }
}
