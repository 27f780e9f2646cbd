//! Whether the locks of a volume group are nowhere, where sanlock has no lockspace of its name.

use super::Fence;
use crate::fence::report::{StepKind, StepResult};
use crate::fence::unlocked;
use crate::fence::{Lockspace, LockspaceState, Watchdog};
use crate::host::SanlockStatus;

/// Where locks are that sanlock does not hold under the volume group's name.
pub(super) enum Nowhere {
    Sure,
    /// Not known, or not to be changed; with why.
    Unsure(String),
    /// In another lockspace that was not frozen.
    Renamed(String),
}

impl Fence<'_> {
    /// Whether the volume group's locks are nowhere, since sanlock does not hold them under its name.
    pub(super) fn nowhere(
        &self,
        group: usize,
        sanlock: &SanlockStatus,
        watchdog: &Watchdog,
    ) -> Nowhere {
        let frozen = self.result(StepKind::FreezeLocks, group);
        let confirmed = self.result(StepKind::ConfirmRelease, group) == Some(StepResult::Done);
        let Some(of) = self.report.volume_groups.get(group) else {
            return Nowhere::Sure;
        };
        // What was frozen keeps its name. One that was joined under another name since has been released before.
        if frozen == Some(StepResult::Done) || confirmed {
            return Nowhere::Sure;
        }
        let known = self.lockspaces();
        let stranger = |known: &[Lockspace]| {
            let told = |name: &str| {
                of.lockspace.as_deref() == Some(name) || known.iter().any(|l| l.name == name)
            };
            let held = sanlock.lockspaces.iter().map(|l| l.name.as_str());
            unlocked::stranger(told, held, watchdog).map(str::to_owned)
        };
        let watchdog_tells = watchdog.known || !self.report.watchdog.armed;
        let known = match known {
            Ok(known) => known,
            // There was nothing to freeze, and whatever it is called by now: there is no name that it could be held under, and nobody who would join it.
            // One whose freeze failed may have come into use since it was proven.
            Err(_) if self.unlocked(group) && watchdog_tells && stranger(&[]).is_none() => {
                return Nowhere::Sure;
            }
            Err(e) => {
                return Nowhere::Unsure(format!(
                    "its locks could not be frozen, and lvmlockd does not tell whether they are held under another name: {e}; tried again"
                ));
            }
        };
        let alive = |name: &str| {
            let mut all = sanlock.lockspaces.iter();
            all.any(|s| s.name == name && s.state != LockspaceState::Removing)
        };
        let other = known.iter().find(|l| {
            l.vg_uuid == of.uuid
                && Some(&l.name) != of.lockspace.as_ref()
                && (l.state != LockspaceState::Removing || alive(&l.name))
        });
        match other {
            // One that was started anew does not know what the one before had joined.
            None => stranger(&known).map_or(Nowhere::Sure, |name| {
                Nowhere::Unsure(format!(
                    "its locks could not be frozen, and lvmlockd does not know lockspace {name}, which sanlock or the watchdog has: it may be the volume \
                     group's by another name. Have lvmlockd adopt it once its SAN works; looked at again"
                ))
            }),
            Some(l) if frozen == Some(StepResult::Failed) && !self.unlocked(group) => {
                Nowhere::Renamed(format!("the volume group is called {} by now", l.vg_name))
            }
            // There was no lockspace when the fence began: whose that one is is not known.
            Some(l) => Nowhere::Unsure(format!(
                "its locks are held under the name {} that it has by now, and were not when they were to be frozen: ask for it by that name",
                l.vg_name
            )),
        }
    }
}
