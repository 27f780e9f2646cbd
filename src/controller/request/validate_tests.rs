use serde_json::json;

use super::*;
use crate::api::condition::set;
use crate::api::request::StorageFenceRequestStatus;
use crate::controller::fixtures::*;

fn judge(request: &StorageFenceRequest, facts: &Facts) -> Verdicts {
    validate(request, facts, &settings(AgentMode::Resident), at(2000))
}

fn accepted(spec: &serde_json::Value) -> Verdict {
    judge(&request(spec), &facts()).accepted
}

fn named(names: &[&str], when_paths_remain: &str) -> serde_json::Value {
    json!({ "volumeGroups": { "mode": "Named", "names": names }, "whenPathsRemain": when_paths_remain })
}

#[test]
fn what_the_report_says_about_volume_groups() {
    let all =
        |when: &str| json!({ "volumeGroups": { "mode": "AllShared" }, "whenPathsRemain": when });
    for (spec, reason, part) in [
        (json!({}), "Valid", ""),
        (named(&["gone"], "Refuse"), "Valid", ""),
        (
            named(&["half"], "Refuse"),
            "PathsRemain",
            "1 of 2 paths of volume group half work",
        ),
        (named(&["half"], "Fence"), "Valid", ""),
        (named(&["gone", "half"], "Refuse"), "PathsRemain", "half"),
        (
            named(&["dark"], "Refuse"),
            "PathsRemain",
            "paths of volume group dark are not known",
        ),
        (named(&["dark"], "Fence"), "Valid", ""),
        (
            named(&["nix"], "Refuse"),
            "VolumeGroupUnknown",
            "known are: dark, gone, half, local",
        ),
        (
            named(&["gone", "nix"], "Fence"),
            "VolumeGroupUnknown",
            "no volume group nix",
        ),
        (
            named(&["local"], "Fence"),
            "VolumeGroupNotShared",
            "shared are: dark, gone, half",
        ),
        (all("Refuse"), "PathsRemain", "half"),
        (all("Fence"), "Valid", ""),
    ] {
        let verdict = accepted(&spec);
        assert_eq!(verdict.reason, reason, "{spec}");
        assert_eq!(
            verdict.status == ConditionStatus::True,
            reason == "Valid",
            "{spec}"
        );
        assert!(
            verdict.message.contains(part),
            "{spec}: {}",
            verdict.message
        );
    }
}

#[test]
fn nothing_affected_says_what_there_is() {
    let mut facts = facts();
    let groups = &mut facts.storage.as_mut().unwrap().volume_groups;
    groups.retain(|vg| vg.name != "gone");
    let verdict = judge(&request(&json!({})), &facts).accepted;
    assert_eq!(verdict.reason, "NothingAffected");
    assert!(
        verdict
            .message
            .contains("1 of 2 paths of volume group half"),
        "{}",
        verdict.message
    );
    facts
        .storage
        .as_mut()
        .unwrap()
        .volume_groups
        .retain(|vg| !vg.shared);
    for mode in ["Affected", "AllShared"] {
        let verdict = judge(
            &request(&json!({ "volumeGroups": { "mode": mode } })),
            &facts,
        )
        .accepted;
        assert_eq!(verdict.reason, "NothingAffected", "{mode}");
        assert!(
            verdict.message.contains("no shared volume group"),
            "{}",
            verdict.message
        );
    }
}

#[test]
fn what_follows_a_fence_does_not_hold_it_up() {
    let plain = judge(&request(&json!({})), &facts()).accepted;
    assert_eq!(plain.reason, "Valid");
    for follows in [
        json!({ "takeover": "Expedite" }),
        json!({ "workloads": "Evict" }),
    ] {
        let verdict = judge(&request(&follows), &facts()).accepted;
        assert_eq!(verdict, plain, "{follows}");
    }
}

#[test]
fn a_shared_group_is_found_behind_a_local_one_of_the_same_name() {
    let mut facts = facts();
    let groups = &mut facts.storage.as_mut().unwrap().volume_groups;
    let mut twin = groups[0].clone();
    twin.shared = false;
    groups.insert(0, twin);
    let verdict = judge(&request(&named(&["gone"], "Refuse")), &facts).accepted;
    assert_eq!(verdict.reason, "Valid", "{}", verdict.message);
}

/// What somebody else wrote, or wrote about another node, says nothing.
#[test]
fn only_the_present_agents_report_counts() {
    let bad = request(&named(&["nix"], "Refuse"));
    let spoil: [Otherwise; 5] = [
        ("no report", |f| f.storage = None),
        ("no pod", |f| f.agent_pods.clear()),
        ("pod not ready", |f| f.agent_pods = vec![pod(false)]),
        ("of a former pod", |f| {
            f.storage.as_mut().unwrap().agent_pod = Some("agent-x0 (old)".into());
        }),
        ("of a former node", |f| {
            f.storage.as_mut().unwrap().node_uid = Some("old".into());
        }),
    ];
    for (what, spoil) in spoil {
        let mut facts = facts();
        spoil(&mut facts);
        let verdicts = judge(&bad, &facts);
        assert_eq!(verdicts.accepted.reason, "Valid", "{what}");
        assert_eq!(verdicts.agent_ready.reason, "WaitingForAgent", "{what}");
    }
    assert_eq!(judge(&bad, &facts()).accepted.reason, "VolumeGroupUnknown");
}

#[test]
fn a_report_is_matched_by_the_pods_uid_or_name() {
    for (author, current) in [
        (Some("agent-x1"), true),
        (Some("agent-x1/pod-uid"), true),
        (Some("agent-x1 (pod-uid)"), true),
        (Some("agent-x11"), false),
        (None, true),
    ] {
        let mut facts = facts();
        facts.storage.as_mut().unwrap().agent_pod = author.map(Into::into);
        assert_eq!(facts.current_agent().is_some(), current, "{author:?}");
    }
}

#[test]
fn no_node_and_another_request() {
    let mut facts = facts();
    facts.governed_by = Some("older".into());
    let verdict = judge(&request(&json!({})), &facts).accepted;
    assert_eq!(verdict.reason, "OtherRequestGoverns");
    assert!(verdict.message.contains("older"));
    // Without a node nothing else matters.
    facts.node = None;
    let verdicts = judge(&request(&json!({})), &facts);
    assert_eq!(verdicts.accepted.reason, "NodeNotFound");
    assert_eq!(verdicts.agent_ready.status, ConditionStatus::Unknown);
    assert_eq!(verdicts.look_again, None);
}

/// The agent is there and sees more: what it says is what Accepted says.
#[test]
fn the_agents_word_wins() {
    let bad = || request(&named(&["nix"], "Refuse"));
    let good = || request(&json!({}));
    for (request, status, reason, accepted) in [
        (bad(), ConditionStatus::False, "InProgress", "Valid"),
        (bad(), ConditionStatus::True, "Proven", "Valid"),
        (bad(), ConditionStatus::False, "NotProven", "Valid"),
        (bad(), ConditionStatus::False, "CalledOff", "Valid"),
        (bad(), ConditionStatus::False, "DryRun", "Valid"),
        (good(), ConditionStatus::False, "PathsRemain", "PathsRemain"),
        (
            good(),
            ConditionStatus::False,
            "SanlockUnavailable",
            "SanlockUnavailable",
        ),
        (
            good(),
            ConditionStatus::False,
            "NotSupported",
            "NotSupported",
        ),
        (
            good(),
            ConditionStatus::True,
            "NotSupported",
            "NotSupported",
        ),
        // Both hold the same rule, and the agent's word may be older than what made it.
        (
            good(),
            ConditionStatus::False,
            "OtherRequestGoverns",
            "Valid",
        ),
        (
            bad(),
            ConditionStatus::False,
            "OtherRequestGoverns",
            "VolumeGroupUnknown",
        ),
    ] {
        let verdicts = judge(&fenced(request, status, reason), &facts());
        assert_eq!(verdicts.accepted.reason, accepted, "{reason}");
    }
}

#[test]
fn a_refusal_of_an_older_spec_is_forgotten_but_a_fence_is_not() {
    for (status, reason, accepted) in [
        (ConditionStatus::False, "PathsRemain", "VolumeGroupUnknown"),
        (ConditionStatus::False, "CalledOff", "VolumeGroupUnknown"),
        (ConditionStatus::False, "InProgress", "Valid"),
        (ConditionStatus::True, "Proven", "Valid"),
    ] {
        let mut old = condition("Fenced", status, reason);
        old.observed_generation = Some(1);
        let request = with(request(&named(&["nix"], "Refuse")), old);
        assert_eq!(
            judge(&request, &facts()).accepted.reason,
            accepted,
            "{reason}"
        );
    }
}

fn waiting_since(
    mut request: StorageFenceRequest,
    second: i64,
    reason: &str,
) -> StorageFenceRequest {
    let mut condition = condition("AgentReady", ConditionStatus::False, reason);
    condition.last_transition_time = at(second);
    let mut status = StorageFenceRequestStatus::default();
    set(&mut status.conditions, condition);
    request.status = Some(status);
    request
}

#[test]
fn the_wait_for_the_agent_ends_and_says_what_to_do() {
    let mut facts = facts();
    facts.agent_pods.clear();
    let fresh = judge(&request(&json!({})), &facts);
    assert_eq!(fresh.agent_ready.reason, "WaitingForAgent");
    assert_eq!(fresh.look_again, Some(Duration::from_mins(1)));
    for (since, reason, left) in [
        (2000, "WaitingForAgent", Some(60)),
        (1999, "WaitingForAgent", Some(60)),
        (1960, "WaitingForAgent", Some(21)),
        (1940, "WaitingForAgent", Some(1)),
        (1939, "NoAgent", None),
        (1000, "NoAgent", None),
        // A clock that went back does not end the wait.
        (3000, "WaitingForAgent", Some(60)),
    ] {
        let request = waiting_since(request(&json!({})), since, "WaitingForAgent");
        let verdicts = judge(&request, &facts);
        assert_eq!(verdicts.agent_ready.reason, reason, "{since}");
        assert_eq!(
            verdicts.look_again,
            left.map(Duration::from_secs),
            "{since}"
        );
        assert_eq!(verdicts.agent_ready.status, ConditionStatus::False);
    }
}

#[test]
fn what_is_missing_is_named() {
    let overdue = waiting_since(request(&json!({})), 0, "NoAgent");
    let message = |change: fn(&mut Facts), mode| {
        let mut facts = facts();
        change(&mut facts);
        validate(&overdue, &facts, &settings(mode), at(2000))
            .agent_ready
            .message
    };
    let none = message(|f| f.agent_pods.clear(), AgentMode::Resident);
    assert!(
        none.contains("after 60 s") && none.contains("DaemonSet") && none.contains("nodeSelector"),
        "{none}"
    );
    assert!(!none.contains("agent-wanted"), "{none}");
    let none = message(|f| f.agent_pods.clear(), AgentMode::OnDemand);
    assert!(none.contains("storagefence.io/agent-wanted=true"), "{none}");
    let sick = message(|f| f.agent_pods = vec![pod(false)], AgentMode::Resident);
    assert!(
        sick.contains("agent-x1 is not Ready (ImagePullBackOff)"),
        "{sick}"
    );
    let silent = message(|f| f.storage = None, AgentMode::Resident);
    assert!(
        silent.contains("has not published NodeStorage n1"),
        "{silent}"
    );
}

/// OnDemand: an agent that was let go is not missed, and waiting for one begins anew when it is wanted again.
#[test]
fn an_agent_that_was_let_go_is_not_missed() {
    let mut facts = facts();
    facts.agent_pods.clear();
    let done = fenced(
        request(&json!({ "dryRun": true })),
        ConditionStatus::False,
        "DryRun",
    );
    let judge =
        |request: &StorageFenceRequest, mode| validate(request, &facts, &settings(mode), at(2000));
    assert_eq!(
        judge(&done, AgentMode::OnDemand).agent_ready.reason,
        "AgentNotNeeded"
    );
    assert_eq!(
        judge(&done, AgentMode::Resident).agent_ready.reason,
        "WaitingForAgent"
    );
    let anew = waiting_since(request(&json!({})), 0, "AgentNotNeeded");
    let verdicts = judge(&anew, AgentMode::OnDemand);
    assert_eq!(verdicts.agent_ready.reason, "WaitingForAgent");
    assert_eq!(verdicts.look_again, Some(Duration::from_mins(1)));
}
