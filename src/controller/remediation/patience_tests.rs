//! What a health controller reads while a policy is about to fence what is missing.

use serde_json::{Value, json};

use super::super::dereference::Facts;
use super::super::judge::{Stand, Verdict, judge};
use super::super::tests::{NOW, facts, remediation};
use super::*;
use crate::api::remediation::{StorageFenceRemediationStatus, reason};
use crate::api::request::reason as said;
use crate::controller::fixtures::{condition, fenced, request, storage, with};

fn policy(more: &Value) -> StorageFencePolicy {
    let mut spec = json!({
        "response": "Fence",
        "triggers": { "allPathsDown": { "forSeconds": 20 }, "renewalsFailing": { "forSeconds": 50 } },
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    StorageFencePolicy::new("p", serde_json::from_value(spec).unwrap())
}

/// `gone` without paths and `half` with one, both governed by policy p; `half` may have lost its lease.
fn governed(lease_of_half: &str) -> NodeStorageStatus {
    let mut storage = storage();
    for group in &mut storage.volume_groups {
        group.policy = Some("p".into());
    }
    let lockspace =
        json!({ "name": "lvm_half", "hostId": 1, "ioTimeoutSeconds": 10, "state": lease_of_half });
    storage.volume_groups[1].lockspace = serde_json::from_value(lockspace).unwrap();
    storage
}

fn asks(spec: Value) -> StorageFenceRemediation {
    let mut asks = remediation(&json!({}));
    asks.spec = serde_json::from_value(spec).unwrap();
    asks
}

/// With what was said before, and since when.
fn said_before(
    mut asks: StorageFenceRemediation,
    succeeded: ConditionStatus,
    seconds_ago: i64,
) -> StorageFenceRemediation {
    let mut said = condition(condition_type::SUCCEEDED, succeeded, reason::STARTED);
    said.last_transition_time = Timestamp::from_second(NOW.as_second() - seconds_ago).unwrap();
    asks.status = Some(StorageFenceRemediationStatus {
        conditions: vec![said],
        ..StorageFenceRemediationStatus::default()
    });
    asks
}

/// An older request has fenced another volume group than `gone`.
fn beside_another(policy: &StorageFencePolicy, storage: NodeStorageStatus) -> Facts {
    let older = fenced(request(&json!({})), ConditionStatus::True, said::PROVEN);
    let mut facts = facts(Some(request(&json!({}))));
    facts.governed_by = Some(with(
        older,
        condition("LocksReleased", ConditionStatus::True, said::RELEASED),
    ));
    facts.storage = Some(storage);
    facts.policies = vec![policy.clone()];
    facts
}

fn refused(policy: &StorageFencePolicy, storage: NodeStorageStatus, why: &str) -> Facts {
    let own = fenced(request(&json!({})), ConditionStatus::False, why);
    let mut facts = facts(Some(own));
    facts.storage = Some(storage);
    facts.policies = vec![policy.clone()];
    facts
}

fn waits(verdict: &Verdict) -> Option<u64> {
    let left = verdict.look_again.map(|left| left.as_secs());
    assert_eq!(
        verdict.stand == Stand::Working,
        left.is_some(),
        "{verdict:?}"
    );
    left
}

#[test]
fn what_a_policy_is_about_to_fence_is_waited_for() {
    let healthy = governed("Healthy");
    // 20 s of the policy, and 60 s that the remediation grants a fence.
    let first = judge(
        &asks(json!({})),
        &beside_another(&policy(&json!({})), healthy.clone()),
        NOW,
    );
    assert_eq!(waits(&first), Some(80));
    assert_eq!(first.reason, reason::STARTED);
    assert!(
        first
            .message
            .ends_with("Not given up yet: policy p is to fence volume group gone after 20 s"),
        "{first:?}"
    );
    for (succeeded, seconds_ago, left) in [
        (ConditionStatus::Unknown, 30, Some(50)),
        (ConditionStatus::Unknown, 80, None),
        // The controller's clock was set back by a day.
        (ConditionStatus::Unknown, -86400, Some(80)),
        // Another volume group went later: it begins to wait.
        (ConditionStatus::True, 9000, Some(80)),
        // The health controller was told, and may have turned to another.
        (ConditionStatus::False, 1, None),
    ] {
        let asks = said_before(asks(json!({})), succeeded, seconds_ago);
        let verdict = judge(
            &asks,
            &beside_another(&policy(&json!({})), healthy.clone()),
            NOW,
        );
        assert_eq!(waits(&verdict), left, "{succeeded:?} {seconds_ago}");
    }
}

#[test]
fn what_no_policy_is_about_to_fence_has_failed() {
    let mut ungoverned = governed("Healthy");
    ungoverned.volume_groups[0].policy = None;
    let lease_only = json!({ "triggers": { "renewalsFailing": {} } });
    let all = || json!({ "volumeGroups": { "mode": "AllShared" } });
    for (what, spec, policy, storage) in [
        (
            "no policy governs it",
            json!({}),
            policy(&json!({})),
            ungoverned,
        ),
        (
            "it only reports",
            json!({}),
            policy(&json!({ "response": "Report" })),
            governed("Healthy"),
        ),
        (
            "it is a dry run",
            json!({}),
            policy(&json!({ "dryRun": true })),
            governed("Healthy"),
        ),
        (
            "it waits for something else",
            json!({}),
            policy(&lease_only),
            governed("Healthy"),
        ),
        (
            "nothing counts for `half`",
            all(),
            policy(&json!({})),
            governed("Healthy"),
        ),
    ] {
        let verdict = judge(&asks(spec), &beside_another(&policy, storage), NOW);
        assert_eq!(waits(&verdict), None, "{what}");
        assert_eq!(verdict.reason, said::OTHER_REQUEST_GOVERNS, "{what}");
    }
}

/// A black hole: paths look alive, so that its own request refuses, and the lease is not renewed, so that the policy will not.
#[test]
fn what_its_own_request_refuses_may_be_a_policys() {
    let named = |name: &str| json!({ "volumeGroups": { "mode": "Named", "names": [name] } });
    let both = json!({ "volumeGroups": { "mode": "Named", "names": ["half", "dark"] } });
    for (spec, lease, why, left) in [
        (
            json!({}),
            "RenewalFailing",
            said::NOTHING_AFFECTED,
            Some(110),
        ),
        (json!({}), "Healthy", said::NOTHING_AFFECTED, None),
        (named("half"), "Expired", said::PATHS_REMAIN, Some(110)),
        (named("half"), "Healthy", said::PATHS_REMAIN, None),
        (both, "RenewalFailing", said::PATHS_REMAIN, None),
        (json!({}), "RenewalFailing", said::SANLOCK_UNAVAILABLE, None),
    ] {
        let mut storage = governed(lease);
        // What stands fenced is nobody's to wait for.
        storage.volume_groups[0].fenced = true;
        let text = format!("{spec} {lease} {why}");
        let verdict = judge(
            &asks(spec),
            &refused(&policy(&json!({})), storage, why),
            NOW,
        );
        assert_eq!(waits(&verdict), left, "{text}");
    }
}

#[test]
fn a_time_out_ends_the_patience() {
    let mut late = asks(json!({}));
    late.metadata.annotations = super::super::tests::timed_out().metadata.annotations;
    let verdict = judge(
        &late,
        &beside_another(&policy(&json!({})), governed("Healthy")),
        NOW,
    );
    assert_eq!(
        (waits(&verdict), verdict.reason.as_str()),
        (None, reason::TIMED_OUT)
    );
}
