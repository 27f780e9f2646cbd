//! Un-fences that an earlier agent has left half-way.

use super::*;
use crate::agent::journal::Lift;
use crate::fence::order::Selection;
use crate::fence::unfence::{GroupReport, Standing, UnfenceOrder, UnfenceOutcome, UnfenceReport};

/// All that is left to be done is to see that the lockspace is joined.
fn half_way(bench: &Bench, vg: &str) -> Lift {
    let host = bench.node.host();
    Lift {
        lifted: Vec::new(),
        report: UnfenceReport {
            order: UnfenceOrder {
                name: vg.into(),
                uid: format!("uid-{vg}"),
                generation: 1,
                volume_groups: Selection::Named(vec![vg.into()]),
                ..UnfenceOrder::default()
            },
            boot_id: host.system.boot_id().expect("boot ID"),
            started: Some(host.system.monotonic()),
            groups: vec![GroupReport {
                standing: Standing {
                    name: vg.into(),
                    uuid: uuid_of(vg),
                    lockspace: format!("lvm_{vg}"),
                    ..Standing::default()
                },
                ..GroupReport::default()
            }],
            ..UnfenceReport::default()
        },
    }
}

#[test]
fn each_of_them_is_ended_and_the_one_at_work_goes_first() {
    let bench = Bench::new();
    let boot_id = bench.node.host().system.boot_id().expect("boot ID");
    let (journal, _) = Journal::open(bench.state.path(), &boot_id).expect("open");
    for vg in ["b", "c"] {
        journal.lifts().put(&half_way(&bench, vg)).expect("put");
    }
    drop(journal);
    let mut agent = bench.agent();
    let running = agent.desk.running.as_ref().map(|(r, _)| r.uid.clone());
    assert_eq!(running.as_deref(), Some("uid-c"));
    let known: Vec<&String> = agent.desk.lifts.keys().collect();
    assert_eq!(known, ["uid-b", "uid-c"]);
    let unfenced = |name: &str| {
        let mut request = request(name, 1);
        request.spec.fence_state = crate::api::request::FenceState::Unfenced;
        request
    };
    agent.requests([unfenced("b"), unfenced("c")]);
    agent.until("both are given back", |d| {
        let done = |r: &UnfenceReport| r.outcome == UnfenceOutcome::Done && r.groups.len() == 1;
        d.lifts.len() == 2 && d.lifts.values().all(done)
    });
    let (journal, _) = Journal::open(bench.state.path(), &boot_id).expect("open");
    assert_eq!(journal.lifts().all().expect("read"), []);
}
