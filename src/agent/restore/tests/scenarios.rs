//! Un-fences that go as planned.

use super::{Bench, seconds};
use crate::agent::restore::look;
use crate::fence::order::Selection;
use crate::fence::report::StepResult;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport, UnfenceStep, UnfenceStepKind};
use crate::fence::{Lockspace, LockspaceState};
use crate::host::simulated::{Daemon, Group, Layout, Under, uuid_of};

#[test]
fn a_fenced_node_is_given_its_storage_back_in_the_one_safe_order() {
    let mut bench = Bench::ready(&Bench::layout());
    let before = bench.node.log().len();
    let report = bench.until_done(120);
    bench.assert_done(&report, "first");
    let done: Vec<String> = bench.node.log().drain(before..).collect();
    // Upper devices first; then queueing; then, with nothing of before left, the lockspace.
    let at = |what: &str| {
        done.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("{what} is not in {done:?}"))
    };
    assert!(at("remove vg1-thin0") < at("remove vg1-pool-tpool"));
    assert!(at("remove vg1-pool-tpool") < at("remove vg1-pool_tdata"));
    assert!(at("remove vg1-pool_tmeta") < at("restorequeueing mpath-vg1-0"));
    assert!(at("remove vg1-lv0") < at("restorequeueing mpath-vg1-0"));
    assert!(at("restorequeueing mpath-vg1-0") < at("lockstart vg1"));
    assert!(
        !done
            .iter()
            .any(|l| l.contains("lvmlock") || l.contains("other"))
    );
    let group = &report.groups[0];
    assert_eq!((group.devices_total, group.devices_removed), (6, 6));
    // The fence was of generation 3.
    assert_eq!(group.joined, Some((7, Some(4))));
    assert!(
        report
            .steps
            .iter()
            .filter(|s| s.kind != UnfenceStepKind::DropLockspace)
            .all(|s| s.result == StepResult::Done && s.at.is_some() && s.took.is_some()),
        "{report:#?}"
    );
    assert!(report.finished_after.is_some_and(|t| t >= seconds(21)));
    // The others keep what they had.
    assert!(bench.node.state(|s| s.held(&uuid_of("other"))));
    assert_eq!(bench.devices("other").len(), 3);
}

#[test]
fn one_whose_locks_nobody_held_is_joined_too() {
    let mut bench = Bench::new(&Bench::layout());
    bench
        .node
        .state(|s| s.lockspaces.retain(|l| l.lockspace.vg_name != "vg1"));
    bench.fence();
    bench.close_all();
    bench.paths(2);
    let report = bench.until_done(120);
    bench.assert_done(&report, "first");
    // Of which generation it was nobody knew.
    assert_eq!(report.groups[0].joined, Some((7, Some(4))));
    assert!(!bench.guarded("vg1"));
}

#[test]
fn twice_in_a_row() {
    let mut bench = Bench::ready(&Bench::layout());
    let first = bench.until_done(120);
    bench.assert_done(&first, "first");
    let joined = |r: &crate::fence::unfence::UnfenceReport| r.groups[0].joined;
    assert_eq!(joined(&first), Some((7, Some(4))));
    // Volumes come into use again, and the SAN goes again.
    bench.node.state(|s| s.allow(&uuid_of("vg1")));
    bench
        .node
        .state(|s| s.add_volume_on("vg1", "lv9", "mpath-vg1-0"));
    bench.paths(0);
    bench.last = None;
    bench.fence();
    bench.close_all();
    bench.paths(2);
    let second = bench.until_done(120);
    bench.assert_done(&second, "second");
    assert_eq!(joined(&second), Some((7, Some(5))));
}

#[test]
fn the_guard_is_told_to_stop_before_a_device_goes_and_a_successor_goes_on() {
    let mut at = 0;
    loop {
        at += 3;
        let mut bench = Bench::ready(&Bench::layout());
        assert!(bench.guarded("vg1"));
        bench.once();
        bench.wait(11);
        bench.node.kill_at_call(at);
        let whole = bench.try_once(&|| false);
        if !bench.node.restart_agent() {
            bench.assert_done(&whole.expect("not killed"), "never killed");
            assert!(!bench.guarded("vg1"));
            assert_eq!(bench.journal().0.lifts().left().expect("read"), None);
            break;
        }
        if !bench.log_of("remove").is_empty() {
            assert!(!bench.guarded("vg1"), "killed at {at}");
            let left = bench.journal().0.lifts().left().expect("read");
            assert!(left.is_some(), "killed at {at}");
        }
    }
    assert!(at > 30);
}

#[test]
fn a_fence_that_was_put_aside_is_found_and_not_tried_on_once_it_was_given_back() {
    let mut bench = Bench::ready(&Bench::layout());
    let (mut journal, left) = bench.journal();
    let mut record = left.expect("a record");
    // One that came to no proof, and has been replaced in the journal by another's.
    record.finished = None;
    record.begun.order.uid = "former".into();
    bench.forget();
    journal.resume(&record).expect("written");
    let mut begun = record.begun.clone();
    begun.order.uid = "latter".into();
    begun.groups.clear();
    begun.report.volume_groups.clear();
    journal.begin(begun).expect("written");
    let aside = |bench: &Bench| bench.journal().0.set_aside().expect("read").len();
    assert_eq!(aside(&bench), 1);
    let found = look::recorded(&journal.set_aside().expect("read"), &[]);
    assert_eq!(found[0].uuid, uuid_of("vg1"));
    let report = bench.until_done(120);
    bench.assert_done(&report, "given back");
    assert_eq!(aside(&bench), 0);
    // What is fenced after that is another matter.
    record.begun.report.started = bench.node.host().system.monotonic();
    journal.give_way(record).expect("written");
    assert_eq!(aside(&bench), 1);
}

#[test]
fn nothing_stands_fenced_and_nothing_is_done() {
    let mut bench = Bench::new(&Bench::layout());
    let report = bench.once();
    assert_eq!(report.outcome, UnfenceOutcome::Done);
    assert!(
        report.message.contains("nothing to be given back"),
        "{}",
        report.message
    );
    assert_eq!(report.started, None);
    assert_eq!(bench.node.log(), Vec::<String>::new());
}

#[test]
fn without_a_journal_the_kernel_tells_what_stands_fenced() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.forget();
    let report = bench.until_done(120);
    bench.assert_done(&report, "no journal");
    assert_eq!(report.groups[0].devices_removed, 6);
}

#[test]
fn named_volume_groups_only() {
    let layout = Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    };
    let mut bench = Bench::ready(&layout);
    bench.order.volume_groups = crate::fence::order::Selection::Named(vec!["vg2".into()]);
    let report = bench.until_done(120);
    assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    assert_eq!(bench.devices("vg1").len(), 3);
    assert_eq!(bench.devices("vg2").len(), 0);
}

/// Whose steps a report tells, each once, and whether all of them have ended.
fn steps_of(report: &UnfenceReport) -> (Vec<String>, bool) {
    let mut uuids: Vec<String> = report.steps.iter().map(|s| s.uuid.clone()).collect();
    uuids.sort();
    uuids.dedup();
    let ended = |s: &UnfenceStep| matches!(s.result, StepResult::Done | StepResult::Skipped);
    (uuids, report.steps.iter().all(ended))
}

#[test]
fn what_was_done_for_one_is_not_told_of_the_one_after_it() {
    let layout = Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    };
    let mut bench = Bench::ready(&layout);
    for vg in ["vg1", "vg2"] {
        bench.order.volume_groups = Selection::Named(vec![vg.into()]);
        let report = bench.until_done(120);
        assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
        assert_eq!(steps_of(&report), (vec![uuid_of(vg)], true), "{report:#?}");
    }
}

/// LVM is still searching for the other one.
#[test]
fn what_is_in_use_under_the_new_locks_of_one_is_not_in_the_way_of_another() {
    let layout = Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    };
    let mut bench = Bench::ready(&layout);
    bench.once();
    bench.wait(11);
    bench.node.state(|s| {
        s.found_after.insert(uuid_of("vg2"), seconds(40));
        s.later(seconds(30), |s| {
            let mut all = s.lockspaces.iter().map(|l| &l.lockspace);
            let joined = |l: &Lockspace| l.vg_name == "vg1" && l.state == LockspaceState::Healthy;
            if all.any(joined) && !s.held(&uuid_of("vg2")) {
                s.add_volume_on("vg1", "lv9", "mpath-vg1-0");
            }
        });
    });
    let report = bench.once();
    assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    let starts = ["lockstart vg1", "lockstart vg2"];
    assert_eq!(bench.log_of("lockstart"), starts);
    assert_eq!(bench.devices("vg1"), ["vg1-lv9"]);
    assert!(!bench.guarded("vg1") && !bench.guarded("vg2"));
}

#[test]
fn two_of_one_name_have_steps_of_their_own() {
    let layout = Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    };
    let mut bench = Bench::ready(&layout);
    // Another host renamed both: what was vg1 when it was fenced has a name that nobody else had then.
    let standings = bench.journal().0.standings();
    let all = standings.all().expect("read");
    bench.forget();
    for mut standing in all {
        standing.group.name = "same".into();
        bench.journal().0.standings().put(&standing).expect("kept");
    }
    let report = bench.until_done(120);
    bench.assert_done(&report, "of one name");
    let both = vec![uuid_of("vg1"), uuid_of("vg2")];
    assert_eq!(steps_of(&report), (both, true), "{report:#?}");
}

#[test]
fn a_leases_volume_on_the_error_target_goes_before_the_lockspace_comes() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.wipe("vg1-lvmlock"));
    let report = bench.until_done(120);
    bench.assert_done(&report, "lvmlock wiped");
    let log = bench.node.log();
    let at = |what: &str| log.iter().position(|l| l == what).expect("in the log");
    assert!(at("remove vg1-lvmlock") < at("lockstart vg1"));
    // Last of all: it shows where the paths are.
    assert!(at("remove vg1-lv0") < at("remove vg1-lvmlock"));
}

#[test]
fn what_was_joined_by_hand_is_not_joined_again_and_what_is_in_use_stays() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| {
        s.devices.retain(|_, d| d.dm.name != "vg1-lv0");
        s.join_now("vg1");
        s.allow(&uuid_of("vg1"));
        s.add_volume_on("vg1", "lv0", "mpath-vg1-0");
    });
    let report = bench.until_done(120);
    bench.check();
    assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    assert_eq!(bench.devices("vg1"), ["vg1-lv0"]);
    assert_eq!(bench.log_of("lockstart"), Vec::<String>::new());
}

#[test]
fn locks_that_the_fence_kept_are_dropped_first() {
    let mut bench = Bench::new(&Bench::layout());
    bench.fence_keeping_locks();
    bench.close_all();
    bench.paths(2);
    let report = bench.until_done(180);
    bench.assert_done(&report, "locks kept");
    let log = bench.node.log();
    let at = |what: &str| log.iter().position(|l| l == what).expect("in the log");
    assert!(at("remove vg1-lv1") < at("drop_vg vg1"));
    assert!(at("drop_vg vg1") < at("lockstart vg1"));
    assert_eq!(report.groups[0].joined, Some((7, Some(4))));
}

#[test]
fn a_multipathd_that_does_not_answer_is_noted_and_does_not_stop_it() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.multipathd = Daemon::Dead);
    let report = bench.until_done(120);
    bench.assert_done(&report, "no multipathd");
    assert!(
        report.message.contains("restorequeueing map mpath-vg1-0"),
        "{}",
        report.message
    );
}

#[test]
fn plain_disks_have_no_queueing_to_give_back() {
    let mut bench = Bench::ready(&Layout {
        groups: vec![Group {
            under: vec![Under::Disk(false), Under::Disk(false)],
            ..Group::target("vg1")
        }],
    });
    let report = bench.until_done(120);
    bench.assert_done(&report, "disks");
    assert_eq!(bench.log_of("restorequeueing"), Vec::<String>::new());
    let step = report
        .steps
        .iter()
        .find(|s| s.kind == UnfenceStepKind::RestoreQueueing);
    assert_eq!(step.map(|s| s.result), Some(StepResult::Skipped));
}
