//! What another request's fence means to a remediation, by what the health controller reads.

use serde_json::{Value, json};

use super::super::judge::{Stand, Verdict, judge};
use super::super::tests::{NOW, facts, remediation};
use super::*;
use crate::api::remediation::{StorageFenceRemediationStatus, condition_type as ours, reason};
use crate::api::request::reason as said;
use crate::controller::fixtures::{condition, fenced, request, storage, with};

/// The older request, which has fenced these, with how many of two devices of each are proven.
fn older(groups: &[(&str, i32)], locks: (ConditionStatus, &str)) -> StorageFenceRequest {
    let group = |(name, proven): &(&str, i32)| json!({ "name": name, "uuid": name, "pathsTotal": 2, "pathsActive": 0, "devicesTotal": 2, "devicesProven": proven });
    let groups: Vec<Value> = groups.iter().map(group).collect();
    let mut older = fenced(request(&json!({})), ConditionStatus::True, said::PROVEN);
    older.metadata.name = Some("auto-n1".into());
    older.status.as_mut().unwrap().node = serde_json::from_value(json!({
        "observedGeneration": 2, "bootId": "boot-1", "agentVersion": "1", "volumeGroups": groups,
    }))
    .unwrap();
    with(older, condition("LocksReleased", locks.0, locks.1))
}

const RELEASED: (ConditionStatus, &str) = (ConditionStatus::True, said::RELEASED);
const KEPT: (ConditionStatus, &str) = (ConditionStatus::False, said::LOCKS_KEPT);

fn asks(spec: Value) -> StorageFenceRemediation {
    let mut asks = remediation(&json!({}));
    asks.spec = serde_json::from_value(spec).unwrap();
    asks
}

fn judged(
    asks: &StorageFenceRemediation,
    older: StorageFenceRequest,
    storage: Option<NodeStorageStatus>,
) -> Verdict {
    let mut facts = facts(Some(request(&json!({}))));
    facts.governed_by = Some(older);
    facts.storage = storage;
    judge(asks, &facts, NOW)
}

#[test]
fn another_fence_is_a_success_only_where_it_covers_what_is_meant() {
    let named = |name: &str| json!({ "volumeGroups": { "mode": "Named", "names": [name] } });
    let affected = || json!({});
    let all = || json!({ "volumeGroups": { "mode": "AllShared" } });
    // `gone` has lost its paths, `half` and `dark` have not, as far as is known.
    let now = storage();
    let (mut fenced, mut left) = (storage(), storage());
    (
        fenced.volume_groups[0].shared,
        fenced.volume_groups[0].fenced,
    ) = (false, true);
    left.volume_groups[0].shared = false;
    for (spec, proven, now, missing) in [
        (named("sanB"), vec![("sanA", 2)], &now, Some("sanB")),
        (named("sanA"), vec![("sanB", 2), ("sanA", 2)], &now, None),
        (named("sanA"), vec![("sanA", 1)], &now, Some("sanA")),
        (affected(), vec![("gone", 2)], &now, None),
        (affected(), vec![("half", 2)], &now, Some("gone")),
        (affected(), vec![("gone", 1)], &now, Some("gone")),
        // A third request has fenced it, or it has left the lock manager: nothing hangs on it.
        (affected(), vec![("half", 2)], &fenced, None),
        (affected(), vec![("half", 2)], &left, None),
        (all(), vec![("gone", 2)], &now, Some("dark, half")),
        (
            all(),
            vec![("gone", 2), ("half", 2), ("dark", 2)],
            &now,
            None,
        ),
    ] {
        let text = format!("{spec} {proven:?}");
        let verdict = judged(&asks(spec), older(&proven, RELEASED), Some(now.clone()));
        let Some(missing) = missing else {
            assert_eq!(verdict.stand, Stand::Succeeded, "{text}: {verdict:?}");
            continue;
        };
        assert_eq!(verdict.stand, Stand::Failed, "{text}: {verdict:?}");
        assert_eq!(verdict.reason, said::OTHER_REQUEST_GOVERNS, "{text}");
        let says = format!("does not fence volume group {missing},");
        assert!(verdict.message.contains(&says), "{text}: {verdict:?}");
        assert!(
            verdict.message.ends_with("kubectl delete sfr auto-n1"),
            "{text}: {verdict:?}"
        );
    }
}

#[test]
fn locks_that_are_kept_are_a_success_only_where_they_are_to_be_kept() {
    let spec = |locks: &str| {
        asks(json!({ "volumeGroups": { "mode": "Named", "names": ["a"] }, "releaseLocks": locks }))
    };
    for (ours, theirs, stand) in [
        ("AfterProof", RELEASED, Stand::Succeeded),
        ("AfterProof", KEPT, Stand::Failed),
        ("Never", RELEASED, Stand::Succeeded),
        ("Never", KEPT, Stand::Succeeded),
    ] {
        let verdict = judged(&spec(ours), older(&[("a", 2)], theirs), None);
        assert_eq!(verdict.stand, stand, "{ours} {theirs:?}: {verdict:?}");
    }
}

#[test]
fn without_an_agent_it_is_not_known_what_is_affected() {
    let older = || older(&[("gone", 2)], RELEASED);
    let waits = judged(&asks(json!({})), older(), None);
    assert_eq!(waits.stand, Stand::Working, "{waits:?}");
    // Nobody will come.
    let agent = condition("AgentReady", ConditionStatus::False, said::NO_AGENT);
    let mut facts = facts(Some(with(request(&json!({})), agent)));
    facts.governed_by = Some(older());
    let fails = judge(&asks(json!({})), &facts, NOW);
    assert_eq!(
        (fails.stand, fails.reason.as_str()),
        (Stand::Failed, said::NO_AGENT)
    );
    // What was proven stays said.
    let mut done = asks(json!({}));
    done.status = Some(StorageFenceRemediationStatus {
        conditions: vec![condition(
            ours::SUCCEEDED,
            ConditionStatus::True,
            reason::FINISHED,
        )],
        ..StorageFenceRemediationStatus::default()
    });
    assert_eq!(judge(&done, &facts, NOW).stand, Stand::Succeeded);
}
