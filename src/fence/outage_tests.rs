use super::*;
use crate::fence::{IoCount, LockManager, MultipathMap, Path, Watchdog};

fn path(minor: u32, active: bool, state: &str) -> Path {
    Path {
        dev: DevNo { major: 8, minor },
        name: format!("sd{minor}"),
        active,
        device_state: state.into(),
        io: None,
        denied: false,
    }
}

fn map(uuid: &str, paths: Vec<Path>) -> PhysicalVolume {
    PhysicalVolume {
        dev: DevNo::default(),
        uuid: String::new(),
        kind: PvKind::Multipath(MultipathMap {
            uuid: uuid.into(),
            queueing: true,
            paths,
            ..MultipathMap::default()
        }),
    }
}

fn group(pvs: Vec<PhysicalVolume>) -> VolumeGroup {
    VolumeGroup {
        name: "san".into(),
        uuid: "u".into(),
        pvs,
        ..VolumeGroup::default()
    }
}

fn at(milliseconds: u64, group: VolumeGroup) -> Inventory {
    Inventory {
        taken_at: Monotonic(Duration::from_millis(milliseconds)),
        boot_id: String::new(),
        volume_groups: vec![group],
        lock_manager: LockManager::Running(vec![]),
        watchdog: Watchdog::default(),
    }
}

fn up() -> VolumeGroup {
    group(vec![map(
        "m",
        vec![path(0, true, "running"), path(1, false, "running")],
    )])
}

fn down() -> VolumeGroup {
    group(vec![map(
        "m",
        vec![
            path(0, false, "running"),
            path(1, false, "transport-offline"),
        ],
    )])
}

#[test]
fn lost_for_good_takes_every_disk_of_a_physical_volume() {
    use Loss::{DeviceGone, PathsDown};
    let states = |states: &[&str]| {
        let paths = (0..).zip(states).map(|(n, s)| path(n, false, s)).collect();
        map("m", paths)
    };
    let denied = |denied: &[bool]| {
        let denied = (0..).zip(denied).map(|(n, denied)| Path {
            denied: *denied,
            ..path(n, false, "running")
        });
        map("m", denied.collect())
    };
    let alive = map("n", vec![path(9, true, "running")]);
    for (pvs, expected) in [
        (vec![states(&["running", "running"])], Some(PathsDown)),
        (
            vec![states(&["transport-offline", "blocked"])],
            Some(PathsDown),
        ),
        (
            vec![states(&["gone", "transport-offline"])],
            Some(PathsDown),
        ),
        (vec![states(&["gone", "gone"])], Some(DeviceGone)),
        (vec![states(&["offline", "offline"])], Some(DeviceGone)),
        (vec![states(&["dead"])], Some(DeviceGone)),
        (vec![denied(&[true, true])], Some(DeviceGone)),
        (vec![denied(&[true, false])], Some(PathsDown)),
        // One of two is enough: the volume group does not come back as a whole.
        (
            vec![states(&["gone"]), states(&["running"])],
            Some(DeviceGone),
        ),
        (vec![states(&["gone"]), alive], None),
        // Not known is not gone.
        (vec![], None),
    ] {
        assert_eq!(loss(&group(pvs.clone()), |_| true), expected, "{pvs:?}");
    }
}

#[test]
fn a_map_without_paths_is_gone_only_if_it_had_some() {
    let empty = || group(vec![map("m", vec![])]);
    let mut fresh = Outages::default();
    fresh.see(&at(0, empty()));
    assert_eq!(fresh.of("u").unwrap().loss, Loss::PathsDown);
    let mut seen = Outages::default();
    seen.see(&at(0, up()));
    seen.see(&at(10, empty()));
    assert_eq!(seen.of("u").unwrap().loss, Loss::DeviceGone);
}

#[test]
fn an_outage_begins_at_once_and_ends_when_a_path_has_worked_for_a_while() {
    let mut outages = Outages::default();
    outages.see(&at(0, up()));
    assert_eq!(outages.of("u"), None);
    outages.see(&at(1000, down()));
    assert_eq!(outages.of("u").unwrap().since, Monotonic::from_secs(1));
    assert!(outages.of("u").unwrap().down());
    outages.see(&at(5000, up()));
    assert!(!outages.of("u").unwrap().down());
    outages.see(&at(7999, up()));
    assert!(outages.of("u").is_some(), "not settled yet");
    outages.see(&at(8000, up()));
    assert_eq!(outages.of("u"), None);
    outages.see(&at(9000, down()));
    assert_eq!(outages.of("u").unwrap().since, Monotonic::from_secs(9));
}

#[test]
fn a_path_that_comes_back_for_a_moment_ends_nothing() {
    let mut outages = Outages::default();
    for second in 0..60 {
        let look = if second % 2 == 0 { down() } else { up() };
        outages.see(&at(second * 1000, look));
        assert_eq!(outages.of("u").unwrap().since, Monotonic::default());
        assert_eq!(outages.of("u").unwrap().down(), second % 2 == 0);
    }
}

#[test]
fn what_is_not_known_is_neither_gone_nor_back() {
    let mut outages = Outages::default();
    outages.see(&at(0, group(vec![])));
    assert_eq!(outages.of("u"), None);
    outages.see(&at(1000, down()));
    for second in 2..20 {
        outages.see(&at(second * 1000, group(vec![])));
        assert!(outages.of("u").unwrap().down());
    }
}

#[test]
fn down_becomes_gone_with_a_time_of_its_own_and_a_vanished_group_is_forgotten() {
    let mut outages = Outages::default();
    outages.see(&at(1000, down()));
    let gone = group(vec![map(
        "m",
        vec![path(0, false, "gone"), path(1, false, "gone")],
    )]);
    outages.see(&at(4000, gone));
    let outage = *outages.of("u").unwrap();
    assert_eq!(outage.loss, Loss::DeviceGone);
    assert_eq!(outage.since, Monotonic::from_secs(1));
    assert_eq!(outage.loss_since, Monotonic::from_secs(4));
    let none = Inventory {
        volume_groups: vec![],
        ..at(5000, down())
    };
    outages.see(&none);
    assert!(outages.all().is_empty());
}

#[test]
fn commands_that_do_not_end_are_silence_and_one_that_ends_breaks_it() {
    let busy = |in_flight: u64, first: u64, second: u64| {
        let io = |minor, in_flight, completed| Path {
            io: Some(IoCount {
                in_flight,
                completed,
            }),
            ..path(minor, true, "running")
        };
        group(vec![map(
            "m",
            vec![io(0, in_flight, first), io(1, 0, second)],
        )])
    };
    let mut outages = Outages::default();
    let silent = |outages: &Outages, second| outages.silent("u", Monotonic::from_secs(second));
    // Idle for an hour is not silent.
    outages.see(&at(0, busy(0, 10, 10)));
    outages.see(&at(3_600_000, busy(0, 10, 10)));
    assert_eq!(silent(&outages, 3600), None);
    outages.see(&at(3_605_000, busy(2, 10, 10)));
    outages.see(&at(3_610_000, busy(2, 10, 10)));
    assert_eq!(silent(&outages, 3610), None, "not long enough");
    outages.see(&at(3_620_000, busy(2, 10, 10)));
    assert_eq!(silent(&outages, 3620), Some(Monotonic::from_secs(3605)));
    assert_eq!(outages.of("u"), None, "its paths look alive");
    // The other path ends one.
    outages.see(&at(3_625_000, busy(2, 10, 11)));
    assert_eq!(silent(&outages, 3625), None);
    outages.see(&at(3_641_000, busy(1, 10, 11)));
    assert_eq!(silent(&outages, 3641), Some(Monotonic::from_secs(3625)));
    outages.see(&at(3_642_000, busy(0, 12, 11)));
    assert_eq!(silent(&outages, 3700), None);
}
