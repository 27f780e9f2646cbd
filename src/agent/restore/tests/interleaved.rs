//! Un-fences of several requests on one node, each at its turn: none of them loses what another has left half-way (S4).

use super::Bench;
use super::bench::order;
use crate::agent::journal::Lift;
use crate::fence::order::Selection;
use crate::fence::unfence::{BlockerReason, UnfenceOrder, UnfenceOutcome, UnfenceReport};
use crate::host::simulated::{Group, Layout, Starting, uuid_of};

fn bench() -> Bench {
    Bench::ready(&Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    })
}

/// Makes attempts for a request until they come to a join that fails.
fn fails_to_join(bench: &mut Bench, vg: &str) -> UnfenceReport {
    bench.node.state(|s| s.start = Starting::Fails);
    bench.order = order(vg);
    bench.last = None;
    let report = bench.until_done(14);
    assert_eq!(report.blockers[0].reason, BlockerReason::StepFailed);
    bench.node.state(|s| s.start = Starting::Works);
    report
}

/// What the state directory has of un-fences that have not ended.
fn left(bench: &Bench) -> Option<Lift> {
    bench.journal().0.lifts().left().expect("read")
}

#[test]
fn what_one_request_left_half_way_is_known_after_another_has_ended() {
    let mut bench = bench();
    fails_to_join(&mut bench, "vg1");
    bench.order = order("vg2");
    bench.last = None;
    let second = bench.until_done(120);
    assert_eq!(second.outcome, UnfenceOutcome::Done, "{second:#?}");
    // A new agent goes on with the one that is left, and with nothing else.
    let lift = left(&bench).expect("one is left");
    assert_eq!(lift.report.order, order("vg1"));
    let standings: Vec<_> = lift.lifted.iter().map(|s| &s.group.uuid).collect();
    assert_eq!(standings, [&uuid_of("vg1")]);
    bench.order = lift.report.order.clone();
    bench.last = Some(lift.report);
    let first = bench.until_done(120);
    bench.assert_done(&first, "both");
    assert_eq!(left(&bench), None);
}

#[test]
fn an_agent_that_only_has_the_requests_joins_both() {
    let mut bench = bench();
    fails_to_join(&mut bench, "vg1");
    fails_to_join(&mut bench, "vg2");
    assert_eq!(left(&bench).map(|l| l.report.order), Some(order("vg2")));
    for vg in ["vg1", "vg2"] {
        bench.order = order(vg);
        bench.last = None;
        let report = bench.until_done(120);
        assert_eq!(report.groups.len(), 1, "{report:#?}");
        assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    }
    let report = bench.last.clone().expect("a report");
    bench.assert_done(&report, "both");
    assert_eq!(left(&bench), None);
}

#[test]
fn what_another_request_has_taken_on_is_not_put_back_by_the_one_before() {
    let mut bench = bench();
    let half_way = fails_to_join(&mut bench, "vg1");
    // Another means the same volume group, and is done with it.
    bench.order = UnfenceOrder {
        uid: "uid-both".into(),
        volume_groups: Selection::AllShared,
        ..order("vg1")
    };
    bench.last = None;
    let both = bench.until_done(120);
    bench.assert_done(&both, "both");
    assert_eq!(left(&bench), None);
    // Its volumes are in use again when the one before has its turn.
    bench
        .node
        .state(|s| s.add_volume_on("vg1", "lv9", "mpath-vg1-0"));
    bench.order = order("vg1");
    bench.last = Some(half_way);
    let report = bench.until_done(60);
    assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    assert_eq!(bench.devices("vg1"), ["vg1-lv9"]);
    assert!(!bench.guarded("vg1"));
}

/// Only its join was missing. It was joined by hand, used, and fenced anew: nobody has asked to have that fence lifted.
#[test]
fn what_was_left_of_a_former_fence_is_none_of_the_one_that_came_since() {
    let mut bench = bench();
    let former = fails_to_join(&mut bench, "vg1");
    assert_eq!(bench.journal().0.half_way().expect("read").len(), 1);
    bench.node.state(|s| {
        s.join_now("vg1");
        s.add_volume_on("vg1", "new", "mpath-vg1-0");
        s.allow(&uuid_of("vg1"));
    });
    bench.fence();
    bench.close_all();
    bench.wait(3);
    let fenced = bench.node.now();
    assert_eq!(bench.journal().0.half_way().expect("read"), []);
    // The same request asks for that one too: nothing of what was done before is done.
    bench.last = Some(former);
    let report = bench.until_done(120);
    assert_eq!(report.outcome, UnfenceOutcome::Done, "{report:#?}");
    assert!(report.started.is_some_and(|at| at.0 >= fenced));
    assert_eq!(report.groups[0].devices_removed, 1);
    assert_eq!(left(&bench), None);
}

/// Killed while devices were left, it stands again; then another request fenced it once more, and the journal tells of a third fence by now. That the
/// fence has stood since before does not make it the one that the un-fence was about.
#[test]
fn what_stands_and_was_fenced_once_more_is_not_lifted_by_what_was_left_before() {
    let killed = |at: u64| {
        let mut bench = bench();
        bench.order = order("vg1");
        bench.once();
        bench.wait(11);
        bench.node.kill_at_call(at);
        let _ = bench.try_once(&|| false);
        bench.node.restart_agent();
        // The next agent has a fence to carry out first.
        bench.try_once(&|| true).expect("nobody killed it");
        (left(&bench).is_some() && bench.guarded("vg1")).then_some(bench)
    };
    let bench = (1..60).find_map(killed).expect("one with devices left");
    let half_way = || bench.journal().0.half_way().expect("read");
    assert_eq!(half_way().len(), 1);
    let before = left(&bench).expect("one is left").report;
    let fenced_since = || {
        let (journal, _) = bench.journal();
        journal.fenced_since(&before).expect("read")
    };
    assert!(!fenced_since());
    bench.wait(1);
    bench.fence_for("uid-second", "vg1");
    assert_eq!((half_way(), fenced_since()), (vec![], true));
    bench.fence_for("uid-third", "vg2");
    assert_eq!((half_way(), fenced_since()), (vec![], true));
    assert!(bench.guarded("vg1"));
}
