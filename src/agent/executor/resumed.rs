//! Whether there is still something to complete of a fence that an earlier agent left.

use std::time::Duration;

use super::Fence;
use super::incarnation::same_incarnation;
use crate::fence::report::{StepKind, StepResult};
use crate::fence::{Lockspace, LockspaceState};

/// How long a successor waits for the lock manager to tell.
const DAEMONS_LIMIT: Duration = Duration::from_secs(5);

impl Fence<'_> {
    /// Why there is nothing to complete: the node, or a volume group, began anew since.
    pub(super) fn in_use_anew(&self) -> Option<String> {
        match self.ask("reading the boot ID", |h| h.system.boot_id()) {
            Ok(id) if id != self.report.boot_id => {
                return Some("the node was restarted since, which ended it".into());
            }
            _ => {}
        }
        let until = self.host.system.monotonic() + DAEMONS_LIMIT;
        let (sanlock, lvmlockd) = loop {
            let sanlock = self.ask("asking sanlock for its status", |h| h.sanlock.status());
            let lvmlockd = self.ask("asking lvmlockd for its lockspaces", |h| {
                h.lvmlockd.lockspaces()
            });
            // One that stays silent cannot have joined anything again.
            let answered = sanlock.is_ok() && lvmlockd.is_ok();
            if answered || self.host.system.monotonic() >= until {
                break (sanlock.ok(), lvmlockd.unwrap_or_default());
            }
            self.pause();
        };
        (0..self.groups.len()).find_map(|g| {
            let group = self.report.volume_groups.get(g)?;
            if self.handed_on.contains(&g) {
                return None;
            }
            let name = group.lockspace.as_deref()?;
            let ls = sanlock
                .iter()
                .flat_map(|s| &s.lockspaces)
                .find(|l| l.name == name);
            // One that is on its way out is nobody's use: sanlock lists what it let go of for a while.
            let other = ls.is_some_and(|l| {
                l.state != LockspaceState::Removing
                    && !same_incarnation(group, l.host_id, l.generation)
            });
            let was_frozen = self.result(StepKind::FreezeLocks, g) == Some(StepResult::Done);
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
        })
    }
}
