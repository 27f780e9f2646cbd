use serde_json::json;

use super::*;
use crate::api::ConditionStatus;
use crate::controller::fixtures::*;

const ON_DEMAND: AgentMode = AgentMode::OnDemand;

fn label(mode: AgentMode, label: Option<&str>, requests: &[StorageFenceRequest]) -> LabelChange {
    decide(mode, label, requests, false)
}

#[test]
fn a_request_brings_the_agent() {
    let requests = [request(&json!({}))];
    assert_eq!(label(ON_DEMAND, None, &requests), LabelChange::Set);
    assert_eq!(label(ON_DEMAND, Some("false"), &requests), LabelChange::Set);
    assert_eq!(label(ON_DEMAND, Some("true"), &requests), LabelChange::Keep);
}

#[test]
fn a_label_that_nobody_needs_is_removed() {
    assert_eq!(label(ON_DEMAND, Some("true"), &[]), LabelChange::Remove);
    assert_eq!(label(ON_DEMAND, Some("x"), &[]), LabelChange::Remove);
    assert_eq!(label(ON_DEMAND, None, &[]), LabelChange::Keep);
    // The mode was changed.
    let requests = [request(&json!({}))];
    assert_eq!(
        label(AgentMode::Resident, Some("true"), &requests),
        LabelChange::Remove
    );
    assert_eq!(
        label(AgentMode::Resident, None, &requests),
        LabelChange::Keep
    );
}

#[test]
fn the_agent_stays_while_something_is_left_to_do() {
    let stays = LabelChange::Keep;
    let goes = LabelChange::Remove;
    for (status, reason, change) in [
        (ConditionStatus::False, "InProgress", stays),
        // Somebody has to see that the fence holds.
        (ConditionStatus::True, "Proven", stays),
        (ConditionStatus::False, "NotProven", stays),
        // The paths may go, the services may be mended, and the request still stands.
        (ConditionStatus::False, "PathsRemain", stays),
        (ConditionStatus::False, "NothingAffected", stays),
        (ConditionStatus::False, "DeviceMapperUnavailable", stays),
        (ConditionStatus::False, "LvmlockdUnavailable", stays),
        (ConditionStatus::False, "SanlockUnavailable", stays),
        (ConditionStatus::False, "OtherRequestGoverns", stays),
        (ConditionStatus::True, "UnfenceWaiting", stays),
        (ConditionStatus::Unknown, "Unfencing", stays),
        (ConditionStatus::False, "Unfenced", goes),
        (ConditionStatus::False, "SomethingNew", stays),
        (ConditionStatus::False, "DryRun", goes),
        (ConditionStatus::False, "CalledOff", goes),
        (ConditionStatus::False, "VolumeGroupUnknown", goes),
        (ConditionStatus::False, "VolumeGroupNotShared", goes),
        (ConditionStatus::False, "NotSupported", goes),
    ] {
        let requests = [fenced(request(&json!({})), status, reason)];
        assert_eq!(
            label(ON_DEMAND, Some("true"), &requests),
            change,
            "{reason}"
        );
    }
}

#[test]
fn a_changed_spec_brings_the_agent_back() {
    let mut old = condition("Fenced", ConditionStatus::False, "VolumeGroupUnknown");
    old.observed_generation = Some(1);
    let requests = [with(request(&json!({})), old)];
    assert_eq!(label(ON_DEMAND, None, &requests), LabelChange::Set);
}

#[test]
fn a_deleted_request_needs_no_agent_and_one_that_is_over_governs_nobody() {
    let mut deleted = request(&json!({}));
    deleted.metadata.deletion_timestamp = deleted.metadata.creation_timestamp.clone();
    assert_eq!(
        label(ON_DEMAND, Some("true"), &[deleted]),
        LabelChange::Remove
    );
    let mut younger = request(&json!({}));
    younger.metadata.name = Some("s".into());
    let refused = fenced(
        request(&json!({})),
        ConditionStatus::False,
        "VolumeGroupUnknown",
    );
    // The older one has had its word, and nothing will become of it: it is the younger's turn.
    assert_eq!(
        label(ON_DEMAND, Some("true"), &[younger.clone(), refused]),
        LabelChange::Keep
    );
    assert_eq!(label(ON_DEMAND, None, &[younger]), LabelChange::Set);
}

#[test]
fn one_that_wants_the_storage_back_brings_the_agent_though_an_older_one_has_it() {
    let spec = json!({"fenceState": "Unfenced"});
    let done = fenced(request(&spec), ConditionStatus::False, "Unfenced");
    let mut younger = request(&spec);
    younger.metadata.name = Some("s".into());
    let both = [done.clone(), younger];
    assert_eq!(label(ON_DEMAND, None, &both), LabelChange::Set);
    assert_eq!(label(ON_DEMAND, Some("true"), &[done]), LabelChange::Remove);
}

#[test]
fn a_deleted_one_keeps_the_agent_until_the_storage_is_given_back() {
    let deleted = |status, reason, spec| {
        let mut request = fenced(request(&spec), status, reason);
        request.metadata.deletion_timestamp = request.metadata.creation_timestamp.clone();
        request.metadata.finalizers = Some(vec![crate::api::UNFENCE_FINALIZER.into()]);
        [request]
    };
    let (yes, no) = (ConditionStatus::True, ConditionStatus::False);
    let retain = json!({"deletionPolicy": "Retain"});
    for (requests, change) in [
        (deleted(yes, "Proven", json!({})), LabelChange::Keep),
        (deleted(yes, "UnfenceWaiting", json!({})), LabelChange::Keep),
        (deleted(no, "NotProven", json!({})), LabelChange::Keep),
        (deleted(no, "Unfenced", json!({})), LabelChange::Remove),
        (deleted(no, "PathsRemain", json!({})), LabelChange::Remove),
        (deleted(yes, "Proven", retain), LabelChange::Remove),
    ] {
        assert_eq!(
            label(ON_DEMAND, Some("true"), &requests),
            change,
            "{requests:?}"
        );
    }
}

#[test]
fn with_a_request_that_cannot_be_read_no_agent_is_taken_away() {
    assert_eq!(
        decide(ON_DEMAND, Some("true"), &[], true),
        LabelChange::Keep
    );
    assert_eq!(
        decide(ON_DEMAND, None, &[request(&json!({}))], true),
        LabelChange::Set
    );
}
