//! Freezing the locks: lvmlockd grants no new one, so no device of the volume group comes into use any more.
//!
//! The point of no return: `kill_vg` can only be undone by dropping the lockspace and joining it again.

use std::time::Duration;

use super::Fence;
use super::incarnation::{Held, held, surely_same};
use crate::fence::inventory::present;
use crate::fence::order::ReleaseLocks;
use crate::fence::report::{LocksOutcome, Outcome, StepKind, StepReport, StepResult};
use crate::fence::selection::RefusalReason;
use crate::fence::{Lockspace, LockspaceState};
use crate::host::SanlockLockspace;

/// How long lvmlockd is asked again when it fails, before the fence is refused for it.
const LIMIT: Duration = Duration::from_secs(20);
/// The same once another volume group is frozen: its I/O shall not go on for that long. It is tried again before the release.
const LIMIT_COMMITTED: Duration = Duration::from_secs(5);

/// Why a volume group was not frozen.
enum Obstacle {
    /// lvmlockd could not be brought to it.
    Daemon(String),
    /// It is not what was meant any more.
    Renamed(String),
    /// Whoever asked for it does not want it any more, and nothing was sent.
    CalledOff,
}

/// When a volume group is frozen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before any other: nothing was touched yet.
    First,
    /// Another one of the order is, so the fence goes through.
    Committed,
    /// That failed before, and all is cut off since.
    CutOff,
    /// The same, and the release has begun.
    Releasing,
}

impl Fence<'_> {
    /// Whether the fence goes on.
    pub(super) fn freeze(&mut self) -> bool {
        // One that died before it told lvmlockd anything has left no trace, and binds nobody.
        let mut committed = self.resumed && self.touched();
        for group in 0..self.groups.len() {
            if self.taken_away() {
                return false;
            }
            if !committed && (self.cancel)() {
                self.call_off();
                return false;
            }
            let step = self.step(StepKind::FreezeLocks, group);
            let frozen = self.result(StepKind::FreezeLocks, group) == Some(StepResult::Done);
            if frozen || self.handed_on.contains(&group) {
                // By the agent that this one succeeds; or in use under other locks since.
                continue;
            }
            self.begin(step);
            let when = if committed {
                When::Committed
            } else {
                When::First
            };
            let mut sent = false;
            match self.freeze_group(group, when, &mut sent) {
                Ok((result, message)) => {
                    self.journal.signs().give();
                    // Where nothing was frozen, nothing keeps from leaving it at that.
                    committed |= result == StepResult::Done;
                    self.end(step, result, message);
                }
                Err(obstacle) => {
                    // What nobody has locked is better cut off than left open, whether lvmlockd answers or not.
                    let (why, matters) = match obstacle {
                        Obstacle::Daemon(why) => (why, !self.unlocked(group)),
                        Obstacle::Renamed(why) => (why, true),
                        Obstacle::CalledOff => {
                            let why = "called off before lvmlockd was told";
                            self.end(step, StepResult::Skipped, why.into());
                            self.call_off();
                            return false;
                        }
                    };
                    self.end(step, StepResult::Failed, why.clone());
                    if !committed && matters {
                        let reason = RefusalReason::LvmlockdUnavailable;
                        self.report.outcome = Outcome::Refused(reason);
                        self.report.message = format!(
                            "The locks could not be frozen, so no device was touched: {why}. \
                             Look at lvmlockd on the node, but do not start it anew while the SAN \
                             is away (docs/bad-night.md); if it stays away, the watchdog resets \
                             the host{}",
                            self.may_be_frozen(group)
                                .filter(|_| sent)
                                .unwrap_or_default()
                        );
                        self.report.locks = LocksOutcome::Kept;
                        self.report.locks_message = "Nothing was released".into();
                        return false;
                    }
                }
            }
        }
        true
    }

    /// What else there is to be said of a volume group that is left alone after lvmlockd was told to freeze it.
    fn may_be_frozen(&self, group: usize) -> Option<String> {
        let vg = self.groups.get(group)?.vg();
        Some(format!(
            ". But kill_vg of {vg} was sent and not confirmed, and lvmlockd may carry it out yet: then {vg} gets no new locks (-217), fenced or not. \
             Its lockspace is Killed in this node's NodeStorage if so: have {vg} fenced, or, once nothing of it is active, join it anew \
             (lvmlockctl --drop {vg}, vgchange --lockstart {vg})"
        ))
    }

    fn call_off(&mut self) {
        self.report.outcome = Outcome::CalledOff;
        self.report.message = "Called off before anything was touched".into();
        self.keep_locks("the fence was called off");
    }

    /// Whether nobody held the volume group's locks when the fence began: then there was no host id either.
    pub(super) fn unlocked(&self, group: usize) -> bool {
        let of = self.report.volume_groups.get(group);
        of.is_some_and(|g| g.host_id.is_none())
    }

    /// Tries again where it failed. Whether one was frozen that was not before.
    pub(super) fn freeze_missing(&mut self, releasing: bool) -> bool {
        let when = if releasing {
            When::Releasing
        } else {
            When::CutOff
        };
        let mut any = false;
        for group in 0..self.groups.len() {
            let failed = self.result(StepKind::FreezeLocks, group) == Some(StepResult::Failed);
            if !failed || self.handed_on.contains(&group) {
                continue;
            }
            let step = self.step(StepKind::FreezeLocks, group);
            if let Ok((result, message)) = self.freeze_group(group, when, &mut false) {
                self.begin(step);
                self.end(step, result, message);
                any = true;
            }
        }
        any
    }

    /// What was done about one volume group, or why lvmlockd could not be brought to it. Skipped: there is nothing to be frozen.
    ///
    /// A lockspace is killed by name, and a volume group may have been renamed since it was looked at, and another one have its name by now. So
    /// lvmlockd is asked for its lockspaces first, each with the UUID that it belongs to. A volume group whose locks nobody held may have been joined
    /// to its lockspace since: then it is fenced as what it is by now, in that lockspace. Where lvmlockd does not answer nothing of it is held, and it
    /// is not waited for.
    ///
    /// Until then it may be called off at any time, but for one: a kill that was not answered may still be carried out, and leave a trace. `sent`: there
    /// was one.
    fn freeze_group(
        &mut self,
        group: usize,
        when: When,
        sent: &mut bool,
    ) -> Result<(StepResult, String), Obstacle> {
        let began = self.host.system.monotonic();
        let committed = when != When::First;
        let limit = if committed { LIMIT_COMMITTED } else { LIMIT };
        let mut followed = false;
        let called_off = |fence: &Self, sent: bool| !committed && !sent && (fence.cancel)();
        loop {
            // Until it turns out to have been joined meanwhile.
            let unlocked = self.unlocked(group);
            let known = self.lockspaces();
            let Some((record, report)) = self
                .groups
                .get(group)
                .zip(self.report.volume_groups.get(group))
            else {
                let why = "no such volume group in the fence";
                return Err(Obstacle::Renamed(why.into()));
            };
            let failure = match known {
                Err(e) => e.to_string(),
                Ok(known) => {
                    let lockspace = report.lockspace.as_deref().unwrap_or_default();
                    let Some(l) = present(&known, &record.uuid, lockspace) else {
                        let why = if unlocked {
                            "nobody holds its locks: there is nothing to be frozen"
                        } else {
                            "lvmlockd has no such lockspace any more"
                        };
                        return Ok((StepResult::Skipped, why.into()));
                    };
                    // Two long names may be cut to one lockspace.
                    let renamed = l.name != lockspace || l.vg_name != record.vg();
                    if renamed && !committed {
                        // Its volumes may be in use under new locks, and nothing was touched yet.
                        return Err(Obstacle::Renamed(format!(
                            "volume group {} is called {} by now; if that one is to be fenced, ask for it by this name",
                            record.name, l.vg_name
                        )));
                    }
                    if (renamed || unlocked) && l.state == LockspaceState::Removing {
                        format!("the lockspace of {} is being removed", l.vg_name)
                    } else {
                        if called_off(self, *sent) {
                            return Err(Obstacle::CalledOff);
                        }
                        if unlocked && matches!(when, When::CutOff | When::Releasing) {
                            return Err(Obstacle::Renamed(format!(
                                "{} was joined to its lockspace since it was cut off",
                                l.vg_name
                            )));
                        }
                        if renamed || unlocked {
                            self.follow(group, l);
                            followed = true;
                        }
                        if !followed && self.joined_anew(group, when) {
                            return Err(Obstacle::Renamed(format!(
                                "the lockspace of {} was joined again since",
                                l.vg_name
                            )));
                        }
                        if !l.frozen {
                            self.tells(group);
                        }
                        match self.kill(l) {
                            Ok(done) => return Ok((StepResult::Done, done.into())),
                            // The answer may have been lost after the deed: the next look shows it.
                            Err(e) => {
                                *sent = true;
                                e.to_string()
                            }
                        }
                    }
                }
            };
            let waited = self.host.system.monotonic().since(began);
            if self.unlocked(group) || waited >= limit {
                return Err(Obstacle::Daemon(failure));
            }
            self.pause();
            if called_off(self, *sent) {
                return Err(Obstacle::CalledOff);
            }
        }
    }

    /// Whether a lockspace that could not be frozen before may have been joined again since: then its volumes are in use anew. Once the locks are
    /// being released it has to be known that it was not.
    fn joined_anew(&self, group: usize, when: When) -> bool {
        if matches!(when, When::First | When::Committed) {
            return false;
        }
        let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
        let of = self.report.volume_groups.get(group);
        match of.zip(sanlock.ok()) {
            None => when == When::Releasing,
            Some((of, sanlock)) if when == When::Releasing => {
                !surely_same(of, &sanlock, self.report.started)
            }
            Some((of, sanlock)) => matches!(held(of, &sanlock), Held::Anew),
        }
    }

    /// Whether locks may have been given away, in this turn or by an agent that was killed: what was joined since is in use under others.
    pub(super) fn has_begun_to_release(&self) -> bool {
        let begun = |s: &StepReport| s.kind == StepKind::Release && s.result != StepResult::Planned;
        self.order.release_locks != ReleaseLocks::Never && self.report.steps.iter().any(begun)
    }

    fn touched(&self) -> bool {
        let mut steps = self.report.steps.iter();
        steps.any(StepReport::may_have_left_a_trace)
    }

    /// lvmlockd is about to be told. What lies in its socket, or waits behind a lock that it cannot get from the SAN, is carried out whenever it can be,
    /// whether or not whoever sent it lives: until then its list shows nothing of that, so the journal has to.
    fn tells(&mut self, group: usize) {
        let index = self.step(StepKind::FreezeLocks, group);
        let step = index.and_then(|i| self.report.steps.get_mut(i));
        if let Some(step) = step.filter(|s| s.untold) {
            step.untold = false;
            self.write(index);
        }
    }

    fn kill(&self, lockspace: &Lockspace) -> crate::host::Result<&'static str> {
        if lockspace.frozen {
            return Ok("lvmlockd had it frozen already");
        }
        let vg = lockspace.vg_name.clone();
        self.ask("kill_vg", move |h| h.lvmlockd.kill_vg(&vg))?;
        Ok("lvmlockd grants no more locks")
    }

    /// A volume group was renamed or joined to its lockspace since it was looked at, and the fence goes through: it is frozen, and once it is proven
    /// released, in the lockspace that it has by now. That is written down before: a successor would take it for one in use anew.
    fn follow(&mut self, group: usize, to: &Lockspace) {
        let of_it = |s: &SanlockLockspace| {
            s.name == to.name && s.host_id == to.host_id && s.state != LockspaceState::Removing
        };
        let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
        let told = sanlock
            .ok()
            .and_then(|s| s.lockspaces.into_iter().find(of_it));
        let Some((record, report)) = self
            .groups
            .get_mut(group)
            .zip(self.report.volume_groups.get_mut(group))
        else {
            return;
        };
        record.called = (record.name != to.vg_name).then(|| to.vg_name.clone());
        report.lockspace = Some(to.name.clone());
        report.host_id = Some(to.host_id);
        report.generation = told.and_then(|s| s.generation).or(to.generation);
        report.released_after = None;
        let note = if record.called.is_some() {
            format!(
                "Volume group {} was renamed to {} before its locks were frozen: it is cut off, and its locks are released, by that name",
                record.name, to.vg_name
            )
        } else {
            format!(
                "Volume group {} was joined to its lockspace {} before it was cut off: its locks are frozen and released there",
                record.name, to.name
            )
        };
        self.note(note);
        let given_up = self.report.outcome == Outcome::NotProven;
        let record = self.as_record(given_up);
        if let Err(e) = self.journal.resume(&record) {
            self.note_journal(&e);
        }
    }
}
