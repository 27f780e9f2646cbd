use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::agent::observe::observe;
use crate::fence::Monotonic;
use crate::fence::unlocked::mark;
use crate::host::simulated::{Daemon, Group, Layout, Simulation, Under};

fn reporter() -> Reporter {
    Reporter {
        node_uid: Some("uid".into()),
        boot_id: "boot".into(),
        pod: Some("agent-x (pod-uid)".into()),
        ..Reporter::default()
    }
}

fn moment(wall: i64) -> Moment {
    Moment {
        wall: Timestamp::from_second(wall).unwrap(),
        monotonic: Monotonic::default(),
    }
}

fn status_of(simulation: &Simulation) -> NodeStorageStatus {
    let inventory = observe(&simulation.host()).unwrap();
    status(
        Ok(&inventory),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    )
}

fn ready_of(status: &NodeStorageStatus) -> (ConditionStatus, &str) {
    let ready = condition::find(&status.conditions, "Ready").unwrap();
    (ready.status, &ready.reason)
}

#[test]
fn it_counts_shared_groups_only() {
    let under = vec![Under::Map {
        active: 1,
        queueing: true,
    }];
    let groups = vec![
        Group {
            under,
            ..Group::target("vg1")
        },
        Group::bystander("local", false),
    ];
    let status = status_of(&Simulation::new(&Layout { groups }));
    assert_eq!(status.shared_volume_groups, 1);
    assert_eq!(status.active_logical_volumes, 3);
    assert_eq!(status.paths, "1/2");
    assert_eq!(status.fenced_volume_groups, "");
    let local = status.volume_groups.iter().find(|g| g.name == "local");
    assert!(status.volume_groups[0].shared && local.is_some_and(|g| !g.shared));
    let pv = &status.volume_groups[0].physical_volumes[0];
    assert_eq!(
        (pv.kind, pv.queueing, pv.paths.len()),
        (PhysicalVolumeKind::Multipath, true, 2)
    );
    assert_eq!(status.watchdog.as_ref().unwrap().state, "Armed");
    assert_eq!(ready_of(&status), (ConditionStatus::True, "AllAnswer"));
}

/// Every lease was renewed at that second, and the node looked at so many later.
fn renewed(inventory: &mut Inventory, at: u64, ago: u64) {
    let LockManager::Running(all) = &mut inventory.lock_manager else {
        panic!("it answers")
    };
    let of_groups = inventory.volume_groups.iter_mut();
    for l in all
        .iter_mut()
        .chain(of_groups.filter_map(|g| g.lockspace.as_mut()))
    {
        l.last_renewal = Some(Monotonic::from_secs(at));
    }
    inventory.taken_at = Monotonic::from_secs(at + ago);
}

#[test]
fn time_alone_changes_nothing() {
    let simulation = Simulation::new(&Layout::default());
    let mut inventory = observe(&simulation.host()).unwrap();
    let first = status(
        Ok(&inventory),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    );
    renewed(&mut inventory, 9990, 9);
    let later = status(Ok(&inventory), &reporter(), &first, moment(77));
    assert_eq!(first, later);
}

#[test]
fn when_a_lease_is_not_renewed_it_is_told_when_the_watchdog_fires_and_always_the_same_time() {
    let simulation = Simulation::new(&Layout::default());
    let mut inventory = observe(&simulation.host()).unwrap();
    let renewed = |inventory: &mut Inventory, ago: u64| renewed(inventory, 5000, ago);
    let told = |inventory: &Inventory, before: &NodeStorageStatus, wall: i64, monotonic: u64| {
        let now = Moment {
            monotonic: Monotonic::from_secs(monotonic),
            ..moment(wall)
        };
        status(Ok(inventory), &reporter(), before, now)
    };
    let reset_at = |s: &NodeStorageStatus| s.watchdog.as_ref().unwrap().reset_at;
    let none = NodeStorageStatus::default();
    // sanlock renews every 20 s; the lease ends after 80 s, and the watchdog fires 50 to 60 s later.
    renewed(&mut inventory, 40);
    assert_eq!(reset_at(&told(&inventory, &none, 0, 5042)), None);
    renewed(&mut inventory, 41);
    let first = told(&inventory, &none, 0, 5042);
    let at = |seconds: i64| Timestamp::from_second(seconds).ok();
    assert_eq!(reset_at(&first), at(130 - 42));
    // Told once more of the same look, much later; and of another one, when the wall's clock was set a little.
    assert_eq!(told(&inventory, &first, 20, 5062), first);
    renewed(&mut inventory, 66);
    assert_eq!(told(&inventory, &first, 27, 5067), first);
    // It is over, and would have been by now.
    renewed(&mut inventory, 140);
    assert_eq!(reset_at(&told(&inventory, &none, 99, 5141)), at(88));
    renewed(&mut inventory, 5);
    assert_eq!(reset_at(&told(&inventory, &first, 7, 5006)), None);
}

#[test]
fn a_group_stands_fenced_when_every_device_is_on_the_error_target() {
    let groups = vec![Group::target("vg1")];
    let simulation = Simulation::new(&Layout { groups });
    let mut inventory = observe(&simulation.host()).unwrap();
    let devices = &mut inventory.volume_groups[0].devices;
    for device in Arc::make_mut(devices).iter_mut().map(Arc::make_mut) {
        device.targets = vec![crate::fence::Target {
            start: 0,
            length: device.sectors,
            kind: "error".into(),
            params: smol_str::SmolStr::default(),
        }]
        .into();
    }
    let fenced = status(
        Ok(&inventory),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    );
    assert_eq!(fenced.fenced_volume_groups, "vg1");
    let devices = Arc::make_mut(&mut inventory.volume_groups[0].devices);
    Arc::make_mut(&mut devices[0]).inactive_table = true;
    let half = status(
        Ok(&inventory),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    );
    assert_eq!(half.fenced_volume_groups, "");
}

#[test]
fn what_does_not_answer_is_named() {
    let with = |break_it: &dyn Fn(&mut crate::host::simulated::State)| {
        let simulation = Simulation::new(&Layout::default());
        simulation.state(|s| break_it(s));
        let status = status_of(&simulation);
        let (ready, reason) = ready_of(&status);
        (ready, reason.to_owned())
    };
    let no = ConditionStatus::False;
    assert_eq!(
        with(&|s| s.lvmlockd = Daemon::Dead),
        (no, "LvmlockdUnavailable".into())
    );
    assert_eq!(
        with(&|s| s.sanlock = Daemon::Dead),
        (no, "SanlockUnavailable".into())
    );
    assert_eq!(
        with(&|s| s.wdmd = Daemon::Dead),
        (ConditionStatus::True, "WatchdogUnknown".into())
    );
    let blind = status(
        Err("no such file"),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    );
    assert_eq!(ready_of(&blind), (no, "DeviceMapperUnavailable"));
    assert_eq!(blind.boot_id, "boot");
}

#[test]
fn daemons_that_are_not_spared_are_told_and_the_node_stays_ready() {
    let simulation = Simulation::new(&Layout::default());
    let inventory = observe(&simulation.host()).unwrap();
    let reporter = Reporter {
        facts: Facts {
            daemons: Some(vec![("sanlock", 0)]),
            ..Facts::default()
        },
        ..reporter()
    };
    let status = status(
        Ok(&inventory),
        &reporter,
        &NodeStorageStatus::default(),
        moment(0),
    );
    assert_eq!(ready_of(&status), (ConditionStatus::True, "AllAnswer"));
    let ready = condition::find(&status.conditions, "Ready").unwrap();
    assert!(ready.message.contains("DaemonsSpared"), "{}", ready.message);
}

#[test]
fn what_reaches_the_san_without_a_lock_is_a_condition_of_its_own() {
    let held = |break_it: &dyn Fn(&mut crate::host::simulated::State)| {
        let groups = vec![Group::target("vg1"), Group::target("vg2")];
        let simulation = Simulation::new(&Layout { groups });
        simulation.state(|s| break_it(s));
        let mut inventory = observe(&simulation.host()).unwrap();
        let mut before = BTreeSet::new();
        mark(&mut inventory, &mut before);
        mark(&mut inventory, &mut before);
        let status = status(
            Ok(&inventory),
            &reporter(),
            &NodeStorageStatus::default(),
            moment(0),
        );
        let held = condition::find(&status.conditions, "LocksHeld").unwrap();
        (held.status, held.reason.clone(), held.message.clone())
    };
    let (all, reason, _) = held(&|_| ());
    assert_eq!((all, reason.as_str()), (ConditionStatus::True, "AllHeld"));
    let (one, reason, message) = held(&|s| s.lockspaces.retain(|l| l.lockspace.vg_name != "vg2"));
    assert_eq!(
        (one, reason.as_str()),
        (ConditionStatus::False, OPEN_WITHOUT_LOCK)
    );
    assert!(
        message.starts_with("Devices of vg2 reach the SAN"),
        "{message}"
    );
    // The watchdog still waits for both.
    let (unknown, reason, _) = held(&|s| s.lvmlockd = Daemon::Dead);
    assert_eq!(
        (unknown, reason.as_str()),
        (ConditionStatus::Unknown, "NotKnown")
    );
    let lost = |s: &mut crate::host::simulated::State| {
        s.lvmlockd = Daemon::Dead;
        s.lockspaces.clear();
    };
    assert_eq!(held(&lost).0, ConditionStatus::False);
    let blind = status(
        Err("no such file"),
        &reporter(),
        &NodeStorageStatus::default(),
        moment(0),
    );
    let held = condition::find(&blind.conditions, "LocksHeld").unwrap();
    assert_eq!(held.status, ConditionStatus::Unknown);
}
