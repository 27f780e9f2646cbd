//! Volume groups that were released and are in use again, while the fence still waits for another one of the order.

use std::time::Duration;

use super::Bench;
use super::bench::{seconds, step};
use super::renamed::{killed_after_the_first_freeze, two};
use crate::agent::observe::observe_to_fence;
use crate::fence::order::Selection;
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::{Lockspace, Monotonic};
use crate::host::simulated::{Daemon, Dropping, Group, InFlight, Layout, State, uuid_of};

/// Of two volume groups sanlock lets go of the first; the drop of the second fails for a while.
fn bench() -> Bench {
    let bench = Bench::new(&Layout {
        groups: vec![
            Group::target("vg0"),
            Group::target("vg1"),
            Group::bystander("other", true),
        ],
    });
    bench.node.state(|s| s.drop = Dropping::Refused);
    bench.node.at(seconds(1002), |s| {
        s.lockspaces
            .retain(|l| l.lockspace.vg_uuid != uuid_of("vg0"));
    });
    bench.node.at(seconds(1050), |s| s.drop = Dropping::Works);
    bench
}

#[test]
fn what_came_into_use_under_new_locks_is_not_cut_off_for_the_sake_of_another() {
    // All is proven anew before it is joined, or after that, or not at all.
    for opened in [None, Some(1008), Some(1030)] {
        for tells in [true, false] {
            goes_on(opened, tells);
        }
    }
}

/// So does the successor of an agent that is killed while it waits for the other one: what was released, only the steps tell.
#[test]
fn nor_by_a_successor_and_the_other_one_is_released_too() {
    for opened in [None, Some(1008), Some(1030)] {
        for tells in [true, false] {
            for killed in [1010, 1035] {
                goes_on_after(opened, tells, Some(killed));
            }
        }
    }
}

fn goes_on(opened: Option<u64>, tells: bool) {
    goes_on_after(opened, tells, None);
}

fn goes_on_after(opened: Option<u64>, tells: bool, killed: Option<u64>) {
    let bench = bench();
    bench.node.state(|s| s.tells_generation = tells);
    if let Some(at) = opened {
        bench.node.at(seconds(at), |s| {
            let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
            s.refresh("vg1-lv0", below);
            s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1040));
        });
    }
    let queues = "1 queue_if_no_path 0 1 1 service-time 0 2 0 8:0 8:16";
    bench.node.at(seconds(1020), |s| {
        let map = s.device("mpath-vg0-0").expect("a map");
        map.active_paths = 2;
        map.dm.targets[0].params = queues.into();
        s.join_now("vg0");
        s.add_volume_on("vg0", "new", "mpath-vg0-0");
    });
    if let Some(at) = killed {
        bench.node.at(seconds(at), State::kill_now);
        assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    }
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert!(bench.held("vg0") && !bench.held("vg1"), "{report:#?}");
    assert_eq!(bench.open("vg0"), ["vg0-new"], "{:#?}", bench.node.log());
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    let params = bench.node.state(|s| {
        s.device("mpath-vg0-0").expect("a map").dm.targets[0]
            .params
            .clone()
    });
    assert_eq!(params, queues, "{:#?}", bench.node.log());
    assert_eq!(bench.count("drop_vg vg0"), 1);
    let told = &report.volume_groups[0];
    assert!(
        told.devices.iter().all(|d| d.name != "vg0-new"),
        "{told:#?}"
    );
    assert_eq!(told.devices_proven(), told.devices.len(), "{told:#?}");
    for kind in [StepKind::Release, StepKind::ConfirmRelease] {
        let of = step(&report, kind, "vg0").result;
        assert!(
            matches!(of, StepResult::Done | StepResult::Skipped),
            "{report:#?}"
        );
    }
    let noted = report.notes.iter().any(|n| n.contains("vg0 was joined"));
    assert!(noted, "{:?}", report.notes);
    let standing = bench.journal().0.standings().of(&uuid_of("vg0"));
    let standing = standing.expect("read").expect("it stands");
    assert_eq!(standing.newest, Some(0));
}

/// It was closed by the fence, and somebody opens it without a lock.
#[test]
fn what_is_opened_without_a_lock_is_closed_again() {
    let bench = bench();
    bench.node.at(seconds(1020), |s| {
        let below = s.device("mpath-vg0-0").expect("a map").dm.dev;
        s.refresh("vg0-lv0", below);
    });
    let report = bench.fence();
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    assert_eq!(bench.open("vg0"), Vec::<String>::new());
    assert_eq!(bench.count("swap vg0-lv0"), 2);
}

/// The first one's drop was sent when the other one had to be frozen late, whose new proof waits for I/O until 1090. At 1075 something happens.
fn another_is_frozen_late(before: fn(&mut State), then: fn(&mut State)) -> (Bench, FenceReport) {
    let bench = killed_after_the_first_freeze();
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        before(s);
    });
    bench.node.at(seconds(1050), |s| {
        s.lvmlockd = Daemon::Alive;
        s.kill_hangs = true;
    });
    bench.node.at(seconds(1053), |s| open_again(s, "vg1"));
    bench.node.at(seconds(1060), |s| s.kill_hangs = false);
    bench.node.at(seconds(1075), then);
    let report = bench.fence();
    (bench, report)
}

/// Somebody opens its first volume without a lock, and I/O does not end before 1090.
fn open_again(s: &mut State, vg: &str) {
    let map = s.device(&format!("mpath-{vg}-0")).expect("a map").dm.dev;
    let name = format!("{vg}-lv0");
    s.refresh(&name, map);
    s.device(&name).expect("device").in_flight = InFlight::Until(seconds(1090));
}

fn lockspace<'a>(s: &'a mut State, vg: &str) -> &'a mut Lockspace {
    let mut all = s.lockspaces.iter_mut().map(|l| &mut l.lockspace);
    let own = all.find(|l| l.vg_uuid == uuid_of(vg));
    own.expect("a lockspace")
}

fn in_use_anew(s: &mut State) {
    s.device("mpath-vg0-0").expect("a map").active_paths = 2;
    s.join_now("vg0");
    s.add_volume_on("vg0", "new", "mpath-vg0-0");
}

#[test]
fn nor_what_was_being_dropped_when_another_one_had_to_be_frozen() {
    let (bench, report) = another_is_frozen_late(|_| (), in_use_anew);
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    let log = bench.node.log();
    assert_eq!(bench.open("vg0"), ["vg0-new"], "{log:#?}");
    assert_eq!(bench.count("drop_vg vg0"), 1, "{log:#?}");
    assert!(bench.held("vg0") && !bench.held("vg1"), "{report:#?}");
    assert!(bench.open("vg1").is_empty(), "{report:#?}");
}

/// Its drop is answered, and nothing happens: nobody has let go of it.
#[test]
fn what_is_still_held_is_not_called_released_whatever_lvmlockd_or_sanlock_tells_of_it() {
    // A new lvmlockd has adopted it; sanlock tells another generation of what is frozen yet.
    let adopted: fn(&mut State) = |s| {
        let l = lockspace(s, "vg0");
        (l.frozen, l.last_renewal) = (false, Some(Monotonic::from_secs(1075)));
        open_again(s, "vg0");
    };
    let told_otherwise: fn(&mut State) = |s| {
        let l = lockspace(s, "vg0");
        l.generation = l.generation.map(|g| g + 1);
        open_again(s, "vg0");
    };
    let untold: fn(&mut State) = |s| (s.drop, s.tells_generation) = (Dropping::Ignored, false);
    let told: fn(&mut State) = |s| s.drop = Dropping::Ignored;
    for (before, then) in [(untold, adopted), (told, told_otherwise)] {
        let (bench, report) = another_is_frozen_late(before, then);
        assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
        assert_eq!(report.volume_groups[0].released_after, None, "{report:#?}");
        assert!(bench.held("vg0") && bench.open("vg0").is_empty());
    }
}

/// It was opened before it was let go of, which is seen when the other one turns out to be frozen. The guard has that volume to close.
#[test]
fn what_was_opened_while_it_was_dropped_is_handed_on_and_not_called_released() {
    let bench = killed_after_the_first_freeze();
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    bench.node.at(seconds(1050), |s| {
        s.lvmlockd = Daemon::Alive;
        s.kill_hangs = true;
    });
    bench.node.at(seconds(1051), |s| {
        open_again(s, "vg0");
        lockspace(s, "vg1").frozen = true;
    });
    bench.node.at(seconds(1075), in_use_anew);
    let report = bench.fence();
    assert_eq!(report.volume_groups[0].released_after, None, "{report:#?}");
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    assert!(bench.open("vg0").contains(&"vg0-new".to_owned()));
    assert!(bench.held("vg0") && !bench.held("vg1"), "{report:#?}");
}

/// The list before a drop takes a while, and meanwhile somebody drops the lockspace and joins it again.
#[test]
fn what_is_joined_again_while_the_devices_are_listed_is_not_dropped() {
    let (bench, inventory) = two();
    // Until the proof is too old to be dropped by.
    bench.node.state(|s| s.sanlock = Daemon::Hangs);
    bench
        .node
        .at(seconds(1000) + Duration::from_millis(2500), |s| {
            s.sanlock = Daemon::Alive;
            s.listing_takes = seconds(1);
        });
    bench.node.at(seconds(1003), |s| {
        let all = s.lockspaces.iter_mut().map(|l| &mut l.lockspace);
        for l in all.filter(|l| l.vg_uuid == uuid_of("vg1")) {
            l.frozen = false;
            l.generation = l.generation.map(|g| g + 1);
        }
    });
    let report = bench.fence_as_seen(inventory);
    assert_eq!(bench.count("drop_vg vg0"), 1, "{report:#?}");
    assert_eq!(bench.count("drop_vg vg1"), 0, "{report:#?}");
    bench.check();
}

/// An lvmlockd that was started anew does not know it yet: what sanlock has of that name is not what the fence released.
#[test]
fn what_was_joined_again_does_not_pass_for_fenced_while_lvmlockd_has_not_adopted_it() {
    for meant in [
        Selection::Affected,
        Selection::AllShared,
        Selection::Named(vec!["vg0".into()]),
    ] {
        for (tells, lvmlockd) in [
            (true, Daemon::Alive),
            (false, Daemon::Alive),
            (true, Daemon::Dead),
        ] {
            let mut bench = Bench::new(&Layout {
                groups: vec![Group::target("vg0")],
            });
            let mut before = bench.node.state(|s| s.lockspaces[0].clone());
            assert_eq!(bench.fence().locks, LocksOutcome::Released);
            bench.node.state(|s| {
                (s.tells_generation, s.lvmlockd) = (tells, lvmlockd);
                before.lockspace.generation = before.lockspace.generation.map(|g| g + 1);
                before.unadopted = true;
                s.lockspaces = vec![before];
                s.add_volume("vg0", "new");
            });
            let log = bench.node.log();
            bench.order.uid = "another".into();
            bench.order.volume_groups = meant.clone();
            let seen = observe_to_fence(&bench.node.host()).expect("a look");
            let report = bench.fence_as_seen(seen);
            assert!(
                matches!(report.outcome, Outcome::Refused(_)),
                "{meant:?} {lvmlockd:?}: {report:#?}"
            );
            assert_eq!(bench.node.log(), log);
        }
    }
}
