//! Whether lvmlockd still has a lockspace frozen, so that it is to be dropped.

use std::time::Duration;

use super::Fence;
use super::incarnation::{same_incarnation, surely_same};
use super::release::Then;
use crate::fence::report::{StepKind, StepResult};
use crate::fence::{Lockspace, LockspaceState, Monotonic};
use crate::host::{Result, SanlockStatus};

/// An answer of lvmlockd's that is older than this is had anew before a drop.
const FRESH: Duration = Duration::from_millis(500);

/// What lvmlockd has told, once in a round.
pub(super) struct Known {
    at: Monotonic,
    told: Result<Vec<Lockspace>>,
}

/// That of the volume group: the one that holds its locks, where what is left of a former one is listed before it.
fn own<'a>(known: &'a [Lockspace], vg_uuid: &str, name: &str) -> Option<&'a Lockspace> {
    let all = known
        .iter()
        .filter(|l| l.name == name && l.is_of(vg_uuid, name));
    all.min_by_key(|l| l.state == LockspaceState::Removing)
}

impl Fence<'_> {
    /// lvmlockd's lockspaces.
    pub(super) fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        self.ask("asking lvmlockd for its lockspaces", |h| {
            h.lvmlockd.lockspaces()
        })
    }

    pub(super) fn known(&self) -> Known {
        let told = self.lockspaces();
        let at = self.host.system.monotonic();
        Known { at, told }
    }

    /// The same right before the drop, and by which name: a look at the devices may have taken long meanwhile, and the lockspace been joined again.
    pub(super) fn still_frozen(
        &mut self,
        group: usize,
        sanlock: &SanlockStatus,
        known: &mut Option<Known>,
        vg: String,
    ) -> Option<String> {
        let now = self.host.system.monotonic();
        if known.as_ref().is_some_and(|k| now.since(k.at) <= FRESH) {
            return Some(vg);
        }
        let known = known.insert(self.known());
        match self.may_drop(group, sanlock, known) {
            Then::Drop { vg, .. } => Some(vg),
            _ => None,
        }
    }

    /// Whether lvmlockd still has the lockspace frozen: only then is it the one that this fence froze. By which name it is to be dropped. One that
    /// could not be frozen when it was to be, or that lvmlockd has adopted since, is frozen now if it surely is the same.
    pub(super) fn may_drop(
        &mut self,
        group: usize,
        sanlock: &SanlockStatus,
        known: &Known,
    ) -> Then {
        let Some(of) = self.report.volume_groups.get(group) else {
            return Then::Wait;
        };
        let name = of.lockspace.clone().unwrap_or_default();
        let frozen = self.result(StepKind::FreezeLocks, group);
        let missed = matches!(frozen, Some(StepResult::Failed | StepResult::Skipped));
        let why = match &known.told {
            Err(e) => format!("lvmlockd cannot be asked: {e}; tried again"),
            Ok(known) => match own(known, &of.uuid, &name) {
                Some(l) if l.frozen => {
                    // What was sent was carried out later, or by others: until then a volume could come into use.
                    let vg = l.vg_name.clone();
                    return Then::Drop { vg, anew: missed };
                }
                Some(l)
                    if missed
                        && same_incarnation(of, l.host_id, l.generation)
                        && surely_same(of, sanlock, self.report.started) =>
                {
                    if frozen == Some(StepResult::Skipped) {
                        let freeze = self.step(StepKind::FreezeLocks, group);
                        let why = "lvmlockd has adopted the lockspace since";
                        self.end(freeze, StepResult::Failed, why.into());
                    }
                    return Then::Freeze;
                }
                Some(_) if missed => "its locks could not be frozen, and its lockspace may have been joined again since: neither frozen nor dropped, since its volumes may be in use".into(),
                Some(_) => "lvmlockd does not have the lockspace frozen: not dropped, since a volume may come into use".into(),
                None => "lvmlockd no longer knows the lockspace that sanlock still holds: not dropped".into(),
            },
        };
        self.fell_short(self.step(StepKind::Release, group), why);
        Then::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_former_lockspace_is_not_taken_for_the_present_one() {
        let one = |state, frozen| Lockspace {
            name: "lvm_vg".into(),
            vg_uuid: "u".into(),
            state,
            frozen,
            ..Lockspace::default()
        };
        // lvmlockd lists them in the order in which they were added.
        let all = [
            one(LockspaceState::Removing, true),
            one(LockspaceState::Adding, false),
        ];
        assert_eq!(own(&all, "u", "lvm_vg"), Some(&all[1]));
        assert_eq!(own(&all[..1], "u", "lvm_vg"), Some(&all[0]));
        assert_eq!(own(&all, "v", "lvm_vg"), None);
        assert_eq!(own(&all, "u", "lvm_v"), None);
    }
}
