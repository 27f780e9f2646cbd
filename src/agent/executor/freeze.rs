//! Freezing the locks: lvmlockd grants no new one, so no device of the volume group comes into use any more.
//!
//! The point of no return: `kill_vg` can only be undone by dropping the lockspace and joining it again.

use std::time::Duration;

use super::Fence;
use crate::fence::report::{LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::selection::RefusalReason;

/// How long lvmlockd is asked again when it fails, before the fence is refused for it.
const LIMIT: Duration = Duration::from_secs(20);
/// The same once another volume group is frozen: its I/O shall not go on for that long. It is tried again before the release.
const LIMIT_COMMITTED: Duration = Duration::from_secs(5);

impl Fence<'_> {
    /// Whether the fence goes on.
    pub(super) fn freeze(&mut self, cancel: &dyn Fn() -> bool) -> bool {
        let mut committed = self.resumed;
        for group in 0..self.groups.len() {
            if self.taken_away() {
                return false;
            }
            if !committed && cancel() {
                self.report.outcome = Outcome::CalledOff;
                self.report.message = "Called off before anything was touched".into();
                self.keep_locks("the fence was called off");
                return false;
            }
            let step = self.step(StepKind::FreezeLocks, group);
            if self.result(StepKind::FreezeLocks, group) == Some(StepResult::Done) {
                // By the agent that this one succeeds.
                continue;
            }
            self.begin(step);
            let limit = if committed { LIMIT_COMMITTED } else { LIMIT };
            match self.freeze_group(group, limit) {
                Ok(message) => {
                    committed = true;
                    self.end(step, StepResult::Done, message);
                }
                Err(why) => {
                    self.end(step, StepResult::Failed, why.clone());
                    if !committed {
                        let reason = RefusalReason::LvmlockdUnavailable;
                        self.report.outcome = Outcome::Refused(reason);
                        self.report.message = format!(
                            "The locks could not be frozen, so no device was touched: {why}. \
                             Check lvmlockd on the node; if the SAN stays away, the watchdog \
                             resets the host"
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

    /// Tries again where it failed. Whether one was frozen that was not before.
    pub(super) fn freeze_missing(&mut self) -> bool {
        let mut any = false;
        for group in 0..self.groups.len() {
            if self.result(StepKind::FreezeLocks, group) != Some(StepResult::Failed) {
                continue;
            }
            let step = self.step(StepKind::FreezeLocks, group);
            if let Ok(message) = self.freeze_group(group, LIMIT_COMMITTED) {
                self.begin(step);
                self.end(step, StepResult::Done, message);
                any = true;
            }
        }
        any
    }

    /// What was done about one volume group, or why lvmlockd could not be brought to it.
    fn freeze_group(&self, group: usize, limit: Duration) -> Result<String, String> {
        let until = self.host.system.monotonic() + limit;
        let Some((record, report)) = self
            .groups
            .get(group)
            .zip(self.report.volume_groups.get(group))
        else {
            return Err("no such volume group in the fence".into());
        };
        loop {
            let name = record.name.clone();
            let failure = match self.ask("kill_vg", move |h| h.lvmlockd.kill_vg(&name)) {
                Ok(()) => return Ok("lvmlockd grants no more locks".into()),
                Err(e) => e,
            };
            // The answer may have been lost after the deed, and a lockspace that is gone needs no freezing.
            let known = self.ask("asking lvmlockd for its lockspaces", |h| {
                h.lvmlockd.lockspaces()
            });
            if let (Ok(known), Some(lockspace)) = (known, &report.lockspace) {
                match known.iter().find(|l| l.is_of(&record.uuid, lockspace)) {
                    // Nobody renames what is frozen: it was joined anew under that name, and its volumes may be in use.
                    Some(l) if l.name != *lockspace => {
                        return Err(format!(
                            "volume group {} is called {} by now; if that one is to be fenced, ask for it by this name",
                            record.name, l.vg_name
                        ));
                    }
                    Some(l) if l.frozen => return Ok("lvmlockd had it frozen already".into()),
                    Some(_) => {}
                    None => return Ok("lvmlockd has no such lockspace any more".into()),
                }
            }
            if self.host.system.monotonic() >= until {
                return Err(failure.to_string());
            }
            self.pause();
        }
    }
}
