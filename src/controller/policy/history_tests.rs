use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::api::UNFENCE_FINALIZER;
use crate::kubernetes::mock;

const BACK: (&str, &str) = ("Unfenced", "False/Unfenced");
/// What the agent says is of the spec before.
const AGAIN_WANTED: (&str, &str) = ("Fenced", "False/Unfenced");

/// A record of policy `p`, made in that second: what is wanted, and what the agent says.
fn record(name: &str, made: i64, (wanted, says): (&str, &str)) -> StorageFenceRequest {
    let (status, reason) = says.split_once('/').unwrap();
    let made = jiff::Timestamp::from_second(made).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": {
            "name": name, "uid": name, "generation": 1, "creationTimestamp": made.to_string(),
            "labels": { annotation::RECORDED_BY: "agent" },
            "annotations": { annotation::POLICY: "p", annotation::BOOT_ID: "boot-1" },
        },
        "spec": { "nodeName": "n1", "fenceState": wanted, "dryRun": reason == "DryRun" },
        "status": {
            "conditions": [{
                "type": "Fenced", "status": status, "reason": reason, "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "node": {
                "observedGeneration": 1, "bootId": "boot-1", "agentVersion": "1", "startedAt": "2026-01-01T00:00:00Z",
            },
        },
    }))
    .unwrap()
}

fn policy(more: &Value) -> StorageFencePolicy {
    let mut spec = json!({ "triggers": { "allPathsDown": {} } });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    StorageFencePolicy::new("p", serde_json::from_value(spec).unwrap())
}

fn limit(records: i32) -> [StorageFencePolicy; 1] {
    [policy(&json!({ "recordHistoryLimit": records }))]
}

fn names(surplus: &[&StorageFenceRequest]) -> Vec<String> {
    surplus.iter().map(|r| r.name_any()).collect()
}

fn without_agent(records: &[StorageFenceRequest], policies: &[StorageFencePolicy]) -> Vec<String> {
    names(&surplus(records, policies, |_| None))
}

#[test]
fn the_oldest_go_and_the_limit_stays() {
    let records = [
        record("auto-n1-b", 20, BACK),
        record("auto-n1-a", 30, BACK),
        record("auto-n1-d", 10, BACK),
        record("auto-n1-c", 10, BACK),
    ];
    assert_eq!(
        without_agent(&records, &limit(2)),
        ["auto-n1-c", "auto-n1-d"]
    );
    assert_eq!(without_agent(&records, &limit(4)), [""; 0]);
    assert_eq!(without_agent(&records, &limit(0)).len(), 4);
}

#[test]
fn ten_stay_where_nobody_says_otherwise() {
    let records: Vec<_> = (0..12)
        .map(|n| record(&format!("auto-n1-{n:02}"), n, BACK))
        .collect();
    let oldest = ["auto-n1-00", "auto-n1-01"];
    assert_eq!(without_agent(&records, &[policy(&json!({}))]), oldest);
    assert_eq!(
        without_agent(&records, &[]),
        oldest,
        "the policy is no more"
    );
}

#[test]
fn each_node_and_policy_is_counted_by_itself() {
    let mut records = [
        record("auto-n1-a", 1, BACK),
        record("auto-n1-b", 2, BACK),
        record("auto-n2-c", 3, BACK),
        record("auto-n1-d", 4, BACK),
    ];
    records[2].spec.node_name = "n2".into();
    records[3]
        .annotations_mut()
        .insert(annotation::POLICY.into(), "q".into());
    assert_eq!(without_agent(&records, &limit(1)), ["auto-n1-a"]);
}

#[test]
fn what_stands_governs_or_is_being_given_back_stays() {
    for says in [
        ("Fenced", "True/Proven"),
        ("Fenced", "False/NotProven"),
        ("Fenced", "Unknown/InProgress"),
        ("Unfenced", "True/UnfenceWaiting"),
        ("Unfenced", "Unknown/Unfencing"),
        // Wanted fenced again.
        AGAIN_WANTED,
    ] {
        let mut records = [record("auto-n1-a", 1, says), record("auto-n1-b", 2, BACK)];
        if says == AGAIN_WANTED {
            records[0].metadata.generation = Some(2);
        }
        assert_eq!(
            without_agent(&records, &limit(0)),
            ["auto-n1-b"],
            "{says:?}"
        );
        assert_eq!(
            without_agent(&records, &limit(1)),
            [""; 0],
            "it does not count: {says:?}"
        );
    }
    for says in [
        ("Fenced", "False/NodeRestarted"),
        ("Fenced", "False/DryRun"),
        // It was late: the storage had been given back before.
        ("Fenced", "False/Unfenced"),
    ] {
        let over = [record("auto-n1-a", 1, says)];
        assert_eq!(without_agent(&over, &limit(0)), ["auto-n1-a"], "{says:?}");
    }
    // Whatever its status says, the node says that it stands.
    let word = |_: &StorageFenceRequest| {
        Some(Word {
            standing: ["auto-n1-a".to_owned()].into(),
        })
    };
    let records = [record("auto-n1-a", 1, BACK), record("auto-n1-b", 2, BACK)];
    assert_eq!(names(&surplus(&records, &limit(0), word)), ["auto-n1-b"]);
}

#[test]
fn what_a_person_made_or_is_deleting_stays() {
    let mut records = [
        record("mine", 1, BACK),
        record("auto-n1-b", 2, BACK),
        record("auto-n1-c", 3, BACK),
    ];
    records[1].metadata.labels = None;
    records[2].metadata.deletion_timestamp = records[2].metadata.creation_timestamp.clone();
    assert_eq!(without_agent(&records, &limit(0)), [""; 0]);
}

/// A NodeStorage that was not written since a reboot names another boot than a record that stands: only the agent says that a restart has ended it.
#[test]
fn no_boot_id_ends_a_record_that_still_says_fenced() {
    let mut record = record("auto-n1-a", 1, ("Fenced", "True/Proven"));
    let word = |_: &StorageFenceRequest| Some(Word::default());
    for boot_id in ["boot-1", "boot-2", ""] {
        let node = record.status.as_mut().unwrap().node.as_mut();
        node.unwrap().boot_id = boot_id.into();
        let records = [record.clone()];
        assert_eq!(surplus(&records, &limit(0), word).len(), 0, "{boot_id}");
    }
    // Nor does it before its status says anything of a node.
    record.status = None;
    assert_eq!(surplus([&record], &limit(0), word).len(), 0);
}

/// Deletes a record with our finalizer, and one without. `stays`: the finalizer, when it was taken off; `refused`: how the API server answers to
/// deletions.
async fn pruned(stays: bool, refused: Option<u16>) -> (Pruner, Vec<String>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let client = mock::client(move |call| {
        let name = call.path.rsplit('/').next().unwrap();
        let method = call.method.as_str();
        calls.lock().unwrap().push(format!("{method} {name}"));
        match refused {
            Some(code) if method == "DELETE" => (
                code,
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code }),
            ),
            _ => {
                let mut stored = record(name, 1, BACK);
                stored.metadata.finalizers = stays.then(|| vec![UNFENCE_FINALIZER.to_owned()]);
                (200, serde_json::to_value(stored).unwrap())
            }
        }
    });
    let mut records = [record("auto-n1-a", 1, BACK), record("auto-n1-b", 2, BACK)];
    records[0].metadata.finalizers = Some(vec![UNFENCE_FINALIZER.to_owned()]);
    let mut pruner = Pruner::default();
    let surplus = [&records[0], &records[1]];
    pruner.delete(&client, &surplus).await;
    let calls = seen.lock().unwrap().clone();
    (pruner, calls)
}

#[tokio::test]
async fn the_finalizer_goes_first_and_then_the_record() {
    for refused in [None, Some(404), Some(409)] {
        let (pruner, calls) = pruned(false, refused).await;
        let both = ["PATCH auto-n1-a", "DELETE auto-n1-a", "DELETE auto-n1-b"];
        assert_eq!(calls, both, "{refused:?}");
        assert!(pruner.is_due(), "{refused:?}");
    }
}

/// The request's reconciler puts the finalizer back on, and both ring.
#[tokio::test]
async fn a_refused_deletion_ends_the_look_and_is_not_tried_again_at_once() {
    for refused in [403, 422, 500] {
        let (mut pruner, calls) = pruned(false, Some(refused)).await;
        assert_eq!(calls, ["PATCH auto-n1-a", "DELETE auto-n1-a"], "{refused}");
        assert!(!pruner.is_due(), "{refused}");
        let in_a_minute = pruner.not_before.unwrap();
        assert!(in_a_minute > Instant::now() + AGAIN / 2, "{refused}");
        pruner.not_before = Some(in_a_minute.checked_sub(AGAIN).unwrap());
        assert!(pruner.is_due(), "{refused}");
    }
}

/// Somebody has applied it by another name: deleted, the record would be given back once more.
#[tokio::test]
async fn a_record_that_keeps_the_finalizer_is_not_deleted() {
    let (pruner, calls) = pruned(true, None).await;
    assert_eq!(calls, ["PATCH auto-n1-a", "DELETE auto-n1-b"]);
    assert!(!pruner.is_due());
}
