//! An un-fence that is to end because the node is to be fenced: it does so at once, wherever it is.

use std::cell::Cell;
use std::time::Duration;

use super::{Bench, seconds};
use crate::fence::report::StepResult;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport, UnfenceStepKind};
use crate::host::simulated::{Daemon, Dropping, Group, Layout, Under};

/// A volume group on so many maps, whose paths have been healthy for long enough.
fn on_maps(maps: u32) -> Bench {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    about_to_begin(Bench::ready(&Layout {
        groups: vec![Group {
            // One on each.
            linear: maps,
            under: vec![map; maps as usize],
            ..Group::target("vg1")
        }],
    }))
}

/// The next attempt is at work.
fn about_to_begin(mut bench: Bench) -> Bench {
    bench.once();
    bench.wait(11);
    bench
}

/// One attempt that is interrupted from then on, and ends within that.
fn interrupted(bench: &mut Bench, from: Duration, within: Duration) -> UnfenceReport {
    let node = bench.node.clone();
    let report = bench.try_once(&|| node.now() >= from).expect("not killed");
    let after = node.now().saturating_sub(from);
    assert!(after < within, "{after:?}");
    assert_interrupted(&report);
    report
}

/// A volume group whose locks were kept: its lockspace is to be dropped.
fn with_a_lockspace() -> Bench {
    let bench = Bench::new(&Bench::layout());
    bench.fence_keeping_locks();
    bench.close_all();
    bench.paths(2);
    about_to_begin(bench)
}

fn assert_interrupted(report: &UnfenceReport) {
    assert_eq!(report.outcome, UnfenceOutcome::Waiting, "{report:#?}");
    assert!(report.message.contains("Interrupted"), "{}", report.message);
}

#[test]
fn while_a_multipathd_hangs_that_many_maps_are_asked_of() {
    let mut bench = on_maps(5);
    bench.node.state(|s| s.multipathd = Daemon::Hangs);
    let from = bench.node.now() + seconds(1);
    // One question of three seconds, and none after it.
    interrupted(&mut bench, from, seconds(3));
    bench.node.state(|s| s.multipathd = Daemon::Alive);
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
    assert_eq!(report.notes, Vec::<String>::new());
}

#[test]
fn while_it_only_looks() {
    let mut bench = about_to_begin(Bench::ready(&Bench::layout()));
    bench.node.state(|s| s.sanlock = Daemon::Hangs);
    let from = bench.node.now() + seconds(1);
    let report = interrupted(&mut bench, from, seconds(1));
    assert_eq!(report.groups.len(), 1, "what is known stays known");
    bench.node.state(|s| s.sanlock = Daemon::Alive);
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
}

#[test]
fn between_two_devices() {
    let mut bench = about_to_begin(Bench::ready(&Bench::layout()));
    let node = bench.node.clone();
    let removed = || {
        let log = node.log();
        log.iter().filter(|l| l.starts_with("remove ")).count()
    };
    let report = bench.try_once(&|| removed() > 0).expect("not killed");
    assert_eq!(removed(), 1);
    assert_interrupted(&report);
    assert!(bench.guarded("vg1"), "what is left is watched over again");
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
}

#[test]
fn while_a_lockspace_is_dropped() {
    let mut bench = with_a_lockspace();
    bench.node.state(|s| s.drop = Dropping::NeverAnswers);
    let node = bench.node.clone();
    let dropping = || node.log().iter().any(|l| l == "drop_vg vg1");
    let began = bench.node.now();
    let report = bench.try_once(&dropping).expect("not killed");
    assert!(
        bench.node.now() < began + seconds(1),
        "{:?}",
        bench.node.now().saturating_sub(began)
    );
    assert_interrupted(&report);
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
}

#[test]
fn while_the_lock_manager_does_not_answer() {
    let mut bench = with_a_lockspace();
    // The drop takes two seconds, and is looked for after that.
    let began = bench.node.now();
    bench
        .node
        .at(began + seconds(1), |s| s.lvmlockd = Daemon::Hangs);
    interrupted(&mut bench, began + seconds(3), seconds(1));
    bench.node.state(|s| s.lvmlockd = Daemon::Alive);
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
}

#[test]
fn before_anything_is_forked() {
    let mut bench = about_to_begin(Bench::ready(&Bench::layout()));
    bench.node.state(|s| s.lvm_hangs = true);
    let node = bench.node.clone();
    let queues = || node.log().iter().any(|l| l.starts_with("restorequeueing"));
    let report = bench.try_once(&queues).expect("not killed");
    assert_interrupted(&report);
    assert_eq!(bench.node.threads(), 0, "vgs was started");
    bench.node.state(|s| s.lvm_hangs = false);
    let report = bench.until_done(120);
    bench.assert_done(&report, "later");
}

#[test]
fn wherever_it_is_asked() {
    let mut at = 0;
    loop {
        // Further on it waits for LVM, and is asked the same again and again.
        at += if at < 25 { 1 } else { 10 };
        let mut bench = with_a_lockspace();
        let asked = Cell::new(0);
        let since = Cell::new(None);
        let node = bench.node.clone();
        let interrupt = || {
            asked.set(asked.get() + 1);
            let is = asked.get() >= at;
            if is && since.get().is_none() {
                since.set(Some(node.now()));
            }
            is
        };
        let report = bench.try_once(&interrupt).expect("not killed");
        bench.check();
        let Some(since) = since.get() else {
            bench.assert_done(&report, "never interrupted");
            break;
        };
        assert_eq!(bench.node.now(), since, "{at}: {report:#?}");
        assert_interrupted(&report);
        let left = !bench.devices("vg1").is_empty();
        assert!(
            !left || bench.guarded("vg1"),
            "{at}: watched over by nobody"
        );
        let report = bench.until_done(300);
        bench.assert_done(&report, "later");
    }
    assert!(at > 20, "{at}");
}

/// Nothing is to be fenced, and it does not ask one map after the other of somebody who does not answer; nor does it forget about them.
#[test]
fn a_multipathd_that_hangs_is_left_alone_until_the_lockspaces_are_joined() {
    let mut bench = on_maps(5);
    bench.node.state(|s| s.multipathd = Daemon::Hangs);
    let began = bench.node.now();
    bench
        .node
        .at(began + seconds(20), |s| s.multipathd = Daemon::Alive);
    let report = bench.once();
    bench.assert_done(&report, "in one go");
    let joined = report
        .steps
        .iter()
        .find(|s| s.kind == UnfenceStepKind::JoinLockspace)
        .and_then(|s| s.at);
    assert!(joined.is_some_and(|at| at < seconds(12)), "{joined:?}");
    for map in 0..5 {
        let restored = format!("restorequeueing mpath-vg1-{map}");
        assert!(bench.node.log().contains(&restored), "{restored}");
    }
    let queueing = report
        .steps
        .iter()
        .find(|s| s.kind == UnfenceStepKind::RestoreQueueing);
    assert_eq!(queueing.map(|s| s.result), Some(StepResult::Done));
    assert_eq!(report.notes, Vec::<String>::new());
}
