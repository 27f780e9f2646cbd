use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::fence::inventory::{LockManager, Lockspace, Path, PhysicalVolume, PvKind, Target};
use crate::fence::{DevNo, Monotonic, Watchdog};

const UUID: &str = "abcdefghijklmnopqrstuvwxyz012345";

fn device(lv: char, kind: &str, open_count: u32) -> DmDevice {
    DmDevice {
        dev: DevNo {
            major: 253,
            minor: u32::from(lv),
        },
        name: format!("vg1-{lv}").into(),
        uuid: format!("LVM-{UUID}{}", lv.to_string().repeat(32)).into(),
        sectors: 8,
        open_count,
        targets: vec![Target {
            length: 8,
            kind: kind.into(),
            ..Target::default()
        }]
        .into(),
        ..DmDevice::default()
    }
}

fn group() -> Standing {
    Standing {
        name: "vg1".into(),
        uuid: UUID.into(),
        lockspace: "lvm_vg1".into(),
        host_id: Some(7),
        generation: Some(3),
        order: ["b", "a"]
            .map(|lv| format!("LVM-{UUID}{}", lv.repeat(32)))
            .into(),
        ..Standing::default()
    }
}

fn pv(minor: u32, active: &[bool]) -> PhysicalVolume {
    let path = |(n, active): (u32, &bool)| Path {
        dev: DevNo {
            major: 8,
            minor: minor * 16 + n,
        },
        active: *active,
        ..Path::default()
    };
    PhysicalVolume {
        dev: DevNo { major: 253, minor },
        uuid: String::new(),
        kind: PvKind::Multipath(crate::fence::MultipathMap {
            name: format!("mpath{minor}"),
            paths: (0..).zip(active).map(path).collect(),
            ..crate::fence::MultipathMap::default()
        }),
    }
}

fn at(n: u64) -> Monotonic {
    Monotonic::from_secs(n)
}

/// Looks every two seconds.
fn healthy_since(looks: &[&[PhysicalVolume]]) -> (Health, Option<Duration>) {
    let mut health: Option<Health> = None;
    for (n, pvs) in (0..).zip(looks) {
        health = Some(Health::look(health.as_ref(), pvs, at(100 + n * 2)));
    }
    let health = health.unwrap();
    (health.clone(), health.lasted())
}

#[test]
fn the_time_runs_while_every_volume_is_reachable_and_no_path_is_lost() {
    let up = [pv(1, &[true, true]), pv(2, &[true, true])];
    let half = [pv(1, &[true, false]), pv(2, &[true, true])];
    let other_half = [pv(1, &[false, true]), pv(2, &[true, true])];
    let one_gone = [pv(1, &[false, false]), pv(2, &[true, true])];
    let seconds = |n| Some(Duration::from_secs(n));
    for (looks, lasted) in [
        (vec![&up[..], &up, &up], seconds(4)),
        // A path that comes is welcome, one that goes is not.
        (vec![&half[..], &up, &up], seconds(4)),
        (vec![&up[..], &half, &half], seconds(2)),
        (vec![&half[..], &other_half, &other_half], seconds(2)),
        (vec![&up[..], &one_gone, &up], seconds(0)),
        (vec![&up[..], &one_gone], None),
        (vec![&up[..], &[]], None),
        (vec![&[][..]], None),
    ] {
        assert_eq!(healthy_since(&looks).1, lasted, "{looks:?}");
    }
    // Nobody looked for too long.
    let before = Health::look(None, &up, at(100));
    assert_eq!(
        Health::look(Some(&before), &up, at(115)).lasted(),
        seconds(15)
    );
    assert_eq!(
        Health::look(Some(&before), &up, at(116)).lasted(),
        seconds(0)
    );
}

fn ask(
    devices: &[DmDevice],
    openers: &[Opener],
    lock: &LockState,
    pvs: &[PhysicalVolume],
) -> Vec<Blocker> {
    let health = Health::look(None, pvs, at(100));
    let health = Health::look(Some(&health), pvs, at(110));
    let seen = Seen {
        devices,
        pvs,
        health: &health,
        openers,
        lock,
    };
    blockers(&group(), Duration::from_secs(10), seen)
}

#[test]
fn each_thing_that_speaks_against_it_is_told_and_nothing_else() {
    use BlockerReason::{DeviceNotFenced, DeviceOpen, LockspaceRemains, PathsUnhealthy};
    let absent = LockState::Absent;
    let up = [pv(1, &[true])];
    let reasons = |devices: &[DmDevice], lock: &LockState, pvs: &[PhysicalVolume]| {
        let all = ask(devices, &[], lock, pvs);
        assert!(
            all.iter()
                .all(|b| b.volume_group == "vg1" && !b.message.is_empty())
        );
        all.iter().map(|b| b.reason).collect::<Vec<_>>()
    };
    let cut_off = [device('a', "error", 0), device('b', "error", 0)];
    let open = [device('a', "error", 1), device('b', "error", 0)];
    let real = [device('a', "linear", 1), device('b', "error", 0)];
    let joined = LockState::Joined {
        renamed: None,
        host_id: 7,
        generation: Some(4),
    };
    assert_eq!(reasons(&cut_off, &absent, &up), []);
    assert_eq!(reasons(&[], &absent, &up), []);
    assert_eq!(
        reasons(&cut_off, &LockState::Frozen { vg: "vg1".into() }, &up),
        []
    );
    assert_eq!(reasons(&open, &absent, &up), [DeviceOpen]);
    assert_eq!(reasons(&real, &absent, &up), [DeviceNotFenced]);
    assert_eq!(
        reasons(&cut_off, &absent, &[pv(1, &[false])]),
        [PathsUnhealthy]
    );
    assert_eq!(
        reasons(&cut_off, &absent, &[pv(1, &[true]), pv(2, &[false])]),
        [PathsUnhealthy]
    );
    assert_eq!(reasons(&cut_off, &absent, &[]), [PathsUnhealthy]);
    for lock in [
        LockState::Removing,
        LockState::Orphaned,
        LockState::FrozenByOthers { vg: "vg1".into() },
    ] {
        assert_eq!(
            reasons(&cut_off, &lock, &up),
            [LockspaceRemains],
            "{lock:?}"
        );
    }
    let left = ask(&cut_off, &[], &LockState::Orphaned, &up);
    let says = &left[0].message;
    assert!(
        says.contains("Reboot the node") && !says.contains("--adopt"),
        "lvmlockd --adopt 1 finds nothing, or hangs: {says}"
    );
    // Joined again by somebody: what is active is so with a lock; what is left of the fence still may not be open.
    assert_eq!(reasons(&real, &joined, &up), []);
    assert_eq!(reasons(&open, &joined, &up), [DeviceOpen]);
    assert_eq!(reasons(&[], &joined, &[]), []);
    assert_eq!(reasons(&open, &absent, &[]), [DeviceOpen, PathsUnhealthy]);
}

#[test]
fn devices_of_others_are_never_among_those_to_be_removed() {
    let mut twin = device('a', "error", 0);
    // The last character of the volume group's UUID differs.
    twin.uuid = twin.uuid.replace("012345", "012346").into();
    let mut named = device('a', "error", 0);
    named.uuid = "CRYPT-LUKS2-x".into();
    let lvmlock = DmDevice {
        name: "vg1-lvmlock".into(),
        ..device('l', "linear", 0)
    };
    let all = [
        device('a', "error", 0),
        twin,
        named,
        lvmlock,
        device('b', "error", 0),
        device('c', "linear", 0),
    ];
    let ours: Vec<&str> = group()
        .error_devices(&all)
        .into_iter()
        .map(|d| d.name.as_str())
        .collect();
    // In the order of the fence: upper ones first.
    assert_eq!(ours, ["vg1-b", "vg1-a"]);
}

#[test]
fn the_leases_volume_goes_last_and_only_from_the_error_target() {
    let lvmlock = |kind: &str| DmDevice {
        name: "vg1-lvmlock".into(),
        ..device('l', kind, 0)
    };
    let names = |devices: &[DmDevice]| {
        let all = group().error_devices(devices).into_iter();
        all.map(|d| d.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&[lvmlock("linear"), device('a', "error", 0)]),
        ["vg1-a"]
    );
    assert_eq!(
        names(&[
            lvmlock("error"),
            device('z', "error", 0),
            device('a', "error", 0)
        ]),
        ["vg1-a", "vg1-z", "vg1-lvmlock"]
    );
}

fn inventory(lockspaces: Vec<Lockspace>) -> Inventory {
    Inventory {
        taken_at: at(1),
        boot_id: "b".into(),
        volume_groups: Vec::new(),
        lock_manager: LockManager::Running(lockspaces),
        watchdog: Watchdog::default(),
    }
}

#[test]
fn where_the_lockspace_is() {
    let known = Lockspace {
        name: "lvm_vg1".into(),
        vg_name: "vg1".into(),
        vg_uuid: UUID.into(),
        host_id: 7,
        generation: Some(3),
        ..Lockspace::default()
    };
    let with = |change: fn(&mut Lockspace)| {
        let mut l = known.clone();
        change(&mut l);
        l
    };
    let frozen = with(|l| l.frozen = true);
    let removing = with(|l| l.state = LockspaceState::Removing);
    let anew = with(|l| l.generation = Some(4));
    let other = Lockspace {
        name: "lvm_vg2".into(),
        vg_uuid: "2".into(),
        ..known.clone()
    };
    let mine = || LockState::Frozen { vg: "vg1".into() };
    let others = |vg: &str| LockState::FrozenByOthers { vg: vg.into() };
    let joined = |n| LockState::Joined {
        renamed: None,
        host_id: 7,
        generation: Some(n),
    };
    for (lockspaces, state) in [
        (vec![], LockState::Absent),
        // Another volume group's, and another one's that has the name now; and its own under another name.
        (vec![other], LockState::Absent),
        (vec![with(|l| l.vg_uuid = "2".into())], LockState::Absent),
        (
            vec![with(|l| {
                (l.name, l.vg_name) = ("lvm_vg2".into(), "vg2".into());
            })],
            LockState::Joined {
                renamed: Some("vg2".into()),
                host_id: 7,
                generation: Some(3),
            },
        ),
        (
            vec![with(|l| {
                (l.name, l.vg_name) = ("lvm_vg2".into(), "vg2".into());
                l.frozen = true;
            })],
            others("vg2"),
        ),
        (vec![frozen.clone()], mine()),
        (
            vec![with(|l| (l.frozen, l.generation) = (true, None))],
            mine(),
        ),
        (
            vec![with(|l| (l.frozen, l.generation) = (true, Some(4)))],
            others("vg1"),
        ),
        (
            vec![with(|l| (l.frozen, l.host_id) = (true, 8))],
            others("vg1"),
        ),
        (vec![removing.clone()], LockState::Removing),
        // The remains of the former one beside the new one.
        (vec![removing, anew.clone()], joined(4)),
        (vec![anew], joined(4)),
        (
            vec![with(|l| l.state = LockspaceState::Adding)],
            LockState::Joining,
        ),
        (vec![with(|l| l.vg_uuid.clear())], LockState::Orphaned),
    ] {
        assert_eq!(
            lock_state(&group(), &inventory(lockspaces.clone())),
            state,
            "{lockspaces:?}"
        );
    }
}

#[test]
fn a_failure_is_not_tried_again_at_once_and_not_never() {
    let mut report = UnfenceReport {
        looked: at(100),
        ..UnfenceReport::default()
    };
    let mut pauses = Vec::new();
    for failures in 0..7 {
        report.failures = failures;
        pauses.push(report.again_at().unwrap().since(at(100)).as_secs());
    }
    assert_eq!(pauses, [2, 5, 10, 20, 30, 30, 30]);
    report.outcome = UnfenceOutcome::Done;
    assert_eq!(report.again_at(), None);
}

#[test]
fn a_long_name_is_cut_as_lvmlockd_cuts_it() {
    assert_eq!(lockspace_name("san"), "lvm_san");
    assert_eq!(lockspace_name(&"x".repeat(60)).len(), 48);
}

/// LVM makes such devices itself: in place of a disk that a mirror has lost, and of a snapshot that is being merged.
#[test]
fn an_error_device_is_not_taken_for_a_fence_of_its_volume_group_without_more() {
    let half = vec![device('a', "linear", 1), device('b', "error", 1)];
    let all = vec![device('a', "error", 0), device('b', "error", 0)];
    let joined = Lockspace {
        name: "lvm_vg1".into(),
        vg_name: "vg1".into(),
        vg_uuid: UUID.into(),
        host_id: 7,
        ..Lockspace::default()
    };
    let frozen = Lockspace {
        frozen: true,
        ..joined.clone()
    };
    for (devices, leases, lockspace, found) in [
        (&half, false, None, false),
        (&half, true, None, true),
        (&half, true, Some(&joined), false),
        (&half, true, Some(&frozen), true),
        (&all, false, None, true),
        (&all, true, None, true),
        (&all, true, Some(&joined), false),
    ] {
        let mut seen = inventory(lockspace.cloned().into_iter().collect());
        seen.volume_groups.push(VolumeGroup {
            name: "vg1".into(),
            uuid: UUID.into(),
            devices: devices.iter().cloned().map(Arc::new).collect(),
            lvmlock: leases.then(|| device('l', "linear", 1)),
            lockspace: lockspace.cloned(),
            ..VolumeGroup::default()
        });
        let order = UnfenceOrder {
            volume_groups: Selection::AllShared,
            ..UnfenceOrder::default()
        };
        let told = standing(&seen, Vec::new(), &order);
        assert_eq!(told.len(), usize::from(found), "{devices:?} {lockspace:?}");
        // What is recorded stands, whatever else is so.
        assert_eq!(standing(&seen, vec![group()], &order).len(), 1);
    }
}
