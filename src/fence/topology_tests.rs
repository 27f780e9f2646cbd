//! Nodes as they are met, and what has to be made of them.

#[path = "topology_stack_tests.rs"]
mod stacks;

use super::*;
use crate::fence::{Lockspace, LockspaceState, PvKind, Target};

const VG_A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA";
const VG_B: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaB";

fn dm(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

fn sd(minor: u32) -> DevNo {
    DevNo { major: 8, minor }
}

fn lv_uuid(vg: &str, n: u32, suffix: &str) -> String {
    format!("LVM-{vg}{n:032}{suffix}")
}

fn device(minor: u32, name: &str, uuid: &str, kind: &str, deps: &[DevNo]) -> DmDevice {
    let first = deps.first().map(ToString::to_string).unwrap_or_default();
    DmDevice {
        dev: dm(minor),
        name: name.into(),
        uuid: uuid.into(),
        sectors: 8192,
        targets: vec![Target {
            start: 0,
            length: 8192,
            kind: kind.into(),
            params: format!("{first} 2048").into(),
        }]
        .into(),
        deps: deps.to_vec().into(),
        ..DmDevice::default()
    }
}

fn map(minor: u32, paths: &[DevNo]) -> DmDevice {
    device(
        minor,
        &format!("mpath{minor}"),
        &format!("mpath-3600140{minor}"),
        "multipath",
        paths,
    )
}

fn lockspace(vg_name: &str, uuid: &str, host_id: u64) -> Lockspace {
    Lockspace {
        name: format!("lvm_{vg_name}"),
        vg_name: vg_name.into(),
        vg_uuid: uuid.into(),
        host_id,
        ..Lockspace::default()
    }
}

/// A node with running disks for every `sd` that a device uses, and maps whose every path is active.
fn observed(devices: Vec<DmDevice>, lockspaces: Vec<Lockspace>) -> Observed {
    let disks = devices
        .iter()
        .flat_map(|d| &d.deps)
        .filter(|d| d.major == 8);
    let disks = disks
        .map(|d| {
            (
                *d,
                Disk {
                    name: format!("sd{}", d.minor),
                    state: "running".into(),
                    io: None,
                },
            )
        })
        .collect();
    let maps = devices.iter().filter(|d| is_multipath(d)).map(|d| {
        (
            d.dev,
            MapState {
                queueing: true,
                paths: d.deps.iter().map(|p| (*p, true)).collect(),
            },
        )
    });
    let look = Look {
        taken_at: Monotonic::from_secs(100),
        boot_id: "boot".into(),
        maps: maps.collect(),
        disks,
        lock_manager: LockManager::Running(lockspaces),
        watchdog: Watchdog::default(),
    };
    Observed {
        devices: devices.into_iter().map(Arc::new).collect(),
        look,
    }
}

fn set_disk(o: &mut Observed, dev: DevNo, state: &str) {
    o.look.disks.get_mut(&dev).unwrap().state = state.into();
}

fn change(o: &mut Observed, at: usize, how: fn(&mut DmDevice)) {
    how(Arc::make_mut(&mut o.devices[at]));
}

fn san() -> Observed {
    observed(
        vec![
            map(0, &[sd(0), sd(16)]),
            device(1, "san-lvmlock", &lv_uuid(VG_A, 1, ""), "linear", &[dm(0)]),
            device(2, "san-vm1", &lv_uuid(VG_A, 2, ""), "linear", &[dm(0)]),
            device(3, "san-vm2", &lv_uuid(VG_A, 3, ""), "linear", &[dm(0)]),
        ],
        vec![lockspace("san", VG_A, 7)],
    )
}

#[test]
fn a_shared_group_on_one_map() {
    let inventory = build(san());
    let [vg] = inventory.volume_groups.as_slice() else {
        panic!("{inventory:?}")
    };
    assert_eq!(
        (vg.name.as_str(), vg.uuid.as_str(), vg.shared()),
        ("san", VG_A, true)
    );
    assert_eq!(
        vg.devices.iter().map(|d| d.dev).collect::<Vec<_>>(),
        [dm(2), dm(3)]
    );
    assert_eq!(vg.lvmlock.as_ref().unwrap().dev, dm(1));
    assert_eq!(vg.lockspace.as_ref().unwrap().host_id, 7);
    let [pv] = vg.pvs.as_slice() else {
        panic!("{vg:?}")
    };
    assert_eq!(pv.dev, dm(0));
    let PvKind::Multipath(m) = &pv.kind else {
        panic!("{pv:?}")
    };
    assert_eq!((m.name.as_str(), m.queueing), ("mpath0", true));
    assert_eq!(vg.paths(), (2, 2));
    assert!(!vg.all_paths_gone());
}

#[test]
fn a_path_works_only_when_map_and_disk_agree() {
    // Failed in the map, though the disk runs.
    let mut o = san();
    o.look.maps.get_mut(&dm(0)).unwrap().paths[0].1 = false;
    assert_eq!(build(o.clone()).volume_groups[0].paths(), (1, 2));
    // The disk is offline, though the map has not met an error yet.
    set_disk(&mut o, sd(16), "offline");
    let vg = &build(o).volume_groups[0];
    assert_eq!(vg.paths(), (0, 2));
    assert!(vg.all_paths_gone());
    // The disk is gone, the kernel's table still names it.
    let mut o = san();
    o.look.disks.remove(&sd(0));
    let inventory = build(o);
    let path = &inventory.volume_groups[0].pvs[0].paths()[0];
    assert_eq!(
        (path.active, path.device_state.as_str(), path.name.as_str()),
        (false, GONE, "8:0")
    );
    for state in [
        "blocked",
        "transport-offline",
        "cancel",
        "deleted",
        "quiesce",
        "created",
    ] {
        let mut o = san();
        set_disk(&mut o, sd(0), state);
        assert_eq!(build(o).volume_groups[0].paths(), (1, 2), "{state}");
    }
}

#[test]
fn a_map_without_a_path_is_gone() {
    let mut o = san();
    change(&mut o, 0, |d| d.deps.clear());
    o.look.maps.insert(
        dm(0),
        MapState {
            queueing: true,
            paths: vec![],
        },
    );
    let vg = &build(o).volume_groups[0];
    assert_eq!((vg.pvs.len(), vg.paths()), (1, (0, 0)));
    assert!(vg.all_paths_gone());
}

#[test]
fn a_map_that_could_not_be_read_may_queue_and_is_not_called_gone() {
    let mut o = san();
    o.look.maps.clear();
    let vg = &build(o).volume_groups[0];
    assert!(!vg.all_paths_gone());
    assert!(matches!(&vg.pvs[0].kind, PvKind::Multipath(m) if m.queueing && m.paths.len() == 2));
}

#[test]
fn look_alike_groups_are_told_apart_by_uuid() {
    // `san-a` with volume `b`, and `san` with volume `a-b`; UUIDs that differ in their last character.
    let o = observed(
        vec![
            map(0, &[sd(0)]),
            map(1, &[sd(16)]),
            device(2, "san--a-b", &lv_uuid(VG_A, 1, ""), "linear", &[dm(0)]),
            device(3, "san-a--b", &lv_uuid(VG_B, 1, ""), "linear", &[dm(1)]),
        ],
        vec![lockspace("san-a", VG_A, 1)],
    );
    let inventory = build(o);
    let [a, b] = inventory.volume_groups.as_slice() else {
        panic!("{inventory:?}")
    };
    assert_eq!(
        (a.name.as_str(), a.shared(), a.pvs[0].dev),
        ("san-a", true, dm(0))
    );
    assert_eq!(
        (b.name.as_str(), b.shared(), b.pvs[0].dev),
        ("san", false, dm(1))
    );
}

#[test]
fn two_groups_of_one_name_share_neither_lockspace_nor_lvmlock() {
    // A clone of the array's LUN brings the same names with other UUIDs; somebody renamed its devices.
    let o = observed(
        vec![
            device(1, "san-vm1", &lv_uuid(VG_A, 1, ""), "linear", &[sd(0)]),
            device(2, "san-vm2", &lv_uuid(VG_B, 1, ""), "linear", &[sd(16)]),
        ],
        vec![lockspace("san", VG_B, 1)],
    );
    let inventory = build(o);
    let shared: Vec<_> = inventory
        .volume_groups
        .iter()
        .map(|v| (v.uuid.as_str(), v.shared()))
        .collect();
    assert_eq!(shared, [(VG_B, true), (VG_A, false)]);
}

#[test]
fn a_striped_volume_leads_to_both_maps() {
    let o = observed(
        vec![
            map(0, &[sd(0), sd(16)]),
            map(1, &[sd(32), sd(48)]),
            device(
                2,
                "san-vm1",
                &lv_uuid(VG_A, 1, ""),
                "striped",
                &[dm(0), dm(1)],
            ),
        ],
        vec![lockspace("san", VG_A, 1)],
    );
    let mut gone = o.clone();
    let vg = &build(o).volume_groups[0];
    assert_eq!(
        vg.pvs.iter().map(|p| p.dev).collect::<Vec<_>>(),
        [dm(0), dm(1)]
    );
    // One map gone is not the volume group gone.
    set_disk(&mut gone, sd(0), "offline");
    set_disk(&mut gone, sd(16), "offline");
    assert!(!build(gone.clone()).volume_groups[0].all_paths_gone());
    set_disk(&mut gone, sd(32), "offline");
    set_disk(&mut gone, sd(48), "offline");
    assert!(build(gone).volume_groups[0].all_paths_gone());
}

#[test]
fn a_partition_of_a_map_counts_as_the_map() {
    let o = observed(
        vec![
            map(0, &[sd(0), sd(16)]),
            device(
                1,
                "mpath0-part1",
                "part1-mpath-36001400",
                "linear",
                &[dm(0)],
            ),
            device(2, "san-vm1", &lv_uuid(VG_A, 1, ""), "linear", &[dm(1)]),
        ],
        vec![lockspace("san", VG_A, 1)],
    );
    let vg = &build(o).volume_groups[0];
    assert_eq!(vg.pvs[0].dev, dm(1));
    assert!(
        matches!(&vg.pvs[0].kind, PvKind::Multipath(m) if m.dev == dm(0) && m.paths.len() == 2)
    );
}

#[test]
fn a_plain_disk_has_itself_as_its_path() {
    let o = observed(
        vec![device(
            0,
            "san-vm1",
            &lv_uuid(VG_A, 1, ""),
            "linear",
            &[sd(33)],
        )],
        vec![lockspace("san", VG_A, 1)],
    );
    let mut gone = o.clone();
    let vg = &build(o).volume_groups[0];
    assert!(matches!(&vg.pvs[0].kind, PvKind::Disk(p) if p.name == "sd33" && p.active));
    gone.look.disks.clear();
    assert!(build(gone).volume_groups[0].all_paths_gone());
}

#[test]
fn a_group_on_another_groups_volume_stays_a_group_of_its_own() {
    let o = observed(
        vec![
            map(0, &[sd(0)]),
            device(1, "outer-disk", &lv_uuid(VG_A, 1, ""), "linear", &[dm(0)]),
            device(2, "inner-root", &lv_uuid(VG_B, 1, ""), "linear", &[dm(1)]),
        ],
        vec![lockspace("outer", VG_A, 1)],
    );
    let inventory = build(o);
    let [outer, inner] = inventory.volume_groups.as_slice() else {
        panic!("{inventory:?}")
    };
    assert_eq!(
        outer.devices.iter().map(|d| d.dev).collect::<Vec<_>>(),
        [dm(1)]
    );
    assert_eq!(outer.pvs[0].dev, dm(0));
    assert_eq!(
        inner.devices.iter().map(|d| d.dev).collect::<Vec<_>>(),
        [dm(2)]
    );
    // Its physical volume is the outer volume; the paths are what lies below that.
    assert_eq!(inner.pvs[0].dev, dm(1));
    assert!(matches!(&inner.pvs[0].kind, PvKind::Multipath(m) if m.dev == dm(0)));
}

#[test]
fn foreign_devices_belong_to_nobody() {
    let o = observed(
        vec![
            device(0, "san-vm1", "", "linear", &[sd(0)]),
            device(1, "san-vm2", "CRYPT-LUKS2-aaaa-san-vm2", "crypt", &[sd(0)]),
            device(2, "san-vm3", "LVM-tooshort", "linear", &[sd(0)]),
            device(
                3,
                "san-vm4",
                &format!("LVM-{VG_A}{}x", "0".repeat(32)),
                "linear",
                &[sd(0)],
            ),
        ],
        vec![lockspace("san", VG_A, 1)],
    );
    let inventory = build(o);
    assert!(inventory.volume_groups.is_empty(), "{inventory:?}");
    assert_eq!(inventory.lock_manager.lockspaces().len(), 1);
}

#[test]
fn a_device_without_a_table_is_listed_and_leads_nowhere() {
    let mut o = san();
    change(&mut o, 3, |d| d.targets.clear());
    change(&mut o, 3, |d| d.deps.clear());
    let vg = &build(o).volume_groups[0];
    assert_eq!(vg.devices.len(), 2);
    assert_eq!(vg.pvs.len(), 1);
}

#[test]
fn a_fenced_group_still_sees_its_paths_through_the_leases() {
    let mut o = san();
    for d in o.devices[2..].iter_mut().map(Arc::make_mut) {
        d.deps.clear();
        d.targets[0].kind = "error".into();
    }
    let vg = &build(o).volume_groups[0];
    assert_eq!(vg.paths(), (2, 2));
    assert!(vg.devices.iter().all(|d| d.is_error_only()));
}

#[test]
fn without_any_path_downwards_nothing_is_called_gone() {
    let mut o = san();
    for d in o.devices[1..].iter_mut().map(Arc::make_mut) {
        d.deps.clear();
    }
    let vg = &build(o).volume_groups[0];
    assert!(vg.pvs.is_empty() && !vg.all_paths_gone());
}

#[test]
fn lvmlock_is_a_top_level_volume_of_that_very_group() {
    let o = observed(
        vec![
            device(
                0,
                "san-lvmlock",
                &lv_uuid(VG_A, 1, "-real"),
                "linear",
                &[sd(0)],
            ),
            device(
                1,
                "other-lvmlock",
                &lv_uuid(VG_A, 2, ""),
                "linear",
                &[sd(0)],
            ),
            device(
                2,
                "san-lvmlock--2",
                &lv_uuid(VG_A, 3, ""),
                "linear",
                &[sd(0)],
            ),
        ],
        vec![lockspace("san", VG_A, 1)],
    );
    let vg = &build(o).volume_groups[0];
    assert!(vg.lvmlock.is_none());
    assert_eq!(vg.devices.len(), 3);
}

#[test]
fn a_lockspace_being_removed_gives_way_to_the_living_one() {
    let mut o = san();
    let removing = Lockspace {
        state: LockspaceState::Removing,
        host_id: 1,
        ..lockspace("san", VG_A, 1)
    };
    o.look.lock_manager = LockManager::Running(vec![removing, lockspace("san", VG_A, 2)]);
    assert_eq!(
        build(o).volume_groups[0]
            .lockspace
            .as_ref()
            .unwrap()
            .host_id,
        2
    );
}

#[test]
fn devices_that_use_each_other_in_a_circle_end() {
    let o = observed(
        vec![
            device(0, "x", "CRYPT-x", "crypt", &[dm(1)]),
            device(1, "y", "CRYPT-y", "crypt", &[dm(0)]),
            device(2, "san-vm1", &lv_uuid(VG_A, 1, ""), "linear", &[dm(0)]),
        ],
        vec![],
    );
    assert!(build(o).volume_groups[0].pvs.is_empty());
}

#[test]
fn names_come_apart_at_single_hyphens() {
    for (name, parts) in [
        ("san-vm1", vec!["san", "vm1"]),
        ("san--a-vm--1", vec!["san-a", "vm-1"]),
        ("a----b-c", vec!["a--b", "c"]),
        ("vg---lv", vec!["vg-", "lv"]),
        ("vg-pool-tpool", vec!["vg", "pool", "tpool"]),
        ("", vec![""]),
        ("-", vec!["", ""]),
    ] {
        assert_eq!(split_name(name), parts, "{name}");
    }
}
