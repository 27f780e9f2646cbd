//! kill -9 at every call of a fence, and its successor (S4).

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Bench;
use super::bench::seconds;
use crate::agent::executor::{resume, run};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind};
use crate::fence::selection::RefusalReason;
use crate::host::simulated::{Daemon, Group, InFlight, Layout, State, Under, uuid_of};

fn small() -> Layout {
    Layout {
        groups: vec![
            Group::bystander("other", true),
            Group {
                linear: 2,
                ..Group::target("vg1")
            },
        ],
    }
}

fn stacked() -> Layout {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    Layout {
        groups: vec![
            Group {
                linear: 1,
                thin: 1,
                under: vec![map, map],
                ..Group::target("vg1")
            },
            Group {
                linear: 1,
                under: vec![Under::Disk(false)],
                ..Group::target("vg2")
            },
        ],
    }
}

fn assert_fenced(bench: &Bench, report: &FenceReport, when: &str) {
    bench.check();
    bench.given_back();
    let outcome = (&report.outcome, report.locks);
    assert_eq!(
        outcome,
        (&Outcome::Proven, LocksOutcome::Released),
        "{when}: {report:#?}"
    );
    for vg in ["vg1", "vg2"] {
        assert_eq!(bench.open(vg), Vec::<String>::new(), "{when}");
        assert!(!bench.held(vg), "{when}");
    }
}

/// Kills the agent at each call in turn, and lets a new one go on after `meanwhile`.
fn matrix(layout: &Layout, meanwhile: impl Fn(&Bench)) {
    let mut at = 0;
    loop {
        at += 1;
        let mut bench = Bench::whatever_paths(layout);
        bench.order.drain_timeout = seconds(20);
        bench.node.kill_at_call(at);
        let whole = bench.try_fence();
        let killed = bench.node.restart_agent();
        bench.check();
        if let (Some(report), false) = (whole, killed) {
            assert_fenced(&bench, &report, "not killed");
            break;
        }
        meanwhile(&bench);
        let report = bench.try_fence().expect("nobody killed the second one");
        assert_fenced(&bench, &report, &format!("killed at call {at}"));
    }
    assert!(at > 30, "killed at {at} calls only");
}

#[test]
fn a_fence_that_is_killed_anywhere_is_completed() {
    matrix(&small(), |_| ());
    matrix(&stacked(), |_| ());
}

#[test]
fn a_torn_last_line_does_not_keep_from_completing_it() {
    matrix(&small(), |bench| {
        // As if the last line had only been written in part.
        let path = bench.directory.path().join("journal");
        if let Ok(bytes) = fs::read(&path) {
            fs::write(&path, &bytes[..bytes.len().saturating_sub(7)]).expect("write");
        }
    });
}

#[test]
fn a_second_kill_is_survived_too() {
    for at in (1..200).step_by(7) {
        let bench = Bench::whatever_paths(&small());
        for _ in 0..3 {
            bench.node.kill_at_call(at);
            let _ = bench.try_fence();
            bench.node.restart_agent();
        }
        let report = bench.try_fence().expect("not killed");
        // What was complete before is refused as a new order: the lockspace is gone.
        if !matches!(report.outcome, Outcome::Refused(_)) {
            assert_fenced(&bench, &report, &format!("killed thrice at {at}"));
        }
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
    }
}

#[test]
fn killed_in_a_swap_that_waits_the_old_table_stays_and_is_swapped_later() {
    let bench = Bench::whatever_paths(&small());
    bench
        .node
        .state(|s| s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1008)));
    bench.node.at(seconds(1004), State::kill_now);
    assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    bench.check();
    assert_eq!(bench.open("vg1"), ["vg1-lv0"]);
    assert!(
        bench
            .node
            .state(|s| s.device("vg1-lv0").is_some_and(|d| d.inactive.is_some()))
    );
    let report = bench.try_fence().expect("not killed");
    assert_fenced(&bench, &report, "after the kill");
    // The timeline is that of the first agent, as far as it got.
    let frozen = report
        .steps
        .iter()
        .find(|s| s.kind == StepKind::FreezeLocks)
        .expect("a step");
    assert_eq!(frozen.at.map(|t| t.as_secs()), Some(0));
    assert!(report.finished_after.is_some_and(|t| t >= seconds(8)));
}

#[test]
fn a_volume_group_in_use_anew_is_left_alone() {
    for tells in [true, false] {
        let bench = Bench::whatever_paths(&small());
        bench.node.state(|s| {
            s.tells_generation = tells;
            s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
        });
        bench.node.at(seconds(1004), State::kill_now);
        assert!(bench.try_fence().is_none() && bench.node.restart_agent());
        let before = bench.node.log().len();
        bench.node.state(|s| s.rejoin(&uuid_of("vg1")));
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::CalledOff, LocksOutcome::Kept),
            "{report:#?}"
        );
        // But for what was raised in the kernel while it swapped: that is given back.
        assert_eq!(bench.node.log()[before..], ["rcu_expedited 0"]);
        assert!(!bench.journal().1.expect("a record").unfinished());
    }
}

#[test]
fn a_lock_manager_that_is_slow_to_answer_is_waited_for() {
    let bench = Bench::whatever_paths(&small());
    bench.node.state(|s| {
        s.tells_generation = false;
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
    });
    bench.node.at(seconds(1004), State::kill_now);
    assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    bench.node.state(|s| {
        s.rejoin(&uuid_of("vg1"));
        s.lvmlockd = Daemon::Dead;
        s.later(seconds(3), |s| s.lvmlockd = Daemon::Alive);
    });
    assert_eq!(bench.fence().outcome, Outcome::CalledOff);
}

#[test]
fn a_record_of_another_boot_is_not_completed() {
    let bench = Bench::whatever_paths(&small());
    bench.node.kill_at_call(40);
    assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    let (mut journal, record) = bench.journal();
    let mut record = record.expect("a record");
    record.begun.report.boot_id = "another".into();
    // What the killed one had raised for its swap is given back, whatever becomes of its fence.
    let log = || {
        let mut log = bench.node.log();
        log.retain(|l| !l.starts_with("rcu_expedited"));
        log
    };
    let before = log();
    let report = resume(
        &bench.node.host(),
        &mut journal,
        record,
        &|| false,
        &mut |_| (),
    );
    assert_eq!(report.outcome, Outcome::CalledOff);
    assert_eq!(log(), before);
}

#[test]
fn a_successor_releases_nothing_without_proof() {
    let bench = Bench::whatever_paths(&small());
    bench.node.state(|s| {
        s.multipathd = Daemon::Dead;
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
    });
    bench.node.at(seconds(1004), State::kill_now);
    assert!(bench.try_fence().is_none() && bench.node.restart_agent());
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert!(bench.held("vg1"));
}

/// What a successor makes of the record that is left, if whoever asked for the fence does (not) want it any more.
fn successor(bench: &Bench, unwanted: bool) -> FenceReport {
    let (mut journal, record) = bench.journal();
    let record = record.expect("a record");
    assert!(record.unfinished());
    let host = bench.node.host();
    let report = resume(&host, &mut journal, record, &|| unwanted, &mut |_| ());
    bench.check();
    report
}

/// It had asked lvmlockd, and told it nothing: what it was about to do binds nobody.
#[test]
fn one_that_had_not_told_lvmlockd_yet_can_be_called_off_by_its_successor() {
    for (how, answers) in [
        (Daemon::Dead, true),
        (Daemon::Dead, false),
        (Daemon::Hangs, true),
        (Daemon::Hangs, false),
    ] {
        let killed = || {
            let bench = Bench::whatever_paths(&small());
            let inventory = bench.node.inventory();
            bench.node.state(|s| s.lvmlockd = how);
            bench.node.at(seconds(1004), State::kill_now);
            let before = bench.try_fence_as_seen(inventory);
            assert!(before.is_none() && bench.node.restart_agent());
            if answers {
                bench.node.state(|s| s.lvmlockd = Daemon::Alive);
            }
            bench
        };
        let bench = killed();
        let report = successor(&bench, true);
        let kept = (&report.outcome, report.locks);
        let expected = (&Outcome::CalledOff, LocksOutcome::Kept);
        assert_eq!(kept, expected, "{how:?}: {report:#?}");
        assert_eq!(bench.node.log(), Vec::<String>::new(), "{how:?}");
        assert!(!bench.journal().1.expect("a record").unfinished());
        // Still wanted, it is carried out; or refused, as it would have been: nothing is cut off whose locks nobody can freeze.
        let bench = killed();
        let report = successor(&bench, false);
        if answers {
            assert_fenced(&bench, &report, "wanted");
        } else {
            let refused = Outcome::Refused(RefusalReason::LvmlockdUnavailable);
            assert_eq!(report.outcome, refused, "{how:?}: {report:#?}");
            assert_eq!(bench.node.log(), Vec::<String>::new(), "{how:?}");
        }
    }
}

/// It was told, and did not answer: it finds that in its socket, and until then its list shows nothing of it.
#[test]
fn one_that_may_have_frozen_the_locks_binds_its_successor() {
    let bench = Bench::whatever_paths(&small());
    let inventory = bench.node.inventory();
    let asked = std::cell::Cell::new(0);
    let before = catch_unwind(AssertUnwindSafe(|| {
        let mut journal = bench.journal().0;
        let hangs_from_now_on = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                // It was asked for its lockspaces, and is to freeze them next.
                bench.node.state(|s| s.lvmlockd = Daemon::Hangs);
            }
            false
        };
        let host = bench.node.host();
        let (order, journal) = (&bench.order, &mut journal);
        run(
            &host,
            journal,
            order,
            inventory,
            &hangs_from_now_on,
            &mut |r| {
                let told = r.steps.iter().any(|s| s.at.is_some() && !s.untold);
                if told {
                    bench.node.at(seconds(1001), State::kill_now);
                }
            },
        )
    }));
    assert!(before.is_err() && bench.node.restart_agent());
    assert_eq!(bench.node.log(), Vec::<String>::new());
    bench.node.state(|s| s.lvmlockd = Daemon::Alive);
    let report = successor(&bench, true);
    assert_fenced(&bench, &report, "told");
}
