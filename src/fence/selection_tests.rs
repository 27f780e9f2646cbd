use super::*;
use crate::fence::{DevNo, Lockspace, Path, PhysicalVolume, PvKind};

fn vg(name: &str, shared: bool, paths: &[bool]) -> VolumeGroup {
    let pv = |(n, active): (u32, &bool)| PhysicalVolume {
        dev: DevNo { major: 8, minor: n },
        uuid: String::new(),
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
    use RefusalReason::{NothingAffected, PathsRemain, VolumeGroupNotShared, VolumeGroupUnknown};
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
            LockManager::LvmlockdUnavailable("no socket".into(), None),
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
fn what_is_open_though_nobody_holds_its_locks_is_shared() {
    let open = VolumeGroup {
        unlocked: true,
        lvmlock: Some(crate::fence::DmDevice::default()),
        ..vg("open", false, &[false])
    };
    let stopped = VolumeGroup {
        unlocked: false,
        name: "stopped".into(),
        ..open.clone()
    };
    let ask = |all: &[&VolumeGroup], manager: &LockManager, of: Selection| {
        let inventory = Inventory {
            lock_manager: manager.clone(),
            ..inventory(all.iter().map(|g| (*g).clone()).collect())
        };
        let order = Order {
            volume_groups: of,
            ..Order::default()
        };
        let selected = select(&inventory, &order);
        selected.map(|all| all.len()).map_err(|r| r.reason)
    };
    let running = LockManager::Running(vec![]);
    let dead = LockManager::LvmlockdUnavailable("no socket".into(), None);
    let silent = LockManager::SanlockUnavailable("no socket".into(), vec![]);
    let unavailable = Err(RefusalReason::LvmlockdUnavailable);
    for of in [Selection::Affected, Selection::AllShared, names(&["open"])] {
        for manager in [&running, &dead] {
            assert_eq!(ask(&[&open], manager, of.clone()), Ok(1), "{of:?}");
        }
        let refused = Err(RefusalReason::SanlockUnavailable);
        assert_eq!(ask(&[&open], &silent, of.clone()), refused);
        assert_eq!(ask(&[&stopped], &dead, of), unavailable);
    }
    // Without lvmlockd all or nothing, whatever else is meant.
    for of in [
        Selection::Affected,
        Selection::AllShared,
        names(&["open", "stopped"]),
    ] {
        assert_eq!(
            ask(&[&open, &stopped], &dead, of.clone()),
            unavailable,
            "{of:?}"
        );
    }
    assert_eq!(ask(&[&open, &stopped], &dead, names(&["open"])), Ok(1));
    let refused = Err(RefusalReason::LockspaceNotAdopted);
    assert_eq!(
        ask(&[&open, &stopped], &running, names(&["stopped"])),
        refused
    );
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
