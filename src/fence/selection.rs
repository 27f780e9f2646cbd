//! Which volume groups an order means, and whether it may have them.

use serde::{Deserialize, Serialize};

use super::inventory::{Inventory, LockManager, VolumeGroup};
use super::order::{Order, Selection, WhenPathsRemain};

/// Why nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalReason {
    /// A volume group that was named is not on the node.
    VolumeGroupUnknown,
    /// A volume group that was named has no lockspace: it is local to the node.
    VolumeGroupNotShared,
    /// A volume group that was named has the volume of its leases active, and lvmlockd knows no lockspace of it: it may have been started anew.
    LockspaceNotAdopted,
    /// A path still works, or it is not known whether one does.
    PathsRemain,
    /// No shared volume group has lost all its paths.
    NothingAffected,
    /// `/dev/mapper/control` cannot be used.
    DeviceMapperUnavailable,
    /// lvmlockd does not answer: which volume groups are shared is not known, and none could be released.
    LvmlockdUnavailable,
    /// sanlock does not answer: that a lockspace was released could not be proven.
    SanlockUnavailable,
}

/// A refusal: nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people: what is wrong, with what, and what to do next.
    pub message: String,
}

impl Refusal {
    fn new(reason: RefusalReason, message: String) -> Self {
        Self { reason, message }
    }
}

/// The volume groups that an order means.
///
/// # Errors
/// When one of them may not be fenced: then none is. Unknown counts against the fence: a volume group whose physical volumes are not known has
/// not lost its paths, and without an answer from the lock manager nothing is touched, since the fence could not be brought to its end.
pub fn select(inventory: &Inventory, order: &Order) -> Result<Vec<VolumeGroup>, Refusal> {
    match &inventory.lock_manager {
        LockManager::Running(_) => {}
        LockManager::LvmlockdUnavailable(..) if only_unlocked(inventory, order) => {}
        LockManager::LvmlockdUnavailable(why, _) => {
            return Err(Refusal::new(
                RefusalReason::LvmlockdUnavailable,
                format!(
                    "lvmlockd does not answer ({why}): which volume groups are shared is not known, and no lock could be released, so nothing \
                     was touched. Check that lvmlockd runs on the node and that the agent sees /run/lvm{}",
                    open_without_lock(inventory)
                ),
            ));
        }
        LockManager::SanlockUnavailable(why, _) => {
            return Err(Refusal::new(
                RefusalReason::SanlockUnavailable,
                format!(
                    "sanlock does not answer ({why}): the release of a lockspace could not be proven, so nothing was touched. Check that \
                     sanlock runs on the node and that the agent sees /run/sanlock"
                ),
            ));
        }
    }
    let known = &inventory.volume_groups;
    let selected = match &order.volume_groups {
        Selection::Affected => affected(known)?,
        Selection::AllShared => {
            let shared: Vec<_> = known.iter().filter(|vg| vg.shared()).cloned().collect();
            if shared.is_empty() {
                return Err(Refusal::new(
                    RefusalReason::NothingAffected,
                    "the node has no shared volume group: no lockspace is running in lvmlockd. Nothing was touched".into(),
                ));
            }
            shared
        }
        Selection::Named(names) => named(inventory, names)?,
    };
    if order.when_paths_remain == WhenPathsRemain::Refuse {
        let healthy: Vec<String> = selected
            .iter()
            // What stands fenced has nothing left to be cut off.
            .filter(|vg| !vg.stands && !vg.all_paths_gone())
            .map(paths_in_words)
            .collect();
        if !healthy.is_empty() {
            return Err(Refusal::new(
                RefusalReason::PathsRemain,
                format!(
                    "{}. Nothing was touched: set whenPathsRemain to Fence to fence it all the same",
                    healthy.join("; ")
                ),
            ));
        }
    }
    Ok(selected)
}

/// Whether all that an order means is open though nobody holds its locks: there is nothing for lvmlockd to do, and no watchdog stands behind it.
///
/// Which volume groups are shared is known without lvmlockd by their volumes of leases, which are active while they are joined.
fn only_unlocked(inventory: &Inventory, order: &Order) -> bool {
    let on_san = || inventory.volume_groups.iter().filter(|g| g.on_san());
    let meant: Vec<&VolumeGroup> = match &order.volume_groups {
        Selection::Affected => on_san()
            .filter(|g| g.stands || g.all_paths_gone())
            .collect(),
        Selection::AllShared => on_san().collect(),
        Selection::Named(names) => {
            let open = |name: &String| on_san().find(|g| g.without_lock() && g.name == *name);
            let Some(all) = names.iter().map(open).collect() else {
                return false;
            };
            all
        }
    };
    !meant.is_empty() && meant.iter().all(|g| g.without_lock())
}

fn open_without_lock(inventory: &Inventory) -> String {
    let open = inventory.volume_groups.iter().filter(|g| g.unlocked);
    let names: Vec<&str> = open.map(|g| g.name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        ". Nobody holds the locks of {} any more, though it is open: that can be fenced all the same, when nothing else is named",
        names.join(", ")
    )
}

fn affected(known: &[VolumeGroup]) -> Result<Vec<VolumeGroup>, Refusal> {
    let shared: Vec<&VolumeGroup> = known.iter().filter(|vg| vg.shared()).collect();
    let gone: Vec<VolumeGroup> = shared
        .iter()
        // One that stands fenced was affected, and is until it is given back.
        .filter(|vg| vg.stands || vg.all_paths_gone())
        .map(|vg| (*vg).clone())
        .collect();
    if !gone.is_empty() {
        return Ok(gone);
    }
    let state = if shared.is_empty() {
        "no lockspace is running in lvmlockd".to_owned()
    } else {
        shared
            .iter()
            .map(|vg| paths_in_words(vg))
            .collect::<Vec<_>>()
            .join("; ")
    };
    Err(Refusal::new(
        RefusalReason::NothingAffected,
        format!(
            "no shared volume group of the node has lost all its paths: {state}. Nothing was touched. To fence them all the same, name them \
             and set whenPathsRemain to Fence"
        ),
    ))
}

fn named(inventory: &Inventory, names: &[String]) -> Result<Vec<VolumeGroup>, Refusal> {
    let known = &inventory.volume_groups;
    let mut selected: Vec<VolumeGroup> = Vec::new();
    for name in names {
        let candidates = || known.iter().filter(|vg| vg.name == *name);
        // Two volume groups may share a name; lvmlockd knows one of them by it. One that stands fenced was called so then.
        let found = candidates()
            .find(|vg| vg.shared() && !vg.stands)
            .or_else(|| candidates().find(|vg| vg.shared()))
            .or_else(|| candidates().find(|vg| vg.on_san()))
            .or_else(|| candidates().next());
        let Some(vg) = found else {
            if inventory
                .lock_manager
                .lockspaces()
                .iter()
                .any(|l| l.vg_name == *name)
            {
                // The lockspace's own volume would be active. Without a device to go by, there would be nothing to prove.
                return Err(Refusal::new(
                    RefusalReason::VolumeGroupUnknown,
                    format!(
                        "volume group {name} has a lockspace but no active device, not even the lvmlock volume: there is nothing to prove a \
                         fence by. Nothing was touched: look at `lvmlockctl --info` and `dmsetup info` on the node"
                    ),
                ));
            }
            let mut all: Vec<&str> = known.iter().map(|vg| vg.name.as_str()).collect();
            all.sort_unstable();
            let all = if all.is_empty() {
                "none".to_owned()
            } else {
                all.join(", ")
            };
            return Err(Refusal::new(
                RefusalReason::VolumeGroupUnknown,
                format!(
                    "volume group {name} has no active volume and no lockspace on the node; known are: {all}. Nothing was touched"
                ),
            ));
        };
        if !vg.shared() && vg.on_san() {
            return Err(Refusal::new(
                RefusalReason::LockspaceNotAdopted,
                format!(
                    "volume group {name} has its volume of leases active and no lockspace in lvmlockd: if sanlock has it (sanlock client status), \
                     lvmlockd was started anew and does not know it yet, and the watchdog still stands behind it. Nothing was touched. Unless the SAN \
                     is away (docs/bad-night.md) have lvmlockd adopt it (vgchange --lockstart --lockopt adoptls {name}); then it is looked at anew"
                ),
            ));
        }
        if !vg.shared() {
            return Err(Refusal::new(
                RefusalReason::VolumeGroupNotShared,
                format!(
                    "volume group {name} has no lockspace in lvmlockd: it is local to the node, and there is nothing to fence it from. Nothing \
                     was touched"
                ),
            ));
        }
        if !selected
            .iter()
            .any(|s| s.uuid == vg.uuid && s.name == vg.name)
        {
            selected.push(vg.clone());
        }
    }
    Ok(selected)
}

fn paths_in_words(vg: &VolumeGroup) -> String {
    let (up, all) = vg.paths();
    if vg.pvs.is_empty() {
        return format!(
            "volume group {}: none of its physical volumes is known, so neither are its paths",
            vg.name
        );
    }
    let lost = vg.lost_among_living();
    let none = if lost.is_empty() {
        String::new()
    } else {
        // It is fenced whole or not at all: there is one lockspace.
        format!(
            ", none of them to {} (volumes there wait; it is fenced as a whole when its lease is lost, or when that is asked for)",
            lost.join(", ")
        )
    };
    format!("volume group {}: {up} of {all} paths work{none}", vg.name)
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
