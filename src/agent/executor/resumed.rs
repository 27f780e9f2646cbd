//! Whether there is still something to complete of a fence that an earlier agent left.

use std::sync::Arc;
use std::time::Duration;

use super::Fence;
use super::incarnation::{Held, held};
use crate::fence::Lockspace;
use crate::fence::order::{Order, ReleaseLocks};
use crate::fence::report::{DeviceOutcome, FenceReport, Outcome, StepKind, StepReport, StepResult};
use crate::host::SanlockStatus;

/// How long a successor waits for the lock manager to tell.
const DAEMONS_LIMIT: Duration = Duration::from_secs(5);

/// Of which volume groups the locks were seen released: a killed agent has written that down with its steps only. They may be in use under other
/// locks by now, and are then neither cut off again nor a reason to leave the others as they are.
pub(super) fn tell_released(report: &mut FenceReport, order: &Order) {
    if order.release_locks == ReleaseLocks::Never {
        return;
    }
    let steps = report.steps.iter();
    let releases = steps.filter(|s| s.kind == StepKind::Release);
    let seen = |s: &StepReport| {
        let ended = matches!(s.result, StepResult::Done | StepResult::Skipped);
        ended.then(|| s.at.unwrap_or_default() + s.took.unwrap_or_default())
    };
    for (group, seen) in report.volume_groups.iter_mut().zip(releases.map(seen)) {
        let Some(at) = seen.filter(|_| group.released_after.is_none()) else {
            continue;
        };
        group.released_after = Some(at);
        for device in Arc::make_mut(&mut group.devices) {
            // Nothing is released before that.
            if device.outcome != DeviceOutcome::Gone {
                (device.outcome, device.message) = (DeviceOutcome::Error, None);
            }
        }
    }
}

impl Fence<'_> {
    /// Why there is nothing to complete: the node, or a volume group, began anew since. One that the fence had released is handed on instead.
    pub(super) fn in_use_anew(&mut self) -> Option<String> {
        match self.ask("reading the boot ID", |h| h.system.boot_id()) {
            Ok(id) if id != self.report.boot_id => {
                return Some("the node was restarted since, which ended it".into());
            }
            _ => {}
        }
        let until = self.host.system.monotonic() + DAEMONS_LIMIT;
        let (sanlock, lvmlockd) = loop {
            // In this order: lvmlockd is silent while it drops a lockspace, and what was joined again by then is seen by sanlock.
            let lvmlockd = self.lockspaces();
            let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
            // One that stays silent cannot have joined anything again.
            let answered = sanlock.is_ok() && lvmlockd.is_ok();
            if answered || self.host.system.monotonic() >= until {
                break (sanlock.ok(), lvmlockd.unwrap_or_default());
            }
            self.pause();
        };
        for at in 0..self.groups.len() {
            let Some(why) = self.began_anew(at, sanlock.as_ref(), &lvmlockd) else {
                continue;
            };
            let group = self.report.volume_groups.get(at);
            let released = group.is_some_and(|g| g.released_after.is_some());
            // One whose release has begun was proven: others of it may wait yet for the lock manager.
            let others = self.groups.len() > self.handed_on.len() + 1;
            let proven = self.report.outcome == Outcome::Proven || self.has_begun_to_release();
            let others_wait = proven && others;
            if !released && !others_wait {
                return Some(why);
            }
            self.handed_on_by_now(at);
        }
        None
    }

    fn began_anew(
        &self,
        at: usize,
        sanlock: Option<&SanlockStatus>,
        lvmlockd: &[Lockspace],
    ) -> Option<String> {
        let group = self.report.volume_groups.get(at)?;
        if self.handed_on.contains(&at) {
            return None;
        }
        let name = group.lockspace.as_deref()?;
        // One that is on its way out is nobody's use: sanlock lists what it let go of for a while.
        let other = sanlock.is_some_and(|s| matches!(held(group, s), Held::Anew));
        let was_frozen = self.result(StepKind::FreezeLocks, at) == Some(StepResult::Done);
        let mut own = lvmlockd.iter().filter(|l| l.is_of(&group.uuid, name));
        if let Some(renamed) = own.clone().find(|l| l.name != name) {
            return Some(format!(
                "volume group {} is called {} by now, and may be in use anew: ask for it by that name",
                group.name, renamed.vg_name
            ));
        }
        let anew = |l: &Lockspace| was_frozen && !l.frozen;
        let why = "it was joined to its lockspace again since, so it is in use anew";
        (other || own.any(anew)).then(|| format!("volume group {}: {why}", group.name))
    }
}
