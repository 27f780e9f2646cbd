use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;
use crate::controller::fixtures::{BOOT, facts, fenced, pod, request};

fn held(spec: &Value) -> StorageFenceRequest {
    let mut request = request(spec);
    request.metadata.finalizers = Some(vec!["others/x".into(), UNFENCE_FINALIZER.into()]);
    request
}

fn deleted(spec: &Value) -> StorageFenceRequest {
    let mut request = held(spec);
    request.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    request
}

/// With the agent's word, and evidence of that boot.
fn said(status: ConditionStatus, reason: &str, boot: &str) -> StorageFenceRequest {
    let mut request = fenced(deleted(&json!({})), status, reason);
    let status = request.status.get_or_insert_default();
    let node = json!({"observedGeneration": 1, "bootId": boot, "agentVersion": "1"});
    status.node = Some(serde_json::from_value(node).unwrap());
    request
}

fn without_agent() -> Facts {
    Facts {
        agent_pods: vec![pod(false)],
        ..facts()
    }
}

fn frees(request: &StorageFenceRequest, facts: &Facts, node_boot: Option<&str>) -> bool {
    matches!(decide(request, facts, node_boot), Change::Free(_))
}

#[test]
fn it_is_put_on_what_may_be_acted_upon_and_only_once() {
    assert_eq!(decide(&request(&json!({})), &facts(), None), Change::Put);
    assert_eq!(decide(&held(&json!({})), &facts(), None), Change::Keep);
    let dry = request(&json!({"dryRun": true}));
    assert_eq!(decide(&dry, &facts(), None), Change::Keep);
    // Too late: the API server takes no new finalizer now.
    let mut late = request(&json!({}));
    late.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(decide(&late, &facts(), None), Change::Keep);
}

#[test]
fn one_that_is_not_deleted_keeps_it_whatever_happens() {
    let request = fenced(held(&json!({})), ConditionStatus::False, "Unfenced");
    let nobody = Facts::default();
    assert_eq!(decide(&request, &nobody, None), Change::Keep);
}

#[test]
fn a_fence_that_stands_keeps_it_until_the_agent_says_that_it_does_not() {
    let status = [
        ConditionStatus::True,
        ConditionStatus::False,
        ConditionStatus::Unknown,
    ];
    for (status, reason) in [
        (status[0], "Proven"),
        (status[0], "UnfenceWaiting"),
        (status[2], "Unfencing"),
        (status[1], "NotProven"),
        (status[2], "InProgress"),
        // The agent is there and looks at it.
        (status[1], "PathsRemain"),
    ] {
        let request = said(status, reason, BOOT);
        assert_eq!(decide(&request, &facts(), None), Change::Keep, "{reason}");
    }
    let mut done = said(ConditionStatus::False, "Unfenced", BOOT);
    assert!(frees(&done, &facts(), None));
    // Its word on an earlier generation is not its word on the deletion.
    done.metadata.generation = Some(3);
    assert!(!frees(&done, &facts(), None));
}

#[test]
fn it_frees_itself_when_there_is_nothing_to_wait_for() {
    let proven = || said(ConditionStatus::True, "Proven", BOOT);
    assert!(frees(
        &deleted(&json!({"deletionPolicy": "Retain"})),
        &facts(),
        None
    ));
    assert!(frees(&deleted(&json!({"dryRun": true})), &facts(), None));
    // The Node is gone.
    let mut gone = facts();
    gone.node = None;
    assert!(frees(&proven(), &gone, None));
    // Rebooted, says the agent.
    assert!(frees(
        &said(ConditionStatus::True, "Proven", "boot-0"),
        &facts(),
        None
    ));
    assert!(!frees(&proven(), &facts(), None));
    // Nothing is known to have been done, and nobody is there who could do it.
    assert!(frees(&deleted(&json!({})), &without_agent(), None));
    assert!(frees(
        &said(ConditionStatus::False, "PathsRemain", BOOT),
        &without_agent(),
        None
    ));
    assert!(!frees(&deleted(&json!({})), &facts(), None));
}

#[test]
fn without_an_agent_the_node_object_tells_of_a_reboot() {
    let proven = said(ConditionStatus::True, "Proven", "boot-0");
    let alone = without_agent();
    assert_eq!(decide(&proven, &alone, None), Change::AskNode);
    assert_eq!(decide(&proven, &alone, Some("boot-0")), Change::Keep);
    assert_eq!(decide(&proven, &alone, Some("")), Change::Keep);
    assert!(frees(&proven, &alone, Some("boot-1")));
}
