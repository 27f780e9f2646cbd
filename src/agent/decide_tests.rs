use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::fence::Monotonic;
use crate::host::simulated::{Group, Layout, Simulation, Under};

const BOOT: &str = "boot-1";

fn request(name: &str, created: i64, spec: &serde_json::Value) -> StorageFenceRequest {
    let mut all = json!({ "nodeName": "n1" });
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let mut request = StorageFenceRequest::new(name, serde_json::from_value(all).unwrap());
    request.metadata.uid = Some(format!("uid-{name}"));
    request.metadata.generation = Some(1);
    request.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
    request
}

#[path = "decide_hanging_tests.rs"]
mod hanging;
#[path = "decide_unfence_tests.rs"]
mod unfence;

#[derive(Default)]
struct World {
    requests: BTreeMap<Uid, StorageFenceRequest>,
    known: BTreeMap<Uid, Known>,
    lifts: BTreeMap<Uid, UnfenceReport>,
    now: Monotonic,
    running: Option<Running>,
    inventory: Option<Inventory>,
    hanging: Vec<Hanging>,
    abandoned: Vec<UnfenceOrder>,
}

impl World {
    fn of(requests: impl IntoIterator<Item = StorageFenceRequest>) -> Self {
        Self {
            requests: requests
                .into_iter()
                .map(|r| (r.metadata.uid.clone().unwrap(), r))
                .collect(),
            ..Self::default()
        }
    }

    /// As if the request had been carried out as it stands, with that outcome.
    fn knows(mut self, name: &str, outcome: Outcome) -> Self {
        let uid = format!("uid-{name}");
        let order = order(&self.requests[&uid]);
        let report = FenceReport {
            request: name.into(),
            uid: uid.clone(),
            generation: order.generation,
            boot_id: BOOT.into(),
            started: Monotonic::from_secs(10),
            outcome,
            message: "earlier".into(),
            ..FenceReport::default()
        };
        self.known.insert(uid, Known { order, report });
        self
    }

    fn runs(mut self, name: &str) -> Self {
        self = self.knows(name, Outcome::InProgress);
        self.running = Some(Running {
            uid: format!("uid-{name}"),
            work: Work::Fence,
        });
        self
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut StorageFenceRequest)) {
        let request = self.requests.get_mut(&format!("uid-{name}")).unwrap();
        change(request);
        *request.metadata.generation.as_mut().unwrap() += 1;
    }

    fn decide(&self) -> Decision {
        decide(View {
            node_name: "n1",
            boot_id: BOOT,
            requests: Some(&self.requests),
            running: self.running.as_ref(),
            known: &self.known,
            lifts: &self.lifts,
            now: self.now,
            inventory: self.inventory.as_ref(),
            hanging: &self.hanging,
            abandoned: &self.abandoned,
        })
    }

    fn begins(&self) -> Option<String> {
        self.decide().begin.map(|o| o.name)
    }

    fn stand(&self, name: &str) -> Option<Stand> {
        self.decide().stands.remove(&format!("uid-{name}"))
    }
}

fn inventory(active: u32) -> Inventory {
    let under = vec![Under::Map {
        active,
        queueing: true,
    }];
    let layout = Layout {
        groups: vec![Group {
            under,
            ..Group::target("vg1")
        }],
    };
    let inventory = Simulation::new(&layout).inventory();
    assert!(inventory.taken_at > Monotonic::from_secs(10));
    inventory
}

#[test]
fn a_new_request_begins_at_once_with_what_it_says() {
    let spec = json!({
        "volumeGroups": {"mode": "Named", "names": ["vg1"]}, "whenPathsRemain": "Fence", "releaseLocks": "Never", "drainTimeoutSeconds": 7,
    });
    let world = World::of([request("a", 1, &spec)]);
    let expected = Order {
        name: "a".into(),
        uid: "uid-a".into(),
        generation: 1,
        volume_groups: Selection::Named(vec!["vg1".into()]),
        when_paths_remain: order::WhenPathsRemain::Fence,
        release_locks: order::ReleaseLocks::Never,
        drain_timeout: Duration::from_secs(7),
        dry_run: false,
    };
    assert_eq!(world.decide().begin, Some(expected));
    assert_eq!(world.stand("a"), Some(Stand::Next));
}

#[test]
fn before_the_requests_are_listed_nothing_is_decided_or_called_off() {
    let world = World::of([request("a", 1, &json!({}))]).runs("a");
    let view = View {
        node_name: "n1",
        boot_id: BOOT,
        requests: None,
        running: world.running.as_ref(),
        known: &world.known,
        lifts: &world.lifts,
        now: Monotonic::default(),
        inventory: None,
        hanging: &[],
        abandoned: &[],
    };
    assert_eq!(decide(view), Decision::default());
}

#[test]
fn another_nodes_request_is_none_of_its_business() {
    let mut world = World::of([request("a", 1, &json!({}))]);
    world.edit("a", |r| r.spec.node_name = "n2".into());
    assert_eq!(world.decide(), Decision::default());
}

#[test]
fn of_several_the_oldest_governs_and_the_other_goes_on_when_it_is_gone() {
    let mut world = World::of([request("a", 2, &json!({})), request("b", 1, &json!({}))]);
    assert_eq!(world.begins().as_deref(), Some("b"));
    assert_eq!(world.stand("a"), Some(Stand::Governed("b".into())));
    world = world.knows("b", Outcome::Proven);
    assert_eq!(world.begins(), None);
    assert_eq!(world.stand("a"), Some(Stand::Governed("b".into())));
    world.requests.remove("uid-b");
    assert_eq!(world.begins().as_deref(), Some("a"));
}

#[test]
fn while_one_runs_nothing_else_begins() {
    let world = World::of([
        request("a", 1, &json!({})),
        request("b", 2, &json!({"dryRun": true})),
    ])
    .runs("a");
    assert_eq!(world.begins(), None);
    assert_eq!(world.stand("a"), Some(Stand::Report(1)));
    assert_eq!(world.stand("b"), Some(Stand::Next));
}

#[test]
fn a_real_fence_goes_before_a_dry_run() {
    let world = World::of([
        request("a", 1, &json!({"dryRun": true})),
        request("b", 2, &json!({})),
    ]);
    assert_eq!(world.begins().as_deref(), Some("b"));
    assert_eq!(
        world.knows("b", Outcome::Proven).begins().as_deref(),
        Some("a")
    );
}

#[test]
fn what_has_ended_is_not_begun_again() {
    for outcome in [
        Outcome::Proven,
        Outcome::NotProven,
        Outcome::CalledOff,
        Outcome::DryRun,
    ] {
        let world = World::of([request("a", 1, &json!({}))]).knows("a", outcome.clone());
        assert_eq!(world.begins(), None, "{outcome:?}");
        assert_eq!(world.stand("a"), Some(Stand::Report(1)), "{outcome:?}");
    }
}

#[test]
fn an_edit_half_way_waits_and_is_looked_at_afterwards() {
    let mut world = World::of([request("a", 1, &json!({}))]).runs("a");
    world.edit("a", |r| r.spec.release_locks = ReleaseLocks::Never);
    assert!(!world.decide().call_off);
    assert_eq!(world.stand("a"), Some(Stand::Report(1)));
    world.running = None;
    world.known.get_mut("uid-a").unwrap().report.outcome = Outcome::Proven;
    assert_eq!(world.decide().begin.map(|o| o.generation), Some(2));
}

#[test]
fn an_edit_that_changes_nothing_about_the_order_is_answered_by_what_was_done() {
    let mut world = World::of([request("a", 1, &json!({}))]).knows("a", Outcome::Proven);
    world.edit("a", |r| r.spec.reason = Some("ticket 5".into()));
    assert_eq!(world.begins(), None);
    assert_eq!(world.stand("a"), Some(Stand::Report(2)));
}

#[test]
fn deleted_half_way_it_is_called_off() {
    let mut world = World::of([request("a", 1, &json!({}))]).runs("a");
    world
        .requests
        .get_mut("uid-a")
        .unwrap()
        .metadata
        .deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert!(world.decide().call_off);
    world.requests.clear();
    assert!(world.decide().call_off);
}

#[test]
fn one_that_is_being_deleted_does_not_begin() {
    let mut world = World::of([request("a", 1, &json!({}))]);
    world
        .requests
        .get_mut("uid-a")
        .unwrap()
        .metadata
        .deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(world.begins(), None);
}

#[test]
fn a_request_that_waits_for_the_paths_begins_when_they_are_gone() {
    let spec = json!({"volumeGroups": {"mode": "Named", "names": ["vg1"]}});
    let mut world = World::of([request("a", 1, &spec)])
        .knows("a", Outcome::Refused(RefusalReason::PathsRemain));
    assert_eq!(
        world.begins(),
        None,
        "without an inventory nothing has changed"
    );
    world.inventory = Some(inventory(2));
    world.known.get_mut("uid-a").unwrap().report.message =
        selection::select(&inventory(2), &order(&world.requests["uid-a"]))
            .unwrap_err()
            .message;
    assert_eq!(
        world.begins(),
        None,
        "the same refusal is not worth another look"
    );
    world.inventory = Some(inventory(1));
    assert_eq!(world.begins().as_deref(), Some("a"), "another message is");
    world.inventory = Some(inventory(0));
    assert_eq!(world.begins().as_deref(), Some("a"));
    world.inventory.as_mut().unwrap().taken_at = Monotonic::from_secs(9);
    assert_eq!(
        world.begins(),
        None,
        "an inventory from before the refusal says nothing new"
    );
}

/// An lvmlockd that was started anew does not know the lockspace before it is adopted.
#[test]
fn what_lvmlockd_does_not_know_yet_is_looked_at_anew() {
    let refused = Outcome::Refused(RefusalReason::LockspaceNotAdopted);
    let mut world = World::of([request("a", 1, &json!({}))]).knows("a", refused);
    world.inventory = Some(inventory(0));
    assert_eq!(world.begins().as_deref(), Some("a"));
}

#[test]
fn a_wrong_name_waits_for_a_person() {
    for why in [
        RefusalReason::VolumeGroupUnknown,
        RefusalReason::VolumeGroupNotShared,
    ] {
        let mut world = World::of([request("a", 1, &json!({}))]).knows("a", Outcome::Refused(why));
        world.inventory = Some(inventory(0));
        assert_eq!(world.begins(), None, "{why:?}");
        world.edit("a", |r| r.spec.when_paths_remain = WhenPathsRemain::Fence);
        assert_eq!(world.begins().as_deref(), Some("a"), "{why:?}");
    }
}

#[test]
fn a_status_of_this_boot_and_generation_settles_it_for_a_new_agent() {
    let settled = |boot: &str, generation: i64, reason: &str| {
        let mut world = World::of([request("a", 1, &json!({}))]);
        let status = json!({
            "conditions": [{
                "type": "Fenced", "status": "True", "reason": reason, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "node": {
                "observedGeneration": generation, "bootId": boot, "agentVersion": "0",
                "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z",
            },
        });
        world.requests.get_mut("uid-a").unwrap().status =
            Some(serde_json::from_value(status).unwrap());
        (world.stand("a"), world.begins().is_some())
    };
    assert_eq!(settled(BOOT, 1, "Proven"), (Some(Stand::Settled), false));
    assert_eq!(settled(BOOT, 1, "NotProven"), (Some(Stand::Settled), false));
    for said in ["Proven", "NotProven", "InProgress", "NodeRestarted"] {
        assert_eq!(
            settled("boot-0", 1, said),
            (Some(Stand::Restarted), false),
            "the node that came back is not cut off again: {said}"
        );
    }
    assert_eq!(
        settled("boot-0", 0, "Proven"),
        (Some(Stand::Next), true),
        "edited since the restart"
    );
    assert_eq!(
        settled(BOOT, 0, "Proven"),
        (Some(Stand::Next), true),
        "another generation"
    );
    assert_eq!(
        settled(BOOT, 1, "PathsRemain"),
        (Some(Stand::Next), true),
        "a refusal"
    );
    assert_eq!(
        settled(BOOT, 1, "InProgress"),
        (Some(Stand::Next), true),
        "killed half-way, journal lost"
    );
}

#[test]
fn a_record_of_another_boot_begins_nothing_even_before_its_status_tells() {
    for (boot, begins) in [(BOOT, Some("a")), ("boot-0", None)] {
        let mut world = World::of([request("a", 1, &json!({}))]);
        let record = world.requests.get_mut("uid-a").unwrap();
        let of = |key: &str, value: &str| Some([(key.to_owned(), value.to_owned())].into());
        record.metadata.labels = of("storagefence.io/recorded-by", "agent");
        record.metadata.annotations = of("storagefence.io/boot-id", boot);
        assert_eq!(world.begins().as_deref(), begins, "{boot}");
    }
}
