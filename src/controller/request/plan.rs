//! What is to be done about a request: what to write, whom to tell. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::status::{ControllerStatus, desired, is_current};
use super::validate::Verdicts;
use crate::api::StorageFenceRequest;
use crate::api::condition::find;
use crate::api::request::{Phase, condition_type, reason};
use crate::controller::facts::Facts;

/// Something for `kubectl describe` to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether a person should look.
    pub warning: bool,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub note: String,
    /// Whether it concerns the Node too.
    pub on_node: bool,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The status to write. None: it is stored already.
    pub write: Option<ControllerStatus>,
    /// What to tell once that is written: transitions only.
    pub notices: Vec<Notice>,
    /// Look again after this time even if nothing changes.
    pub look_again: Option<Duration>,
}

/// Plans.
#[must_use]
pub fn plan(
    request: &StorageFenceRequest,
    facts: &Facts,
    verdicts: &Verdicts,
    now: Timestamp,
) -> Plan {
    let status = desired(request, facts, verdicts, now);
    if is_current(request, &status) {
        return Plan {
            write: None,
            notices: Vec::new(),
            look_again: verdicts.look_again,
        };
    }
    Plan {
        notices: notices(request, facts, &status),
        write: Some(status),
        look_again: verdicts.look_again,
    }
}

fn notices(request: &StorageFenceRequest, facts: &Facts, status: &ControllerStatus) -> Vec<Notice> {
    let before = request.status.as_ref();
    let has_node = facts.node.is_some();
    let mut notices = Vec::new();
    if before.and_then(|before| before.phase) != Some(status.phase)
        && let Some((warning, concerns_node)) = weight(status.phase)
    {
        notices.push(Notice {
            warning,
            reason: format!("{:?}", status.phase),
            note: status.message.clone(),
            on_node: concerns_node && has_node,
        });
    }
    let agent = |conditions| find(conditions, condition_type::AGENT_READY);
    if let Some(now) = agent(&status.conditions)
        && now.reason == reason::NO_AGENT
        && before
            .and_then(|before| agent(&before.conditions))
            .is_none_or(|before| before.reason != reason::NO_AGENT)
    {
        notices.push(Notice {
            warning: true,
            reason: reason::NO_AGENT.to_owned(),
            note: now.message.clone(),
            on_node: has_node,
        });
    }
    notices
}

/// Whether a phase is a warning, and whether it says something about the node and not only about the request. None: not worth an event.
fn weight(phase: Phase) -> Option<(bool, bool)> {
    match phase {
        Phase::Pending => None,
        Phase::WaitingForAgent | Phase::DryRunComplete => Some((false, false)),
        Phase::Rejected => Some((true, false)),
        Phase::Fencing | Phase::Fenced | Phase::CalledOff | Phase::Unfencing | Phase::Unfenced => {
            Some((false, true))
        }
        Phase::FencedLocksHeld | Phase::Failed => Some((true, true)),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
