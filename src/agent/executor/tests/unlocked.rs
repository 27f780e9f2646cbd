//! Fences of a volume group that is open though nobody holds its locks: sanlock let go of it, and no watchdog stands behind it.

use super::Bench;
use super::bench::{seconds, step};
use crate::agent::observe::{observe, observe_to_fence};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::selection::RefusalReason;
use crate::fence::{Inventory, LockspaceState};
use crate::host::simulated::{Daemon, Group, InFlight, Layout, SimulatedLockspace, State, uuid_of};

fn layout() -> Layout {
    Layout {
        groups: vec![
            Group::bystander("other", true),
            Group {
                linear: 2,
                thin: 1,
                ..Group::target("vg1")
            },
        ],
    }
}

/// What sanlock let go of.
fn let_go(bench: &Bench) -> SimulatedLockspace {
    bench.node.state(|s| {
        let mut all = s.lockspaces.iter();
        let at = all.position(|l| l.lockspace.vg_name == "vg1");
        s.lockspaces.remove(at.expect("a lockspace"))
    })
}

fn bench() -> Bench {
    let bench = Bench::new(&layout());
    let_go(&bench);
    bench
}

fn seen(bench: &Bench) -> Inventory {
    observe_to_fence(&bench.node.host()).expect("a look")
}

fn fence(bench: &Bench) -> FenceReport {
    let report = bench.fence_as_seen(seen(bench));
    bench.check();
    bench.given_back();
    report
}

#[test]
fn what_nobody_has_locked_is_cut_off() {
    let bench = bench();
    assert_eq!(bench.open("vg1").len(), 6);
    let report = fence(&bench);
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    // There is nothing to be frozen or dropped.
    let result = |kind| step(&report, kind, "vg1").result;
    assert_eq!(result(StepKind::FreezeLocks), StepResult::Skipped);
    assert_eq!(result(StepKind::Release), StepResult::Skipped);
    assert_eq!(result(StepKind::ConfirmRelease), StepResult::Done);
    assert_eq!(bench.count("kill_vg vg1") + bench.count("drop_vg vg1"), 0);
    assert!(bench.held("other"));
    let told = &report.volume_groups[0];
    assert_eq!(told.lockspace.as_deref(), Some("lvm_vg1"));
    assert_eq!((told.host_id, told.generation), (None, None));
}

#[test]
fn asked_for_once_more_it_is_as_it_was() {
    let bench = bench();
    let first = fence(&bench);
    let swaps = bench.count("swap vg1-lv0");
    assert!(swaps > 0, "{:?}", bench.node.log());
    let again = fence(&bench);
    assert_eq!(
        (&again.outcome, again.locks),
        (&first.outcome, first.locks),
        "{again:#?}"
    );
    assert_eq!(bench.count("swap vg1-lv0"), swaps);
}

/// Without an lvmlockd neither: it is not waited for, and what stands is not denied.
#[test]
fn asked_for_once_more_without_lvmlockd_it_stands_too() {
    let bench = bench();
    fence(&bench);
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    let again = fence(&bench);
    assert_eq!(again.outcome, Outcome::Proven, "{again:#?}");
    assert_eq!(again.volume_groups[0].host_id, None);
    let verified = step(&again, StepKind::Verify, "vg1").at;
    assert!(verified.is_some_and(|at| at < seconds(5)), "{again:#?}");
}

/// No watchdog ends the host: what falls short is tried on.
#[test]
fn it_is_tried_on_for_as_long_as_its_io_takes() {
    let bench = bench();
    let late = InFlight::Until(seconds(1000 + 3600));
    bench
        .node
        .state(|s| s.device("vg1-lv0").expect("device").in_flight = late);
    let report = fence(&bench);
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert!(report.finished_after.is_some_and(|t| t > seconds(3000)));
}

/// A fence's look has its limit, and a daemon that hangs takes all of it at the second time.
#[test]
fn two_looks_wait_for_a_daemon_once() {
    let bench = bench();
    bench.node.state(|s| s.lvmlockd = Daemon::Hangs);
    let host = bench.node.host();
    let now = || host.system.monotonic();
    let began = now();
    observe(&host).expect("a look");
    let once = now().since(began);
    let began = now();
    assert!(seen(&bench).volume_groups.iter().any(|g| g.unlocked));
    assert!(now().since(began) < once + seconds(1));
}

#[test]
fn it_is_cut_off_whether_lvmlockd_answers_or_not() {
    for how in [Daemon::Dead, Daemon::Hangs] {
        let bench = bench();
        bench.node.state(|s| s.lvmlockd = how);
        let report = fence(&bench);
        // Whether it has joined the volume group by another name nobody tells.
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::NotConfirmed),
            "{report:#?}"
        );
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
        let proven = step(&report, StepKind::Verify, "vg1");
        let at = proven.at.and_then(|at| Some(at + proven.took?));
        assert!(at.is_some_and(|at| at < seconds(15)), "{proven:?}");
    }
}

/// There is no name that it could have joined the volume group by.
#[test]
fn where_sanlock_has_no_lockspace_of_lvmlockd_it_is_released_whether_that_answers_or_not() {
    use LocksOutcome::{NotConfirmed, Released};
    use LockspaceState::{Healthy, Removing};
    for (how, also, state, locks) in [
        (Daemon::Dead, "somebody_elses", Healthy, Released),
        (Daemon::Hangs, "somebody_elses", Healthy, Released),
        (Daemon::Dead, "lvm_vg9", Healthy, NotConfirmed),
        // A drop of it may be under way, and the watchdog stand behind it.
        (Daemon::Dead, "lvm_vg9", Removing, NotConfirmed),
    ] {
        let bench = Bench::new(&layout());
        bench.node.state(|s| {
            s.lvmlockd = how;
            s.lockspaces.retain(|l| l.lockspace.vg_name == "other");
            s.lockspaces[0].lockspace.name = also.into();
            s.lockspaces[0].lockspace.state = state;
        });
        let report = bench.fence_as_seen(seen(&bench));
        bench.check();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, locks),
            "{how:?} {also} {state:?} {report:#?}"
        );
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
    }
}

/// A watchdog that does not answer may have a client by another name.
#[test]
fn where_the_watchdog_was_armed_and_does_not_tell_either_it_is_not_called_released() {
    let mut bench = bench();
    bench.order.volume_groups =
        crate::fence::order::Selection::Named(vec!["vg1".into(), "other".into()]);
    bench.node.state(|s| {
        s.targets.insert(uuid_of("other"));
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1003));
    });
    bench.node.at(seconds(1001), |s| {
        (s.lvmlockd, s.wdmd) = (Daemon::Dead, Daemon::Dead);
        s.lockspaces.clear();
    });
    let report = bench.fence_as_seen(seen(&bench));
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::NotConfirmed),
        "{report:#?}"
    );
    let released = |vg: &str| {
        let mut all = report.volume_groups.iter();
        all.any(|g| g.name == vg && g.released_after.is_some())
    };
    assert!(released("other") && !released("vg1"), "{report:#?}");
}

#[test]
fn without_lvmlockd_nothing_else_is_named_beside_it() {
    let mut bench = bench();
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    bench.order.volume_groups =
        crate::fence::order::Selection::Named(vec!["vg1".into(), "other".into()]);
    let report = fence(&bench);
    assert_eq!(
        report.outcome,
        Outcome::Refused(RefusalReason::LvmlockdUnavailable)
    );
    assert!(
        report.message.contains("Nobody holds the locks of vg1"),
        "{}",
        report.message
    );
    assert_eq!(bench.node.log(), Vec::<String>::new());
}

/// It may be one that is being stopped as it should be.
#[test]
fn one_look_is_not_enough() {
    let bench = bench();
    let inventory = observe(&bench.node.host()).expect("a look");
    let report = bench.fence_as_seen(inventory);
    assert_eq!(
        report.outcome,
        Outcome::Refused(RefusalReason::LockspaceNotAdopted)
    );
    assert!(
        report.message.contains("volume of leases"),
        "{}",
        report.message
    );
    assert_eq!(bench.node.log(), Vec::<String>::new());
}

#[test]
fn one_that_is_joined_meanwhile_is_frozen_and_released_there() {
    let bench = Bench::new(&layout());
    let before = let_go(&bench);
    let inventory = seen(&bench);
    bench.node.state(|s| s.lockspaces.push(before));
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    assert_eq!(bench.count("drop_vg vg1"), 1, "{:?}", bench.node.log());
    assert!(!bench.held("vg1"));
}

#[test]
fn one_that_is_joined_after_it_was_to_be_frozen_keeps_its_locks() {
    // An lvmlockd that answers then, or one that is started only after that.
    for lvmlockd in [Daemon::Alive, Daemon::Dead] {
        let bench = Bench::new(&layout());
        let before = let_go(&bench);
        let inventory = seen(&bench);
        bench.node.state(|s| {
            s.lvmlockd = lvmlockd;
            let device = s.device("vg1-lv0").expect("device");
            device.in_flight = InFlight::Until(seconds(1005));
        });
        bench.node.at(seconds(1002), move |s| {
            s.lvmlockd = Daemon::Alive;
            s.lockspaces.push(before.clone());
        });
        let report = bench.fence_as_seen(inventory);
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::NotConfirmed),
            "{report:#?}"
        );
        assert!(bench.held("vg1"), "it is not the fence's to drop");
        assert_eq!(bench.count("kill_vg vg1"), 0);
    }
}

/// And is called otherwise by then: it is waited for, not proven again and again.
#[test]
fn one_that_is_joined_by_another_name_after_it_was_cut_off_keeps_its_locks() {
    let bench = Bench::new(&layout());
    let before = let_go(&bench);
    let inventory = seen(&bench);
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    bench.node.at(seconds(1002), move |s| {
        s.lvmlockd = Daemon::Alive;
        s.lockspaces.push(before);
        s.rename(&uuid_of("vg1"), "vg9");
    });
    let report = bench.fence_as_seen(inventory);
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::NotConfirmed),
        "{report:#?}"
    );
    assert!(bench.held("vg1"), "it is not the fence's to drop");
    let log = bench.node.log();
    assert!(log.len() < 100, "{log:#?}");
}

/// sanlock lists for minutes what it lets go of, and an lvmlockd comes after a while.
fn being_let_go() -> Bench {
    let bench = Bench::new(&layout());
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        for l in s
            .lockspaces
            .iter_mut()
            .filter(|l| l.lockspace.vg_name == "vg1")
        {
            (l.lockspace.state, l.armed) = (LockspaceState::Removing, false);
        }
    });
    bench.node.at(seconds(1004), |s| s.lvmlockd = Daemon::Alive);
    bench
}

#[test]
fn a_client_of_the_watchdog_that_is_left_is_waited_for() {
    let bench = being_let_go();
    let inventory = seen(&bench);
    let arm = |s: &mut State, armed| {
        let mut all = s.lockspaces.iter_mut();
        let of_it = all.find(|l| l.lockspace.vg_name == "vg1");
        of_it.expect("a lockspace").armed = armed;
    };
    bench.node.state(|s| arm(s, true));
    bench.node.at(seconds(1015), move |s| arm(s, false));
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    assert!(report.finished_after.is_some_and(|t| t >= seconds(14)));
}

#[test]
fn killed_anywhere_it_is_completed() {
    matrix(bench);
    matrix(being_let_go);
}

fn matrix(bench: fn() -> Bench) {
    let mut at = 0;
    loop {
        at += 1;
        let bench = bench();
        let inventory = seen(&bench);
        bench.node.kill_at_call(at);
        let whole = bench.try_fence_as_seen(inventory);
        let killed = bench.node.restart_agent();
        bench.check();
        let report = match whole {
            Some(report) if !killed => report,
            _ => {
                let left = bench.journal().1;
                match left.filter(crate::agent::journal::Record::unfinished) {
                    Some(_) => bench.try_fence().expect("nobody killed it"),
                    None => fence(&bench),
                }
            }
        };
        bench.check();
        bench.given_back();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released),
            "killed at call {at}: {report:#?}"
        );
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
        if !killed {
            break;
        }
    }
    assert!(at > 20, "killed at {at} calls only");
}
