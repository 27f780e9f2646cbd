//! Statuses of requests about which there is no report: another one governs, the node was restarted, or the present spec is not carried out
//! while what an earlier one had fenced stands. Pure.

use jiff::Timestamp;

use super::report::{AgentPart, says};
use crate::api::ConditionStatus;
use crate::api::condition::find;
use crate::api::request::{condition_type, reason};

/// The status of a request that another one keeps from its turn. Evidence of an earlier generation stays.
#[must_use]
pub fn governed(other: &str, generation: i64, now: Timestamp, before: &AgentPart) -> AgentPart {
    let mut part = before.clone();
    let message = format!(
        "request {other} is older and governs this node; nothing was touched for this one. It goes on when {other} is deleted: \
         kubectl delete sfr {other}"
    );
    let says = says(
        ConditionStatus::False,
        reason::OTHER_REQUEST_GOVERNS,
        message,
    );
    part.set(condition_type::FENCED, now, generation, says);
    part
}

/// The status of a request whose fence ended with the kernel that it was of. Its evidence stays.
#[must_use]
pub fn restarted(boot_id: &str, generation: i64, now: Timestamp, before: &AgentPart) -> AgentPart {
    let mut part = before.clone();
    let then = part.node.as_ref().map_or("another", |n| n.boot_id.as_str());
    let message = format!(
        "The node was restarted since (boot {then} then, {boot_id} now), which ended the fence: nothing stands fenced for this request, and \
         nothing is begun again. Delete it; to fence the node once more make another request"
    );
    for type_ in [condition_type::FENCED, condition_type::LOCKS_RELEASED] {
        let says = says(
            ConditionStatus::False,
            reason::NODE_RESTARTED,
            message.clone(),
        );
        part.set(type_, now, generation, says);
    }
    part
}

/// Between what was proven and what is not done.
const NOT_CARRIED_OUT: &str = ". The spec as it is now is not carried out: ";

/// What an earlier spec of the request had fenced in this boot does not go away because the present one is refused, or has to wait: the evidence
/// stays, with `why` beside it. None when there is none.
#[must_use]
pub fn still_stands(
    boot_id: &str,
    why: &str,
    generation: i64,
    now: Timestamp,
    before: &AgentPart,
) -> Option<AgentPart> {
    let node = before.node.as_ref();
    node.filter(|n| n.boot_id == boot_id && n.started_at.is_some() && !n.dry_run)?;
    let fenced = find(&before.conditions, condition_type::FENCED)?;
    // One that is to be given back, and has to wait for another, stands no less.
    let reason = [
        reason::PROVEN,
        reason::NOT_PROVEN,
        reason::UNFENCE_WAITING,
        reason::UNFENCING,
    ]
    .into_iter()
    .find(|r| fenced.reason == *r)?;
    let said = fenced.message.split(NOT_CARRIED_OUT).next();
    let message = format!("{}{NOT_CARRIED_OUT}{why}", said.unwrap_or_default());
    let mut part = before.clone();
    let says = says(fenced.status, reason, message);
    part.set(condition_type::FENCED, now, generation, says);
    Some(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(reason: &str, boot_id: &str) -> AgentPart {
        let status = serde_json::from_value(json!({
            "conditions": [{
                "type": "Fenced", "status": if reason == "Proven" { "True" } else { "False" }, "reason": reason, "message": "3 of 3 devices",
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "node": {
                "observedGeneration": 1, "bootId": boot_id, "agentVersion": "0", "startedAt": "2026-01-01T00:00:00Z",
            },
        }));
        AgentPart::of(&status.unwrap())
    }

    #[test]
    fn a_spec_that_is_refused_does_not_deny_what_stands() {
        for reason in ["Proven", "NotProven", "UnfenceWaiting", "Unfencing"] {
            let before = stored(reason, "b");
            let keep =
                |why, before: &AgentPart| still_stands("b", why, 2, Timestamp::UNIX_EPOCH, before);
            let kept = keep("no such volume group", &before).unwrap();
            let again = keep("another reason", &kept).unwrap();
            for (part, why) in [(&kept, "no such volume group"), (&again, "another reason")] {
                let fenced = find(&part.conditions, "Fenced").unwrap();
                assert_eq!(
                    (fenced.reason.as_str(), fenced.observed_generation),
                    (reason, Some(2))
                );
                let message = format!("3 of 3 devices{NOT_CARRIED_OUT}{why}");
                assert_eq!(fenced.message, message);
                assert_eq!(part.node, before.node, "the evidence stays");
            }
        }
        for (reason, boot) in [("Proven", "a"), ("PathsRemain", "b"), ("DryRun", "b")] {
            let before = stored(reason, boot);
            let kept = still_stands("b", "why", 2, Timestamp::UNIX_EPOCH, &before);
            assert_eq!(kept, None, "{reason} {boot}");
        }
    }

    #[test]
    fn after_a_restart_it_says_so_and_keeps_the_evidence() {
        let before = stored("Proven", "a");
        let part = restarted("b", 1, Timestamp::UNIX_EPOCH, &before);
        let fenced = find(&part.conditions, "Fenced").unwrap();
        assert_eq!(fenced.reason, "NodeRestarted");
        assert!(fenced.message.contains("boot a then, b now"), "{fenced:?}");
        assert_eq!(part.node, before.node);
        assert_eq!(
            restarted("b", 1, Timestamp::now(), &part),
            part,
            "and it is written once"
        );
    }
}
