//! What is known of a deleted remediation where the cache is behind the API server.

use serde_json::{Value, json};

use super::super::tests::{deleted, remediation};
use super::*;
use crate::api::ConditionStatus;
use crate::api::record::annotation;
use crate::api::request::{FenceState, reason as said};
use crate::controller::fixtures::{
    cache, condition, context_of, empty_caches, fenced, request, with,
};
use crate::controller::watches::NodeMeta;
use crate::kubernetes::mock;

/// A request that stands, as the API server holds it.
fn standing(name: &str, spec: &Value, labels: &Value) -> Value {
    let stands = fenced(request(spec), ConditionStatus::True, said::PROVEN);
    let released = condition("LocksReleased", ConditionStatus::True, said::RELEASED);
    let mut object = serde_json::to_value(with(stands, released)).unwrap();
    object["metadata"]["name"] = json!(name);
    object["metadata"]["uid"] = json!(format!("uid of {name}"));
    object["metadata"]["labels"] = labels.clone();
    object
}

fn own() -> Value {
    standing(
        "n1-01234567",
        &json!({}),
        &json!({ REMEDIATION_UID_LABEL: "0123456789" }),
    )
}

fn record(spec: &Value) -> Value {
    standing(
        "auto-n1-1",
        spec,
        &json!({ annotation::RECORDED_BY: annotation::AGENT }),
    )
}

/// What is found where the API server holds `stored`, and the cache `cached`.
async fn found(
    remediation: &StorageFenceRemediation,
    stored: Vec<Value>,
    cached: &[Value],
) -> Facts {
    let client = mock::client(move |call| {
        if call.path.contains("/nodes/") {
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
            return (200, node);
        }
        let name = call.path.split("/storagefencerequests/").nth(1);
        let Some(name) = name else {
            let list = json!({
                "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequestList", "metadata": {}, "items": stored,
            });
            return (200, list);
        };
        let of_it = stored.iter().find(|r| r["metadata"]["name"] == name);
        let gone = json!({ "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "" });
        of_it.map_or((404, gone), |r| (200, r.clone()))
    });
    let node: NodeMeta =
        serde_json::from_value(json!({ "metadata": { "name": "n1", "uid": "u" } })).unwrap();
    let mut caches = empty_caches();
    caches.nodes = cache([node]);
    caches.requests = cache(
        cached
            .iter()
            .map(|r| serde_json::from_value(r.clone()).unwrap()),
    );
    dereference(remediation, &[], &context_of(client, caches))
        .await
        .unwrap()
}

fn names(requests: &[StorageFenceRequest]) -> Vec<String> {
    requests.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test]
async fn what_the_cache_does_not_show_yet_of_the_deletion_is_asked_for() {
    let aside = record(&json!({ "fenceState": "Unfenced" }));
    let stored = vec![own(), record(&json!({}))];
    let facts = found(&deleted(None), stored.clone(), &[own(), aside.clone()]).await;
    assert_eq!(names(&facts.unnoted), ["auto-n1-1"]);
    assert!(
        facts
            .requests
            .iter()
            .all(|r| r.spec.fence_state == FenceState::Fenced)
    );
    // Of one that is not deleted the watch will tell.
    let there = remediation(&json!({}));
    let facts = found(&there, stored, &[own(), aside]).await;
    assert_eq!((facts.records.len(), facts.unnoted.len()), (0, 0));
}

/// By its deletion timestamp nobody can tell who deleted it.
#[tokio::test]
async fn once_the_deletion_is_written_down_nothing_more_counts_and_before_it_does() {
    let mut going = own();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let both = [going, record(&json!({}))];
    for reason in [said::UNFENCING, said::UNFENCE_WAITING] {
        let facts = found(&seen(reason), both.to_vec(), &both).await;
        assert_eq!(facts.unnoted.len(), 0);
    }
    let facts = found(&deleted(None), both.to_vec(), &both).await;
    assert_eq!(names(&facts.unnoted), ["auto-n1-1"]);
}

/// Written down as deleted, for that reason.
fn seen(reason: &str) -> StorageFenceRemediation {
    let mut seen = deleted(None);
    let processing = condition("Processing", ConditionStatus::True, reason);
    seen.status.as_mut().unwrap().conditions = vec![processing];
    seen
}

/// What was noted is not in the cache yet, and nothing else is there to wait for.
#[tokio::test]
async fn a_noted_record_that_the_cache_does_not_know_yet_is_not_left_behind() {
    let stored = record(&json!({}));
    let noted: StorageFenceRequest = serde_json::from_value(stored.clone()).unwrap();
    let mut gone = seen(said::UNFENCING);
    gone.status.as_mut().unwrap().records = records::references(&[noted]);
    let facts = found(&gone, vec![stored], &[]).await;
    assert_eq!(names(&facts.records), ["auto-n1-1"]);
}

/// Made a moment before the deletion: the finalizer would go, and the request stay for ever.
#[tokio::test]
async fn a_request_that_the_cache_does_not_know_yet_is_not_left_behind() {
    let facts = found(&deleted(None), vec![own()], &[]).await;
    assert_eq!(
        facts.request.map(|r| r.name_any()).as_deref(),
        Some("n1-01234567")
    );
    // It has gone, or the name is another's.
    let mut others = own();
    others["metadata"]["labels"] = json!({});
    for stored in [vec![], vec![others]] {
        let facts = found(&deleted(None), stored, &[]).await;
        assert!(facts.request.is_none(), "{facts:?}");
    }
}
