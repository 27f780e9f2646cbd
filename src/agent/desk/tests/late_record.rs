//! The record of a fence of the node's own that the API server has only after the storage was given back.

use super::*;
use crate::api::request::FenceState;
use crate::fence::unfence::{GroupReport, Standing, UnfenceOrder, UnfenceOutcome, UnfenceReport};

/// A policy has `b` fenced, and nobody can record it. What is to be recorded.
fn fenced(agent: &mut Agent<'_>) -> StorageFenceRequest {
    agent.policies(&["b"]);
    agent.until("b is released", released("b"));
    agent.to_make.try_recv().expect("a record")
}

/// `b` is in use again, by whoever's hand.
fn in_use_again(bench: &Bench) {
    let standings = Journal::open(bench.state.path(), &boot_id(bench))
        .expect("open")
        .0
        .standings();
    assert!(standings.lift(&uuid_of("b")).expect("lift"));
    let map = "mpath-b-0";
    bench.node.state(|s| {
        s.device(map).expect("a map").active_paths = 1;
        s.join_now("b");
    });
}

fn boot_id(bench: &Bench) -> String {
    bench.node.host().system.boot_id().expect("boot ID")
}

/// The API server has the record at last.
fn recorded(agent: &mut Agent<'_>, mut record: StorageFenceRequest) {
    record.metadata.uid = Some("uid".into());
    record.metadata.generation = Some(1);
    agent.requests([record]);
}

fn is_left_alone(bench: &Bench, agent: &mut Agent<'_>) {
    let began = Instant::now();
    agent.until("some time", |desk| {
        assert!(
            desk.running
                .as_ref()
                .is_none_or(|(r, _)| r.work != Work::Fence)
        );
        began.elapsed() > Duration::from_secs(2)
    });
    assert_eq!(bench.count("kill_vg b"), 1);
}

#[test]
fn it_is_no_order_to_an_agent_that_was_started_since() {
    for made_by_the_earlier_agent in [false, true] {
        let bench = Bench::new();
        bench.cut("b");
        let mut agent = bench.agent();
        let before = fenced(&mut agent);
        in_use_again(&bench);
        agent.kill();
        let mut agent = bench.agent();
        let made = agent.to_make.try_recv().expect("a record");
        assert_eq!(
            made.spec.fence_state,
            FenceState::Unfenced,
            "what is so now"
        );
        let record = if made_by_the_earlier_agent {
            before
        } else {
            made
        };
        let made = record.spec.fence_state;
        recorded(&mut agent, record);
        is_left_alone(&bench, &mut agent);
        if made == FenceState::Fenced {
            says_that_it_was_given_back(&agent);
        }
    }
}

/// With the evidence of the fence. The next agent, or the same after a restart of the node, takes that for no order either.
fn says_that_it_was_given_back(agent: &Agent<'_>) {
    let (status, reason, _) = agent.says("uid");
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::False, "Unfenced")
    );
    let part = agent.desk.tools.board.wanted("uid").expect("a status");
    let released = find(&part.conditions, condition_type::LOCKS_RELEASED).expect("a condition");
    assert_eq!(released.reason, "Unfenced");
    let node = part.node.expect("evidence");
    assert!(node.started_at.is_some() && node.finished_at.is_some());
    assert_eq!(node.volume_groups.len(), 1);
    assert!(node.unfence.is_some());
}

#[test]
fn it_is_no_order_once_another_request_gave_the_storage_back() {
    let bench = Bench::new();
    bench.cut("b");
    let mut agent = bench.agent();
    let mut record = fenced(&mut agent);
    in_use_again(&bench);
    let given_back = UnfenceReport {
        order: UnfenceOrder {
            uid: "another".into(),
            ..UnfenceOrder::default()
        },
        groups: vec![GroupReport {
            standing: Standing {
                uuid: uuid_of("b"),
                ..Standing::default()
            },
            ..GroupReport::default()
        }],
        outcome: UnfenceOutcome::Done,
        ..UnfenceReport::default()
    };
    agent.desk.hear_unfence(given_back, true);
    recorded(&mut agent, record.clone());
    is_left_alone(&bench, &mut agent);
    says_that_it_was_given_back(&agent);
    // Nor is it one to the next agent, which knows it by its status.
    let part = agent.desk.tools.board.wanted("uid").expect("a status");
    record.status = Some(crate::api::StorageFenceRequestStatus {
        conditions: part.conditions,
        node: part.node,
        ..crate::api::StorageFenceRequestStatus::default()
    });
    agent.kill();
    let mut agent = bench.agent();
    recorded(&mut agent, record.clone());
    is_left_alone(&bench, &mut agent);
    assert!(!agent.desk.known.contains_key("uid"));
    // An edit is.
    agent.desk.see(Seen::Is(
        Box::new({
            record.metadata.uid = Some("uid".into());
            record.metadata.generation = Some(2);
            record
        }),
        false,
    ));
    agent.until("it is asked for", |d| d.known.contains_key("uid"));
}
