use std::cell::RefCell;

use serde_json::{Value, json};

use super::*;
use crate::api::node_storage::PreflightResult;
use crate::controller::fixtures::at;
use crate::controller::takeover::apply::desired;

const UUID: &str = "uuid-of-san";

/// What is wrong with a peer, how, and the reason that is given.
type Spoilt = (&'static str, fn(&mut Peer), &'static str);

/// A request for n1 that its agent has proven: host 1, generation 3.
pub(in super::super) fn request(spec: &Value) -> StorageFenceRequest {
    let condition = |type_: &str| {
        json!({ "type": type_, "status": "True", "reason": "R", "message": "m", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let mut object = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": { "name": "n1-san", "uid": "uid", "generation": 1 },
        "spec": { "nodeName": "n1", "takeover": "Expedite" },
        "status": {
            "conditions": [condition("Fenced"), condition("LocksReleased")],
            "node": {
                "observedGeneration": 1, "bootId": "boot-1", "agentVersion": "1",
                "volumeGroups": [{
                    "name": "san", "uuid": UUID, "lockspace": "lvm_san", "hostId": 1, "generation": 3,
                    "pathsTotal": 2, "pathsActive": 0, "devicesTotal": 3, "devicesProven": 3, "locksReleased": true,
                }],
            },
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// With another value somewhere in it.
fn but(at: &str, to: Value) -> StorageFenceRequest {
    let mut object = serde_json::to_value(request(&json!({}))).unwrap();
    *object.pointer_mut(at).unwrap() = to;
    serde_json::from_value(object).unwrap()
}

pub(in super::super) fn pin() -> DeclareDead {
    DeclareDead {
        request_uid: "uid".into(),
        request: "n1-san".into(),
        node_name: "n1".into(),
        boot_id: "boot-1".into(),
        volume_group_uuid: UUID.into(),
        lockspace: "lvm_san".into(),
        host_id: 1,
        generation: 3,
    }
}

/// A node that has joined the lockspace, with that host id.
pub(in super::super) fn peer(name: &str, host_id: i64) -> Peer {
    let path = json!({ "device": "sda", "active": true, "deviceState": "running" });
    Peer {
        name: name.into(),
        uid: format!("storage-of-{name}"),
        answers: true,
        storage: serde_json::from_value(json!({
            "bootId": format!("boot-{host_id}"), "agentVersion": "1", "sharedVolumeGroups": 1, "activeLogicalVolumes": 0, "paths": "2/2",
            "volumeGroups": [{
                "name": "san", "uuid": UUID, "shared": true, "logicalVolumes": 0, "logicalVolumesOpen": 0,
                "lockspace": { "name": "lvm_san", "hostId": host_id, "generation": 1, "ioTimeoutSeconds": 10, "state": "Healthy" },
                "physicalVolumes": [{ "device": "mpatha", "kind": "Multipath", "paths": [path] }],
            }],
            "preflight": [{ "name": "DeadExt", "result": "Passed", "message": "it can" }],
        }))
        .unwrap(),
        tasks: Vec::new(),
        refused: None,
    }
}

/// n1 as it is after its fence.
fn fenced() -> Peer {
    let mut n1 = peer("n1", 1);
    n1.storage.volume_groups[0].lockspace = None;
    n1.storage.volume_groups[0].fenced = true;
    n1
}

pub(in super::super) fn view(requests: Vec<StorageFenceRequest>, others: Vec<Peer>) -> View {
    let mut peers = vec![fenced()];
    peers.extend(others);
    View {
        requests,
        peers,
        ..View::default()
    }
}

fn at_once(view: &View) -> Plan {
    plan(view, &|_, _| Duration::ZERO)
}

fn only(plan: &Plan) -> &Verdict {
    plan.verdicts[0].as_ref().unwrap()
}

/// What the API server and that peer's agent make of a plan.
fn carry_out(view: &mut View, plan: &Plan, answer: impl Fn(&str) -> Option<DeclareDeadResult>) {
    for (request, verdict) in view.requests.iter_mut().zip(&plan.verdicts) {
        if let Some(new) = desired(request, verdict.as_ref(), at(5)) {
            let status = request.status.as_mut().unwrap();
            status.conditions.retain(|c| c.type_ != "TakenOver");
            status.conditions.extend(new);
        }
    }
    for peer in &mut view.peers {
        if let Some(tasks) = plan.tasks.get(&peer.name) {
            peer.tasks.clone_from(tasks);
        }
        let result = answer(&peer.name);
        let said = peer.tasks.iter().filter_map(|task| {
            Some(DeclaredDead {
                request_uid: task.request_uid.clone(),
                volume_group_uuid: task.volume_group_uuid.clone(),
                host_id: task.host_id,
                generation: task.generation,
                result: result?,
                message: "so it is".into(),
            })
        });
        peer.storage.declared_dead = said.collect();
    }
}

#[test]
fn one_healthy_peer_is_asked_and_when_it_is_done_its_task_goes() {
    let mut view = view(
        vec![request(&json!({}))],
        vec![peer("n2", 2), peer("n3", 3)],
    );
    let first = at_once(&view);
    assert_eq!(
        first.tasks,
        BTreeMap::from([("n2".to_owned(), vec![pin()])])
    );
    assert_eq!(only(&first).reason, "Expediting");
    assert_eq!(only(&first).status, ConditionStatus::False);

    carry_out(&mut view, &first, |_| None);
    let waits = at_once(&view);
    assert!(waits.tasks.is_empty(), "asked once: {waits:?}");
    assert_eq!(waits.look_again, Some(PATIENCE));

    carry_out(&mut view, &waits, |_| Some(DeclareDeadResult::Declared));
    let seen = at_once(&view);
    assert_eq!(
        (only(&seen).status, only(&seen).reason.as_str()),
        (ConditionStatus::True, "TakenOver")
    );
    assert!(
        seen.tasks.is_empty(),
        "the task stays until the request says so"
    );

    carry_out(&mut view, &seen, |_| Some(DeclareDeadResult::Declared));
    let over = at_once(&view);
    assert_eq!(over.tasks, BTreeMap::from([("n2".to_owned(), vec![])]));
    carry_out(&mut view, &over, |_| None);
    let quiet = at_once(&view);
    assert_eq!(only(&quiet).reason, "TakenOver", "it is remembered");
    assert!(quiet.tasks.is_empty());
    assert_eq!(
        desired(&view.requests[0], quiet.verdicts[0].as_ref(), at(99)),
        None,
        "and not written again"
    );
}

#[test]
fn where_one_fails_or_falls_silent_another_is_asked_beside_it() {
    let two = || vec![peer("n2", 2), peer("n3", 3)];
    for result in [DeclareDeadResult::Refused, DeclareDeadResult::Failed] {
        let mut view = view(vec![request(&json!({}))], two());
        let first = at_once(&view);
        carry_out(&mut view, &first, |_| Some(result));
        let second = at_once(&view);
        assert_eq!(
            second.tasks,
            BTreeMap::from([("n3".to_owned(), vec![pin()])])
        );
        carry_out(&mut view, &second, |_| Some(result));
        let all = at_once(&view);
        assert!(all.tasks.is_empty(), "both try on: {all:?}");
        assert_eq!(only(&all).reason, "NoPeer");
        assert!(
            only(&all).message.contains("n2: so it is; n3: so it is"),
            "{:?}",
            only(&all)
        );
        assert!(only(&all).message.contains("leases have run out"));
        carry_out(&mut view, &all, |name| {
            (name == "n2").then_some(DeclareDeadResult::Declared)
        });
        assert_eq!(only(&at_once(&view)).reason, "TakenOver");
    }
    for result in [None, Some(DeclareDeadResult::InProgress)] {
        let mut view = view(vec![request(&json!({}))], two());
        let first = at_once(&view);
        carry_out(&mut view, &first, |_| result);
        let waited = RefCell::new(PATIENCE.saturating_sub(Duration::from_secs(1)));
        let plan = || plan(&view, &|_, _| *waited.borrow());
        assert!(plan().tasks.is_empty());
        *waited.borrow_mut() = PATIENCE;
        assert_eq!(
            plan().tasks,
            BTreeMap::from([("n3".to_owned(), vec![pin()])])
        );
    }
    // One that is not fit any more has its task taken away.
    let mut view = view(vec![request(&json!({}))], two());
    let first = at_once(&view);
    carry_out(&mut view, &first, |_| None);
    view.peers[1].answers = false;
    let second = at_once(&view);
    assert_eq!(
        second.tasks,
        BTreeMap::from([("n2".to_owned(), vec![]), ("n3".to_owned(), vec![pin()])])
    );
}

#[test]
fn whoever_is_not_fit_is_not_asked() {
    let spoil: [Spoilt; 10] = [
        ("agent gone", |p| p.answers = false, "NoPeer"),
        (
            "fenced",
            |p| p.storage.volume_groups[0].fenced = true,
            "NoPeer",
        ),
        (
            "fence stands",
            |p| {
                let fence = json!({ "volumeGroup": "san", "uuid": UUID, "by": "x", "locks": "Released", "openings": 0 });
                p.storage.fences = vec![serde_json::from_value(fence).unwrap()];
            },
            "NoPeer",
        ),
        (
            "not joined",
            |p| p.storage.volume_groups[0].lockspace = None,
            "NoPeer",
        ),
        (
            "other lockspace",
            |p| lockspace(p).name = "lvm_other".into(),
            "NoPeer",
        ),
        (
            "lease unwell",
            |p| lockspace(p).state = "RenewalFailing".into(),
            "NoPeer",
        ),
        (
            "no path",
            |p| p.storage.volume_groups[0].physical_volumes[0].paths[0].active = false,
            "NoPeer",
        ),
        (
            "another VG of that name",
            |p| p.storage.volume_groups[0].uuid = "other".into(),
            "NoPeer",
        ),
        (
            "old sanlock",
            |p| p.storage.preflight[0].result = PreflightResult::Warning,
            "PeersTooOld",
        ),
        (
            "unknown sanlock",
            |p| p.storage.preflight.clear(),
            "PeersTooOld",
        ),
    ];
    for (what, spoil, reason) in spoil {
        let mut bad = peer("n2", 2);
        spoil(&mut bad);
        let alone = at_once(&view(vec![request(&json!({}))], vec![bad.clone()]));
        assert!(alone.tasks.is_empty(), "{what}: {alone:?}");
        assert_eq!(only(&alone).reason, reason, "{what}");
        assert!(
            only(&alone).message.contains("leases have run out"),
            "{what}"
        );
        let with_another = at_once(&view(vec![request(&json!({}))], vec![bad, peer("n3", 3)]));
        assert_eq!(
            with_another.tasks.keys().collect::<Vec<_>>(),
            ["n3"],
            "{what}"
        );
    }
    let nobody = at_once(&view(vec![request(&json!({}))], vec![]));
    assert_eq!(only(&nobody).reason, "NoPeer");
}

fn lockspace(peer: &mut Peer) -> &mut crate::api::node_storage::LockspaceStatus {
    peer.storage.volume_groups[0].lockspace.as_mut().unwrap()
}

/// The node's own agent attests for its own node only: not for another's host id.
#[test]
fn a_host_id_that_another_node_reports_is_not_declared_dead() {
    let mut gone = peer("n9", 1);
    gone.answers = false;
    let plan = at_once(&view(vec![request(&json!({}))], vec![peer("n2", 2), gone]));
    assert!(plan.tasks.is_empty(), "{plan:?}");
    assert_eq!(only(&plan).reason, "HostIdInUse");
    assert!(only(&plan).message.contains("n9"), "{:?}", only(&plan));
}

#[test]
fn nobody_is_asked_before_all_of_it_is_proven() {
    let group = "/status/node/volumeGroups/0";
    for (what, request, reason) in [
        (
            "not proven",
            but("/status/conditions/0/status", json!("False")),
            "Waiting",
        ),
        (
            "proof unknown",
            but("/status/conditions/0/status", json!("Unknown")),
            "Waiting",
        ),
        (
            "locks held",
            but("/status/conditions/1/status", json!("False")),
            "Waiting",
        ),
        ("no status", but("/status", Value::Null), "Waiting"),
        (
            "no report",
            but("/status/node", Value::Null),
            "GenerationUnknown",
        ),
        (
            "no boot ID",
            but("/status/node/bootId", json!("")),
            "GenerationUnknown",
        ),
        (
            "no lockspace",
            but(&format!("{group}/lockspace"), Value::Null),
            "GenerationUnknown",
        ),
        (
            "no host id",
            but(&format!("{group}/hostId"), Value::Null),
            "GenerationUnknown",
        ),
        (
            "host id 0",
            but(&format!("{group}/hostId"), json!(0)),
            "GenerationUnknown",
        ),
        (
            "no generation",
            but(&format!("{group}/generation"), Value::Null),
            "GenerationUnknown",
        ),
        (
            "not released",
            but(&format!("{group}/locksReleased"), json!(false)),
            "Waiting",
        ),
        (
            "restarted since",
            but("/status/node/bootId", json!("boot-0")),
            "NodeRestarted",
        ),
    ] {
        let plan = at_once(&view(vec![request], vec![peer("n2", 2)]));
        assert!(plan.tasks.is_empty(), "{what}: {plan:?}");
        assert_eq!(only(&plan).reason, reason, "{what}");
        assert_eq!(only(&plan).status, ConditionStatus::False, "{what}");
    }
    for (reason, said) in [
        ("NotProven", "NotProven"),
        ("NodeRestarted", "NodeRestarted"),
    ] {
        let mut request = but("/status/conditions/0/status", json!("False"));
        request.status.as_mut().unwrap().conditions[0].reason = reason.into();
        let plan = at_once(&view(vec![request], vec![peer("n2", 2)]));
        assert_eq!(only(&plan).reason, said);
    }
    let mut kept = but("/status/conditions/1/status", json!("False"));
    kept.status.as_mut().unwrap().conditions[1].reason = "LocksKept".into();
    assert_eq!(
        only(&at_once(&view(vec![kept], vec![peer("n2", 2)]))).reason,
        "LocksKept"
    );
}

#[test]
fn whoever_does_not_ask_for_it_or_no_more_has_no_task_and_no_condition() {
    let asked = |spec: Value, deleted: bool| {
        let mut view = view(vec![request(&json!({}))], vec![peer("n2", 2)]);
        let first = at_once(&view);
        carry_out(&mut view, &first, |_| Some(DeclareDeadResult::Failed));
        for (key, value) in spec.as_object().unwrap() {
            let mut object = serde_json::to_value(&view.requests[0]).unwrap();
            object["spec"][key] = value.clone();
            view.requests[0] = serde_json::from_value(object).unwrap();
        }
        if deleted {
            view.requests[0].metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(7)));
        }
        view
    };
    for view in [
        asked(json!({ "takeover": "Wait" }), false),
        asked(json!({ "fenceState": "Unfenced" }), false),
        asked(json!({ "dryRun": true }), false),
        asked(json!({}), true),
    ] {
        let plan = at_once(&view);
        assert_eq!(plan.verdicts, [None], "{:?}", view.requests[0].spec);
        assert_eq!(plan.tasks, BTreeMap::from([("n2".to_owned(), vec![])]));
        let gone = desired(&view.requests[0], None, at(8));
        assert_eq!(gone, Some(vec![]), "the condition is taken back");
    }
    // The request is gone altogether.
    let mut view = asked(json!({}), false);
    view.requests.clear();
    assert_eq!(
        at_once(&view).tasks,
        BTreeMap::from([("n2".to_owned(), vec![])])
    );
}

#[test]
fn a_request_about_another_spec_is_looked_at_anew() {
    let mut view = view(vec![request(&json!({}))], vec![peer("n2", 2)]);
    let first = at_once(&view);
    carry_out(&mut view, &first, |_| Some(DeclareDeadResult::Free));
    let seen = at_once(&view);
    carry_out(&mut view, &seen, |_| Some(DeclareDeadResult::Free));
    view.requests[0].metadata.generation = Some(2);
    view.peers[1].tasks.clear();
    view.peers[1].storage.declared_dead.clear();
    let anew = at_once(&view);
    assert_eq!(only(&anew).reason, "Expediting");
    assert_eq!(anew.tasks.len(), 1);
}

/// Only the take-over waits: the fence has happened. Tasks that were given before are taken back.
#[test]
fn a_limit_of_the_policy_holds_the_take_over_back_until_it_is_not_reached() {
    let mut view = view(vec![request(&json!({}))], vec![peer("n2", 2)]);
    let first = at_once(&view);
    carry_out(&mut view, &first, |_| None);
    let why = "5 of 7 nodes".to_owned();
    view.held_back = BTreeMap::from([("uid".to_owned(), why)]);
    let held = at_once(&view);
    assert_eq!(held.tasks, BTreeMap::from([("n2".to_owned(), vec![])]));
    assert_eq!(only(&held).reason, "LimitReached");
    assert!(
        only(&held).message.contains("5 of 7 nodes"),
        "{:?}",
        only(&held)
    );
    carry_out(&mut view, &held, |_| None);
    view.held_back.clear();
    assert_eq!(at_once(&view).tasks, first.tasks);
    assert!(at_once(&view).look_again.is_none());
}

#[path = "plan_peers_tests.rs"]
mod peers;
