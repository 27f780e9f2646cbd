use super::*;
use crate::fence::outage::SETTLE;
use crate::fence::{
    DevNo, DmDevice, LockManager, Lockspace, LockspaceState, MultipathMap, Path, PhysicalVolume,
    PvKind, Target, Watchdog,
};

fn group(name: &str, states: &[(bool, &str)]) -> VolumeGroup {
    let pvs = (0..)
        .zip(states)
        .map(|(minor, (active, state))| PhysicalVolume {
            dev: DevNo { major: 8, minor },
            uuid: String::new(),
            kind: PvKind::Disk(Path {
                active: *active,
                name: format!("sd{minor}"),
                device_state: (*state).into(),
                ..Path::default()
            }),
        });
    VolumeGroup {
        name: name.into(),
        uuid: name.into(),
        pvs: pvs.collect(),
        lockspace: Some(Lockspace {
            io_timeout: 10,
            last_renewal: Some(Monotonic::from_secs(1000)),
            ..Lockspace::default()
        }),
        ..VolumeGroup::default()
    }
}

/// On a map of two paths, of which one works, and the other `second` too.
fn over_two_paths(name: &str, second: bool) -> VolumeGroup {
    let path = |active| Path {
        active,
        ..Path::default()
    };
    let map = MultipathMap {
        paths: vec![path(true), path(second)],
        ..MultipathMap::default()
    };
    VolumeGroup {
        pvs: vec![PhysicalVolume {
            dev: DevNo::default(),
            uuid: String::new(),
            kind: PvKind::Multipath(map),
        }],
        ..group(name, &[])
    }
}

fn inventory(second: u64, volume_groups: Vec<VolumeGroup>) -> Inventory {
    Inventory {
        taken_at: Monotonic::from_secs(second),
        boot_id: String::new(),
        volume_groups,
        lock_manager: LockManager::Running(vec![]),
        watchdog: Watchdog::default(),
    }
}

fn ask(outages: &mut Outages, second: u64, groups: Vec<VolumeGroup>) -> [Says; 2] {
    let inventory = inventory(second, groups);
    outages.see(&inventory);
    conditions(Ok(&inventory), outages)
}

#[test]
fn the_worst_volume_group_speaks_for_the_node() {
    use ConditionStatus::{False, True, Unknown};
    let fine = || group("fine", &[(true, "running")]);
    let failing = Lockspace {
        state: LockspaceState::RenewalFailing,
        ..fine().lockspace.unwrap()
    };
    let silent = VolumeGroup {
        lockspace: Some(failing),
        ..group("silent", &[(true, "running")])
    };
    let local = VolumeGroup {
        lockspace: None,
        ..group("local", &[(false, "running")])
    };
    for (groups, status, reason, names) in [
        (vec![], True, reason::NO_SAN, ""),
        (vec![local.clone()], True, reason::NO_SAN, ""),
        (vec![fine(), local], True, reason::PATHS_WORK, "fine"),
        (
            vec![
                fine(),
                group("half", &[(true, "running"), (false, "running")]),
                over_two_paths("some", false),
            ],
            True,
            reason::PHYSICAL_VOLUME_LOST,
            "half: no path works to disk sd1;",
        ),
        (
            vec![fine(), over_two_paths("some", false)],
            True,
            reason::SOME_PATHS_LOST,
            "some",
        ),
        (
            vec![fine(), group("blank", &[])],
            Unknown,
            reason::PATHS_UNKNOWN,
            "blank",
        ),
        (
            vec![fine(), silent.clone()],
            False,
            reason::NO_ANSWER,
            "silent",
        ),
        (
            vec![silent, group("down", &[(false, "running")])],
            False,
            reason::ALL_PATHS_DOWN,
            "down",
        ),
        (
            vec![
                group("down", &[(false, "running")]),
                group("gone", &[(false, "gone")]),
            ],
            False,
            reason::PERMANENT_DEVICE_LOSS,
            "gone",
        ),
    ] {
        let [says, fenced] = ask(&mut Outages::default(), 1010, groups);
        assert_eq!((says.status, says.reason), (status, reason), "{says:?}");
        assert!(says.message.contains(names), "{says:?}");
        assert_eq!(fenced.status, False);
    }
}

/// Whoever reads the Node in the middle of the night is told which volume groups threaten the host, also beside one that is worse off.
#[test]
fn what_threatens_the_host_is_said_and_nothing_else() {
    let down = || group("down", &[(false, "running")]);
    let gone = VolumeGroup {
        lockspace: None,
        lvmlock: Some(DmDevice::default()),
        ..group("gone", &[(false, "gone")])
    };
    let threatens = "Not fenced: down. When its lease is lost, the watchdog resets the host";
    for groups in [vec![down()], vec![down(), gone.clone()]] {
        let [says, _] = ask(&mut Outages::default(), 1000, groups);
        assert!(says.message.contains(threatens), "{says:?}");
    }
    let fine = group("fine", &[(true, "running")]);
    for groups in [vec![fine], vec![gone]] {
        let [says, _] = ask(&mut Outages::default(), 1000, groups);
        assert!(!says.message.contains("watchdog"), "{says:?}");
    }
}

#[test]
fn recovery_is_said_when_it_has_settled() {
    let mut outages = Outages::default();
    let down = || vec![group("san", &[(false, "running")])];
    let up = || vec![group("san", &[(true, "running")])];
    assert_eq!(
        ask(&mut outages, 1000, down())[0].status,
        ConditionStatus::False
    );
    for second in 1001..1020 {
        // It flaps: one word all the time.
        let groups = if second % 2 == 0 { down() } else { up() };
        assert_eq!(
            ask(&mut outages, second, groups)[0].status,
            ConditionStatus::False
        );
    }
    let settled = 1020 + SETTLE.as_secs();
    assert_eq!(
        ask(&mut outages, 1020, up())[0].status,
        ConditionStatus::False
    );
    assert_eq!(
        ask(&mut outages, settled, up())[0].status,
        ConditionStatus::True
    );
}

/// Computed below the fence: a fenced volume group has no lockspace any more, and its tables lead nowhere, but the leases' volume is still there.
#[test]
fn the_paths_of_a_fenced_volume_group_are_still_seen() {
    let cut_off = DmDevice {
        sectors: 8,
        targets: vec![Target {
            length: 8,
            kind: "error".into(),
            ..Target::default()
        }]
        .into(),
        ..DmDevice::default()
    };
    let fenced = |active| VolumeGroup {
        lockspace: None,
        lvmlock: Some(DmDevice::default()),
        devices: [cut_off.clone().into()].into(),
        ..group("san", &[(active, "running")])
    };
    let mut outages = Outages::default();
    let [paths, stands] = ask(&mut outages, 1000, vec![fenced(false)]);
    assert_eq!(paths.status, ConditionStatus::False);
    assert_eq!(
        (stands.status, stands.reason),
        (ConditionStatus::True, reason::FENCED)
    );
    assert!(stands.message.contains("san"));
    assert!(!paths.message.contains("watchdog"), "{paths:?}");
    ask(&mut outages, 1010, vec![fenced(true)]);
    let [paths, stands] = ask(&mut outages, 1020, vec![fenced(true)]);
    assert_eq!(
        paths.status,
        ConditionStatus::True,
        "recovery is visible while fenced"
    );
    assert_eq!(stands.status, ConditionStatus::True);
}

#[test]
fn what_is_not_seen_is_unknown() {
    let both = conditions(Err("no /dev/mapper/control"), &Outages::default());
    for says in both {
        assert_eq!(says.status, ConditionStatus::Unknown);
        assert_eq!(says.reason, reason::NOT_OBSERVED);
        assert!(says.message.contains("no /dev/mapper/control"));
    }
}
