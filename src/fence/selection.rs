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
        LockManager::LvmlockdUnavailable(why) => {
            return Err(Refusal::new(
                RefusalReason::LvmlockdUnavailable,
                format!(
                    "lvmlockd does not answer ({why}): which volume groups are shared is not known, and no lock could be released, so nothing \
                     was touched. Check that lvmlockd runs on the node and that the agent sees /run/lvm"
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
            .filter(|vg| !vg.all_paths_gone())
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

fn affected(known: &[VolumeGroup]) -> Result<Vec<VolumeGroup>, Refusal> {
    let shared: Vec<&VolumeGroup> = known.iter().filter(|vg| vg.shared()).collect();
    let gone: Vec<VolumeGroup> = shared
        .iter()
        .filter(|vg| vg.all_paths_gone())
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
            "no shared volume group of the node has lost all its paths: {state}. Nothing was touched: name the volume groups to fence them \
             all the same"
        ),
    ))
}

fn named(inventory: &Inventory, names: &[String]) -> Result<Vec<VolumeGroup>, Refusal> {
    let known = &inventory.volume_groups;
    let mut selected: Vec<VolumeGroup> = Vec::new();
    for name in names {
        let mut candidates = known.iter().filter(|vg| vg.name == *name);
        // Two volume groups may share a name; lvmlockd knows one of them by it.
        let found = candidates
            .clone()
            .find(|vg| vg.shared())
            .or_else(|| candidates.next());
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
    format!("volume group {}: {up} of {all} paths work", vg.name)
}
