//! Another host gives a volume group another name while it stands fenced here.

use super::Bench;
use crate::fence::unfence::{BlockerReason, UnfenceOutcome, UnfenceReport};
use crate::host::simulated::uuid_of;

fn call_it(bench: &Bench, names: &[&str]) {
    let names = names.iter().map(|&n| n.to_owned()).collect();
    bench.node.state(|s| s.called.insert(uuid_of("vg1"), names));
}

fn joined_as_new(bench: &Bench, report: &UnfenceReport) {
    bench.assert_done(report, "renamed");
    assert_eq!(bench.log_of("lockstart"), ["lockstart new"]);
    let group = &report.groups[0];
    assert_eq!(group.renamed.as_deref(), Some("new"));
    // As many times as the fence's: whoever renames it has the generations count anew.
    assert_eq!(group.joined, Some((7, Some(3))));
    let says = "vg1 (called new by now) is joined to its lockspace again";
    assert!(report.message.contains(says), "{}", report.message);
}

#[test]
fn a_volume_group_that_was_renamed_meanwhile_is_joined_by_its_new_name() {
    let mut bench = Bench::ready(&Bench::layout());
    call_it(&bench, &["new"]);
    // Whoever has the old name by now has nothing to do with it.
    bench
        .node
        .state(|s| s.called.insert(uuid_of("other"), vec!["vg1".into()]));
    let report = bench.until_done(120);
    joined_as_new(&bench, &report);
}

#[test]
fn one_that_lvm_does_not_find_or_not_clearly_is_told_and_tried_on() {
    for (names, says) in [
        (
            &[] as &[&str],
            "LVM on the host finds no volume group with UUID vg1xxx-xxxx-",
        ),
        (
            &["new", "vg1"],
            "is called: new, vg1. A copy of one of its disks",
        ),
    ] {
        let mut bench = Bench::ready(&Bench::layout());
        call_it(&bench, names);
        let report = bench.until_done(60);
        assert_eq!(report.outcome, UnfenceOutcome::Waiting);
        assert_eq!(report.blockers[0].reason, BlockerReason::StepFailed);
        assert!(report.message.contains(says), "{}", report.message);
        assert!(report.failures > 1, "{report:#?}");
        assert_eq!(bench.log_of("lockstart"), Vec::<String>::new());
        call_it(&bench, &["new"]);
        let report = bench.until_done(120);
        joined_as_new(&bench, &report);
    }
}

#[test]
fn an_lvm_that_hangs_is_given_up_and_asked_again() {
    let mut bench = Bench::ready(&Bench::layout());
    bench.node.state(|s| s.lvm_hangs = true);
    let report = bench.until_done(60);
    assert_eq!(report.outcome, UnfenceOutcome::Waiting);
    assert!(report.message.contains("vgs vg1"), "{}", report.message);
    bench.node.state(|s| s.lvm_hangs = false);
    let report = bench.until_done(120);
    bench.assert_done(&report, "it answers");
}

/// Two long names may be cut to one lockspace.
#[test]
fn a_frozen_lockspace_is_dropped_by_the_name_that_lvmlockd_has() {
    let mut bench = Bench::new(&Bench::layout());
    bench.fence_keeping_locks();
    bench.close_all();
    bench.paths(2);
    bench.node.state(|s| {
        let mut all = s.lockspaces.iter_mut();
        let ours = all.find(|l| l.lockspace.vg_name == "vg1");
        ours.expect("a lockspace").lockspace.vg_name = "new".into();
    });
    call_it(&bench, &["new"]);
    let report = bench.until_done(120);
    bench.assert_done(&report, "cut alike");
    assert_eq!(bench.log_of("drop_vg"), ["drop_vg new"]);
}

/// Somebody was faster.
#[test]
fn one_that_is_joined_by_its_new_name_already_is_given_back() {
    let mut bench = Bench::ready(&Bench::layout());
    call_it(&bench, &["new"]);
    bench.node.state(|s| s.join_as(&uuid_of("vg1"), "new"));
    let report = bench.until_done(60);
    bench.assert_done(&report, "joined by hand");
    assert_eq!(bench.log_of("lockstart"), Vec::<String>::new());
    assert_eq!(report.groups[0].renamed.as_deref(), Some("new"));
}
