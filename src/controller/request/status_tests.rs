use serde_json::json;

use super::*;
use crate::controller::facts::AgentMode;
use crate::controller::fixtures::*;
use crate::controller::request::validate::validate;

const TRUE: ConditionStatus = ConditionStatus::True;
const FALSE: ConditionStatus = ConditionStatus::False;
const UNKNOWN: ConditionStatus = ConditionStatus::Unknown;

fn phase_of(request: &StorageFenceRequest, facts: &Facts) -> (Phase, String) {
    let verdicts = validate(request, facts, &settings(AgentMode::Resident), at(2000));
    derive(request, facts, &verdicts)
}

/// Fenced, LocksReleased, and the phase that they make.
type Row = (
    ConditionStatus,
    &'static str,
    Option<(ConditionStatus, &'static str)>,
    Phase,
);

/// Every combination that the agent's two conditions can make.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn the_agents_word_makes_the_phase() {
    let table: &[Row] = &[
        (UNKNOWN, "InProgress", None, Phase::Fencing),
        (FALSE, "InProgress", None, Phase::Fencing),
        (
            FALSE,
            "InProgress",
            Some((FALSE, "InProgress")),
            Phase::Fencing,
        ),
        (TRUE, "Proven", None, Phase::Fencing),
        (TRUE, "Proven", Some((FALSE, "InProgress")), Phase::Fencing),
        (
            TRUE,
            "Proven",
            Some((UNKNOWN, "InProgress")),
            Phase::Fencing,
        ),
        (TRUE, "Proven", Some((TRUE, "Released")), Phase::Fenced),
        (TRUE, "Proven", Some((FALSE, "LocksKept")), Phase::Fenced),
        (
            TRUE,
            "Proven",
            Some((FALSE, "ReleaseNotConfirmed")),
            Phase::FencedLocksHeld,
        ),
        (
            TRUE,
            "Proven",
            Some((UNKNOWN, "ReleaseNotConfirmed")),
            Phase::FencedLocksHeld,
        ),
        (
            TRUE,
            "Proven",
            Some((FALSE, "LvmlockdUnavailable")),
            Phase::FencedLocksHeld,
        ),
        (
            TRUE,
            "Proven",
            Some((FALSE, "SanlockUnavailable")),
            Phase::FencedLocksHeld,
        ),
        (
            TRUE,
            "Proven",
            Some((FALSE, "SomethingNew")),
            Phase::FencedLocksHeld,
        ),
        (FALSE, "NotProven", None, Phase::Failed),
        (
            FALSE,
            "NotProven",
            Some((FALSE, "LocksKept")),
            Phase::Failed,
        ),
        (UNKNOWN, "NotProven", None, Phase::Failed),
        (FALSE, "CalledOff", None, Phase::CalledOff),
        (
            FALSE,
            "CalledOff",
            Some((FALSE, "LocksKept")),
            Phase::CalledOff,
        ),
        (FALSE, "DryRun", None, Phase::DryRunComplete),
        (FALSE, "VolumeGroupUnknown", None, Phase::Rejected),
        (FALSE, "VolumeGroupNotShared", None, Phase::Rejected),
        (FALSE, "PathsRemain", None, Phase::Rejected),
        (FALSE, "NothingAffected", None, Phase::Rejected),
        (FALSE, "NotSupported", None, Phase::Rejected),
        (FALSE, "DeviceMapperUnavailable", None, Phase::Rejected),
        (FALSE, "LvmlockdUnavailable", None, Phase::Rejected),
        (FALSE, "SanlockUnavailable", None, Phase::Rejected),
        (UNKNOWN, "SanlockUnavailable", None, Phase::Rejected),
        (
            TRUE,
            "NotSupported",
            Some((TRUE, "Released")),
            Phase::Fenced,
        ),
        (TRUE, "UnfenceWaiting", None, Phase::Unfencing),
        (UNKNOWN, "UnfenceWaiting", None, Phase::Unfencing),
        (UNKNOWN, "Unfencing", None, Phase::Unfencing),
        (
            FALSE,
            "Unfenced",
            Some((FALSE, "Unfenced")),
            Phase::Unfenced,
        ),
        (FALSE, "SomethingNew", None, Phase::Pending),
    ];
    // Whether or not the node, the agent or another request is seen: what the agent has said is evidence.
    let worlds: [Otherwise; 4] = [
        ("all there", |_| {}),
        ("agent gone", |f| f.agent_pods.clear()),
        ("node gone", |f| f.node = None),
        ("another governs", |f| f.governed_by = Some("older".into())),
    ];
    for (status, reason, released, phase) in table {
        let mut request = fenced(request(&json!({})), *status, reason);
        if let Some((status, reason)) = released {
            request = with(request, condition("LocksReleased", *status, reason));
        }
        for (world, change) in worlds {
            let mut facts = facts();
            change(&mut facts);
            let (derived, message) = phase_of(&request, &facts);
            assert_eq!(derived, *phase, "{status:?} {reason} {released:?} {world}");
            assert!(
                message.starts_with(&format!("Fenced says {reason}")),
                "{message}"
            );
            assert_eq!(
                message.contains("LocksReleased says"),
                *status == TRUE && released.is_some(),
                "{message}"
            );
        }
    }
}

#[test]
fn without_the_agents_word_the_controllers_view_makes_the_phase() {
    let named =
        |name: &str| request(&json!({ "volumeGroups": { "mode": "Named", "names": [name] } }));
    let world = |change: fn(&mut Facts)| {
        let mut facts = facts();
        change(&mut facts);
        facts
    };
    for (what, request, facts, phase, part) in [
        (
            "all well",
            named("gone"),
            world(|_| {}),
            Phase::Pending,
            "first step is expected",
        ),
        (
            "no node",
            named("gone"),
            world(|f| f.node = None),
            Phase::Rejected,
            "no node n1",
        ),
        (
            "another",
            named("gone"),
            world(|f| f.governed_by = Some("older".into())),
            Phase::Rejected,
            "older",
        ),
        (
            "no agent",
            named("gone"),
            world(|f| f.agent_pods.clear()),
            Phase::WaitingForAgent,
            "no agent pod",
        ),
        (
            "agent sick",
            named("gone"),
            world(|f| f.agent_pods = vec![pod(false)]),
            Phase::WaitingForAgent,
            "not Ready",
        ),
        // The agent has not spoken: nobody may say that nothing was touched.
        (
            "unknown VG",
            named("nix"),
            world(|_| {}),
            Phase::Pending,
            "known are",
        ),
        (
            "local VG",
            named("local"),
            world(|_| {}),
            Phase::Pending,
            "not shared",
        ),
        (
            "paths",
            named("half"),
            world(|_| {}),
            Phase::Pending,
            "1 of 2 paths",
        ),
        (
            "unknown VG, agent gone",
            named("nix"),
            world(|f| f.agent_pods.clear()),
            Phase::WaitingForAgent,
            "no agent pod",
        ),
    ] {
        let (derived, message) = phase_of(&request, &facts);
        assert_eq!(derived, phase, "{what}: {message}");
        assert!(message.contains(part), "{what}: {message}");
    }
}

#[test]
fn an_older_word_holds_where_something_was_touched() {
    for (status, reason, phase) in [
        (TRUE, "Proven", Phase::Fencing),
        (FALSE, "InProgress", Phase::Fencing),
        (FALSE, "NotProven", Phase::Failed),
        (FALSE, "CalledOff", Phase::Pending),
        (FALSE, "DryRun", Phase::Pending),
        (FALSE, "PathsRemain", Phase::Pending),
    ] {
        let mut old = condition("Fenced", status, reason);
        old.observed_generation = Some(1);
        let request = with(request(&json!({})), old);
        assert_eq!(phase_of(&request, &facts()).0, phase, "{reason}");
    }
}

#[test]
fn the_agents_word_about_another_request_is_checked_against_what_is_known_now() {
    let request = fenced(request(&json!({})), FALSE, "OtherRequestGoverns");
    assert_eq!(phase_of(&request, &facts()).0, Phase::Pending);
    let mut facts = facts();
    facts.governed_by = Some("older".into());
    assert_eq!(phase_of(&request, &facts).0, Phase::Rejected);
}

#[test]
fn after_a_reboot_the_proof_is_void() {
    let mut request = fenced(request(&json!({})), TRUE, "Proven");
    let status = request.status.as_mut().unwrap();
    status.node = Some(crate::api::request::NodeFence {
        boot_id: "boot-0".into(),
        ..Default::default()
    });
    let (phase, message) = phase_of(&request, &facts());
    assert_eq!(phase, Phase::Pending);
    assert!(
        message.contains("boot-0") && message.contains(BOOT),
        "{message}"
    );
    // As long as only a former agent's report is there, nobody knows of a reboot.
    let mut facts = facts();
    facts.agent_pods.clear();
    assert_eq!(phase_of(&request, &facts).0, Phase::Fencing);
    request
        .status
        .as_mut()
        .unwrap()
        .node
        .as_mut()
        .unwrap()
        .boot_id = BOOT.into();
    assert_eq!(
        phase_of(&request, &crate::controller::fixtures::facts()).0,
        Phase::Fencing
    );
}

fn desired_at(request: &StorageFenceRequest, facts: &Facts, now: Timestamp) -> ControllerStatus {
    let verdicts = validate(request, facts, &settings(AgentMode::Resident), now);
    desired(request, facts, &verdicts, now)
}

/// As the API server stores it.
fn store(mut request: StorageFenceRequest, written: &ControllerStatus) -> StorageFenceRequest {
    let stored: crate::api::StorageFenceRequestStatus =
        serde_json::from_value(serde_json::to_value(written).unwrap()).unwrap();
    let mut status = request.status.take().unwrap_or_default();
    status.phase = stored.phase;
    status.message = stored.message;
    status.observed_generation = stored.observed_generation;
    for condition in stored.conditions {
        status.conditions.retain(|c| c.type_ != condition.type_);
        status.conditions.push(condition);
    }
    request.status = Some(status);
    request
}

#[test]
fn what_is_stored_is_not_written_again() {
    let now: Timestamp = "2026-01-01T00:00:00.987654321Z".parse().unwrap();
    let request = request(&json!({}));
    let first = desired_at(&request, &facts(), now);
    assert!(!is_current(&request, &first));
    let stored = store(request, &first);
    let later = now + std::time::Duration::from_hours(1);
    assert!(is_current(&stored, &desired_at(&stored, &facts(), later)));
    // The agent's condition beside ours changes nothing about that by itself, but the phase follows it.
    let fencing = fenced(stored.clone(), FALSE, "InProgress");
    let next = desired_at(&fencing, &facts(), later);
    assert!(!is_current(&fencing, &next));
    assert_eq!(next.phase, Phase::Fencing);
    assert_eq!(
        next.conditions[0].last_transition_time,
        first.conditions[0].last_transition_time
    );
}

#[test]
fn a_transition_has_its_time_and_a_new_message_has_not() {
    let mut facts = facts();
    facts.agent_pods.clear();
    let request = request(&json!({}));
    let waiting = store(request.clone(), &desired_at(&request, &facts, at(2000)));
    facts.agent_pods = vec![pod(false)];
    let still = desired_at(&waiting, &facts, at(2010));
    assert!(!is_current(&waiting, &still), "another message");
    assert_eq!(still.conditions[1].last_transition_time, at(2000));
    let there = desired_at(&waiting, &crate::controller::fixtures::facts(), at(2020));
    assert_eq!(there.conditions[1].last_transition_time, at(2020));
    assert_eq!(there.conditions[1].reason, "AgentRunning");
}

#[test]
fn only_our_fields_are_written() {
    let request = fenced(request(&json!({})), TRUE, "Proven");
    let written = serde_json::to_value(desired_at(&request, &facts(), at(2000))).unwrap();
    let mut fields: Vec<&String> = written.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(
        fields,
        ["conditions", "message", "observedGeneration", "phase"]
    );
    let types: Vec<&str> = written["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["Accepted", "AgentReady"]);
}

#[test]
fn a_message_fits_the_schema() {
    let mut request = fenced(request(&json!({})), FALSE, "NotProven");
    request.status.as_mut().unwrap().conditions[0].message = "ü".repeat(10_000);
    let status = desired_at(&request, &facts(), at(2000));
    assert_eq!(status.message.chars().count(), MESSAGE_LIMIT);
}
