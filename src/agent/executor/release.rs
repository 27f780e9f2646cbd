//! Having the lock manager let go, once the fence is proven; and seeing that it did.
//!
//! The answer to `drop_vg` proves nothing, and may come late or never while sanlock has long let go: sanlock and wdmd are asked until they say so.
//! A drop has no generation argument, so it is sent only to the lockspace that the fence froze: same UUID, same host id, same generation, still frozen.
//!
//! sanlock knows lockspaces by name only. That it has none of that name says that the locks are released where the fence froze them, since nobody
//! renames what is frozen. Where it could not, lvmlockd has to say that it has none of the volume group's UUID; as long as it does not answer, nothing is
//! called released but what nobody had locked from the beginning, while sanlock has none of any other volume group.

use std::time::Duration;

use super::frozen::Known;
use super::incarnation::{Held, held};
use super::limited::Pending;
use super::nowhere::Nowhere;
use super::track::Proof;
use super::{Fence, LOOK_AGAIN};
use crate::agent::hook;
use crate::agent::journal::{GroupRecord, Waits};
use crate::fence::budget::watchdog_client;
use crate::fence::report::{LocksOutcome, StepKind, StepReport, StepResult, VolumeGroupReport};
use crate::fence::unlocked::is_client_of;
use crate::fence::{Monotonic, Watchdog};
use crate::host::{Bell, SanlockStatus};

/// A proof that is older than this, and than it took to get, is had anew before a drop: a device may have been given its table back since.
const FRESH: Duration = Duration::from_secs(2);
/// How long a drop may take: removing a lockspace waits up to two I/O time-outs for a renewal that hangs.
const DROP_LIMIT: Duration = Duration::from_secs(45);
/// How long the lock manager is given to be seen letting go, from the first attempt on; longer where it still holds a lockspace and the host
/// lives by what is known, since a release after proof is right at any time.
pub(super) const CONFIRM_LIMIT: Duration = Duration::from_mins(1);

/// A drop that failed is sent again after this long, if sanlock still holds the lockspace then.
const RESEND: Duration = Duration::from_secs(5);

/// How a release goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It has ended, one way or the other.
    Ended,
    /// Something is to be dropped, and a device is open again.
    ProveAgain,
}

/// A release that goes on, across proofs.
pub(super) struct Release {
    began: Monotonic,
    bell: Bell,
    drops: Vec<Option<Sent>>,
    /// It goes on beyond the reset that was known first.
    prolonged: bool,
}

/// A drop that was sent.
struct Sent {
    call: Pending<()>,
    failed: bool,
}

/// What is to be done about one volume group.
pub(super) enum Then {
    Wait,
    /// By that name. `anew`: only after a look, since the proof may be older than the freeze.
    Drop {
        vg: String,
        anew: bool,
    },
    /// Nobody holds its locks, and they were not frozen: until sanlock let go of them a volume could come into use.
    LookOnceMore,
    /// Its locks are held, under another name or since lvmlockd did not answer in time: they have to be frozen, and all of it proven again.
    Freeze,
}

impl Fence<'_> {
    pub(super) fn begin_release(&self) -> Release {
        Release {
            began: self.host.system.monotonic(),
            bell: Bell::default(),
            drops: self.groups.iter().map(|_| None).collect(),
            prolonged: false,
        }
    }

    /// Goes on with it until it has ended, or needs a newer proof.
    pub(super) fn release(&mut self, release: &mut Release, proof: Proof) -> Next {
        if self.order.release_locks == crate::fence::order::ReleaseLocks::Never {
            self.keep_locks(
                "the request keeps the locks; the watchdog resets the host when the leases run out",
            );
            return Next::Ended;
        }
        let entered = self.host.system.monotonic();
        // A node that takes long for a proof takes long for what comes after it, too.
        let fresh = FRESH + proof.age(entered);
        let mut proof = proof;
        let Release {
            began,
            bell,
            drops,
            prolonged,
        } = release;
        loop {
            let seen = bell.rings();
            for (group, drop) in drops.iter_mut().enumerate() {
                self.drop_answered(group, drop);
            }
            let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
            let watchdog = self.watchdog_to_confirm(sanlock.as_ref().ok());
            let mut freeze = false;
            match &sanlock {
                Err(e) => self.note(format!("sanlock failed to answer during the release: {e}")),
                Ok(sanlock) => {
                    self.hand_on(sanlock);
                    // Asked for once, before anything is dropped: while it drops a lockspace lvmlockd tells nothing of any other.
                    let mut known = None;
                    for (group, drop) in drops.iter_mut().enumerate() {
                        match self.release_group(
                            group,
                            sanlock,
                            &watchdog,
                            drop.is_some(),
                            &mut known,
                        ) {
                            Then::Wait => {}
                            // The others are looked at first: this one may take all the time there is.
                            Then::Freeze => freeze = true,
                            Then::Drop { vg, anew } => {
                                let old = if anew { Duration::ZERO } else { fresh };
                                match self.still_closed(&mut proof, old) {
                                    Some(true) => {
                                        let Some(vg) =
                                            self.still_frozen(group, sanlock, &mut known, vg)
                                        else {
                                            continue;
                                        };
                                        if anew {
                                            self.turned_out_frozen(group);
                                        }
                                        *drop = Some(self.drop_group(group, bell, vg));
                                    }
                                    Some(false) => return Next::ProveAgain,
                                    None => {}
                                }
                            }
                            Then::LookOnceMore => {
                                self.unguarded.insert(group);
                                match self.still_closed(&mut proof, Duration::ZERO) {
                                    Some(true) => self.let_go(group, &watchdog),
                                    Some(false) => return Next::ProveAgain,
                                    None => {}
                                }
                            }
                        }
                    }
                }
            }
            if self.all_ended() || self.taken_away() {
                break;
            }
            let now = self.host.system.monotonic();
            let known = self.release_until(*began);
            let holds = self.holds(sanlock.as_ref().ok());
            if self.is_minded(now.since(*began), holds, *prolonged) {
                break;
            }
            if freeze && now < known {
                return Next::ProveAgain;
            }
            if now >= known && holds {
                self.more_time_to_release(now);
            }
            let until = self.release_until(*began);
            *prolonged |= until > known;
            if now >= until {
                break;
            }
            let at = (now + LOOK_AGAIN).min(until);
            self.host.system.wait(bell, seen, at);
        }
        self.conclude();
        if self.gave_way {
            self.release_waits();
        }
        Next::Ended
    }

    /// Asked only once there is something to confirm: a wdmd that hangs must not make the proof old before the drop.
    fn watchdog_to_confirm(&self, sanlock: Option<&SanlockStatus>) -> Watchdog {
        let mut groups = self.report.volume_groups.iter();
        if sanlock.is_some_and(|s| groups.any(|g| matches!(held(g, s), Held::No))) {
            let asked = self.ask("asking wdmd for its status", |h| Ok(h.wdmd.status()));
            asked.unwrap_or_default()
        } else {
            Watchdog::default()
        }
    }

    /// How long to go on: while sanlock holds a lockspace, for as long as the host may live.
    fn release_until(&self, began: Monotonic) -> Monotonic {
        let until = began + CONFIRM_LIMIT;
        let held = |(at, g): (usize, &VolumeGroupReport)| {
            g.released_after.is_none() && !self.handed_on.contains(&at)
        };
        let mut groups = self.report.volume_groups.iter().enumerate();
        match self.reset {
            Some(reset) if groups.any(held) => until.max(reset.latest),
            _ => until,
        }
    }

    /// Whether sanlock holds a lockspace that the fence froze, and goes on to.
    fn holds(&self, sanlock: Option<&SanlockStatus>) -> bool {
        let ours = |(at, g): (usize, &VolumeGroupReport)| {
            let held = sanlock.is_some_and(|s| matches!(held(g, s), Held::Yes));
            held && !self.handed_on.contains(&at)
        };
        self.report.volume_groups.iter().enumerate().any(ours)
    }

    /// Whether to end it for others: another fence that waits goes first, or whoever asked for this one wants the storage back.
    fn is_minded(&mut self, waited: Duration, holds: bool, prolonged: bool) -> bool {
        self.release_gives_way(waited, holds, prolonged)
            || ((self.releases_again || prolonged) && (self.cancel)())
    }

    /// Time is up by the reset that was known. Where the leases go on being renewed it has moved: nothing resets the host, nobody else would have the
    /// lock manager let go, and it may answer yet. But no other fence of the node waits for that: it goes first, and then this one goes on. Nor who
    /// wants the storage back; nor lvmlockctl, which has it let go itself once its hook has ended.
    fn more_time_to_release(&mut self, now: Monotonic) {
        if hook::is_ours(&self.order.uid) || (self.cancel)() {
            return;
        }
        let reset = self.current_reset().or(self.reset);
        if self.journal.waits() == Waits::Nobody {
            self.reset = reset;
        } else {
            self.gave_way = reset.is_some_and(|r| now < r.latest);
        }
    }

    /// One round for one volume group: looks for what has been reached.
    fn release_group(
        &mut self,
        group: usize,
        sanlock: &SanlockStatus,
        watchdog: &Watchdog,
        sent: bool,
        known: &mut Option<Known>,
    ) -> Then {
        let release = self.step(StepKind::Release, group);
        let Some(report) = self.report.volume_groups.get(group) else {
            return Then::Wait;
        };
        if self.handed_on.contains(&group) {
            return Then::Wait;
        }
        match held(report, sanlock) {
            Held::No => {
                match self.nowhere(group, sanlock, watchdog) {
                    Nowhere::Sure => {}
                    Nowhere::Unsure(why) => {
                        self.fell_short(release, why);
                        return Then::Wait;
                    }
                    Nowhere::Renamed(why) => {
                        let freeze = self.step(StepKind::FreezeLocks, group);
                        self.end(freeze, StepResult::Failed, why.clone());
                        self.fell_short(release, why);
                        return Then::Freeze;
                    }
                }
                let frozen = self.result(StepKind::FreezeLocks, group) == Some(StepResult::Done);
                if !frozen && report.released_after.is_none() {
                    return Then::LookOnceMore;
                }
                self.let_go(group, watchdog);
                Then::Wait
            }
            Held::Anew => {
                let why = "the lockspace was joined again since: it is not the fence's to drop";
                self.fell_short(release, why.into());
                Then::Wait
            }
            Held::Yes if sent || self.taken_away() => Then::Wait,
            Held::Yes => {
                let known = known.get_or_insert_with(|| self.known());
                self.may_drop(group, sanlock, known)
            }
        }
    }

    /// sanlock has nothing of the volume group any more, and all of it is closed; whether the watchdog let go too.
    fn let_go(&mut self, group: usize, watchdog: &Watchdog) {
        self.unguarded.remove(&group);
        let release = self.step(StepKind::Release, group);
        let confirm = self.step(StepKind::ConfirmRelease, group);
        let at = self.elapsed();
        let Some(report) = self.report.volume_groups.get_mut(group) else {
            return;
        };
        if report.released_after.is_none() {
            report.released_after = Some(at);
            self.journal.signs().give();
        }
        let (lockspace, host_id) = (report.lockspace.clone(), report.host_id);
        let watched = |client: &str| match (&lockspace, host_id) {
            (Some(l), Some(id)) => client == watchdog_client(l, id),
            (Some(l), None) => is_client_of(client, l),
            _ => false,
        };
        match self.result(StepKind::Release, group) {
            Some(StepResult::Planned) => {
                let why = "sanlock had let go already";
                self.end(release, StepResult::Skipped, why.into());
            }
            Some(StepResult::Running | StepResult::Failed) => {
                self.end(release, StepResult::Done, "the lockspace is dropped".into());
            }
            _ => {}
        }
        self.begin(confirm);
        if self.result(StepKind::ConfirmRelease, group) != Some(StepResult::Running) {
            return;
        }
        let let_go = watchdog.known && !watchdog.clients.iter().any(|c| watched(&c.0));
        if let_go {
            self.end(confirm, StepResult::Done, "sanlock and wdmd let go".into());
        } else if !watchdog.known && !self.report.watchdog.armed {
            let why = "sanlock let go; wdmd does not answer, as when the fence began";
            self.end(confirm, StepResult::Done, why.into());
        }
    }

    /// A step has not succeeded yet; said again only when there is another reason.
    pub(super) fn fell_short(&mut self, step: Option<usize>, why: String) {
        let said = step.and_then(|at| self.report.steps.get(at));
        let same = |s: &StepReport| {
            s.result == StepResult::Failed && s.message.as_deref() == Some(why.as_str())
        };
        if !said.is_some_and(same) {
            self.begin(step);
            self.end(step, StepResult::Failed, why);
        }
    }

    fn drop_group(&mut self, group: usize, bell: &Bell, vg: String) -> Sent {
        // Written down before it is done.
        self.begin(self.step(StepKind::Release, group));
        let name = vg.clone();
        let call = move |h: &crate::host::Host| h.lvmlockd.drop_vg(&vg, DROP_LIMIT);
        let what = "dropping the lockspace";
        Sent {
            call: Pending::start_about(self.host, bell, what, &name, call),
            failed: false,
        }
    }

    fn turned_out_frozen(&mut self, group: usize) {
        let freeze = self.step(StepKind::FreezeLocks, group);
        let why = "lvmlockd has it frozen by now";
        self.end(freeze, StepResult::Done, why.into());
    }

    fn drop_answered(&mut self, group: usize, drop: &mut Option<Sent>) {
        let Some(sent) = drop else { return };
        if let Some(Err(e)) = sent.call.take() {
            let name = self.groups.get(group).map_or("", GroupRecord::vg);
            let note =
                format!("drop_vg of {name} was not answered well, which proves nothing: {e}");
            self.note(note);
            sent.failed = true;
        }
        if sent.failed && self.host.system.monotonic().since(sent.call.started()) >= RESEND {
            *drop = None;
        }
    }

    fn all_ended(&self) -> bool {
        let confirmed = |g| self.result(StepKind::ConfirmRelease, g) == Some(StepResult::Done);
        (0..self.groups.len()).all(|g| confirmed(g) || self.handed_on.contains(&g))
    }

    fn conclude(&mut self) {
        let at = self.elapsed();
        let mut open = Vec::new();
        for group in 0..self.groups.len() {
            if self.result(StepKind::ConfirmRelease, group) == Some(StepResult::Done) {
                continue;
            }
            let name = self
                .groups
                .get(group)
                .map(|g| g.name.clone())
                .unwrap_or_default();
            let gone = self
                .report
                .volume_groups
                .get(group)
                .is_some_and(|g| g.released_after.is_some());
            let failed = self
                .step(StepKind::Release, group)
                .and_then(|at| self.report.steps.get(at))
                .filter(|s| s.result == StepResult::Failed);
            let why = match failed.and_then(|s| s.message.clone()) {
                _ if self.unguarded.contains(&group) => {
                    "nobody holds its locks any more, and its devices could not be listed since: another host may use its volumes".to_owned()
                }
                Some(why) if !gone => why,
                _ if gone => "sanlock let go, but wdmd was not seen to".to_owned(),
                _ => "sanlock was not seen to let go".to_owned(),
            };
            for kind in [StepKind::Release, StepKind::ConfirmRelease] {
                if !matches!(
                    self.result(kind, group),
                    Some(StepResult::Done | StepResult::Skipped | StepResult::Failed)
                ) {
                    self.begin(self.step(kind, group));
                    self.end(self.step(kind, group), StepResult::Failed, why.clone());
                }
            }
            open.push(format!("volume group {name}: {why}"));
        }
        if open.is_empty() {
            self.report.locks = LocksOutcome::Released;
            self.report.locks_message =
                "The lock manager let go of every lockspace: the watchdog no longer waits for them"
                    .into();
            if self.report.watchdog.armed {
                self.report.watchdog.disarmed_after.get_or_insert(at);
            }
        } else {
            self.report.locks = LocksOutcome::NotConfirmed;
            let armed = if self.report.watchdog.armed {
                "The watchdog may still reset the host: look"
            } else {
                "Look"
            };
            self.report.locks_message = format!(
                "{}. {armed} at `sanlock client status` and `wdmd -d` on the node",
                open.join("; ")
            );
        }
    }
}
