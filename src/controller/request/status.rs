//! The controller's part of a request's status. Pure.
//!
//! Phase and message are for people, and follow from the conditions alone: first what the agent has said, which is evidence, and only where it
//! has said nothing, what the controller thinks.

use jiff::Timestamp;
use serde::Serialize;

use super::validate::{Verdict, Verdicts};
use crate::api::condition::find;
use crate::api::request::{Phase, condition_type, reason};
use crate::api::{Condition, ConditionStatus, StorageFenceRequest};
use crate::controller::facts::{Facts, REFUSALS, agents_word};

/// Longest message that the schema takes, in characters.
const MESSAGE_LIMIT: usize = 4096;

/// Exactly the fields that the controller writes: server-side apply leaves the agent's alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStatus {
    /// Generation that the rest was derived from.
    pub observed_generation: Option<i64>,
    /// Where the request stands.
    pub phase: Phase,
    /// What happened and what to do next.
    pub message: String,
    /// Accepted and AgentReady.
    pub conditions: Vec<Condition>,
}

/// The status as it should be. Transition times are those of the present status where nothing changed, and `now` elsewhere.
#[must_use]
pub fn desired(
    request: &StorageFenceRequest,
    facts: &Facts,
    verdicts: &Verdicts,
    now: Timestamp,
) -> ControllerStatus {
    let (phase, message) = derive(request, facts, verdicts);
    ControllerStatus {
        observed_generation: request.metadata.generation,
        phase,
        message: bounded(message),
        conditions: vec![
            stamped(request, condition_type::ACCEPTED, &verdicts.accepted, now),
            stamped(
                request,
                condition_type::AGENT_READY,
                &verdicts.agent_ready,
                now,
            ),
        ],
    }
}

/// Whether the stored status already says all of it.
#[must_use]
pub fn is_current(request: &StorageFenceRequest, desired: &ControllerStatus) -> bool {
    let Some(status) = &request.status else {
        return false;
    };
    status.observed_generation == desired.observed_generation
        && status.phase == Some(desired.phase)
        && status.message.as_deref() == Some(desired.message.as_str())
        && desired
            .conditions
            .iter()
            .all(|condition| find(&status.conditions, &condition.type_) == Some(condition))
}

fn stamped(
    request: &StorageFenceRequest,
    type_: &str,
    verdict: &Verdict,
    now: Timestamp,
) -> Condition {
    let stored = request
        .status
        .as_ref()
        .and_then(|status| find(&status.conditions, type_));
    // Waiting for the agent begins anew after it was not needed, although both are False: the wait is told from this time.
    let stored = stored.filter(|stored| {
        (stored.reason == reason::AGENT_NOT_NEEDED) == (verdict.reason == reason::AGENT_NOT_NEEDED)
    });
    verdict.condition(type_, request.metadata.generation, stored, now)
}

/// Phase and message of a request.
#[must_use]
pub fn derive(
    request: &StorageFenceRequest,
    facts: &Facts,
    verdicts: &Verdicts,
) -> (Phase, String) {
    if let Some(rebooted) = rebooted_since(request, facts) {
        return (Phase::Pending, rebooted);
    }
    if let Some(word) = agents_word(request)
        && let Some(derived) = from_the_agents_word(request, word)
    {
        return derived;
    }
    let accepted = &verdicts.accepted;
    if accepted.status == ConditionStatus::False {
        // Only these two are certain to keep the agent from acting: it holds the same rule about requests, and there is none without a node.
        // About volume groups the agent sees more than the controller, and until it has spoken nobody may say that nothing was touched.
        let phase = if [reason::NODE_NOT_FOUND, reason::OTHER_REQUEST_GOVERNS]
            .contains(&accepted.reason.as_str())
        {
            Phase::Rejected
        } else {
            Phase::Pending
        };
        return (phase, accepted.message.clone());
    }
    if verdicts.agent_ready.status != ConditionStatus::True {
        return (Phase::WaitingForAgent, verdicts.agent_ready.message.clone());
    }
    (
        Phase::Pending,
        format!(
            "{}; its first step is expected now",
            verdicts.agent_ready.message
        ),
    )
}

fn from_the_agents_word(
    request: &StorageFenceRequest,
    fenced: &Condition,
) -> Option<(Phase, String)> {
    if [reason::UNFENCE_WAITING, reason::UNFENCING].contains(&fenced.reason.as_str()) {
        return Some((Phase::Unfencing, fenced.message.clone()));
    }
    if fenced.status == ConditionStatus::True {
        return Some(proven(request, fenced));
    }
    let phase = match fenced.reason.as_str() {
        reason::IN_PROGRESS => Phase::Fencing,
        reason::NOT_PROVEN => Phase::Failed,
        reason::CALLED_OFF => Phase::CalledOff,
        reason::UNFENCED | reason::NODE_RESTARTED => Phase::Unfenced,
        reason::DRY_RUN => Phase::DryRunComplete,
        refusal if REFUSALS.contains(&refusal) => Phase::Rejected,
        // The controller applies the same rule to what it knows by now; the agent's word may be older.
        reason::OTHER_REQUEST_GOVERNS => return None,
        // A reason of a newer agent: shown as it is, nothing is made of it.
        _ => Phase::Pending,
    };
    Some((phase, fenced.message.clone()))
}

/// Fenced is True: what became of the locks?
fn proven(request: &StorageFenceRequest, fenced: &Condition) -> (Phase, String) {
    let released = request
        .status
        .as_ref()
        .and_then(|status| find(&status.conditions, condition_type::LOCKS_RELEASED));
    let Some(released) = released else {
        return (Phase::Fencing, fenced.message.clone());
    };
    let phase = match (released.status, released.reason.as_str()) {
        (ConditionStatus::True, _) | (_, reason::LOCKS_KEPT) => Phase::Fenced,
        (_, reason::IN_PROGRESS) => Phase::Fencing,
        _ => Phase::FencedLocksHeld,
    };
    (
        phase,
        format!(
            "{}. {}",
            fenced.message.trim_end_matches('.'),
            released.message
        ),
    )
}

/// After a reboot nothing that was proven holds any more, whatever the status still says.
fn rebooted_since(request: &StorageFenceRequest, facts: &Facts) -> Option<String> {
    let fence = request.status.as_ref()?.node.as_ref()?;
    // The agent knows.
    if agents_word(request).is_some_and(|w| w.reason == reason::NODE_RESTARTED) {
        return None;
    }
    let (_, storage) = facts.current_agent()?;
    if fence.boot_id.is_empty() || storage.boot_id.is_empty() || fence.boot_id == storage.boot_id {
        return None;
    }
    Some(format!(
        "node {} was rebooted since the agent worked on this request (boot {} then, {} now): what was done no longer holds. The agent \
         will say so",
        request.spec.node_name, fence.boot_id, storage.boot_id
    ))
}

/// As long as the schema takes it.
pub(super) fn bounded(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_LIMIT - 1) {
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
