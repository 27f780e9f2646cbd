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
            "no shared volume group of the node has lost all its paths: {state}. Nothing was touched: name the volume groups to fence them \
             all the same"
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
mod tests {
    use super::*;
    use crate::fence::{DevNo, Lockspace, Path, PhysicalVolume, PvKind};

    fn vg(name: &str, shared: bool, paths: &[bool]) -> VolumeGroup {
        let pv = |(n, active): (u32, &bool)| PhysicalVolume {
            dev: DevNo { major: 8, minor: n },
            kind: PvKind::Disk(Path {
                active: *active,
                name: format!("sd{n}"),
                ..Path::default()
            }),
        };
        let lockspace = Lockspace {
            name: format!("lvm_{name}"),
            vg_name: name.into(),
            ..Lockspace::default()
        };
        VolumeGroup {
            name: name.into(),
            uuid: format!("uuid of {name}, shared {shared}"),
            pvs: (0..).zip(paths).map(pv).collect(),
            lockspace: shared.then_some(lockspace),
            ..VolumeGroup::default()
        }
    }

    fn inventory(groups: Vec<VolumeGroup>) -> Inventory {
        let lockspaces = groups.iter().filter_map(|g| g.lockspace.clone());
        Inventory {
            taken_at: crate::fence::Monotonic::default(),
            boot_id: String::new(),
            lock_manager: LockManager::Running(lockspaces.collect()),
            watchdog: crate::fence::Watchdog::default(),
            volume_groups: groups,
        }
    }

    fn ask(
        groups: Vec<VolumeGroup>,
        selection: Selection,
        when: WhenPathsRemain,
    ) -> Result<Vec<String>, Refusal> {
        let order = Order {
            volume_groups: selection,
            when_paths_remain: when,
            ..Order::default()
        };
        let selected = select(&inventory(groups), &order)?;
        Ok(selected.into_iter().map(|vg| vg.uuid).collect())
    }

    fn node() -> Vec<VolumeGroup> {
        vec![
            vg("dead", true, &[false, false]),
            vg("half", true, &[false, true]),
            vg("unknown", true, &[]),
            vg("local", false, &[false]),
        ]
    }

    fn names(names: &[&str]) -> Selection {
        Selection::Named(names.iter().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn affected_are_shared_ones_known_to_have_lost_every_path() {
        for when in [WhenPathsRemain::Refuse, WhenPathsRemain::Fence] {
            let selected = ask(node(), Selection::Affected, when);
            assert_eq!(selected, Ok(vec!["uuid of dead, shared true".into()]));
        }
        let refusal = ask(
            node()[1..].to_vec(),
            Selection::Affected,
            WhenPathsRemain::Fence,
        );
        let refusal = refusal.expect_err("nothing is affected");
        assert_eq!(refusal.reason, RefusalReason::NothingAffected);
        assert!(refusal.message.contains("half: 1 of 2 paths"), "{refusal}");
        assert!(!refusal.message.contains("local"), "{refusal}");
    }

    #[test]
    fn a_refusal_says_what_to_do_and_touches_nothing() {
        use RefusalReason::{
            NothingAffected, PathsRemain, VolumeGroupNotShared, VolumeGroupUnknown,
        };
        let refuse = WhenPathsRemain::Refuse;
        for (selection, groups, reason, says) in [
            (
                names(&["dead", "nope"]),
                node(),
                VolumeGroupUnknown,
                "known are: dead, half, local, unknown",
            ),
            (
                names(&["nope"]),
                vec![],
                VolumeGroupUnknown,
                "known are: none",
            ),
            (
                names(&["dead", "local"]),
                node(),
                VolumeGroupNotShared,
                "local",
            ),
            (
                names(&["dead", "half"]),
                node(),
                PathsRemain,
                "half: 1 of 2 paths work",
            ),
            (
                names(&["unknown"]),
                node(),
                PathsRemain,
                "none of its physical volumes is known",
            ),
            (
                Selection::AllShared,
                node(),
                PathsRemain,
                "whenPathsRemain to Fence",
            ),
            (
                Selection::AllShared,
                vec![vg("local", false, &[])],
                NothingAffected,
                "no shared volume group",
            ),
        ] {
            let refusal = ask(groups, selection.clone(), refuse).expect_err("has to be refused");
            assert_eq!(refusal.reason, reason, "{selection:?}");
            assert!(refusal.message.contains(says), "{refusal}");
            assert!(refusal.message.contains("othing was touched"), "{refusal}");
        }
    }

    #[test]
    fn a_physical_volume_that_is_lost_is_named_when_others_live() {
        let half = || vec![vg("half", true, &[false, true])];
        for selection in [Selection::Affected, names(&["half"])] {
            let refusal = ask(half(), selection, WhenPathsRemain::Refuse).expect_err("refused");
            let says = "half: 1 of 2 paths work, none of them to disk sd0";
            assert!(refusal.message.contains(says), "{refusal}");
        }
        let flapping = vg("flapping", true, &[true, true]);
        let refusal = ask(vec![flapping], Selection::Affected, WhenPathsRemain::Refuse);
        let refusal = refusal.expect_err("refused");
        assert!(!refusal.message.contains("none of them"), "{refusal}");
    }

    #[test]
    fn what_stands_fenced_is_meant_whatever_its_paths() {
        let stands = VolumeGroup {
            stands: true,
            ..vg("stands", true, &[true, true])
        };
        for selection in [
            Selection::Affected,
            Selection::AllShared,
            names(&["stands"]),
        ] {
            let selected = ask(vec![stands.clone()], selection, WhenPathsRemain::Refuse);
            assert_eq!(selected, Ok(vec!["uuid of stands, shared true".into()]));
        }
    }

    #[test]
    fn with_fence_the_paths_do_not_matter() {
        let fence = WhenPathsRemain::Fence;
        assert_eq!(
            ask(node(), Selection::AllShared, fence).map(|s| s.len()),
            Ok(3)
        );
        assert_eq!(
            ask(node(), names(&["half", "unknown", "half"]), fence).map(|s| s.len()),
            Ok(2)
        );
        let refusal = ask(node(), names(&["local"]), fence).expect_err("never a local one");
        assert_eq!(refusal.reason, RefusalReason::VolumeGroupNotShared);
    }

    #[test]
    fn of_two_with_one_name_the_shared_one_is_meant() {
        let groups = vec![vg("twin", false, &[false]), vg("twin", true, &[false])];
        let selected = ask(groups, names(&["twin"]), WhenPathsRemain::Refuse);
        assert_eq!(selected, Ok(vec!["uuid of twin, shared true".into()]));
    }

    #[test]
    fn without_the_lock_manager_nothing_is_selected() {
        for (lock_manager, reason) in [
            (
                LockManager::LvmlockdUnavailable("no socket".into()),
                RefusalReason::LvmlockdUnavailable,
            ),
            (
                LockManager::SanlockUnavailable("no socket".into(), vec![]),
                RefusalReason::SanlockUnavailable,
            ),
        ] {
            let inventory = Inventory {
                lock_manager,
                ..inventory(node())
            };
            let refusal = select(&inventory, &Order::default()).expect_err("refused");
            assert_eq!(refusal.reason, reason);
            assert!(refusal.message.contains("no socket"), "{refusal}");
        }
    }

    #[test]
    fn a_lockspace_without_a_device_cannot_be_proven() {
        let mut inventory = inventory(node());
        inventory.volume_groups.clear();
        let order = Order {
            volume_groups: names(&["dead"]),
            when_paths_remain: WhenPathsRemain::Fence,
            ..Order::default()
        };
        let refusal = select(&inventory, &order).expect_err("refused");
        assert!(refusal.message.contains("no active device"), "{refusal}");
    }
}
