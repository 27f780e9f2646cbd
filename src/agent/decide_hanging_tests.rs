//! Fences that hang, and what is decided beside them.

use super::*;
use crate::host::simulated::uuid_of;

fn named(name: &str, created: i64, groups: &[&str]) -> StorageFenceRequest {
    let spec = json!({ "volumeGroups": { "mode": "Named", "names": groups } });
    request(name, created, &spec)
}

/// A fence of vg1 hangs that no request asks for: a kill hook's.
fn world(requests: impl IntoIterator<Item = StorageFenceRequest>) -> World {
    let groups = vec![Group::target("vg1"), Group::target("vg2")];
    World {
        inventory: Some(Simulation::new(&Layout { groups }).inventory()),
        hanging: vec![Hanging {
            uid: "kill-hook:vg1:1".into(),
            groups: BTreeSet::from([uuid_of("vg1")]),
        }],
        ..World::of(requests)
    }
}

fn running(mut world: World) -> World {
    world.running = Some(Running {
        uid: "kill-hook:vg1:1".into(),
        work: Work::Fence,
    });
    world
}

#[test]
fn it_gives_way_to_a_fence_of_something_else_only() {
    let dry_run = request("d", 1, &json!({ "dryRun": true }));
    for (request, waits) in [
        (named("b", 1, &["vg2"]), true),
        // More than what hangs: it may say at once what stands in the way.
        (named("b", 1, &["vg1", "vg2"]), true),
        (named("b", 1, &["vg1"]), false),
        // It is refused, which is quick.
        (named("b", 1, &["vg3"]), true),
        (dry_run, false),
    ] {
        let text = format!("{:?}", request.spec);
        let going_on = running(world([request.clone()])).decide();
        assert_eq!(going_on.waits, waits, "{text}");
        assert!(going_on.begin.is_none() && !going_on.call_off);
        let between = world([request]).decide();
        assert_eq!(between.begin.is_some(), waits, "{text}");
    }
    let alone = World {
        hanging: Vec::new(),
        ..world([named("b", 1, &["vg1"])])
    };
    assert!(alone.decide().begin.is_some());
}

#[test]
fn a_request_whose_fence_waits_for_its_turn_is_told_as_one_whose_fence_goes_on() {
    let mut world = World::of([named("a", 1, &["vg1"])]).knows("a", Outcome::NotProven);
    world.hanging = vec![Hanging {
        uid: "uid-a".into(),
        ..Hanging::default()
    }];
    assert_eq!(world.stand("a"), Some(Stand::Report(1)));
    // It goes on with the spec that it began with, and nothing is given back before it has ended.
    world.edit("a", |r| r.spec.drain_timeout_seconds = 7);
    assert_eq!(
        (world.stand("a"), world.begins()),
        (Some(Stand::Report(1)), None)
    );
    world.edit("a", |r| r.spec.fence_state = FenceState::Unfenced);
    let decision = world.decide();
    assert_eq!(decision.stands["uid-a"], Stand::Report(1));
    assert!(decision.begin.is_none() && decision.begin_unfence.is_none());
    world.hanging.clear();
    assert!(world.decide().begin_unfence.is_some());
}
