use super::*;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport};

impl World {
    fn lift(mut self, name: &str, outcome: UnfenceOutcome) -> Self {
        let uid = format!("uid-{name}");
        let order = unfence_order(&self.requests[&uid]);
        let report = UnfenceReport {
            order,
            boot_id: BOOT.into(),
            looked: Monotonic::from_secs(100),
            started: (outcome != UnfenceOutcome::Waiting).then(|| Monotonic::from_secs(90)),
            outcome,
            ..UnfenceReport::default()
        };
        self.lifts.insert(uid, report);
        self
    }

    fn delete(&mut self, name: &str) {
        self.edit(name, |r| {
            r.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            r.metadata.finalizers = Some(vec![UNFENCE_FINALIZER.into()]);
        });
    }

    fn gives_back(&self) -> Option<String> {
        let decision = self.decide();
        assert!(decision.begin.is_none() || decision.begin_unfence.is_none());
        decision.begin_unfence.map(|o| o.name)
    }
}

fn unfenced(name: &str, created: i64) -> StorageFenceRequest {
    request(name, created, &json!({"fenceState": "Unfenced"}))
}

fn fenced_one() -> World {
    World::of([request("a", 1, &json!({}))]).knows("a", Outcome::Proven)
}

#[test]
fn the_spec_or_a_deletion_gives_the_storage_back() {
    let mut world = fenced_one();
    assert_eq!(world.gives_back(), None);
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    assert_eq!(world.gives_back().as_deref(), Some("a"));
    assert_eq!(world.begins(), None);
    let mut world = fenced_one();
    world.delete("a");
    assert_eq!(world.gives_back().as_deref(), Some("a"));
    // One that was never fenced here: what stands fenced may be of a request that is gone.
    let world = World::of([unfenced("b", 1)]);
    assert_eq!(world.gives_back().as_deref(), Some("b"));
}

#[test]
fn retained_unheld_and_dry_ones_give_nothing_back() {
    let mut world = fenced_one();
    world.delete("a");
    world.edit("a", |r| r.spec.deletion_policy = DeletionPolicy::Retain);
    assert_eq!(world.gives_back(), None);
    let mut world = fenced_one();
    world.delete("a");
    world.edit("a", |r| r.metadata.finalizers = None);
    assert_eq!(world.gives_back(), None);
    let dry = json!({"fenceState": "Unfenced", "dryRun": true});
    let world = World::of([request("a", 1, &dry)]);
    assert_eq!(world.gives_back(), None);
}

#[test]
fn a_deleted_one_that_nothing_was_fenced_for_says_so() {
    for outcome in [
        Outcome::CalledOff,
        Outcome::DryRun,
        Outcome::Refused(RefusalReason::PathsRemain),
    ] {
        let mut world = World::of([request("a", 1, &json!({}))]).knows("a", outcome);
        world.delete("a");
        assert_eq!(world.stand("a"), Some(Stand::NothingFenced));
        assert_eq!(world.gives_back(), None);
    }
    // Also when another one fenced the node: that is the other one's.
    let mut world = World::of([request("a", 1, &json!({})), request("b", 2, &json!({}))])
        .knows("a", Outcome::Proven);
    world.delete("b");
    assert_eq!(world.stand("b"), Some(Stand::NothingFenced));
    assert_eq!(world.gives_back(), None);
}

#[test]
fn what_the_status_tells_of_this_boot_counts_as_fenced() {
    for (boot, stand) in [
        (BOOT, Some(Stand::Next)),
        ("boot-0", Some(Stand::NothingFenced)),
    ] {
        let mut world = World::of([request("a", 1, &json!({}))]);
        world.delete("a");
        world.edit("a", |r| {
            r.status = serde_json::from_value(json!({
                "node": {"observedGeneration": 1, "bootId": boot, "agentVersion": "1"},
                "conditions": [{"type": "Fenced", "status": "True", "reason": "Proven", "message": "",
                    "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }))
            .unwrap();
        });
        assert_eq!(world.stand("a"), stand, "{boot}");
    }
}

#[test]
fn while_another_request_wants_the_node_fenced_nothing_is_given_back() {
    let mut world = World::of([request("a", 1, &json!({})), request("b", 2, &json!({}))])
        .knows("a", Outcome::Proven)
        .knows("b", Outcome::Refused(RefusalReason::NothingAffected));
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    assert_eq!(world.gives_back(), None);
    assert_eq!(world.stand("a"), Some(Stand::Governed("b".into())));
    world.delete("b");
    assert_eq!(world.gives_back().as_deref(), Some("a"));
}

#[test]
fn a_fence_comes_before_and_interrupts() {
    // "a" is done with; "b" is new and wants a fence of its own.
    let mut world = fenced_one().lift("a", UnfenceOutcome::Working);
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    world.running = Some(Running {
        uid: "uid-a".into(),
        work: Work::Unfence,
    });
    assert!(!world.decide().call_off);
    let b = request("b", 2, &json!({}));
    world.requests.insert("uid-b".into(), b);
    let decision = world.decide();
    assert!(decision.call_off);
    assert_eq!((decision.begin, decision.begin_unfence), (None, None));
    assert_eq!(world.stand("a"), Some(Stand::Unfence));
    world.running = None;
    assert_eq!(
        (world.begins().as_deref(), world.gives_back()),
        (Some("b"), None)
    );
}

#[test]
fn a_change_of_mind_interrupts_and_one_that_is_gone_does_not() {
    let mut world = fenced_one().lift("a", UnfenceOutcome::Working);
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    world.running = Some(Running {
        uid: "uid-a".into(),
        work: Work::Unfence,
    });
    assert!(!world.decide().call_off);
    world.edit("a", |r| r.spec.fence_state = FenceState::Fenced);
    assert!(world.decide().call_off);
    world.requests.clear();
    assert!(!world.decide().call_off);
}

/// Begun before the API server had told who wants what.
#[test]
fn one_whose_request_is_gone_stops_while_another_wants_the_node_fenced() {
    let mut world = fenced_one();
    world.running = Some(Running {
        uid: "uid-gone".into(),
        work: Work::Unfence,
    });
    assert_eq!(world.begins(), None);
    assert!(world.decide().call_off);
    // Answered by an earlier agent.
    world.known.clear();
    world.requests.get_mut("uid-a").unwrap().status = serde_json::from_value(json!({
        "node": {"observedGeneration": 1, "bootId": BOOT, "agentVersion": "1", "finishedAt": "2026-01-01T00:00:00.000Z"},
        "conditions": [{"type": "Fenced", "status": "True", "reason": "Proven", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }))
    .unwrap();
    assert_eq!(world.stand("a"), Some(Stand::Settled));
    assert!(world.decide().call_off);
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    assert!(!world.decide().call_off);
    world.edit("a", |r| {
        r.spec.fence_state = FenceState::Fenced;
        r.spec.dry_run = true;
    });
    assert!(!world.decide().call_off);
}

/// The node fenced by itself and had its storage back before the record was there, which wants a fence by its spec for ever.
#[test]
fn a_record_that_was_late_keeps_nobody_waiting() {
    let late = || {
        let mut world = World::of([
            request("a", 1, &json!({})),
            request("b", 2, &json!({})),
            unfenced("c", 3),
        ]);
        let a = world.requests.get_mut("uid-a").unwrap();
        a.status = serde_json::from_value(json!({
            "node": {"observedGeneration": 1, "bootId": BOOT, "agentVersion": "1"},
            "conditions": [{"type": "Fenced", "status": "False", "reason": "Unfenced", "message": "",
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }))
        .unwrap();
        world
    };
    let mut world = late();
    assert_eq!(world.stand("a"), Some(Stand::Settled));
    assert_eq!(world.begins().as_deref(), Some("b"));
    assert_eq!(world.stand("c"), Some(Stand::Governed("b".into())));
    world.requests.remove("uid-b");
    assert_eq!(
        (world.begins(), world.gives_back()),
        (None, Some("c".into()))
    );
    // An edit is an order.
    let mut world = late();
    world.edit("a", |_| ());
    assert_eq!(world.begins().as_deref(), Some("a"));
    assert_eq!(world.stand("b"), Some(Stand::Governed("a".into())));
}

#[test]
fn a_fence_whose_request_wants_the_contrary_is_called_off() {
    let mut world = World::of([request("a", 1, &json!({}))]).runs("a");
    assert!(!world.decide().call_off);
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    assert!(world.decide().call_off);
    assert_eq!(world.gives_back(), None);
}

#[test]
fn it_is_tried_again_when_it_is_time_and_not_when_it_is_done() {
    let mut world = fenced_one();
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    let mut world = world.lift("a", UnfenceOutcome::Waiting);
    world.now = Monotonic::from_secs(101);
    assert_eq!(
        (world.gives_back(), world.stand("a")),
        (None, Some(Stand::Unfence))
    );
    world.now = Monotonic::from_secs(102);
    assert_eq!(world.gives_back().as_deref(), Some("a"));
    world.lifts.get_mut("uid-a").unwrap().failures = 2;
    assert_eq!(world.gives_back(), None);
    world.now = Monotonic::from_secs(110);
    assert_eq!(world.gives_back().as_deref(), Some("a"));
    let mut world = world.lift("a", UnfenceOutcome::Done);
    assert_eq!(
        (world.gives_back(), world.stand("a")),
        (None, Some(Stand::Unfence))
    );
    // Another generation is another question.
    world.edit("a", |r| r.spec.reason = Some("why not".into()));
    assert_eq!(world.gives_back().as_deref(), Some("a"));
}

#[test]
fn what_was_given_back_and_is_deleted_later_lifts_no_fence_of_anybody() {
    let mut world = World::of([unfenced("a", 1)])
        .knows("a", Outcome::Proven)
        .lift("a", UnfenceOutcome::Done);
    world.delete("a");
    assert_eq!(
        (world.gives_back(), world.stand("a")),
        (None, Some(Stand::NothingFenced))
    );
    // Nor does it wait for who has fenced the same since.
    let b = request("b", 2, &json!({}));
    world.requests.insert("uid-b".into(), b);
    assert_eq!(world.stand("a"), Some(Stand::NothingFenced));
}

#[test]
fn what_was_given_back_is_fenced_again_when_the_spec_says_so() {
    let mut world = World::of([unfenced("a", 1)]).lift("a", UnfenceOutcome::Done);
    assert_eq!(world.begins(), None);
    world.edit("a", |r| r.spec.fence_state = FenceState::Fenced);
    assert_eq!(world.begins().as_deref(), Some("a"));
}

#[test]
fn a_status_of_this_boot_that_says_it_was_given_back_settles_it() {
    let mut world = World::of([unfenced("a", 1)]);
    world.edit("a", |r| {
        r.status = serde_json::from_value(json!({
            "node": {"observedGeneration": 1, "bootId": BOOT, "agentVersion": "1"},
            "conditions": [{"type": "Fenced", "status": "False", "reason": "Unfenced", "message": "",
                "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }))
        .unwrap();
    });
    assert_eq!(
        (world.gives_back(), world.stand("a")),
        (None, Some(Stand::Settled))
    );
    world.edit("a", |_| ());
    assert_eq!(world.gives_back().as_deref(), Some("a"));
}

/// Otherwise it would be said to wait, and be tried once more when the other is gone: then it is that one's fence that would be lifted, although
/// it may have been left on purpose.
#[test]
fn what_was_given_back_stays_so_while_another_has_fenced_the_node_since() {
    let second = || request("b", 2, &json!({}));
    let world = World::of([unfenced("a", 1), second()])
        .lift("a", UnfenceOutcome::Done)
        .knows("b", Outcome::Proven);
    assert_eq!(world.stand("a"), Some(Stand::Unfence));
    // A successor knows it by the status.
    let mut world = World::of([unfenced("a", 1), second()]).knows("b", Outcome::Proven);
    world.edit("a", |r| {
        r.status = serde_json::from_value(json!({
            "node": {"observedGeneration": 1, "bootId": BOOT, "agentVersion": "1"},
            "conditions": [{"type": "Fenced", "status": "False", "reason": "Unfenced", "message": "",
                "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }))
        .unwrap();
    });
    assert_eq!(world.stand("a"), Some(Stand::Settled));
    world.requests.remove("uid-b");
    assert_eq!(world.gives_back(), None);
    // Another spec is another matter.
    let mut world = World::of([unfenced("a", 1), second()]).lift("a", UnfenceOutcome::Done);
    world.edit("a", |r| r.metadata.generation = Some(9));
    assert_eq!(world.stand("a"), Some(Stand::Governed("b".into())));
}

/// Looks of two seconds each: by age alone the oldest would be due again whenever another has ended.
#[test]
fn one_that_waits_for_long_lets_the_younger_ones_have_their_turn() {
    let mut world = World::of([unfenced("a", 1), unfenced("b", 2), unfenced("c", 3)]);
    world.now = Monotonic::from_secs(100);
    let mut turns = Vec::new();
    for _ in 0..9 {
        let name = world.gives_back().expect("one is due");
        world = world.lift(&name, UnfenceOutcome::Waiting);
        world.now = world.now + std::time::Duration::from_secs(2);
        world.lifts.get_mut(&format!("uid-{name}")).unwrap().looked = world.now;
        turns.push(name);
    }
    assert_eq!(turns, ["a", "b", "c", "a", "b", "c", "a", "b", "c"]);
}

#[test]
fn one_that_nobody_asks_for_any_more_goes_on_unless_somebody_wants_the_node_fenced() {
    let left = || UnfenceOrder {
        name: "gone".into(),
        uid: "uid-gone".into(),
        ..UnfenceOrder::default()
    };
    let mut world = World::of([unfenced("a", 1)]);
    world.now = Monotonic::from_secs(100);
    world.abandoned = vec![left()];
    assert_eq!(world.gives_back().as_deref(), Some("gone"));
    // By turns, like the others.
    let looked = UnfenceReport {
        order: left(),
        looked: world.now,
        ..UnfenceReport::default()
    };
    world.lifts.insert("uid-gone".into(), looked);
    assert_eq!(world.gives_back().as_deref(), Some("a"));
    let mut world = world.lift("a", UnfenceOutcome::Waiting);
    assert_eq!(world.gives_back(), None);
    world.now = Monotonic::from_secs(102);
    assert!(world.gives_back().is_some());
    let mut world = fenced_one();
    world.abandoned = vec![left()];
    assert_eq!(world.gives_back(), None);
}
