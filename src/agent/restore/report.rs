//! The agent's part of a request's status while, and after, the node is given its storage back. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::agent::report::{
    AgentPart, GROUPS, Happened, SHORT_MESSAGE, STEPS, VERSION, count, cut, milliseconds,
    milliseconds_only, says, step_result,
};
use crate::api::ConditionStatus;
use crate::api::request::{NodeFence, StepRecord, condition_type, reason};
use crate::api::unfence::{
    BlockerReason as ApiReason, NodeUnfence, UnfenceBlocker, VolumeGroupUnfence,
};
use crate::fence::report;
use crate::fence::unfence::{
    Blocker, BlockerReason, GroupReport, UnfenceOutcome, UnfenceReport, UnfenceStep,
    UnfenceStepKind,
};

/// Blockers that the schema has room for.
const BLOCKERS: usize = 32;

/// The status for a report. `started`: when the first step began, by the wall clock.
#[must_use]
pub fn from_report(
    report: &UnfenceReport,
    started: Option<Timestamp>,
    now: Timestamp,
    before: &AgentPart,
) -> AgentPart {
    let mut part = before.clone();
    let generation = report.order.generation;
    let of_this_boot = part
        .node
        .take()
        .filter(|n| n.boot_id == report.boot_id || report.boot_id.is_empty());
    let mut node = of_this_boot.unwrap_or_else(|| NodeFence {
        observed_generation: generation,
        boot_id: report.boot_id.clone(),
        ..NodeFence::default()
    });
    VERSION.clone_into(&mut node.agent_version);
    node.unfence = Some(unfence(report, started));
    part.node = Some(node);
    let (status, why) = match report.outcome {
        UnfenceOutcome::Waiting if report.failures > 0 => (still_fenced(report), reason::UNFENCING),
        UnfenceOutcome::Waiting => (still_fenced(report), reason::UNFENCE_WAITING),
        UnfenceOutcome::Working => (still_fenced(report), reason::UNFENCING),
        UnfenceOutcome::Done => (ConditionStatus::False, reason::UNFENCED),
    };
    let message = &report.message;
    part.set(
        condition_type::FENCED,
        now,
        generation,
        says(status, why, message),
    );
    if report.outcome == UnfenceOutcome::Done {
        let says = says(
            ConditionStatus::False,
            reason::UNFENCED,
            "No lockspace is kept released for this request any more",
        );
        part.set(condition_type::LOCKS_RELEASED, now, generation, says);
    }
    part
}

/// The status of a request that nothing was fenced for.
#[must_use]
pub fn nothing_fenced(
    boot_id: &str,
    generation: i64,
    now: Timestamp,
    before: &AgentPart,
) -> AgentPart {
    let mut part = before.clone();
    if part.node.as_ref().is_some_and(|n| n.boot_id != boot_id) {
        // Of another kernel: nothing of it holds.
        part.node = None;
    }
    let message = "Nothing stands fenced on the node for this request";
    for type_ in [condition_type::FENCED, condition_type::LOCKS_RELEASED] {
        let says = says(ConditionStatus::False, reason::UNFENCED, message);
        part.set(type_, now, generation, says);
    }
    part
}

/// Whether nothing can reach the SAN, as far as the last look tells. It is so until the lockspaces are being joined: from then on volumes may come
/// into use.
fn still_fenced(report: &UnfenceReport) -> ConditionStatus {
    let joining = report.steps.iter().any(|s| {
        s.kind >= UnfenceStepKind::JoinLockspace && s.result != report::StepResult::Planned
    });
    let unsure = report.blockers.iter().any(|b| {
        matches!(
            b.reason,
            BlockerReason::DeviceNotFenced | BlockerReason::StateUnknown
        )
    });
    let in_use = report.groups.iter().any(|g| g.in_use);
    if joining || unsure || in_use || report.groups.is_empty() {
        ConditionStatus::Unknown
    } else {
        ConditionStatus::True
    }
}

fn unfence(report: &UnfenceReport, started: Option<Timestamp>) -> NodeUnfence {
    let started = started.filter(|_| report.started.is_some());
    let finished = started.and_then(|at| {
        let after = SignedDuration::try_from(report.finished_after?).ok()?;
        at.checked_add(after).ok()
    });
    NodeUnfence {
        observed_generation: report.order.generation,
        started_at: started.map(milliseconds_only),
        finished_at: finished.map(milliseconds_only),
        volume_groups: report.groups.iter().take(GROUPS).map(group).collect(),
        blockers: report.blockers.iter().take(BLOCKERS).map(blocker).collect(),
        blockers_omitted: count(report.blockers.len().saturating_sub(BLOCKERS)),
        steps: report.steps.iter().take(STEPS).map(step).collect(),
    }
}

fn group(group: &GroupReport) -> VolumeGroupUnfence {
    VolumeGroupUnfence {
        name: cut(&group.standing.name, 127),
        uuid: cut(&group.standing.uuid, 64),
        devices_total: count(group.devices_total),
        devices_removed: count(group.devices_removed),
        joined: group.joined.is_some(),
        host_id: group.joined.and_then(|(id, _)| id.try_into().ok()),
        generation: group.joined.and_then(|(_, g)| g?.try_into().ok()),
    }
}

fn blocker(blocker: &Blocker) -> UnfenceBlocker {
    UnfenceBlocker {
        reason: match blocker.reason {
            BlockerReason::PathsUnhealthy => ApiReason::PathsUnhealthy,
            BlockerReason::DeviceOpen => ApiReason::DeviceOpen,
            BlockerReason::DeviceNotFenced => ApiReason::DeviceNotFenced,
            BlockerReason::StateUnknown => ApiReason::StateUnknown,
            BlockerReason::LockspaceRemains => ApiReason::LockspaceRemains,
            BlockerReason::StepFailed => ApiReason::StepFailed,
        },
        volume_group: cut(&blocker.volume_group, 127),
        device: blocker.device.as_deref().map(|d| cut(d, 128)),
        holder: blocker.holder.as_deref().map(|h| cut(h, 512)),
        pod_uid: blocker.pod_uid.as_deref().map(|uid| cut(uid, 64)),
        message: cut(&blocker.message, SHORT_MESSAGE),
    }
}

fn step(step: &UnfenceStep) -> StepRecord {
    StepRecord {
        step: step.kind.as_str().to_owned(),
        volume_group: Some(cut(&step.volume_group, 127)),
        result: step_result(step.result),
        at_milliseconds: step.at.map(milliseconds),
        took_milliseconds: step.took.map(milliseconds),
        message: step.message.as_deref().map(|m| cut(m, SHORT_MESSAGE)),
    }
}

/// What is worth an event between two reports of one un-fence.
#[must_use]
pub fn happened(before: Option<&UnfenceReport>, now: &UnfenceReport) -> Option<Happened> {
    let same = before.is_some_and(|b| b.outcome == now.outcome && b.message == now.message);
    let note = format!(
        "Request {}, generation {}: {}",
        now.order.name, now.order.generation, now.message
    );
    let (warning, reason) = match now.outcome {
        _ if same => return None,
        UnfenceOutcome::Waiting if now.failures > 0 => (true, "UnfenceFailed"),
        UnfenceOutcome::Waiting => (false, "UnfenceWaiting"),
        UnfenceOutcome::Working => (false, "UnfenceBegan"),
        UnfenceOutcome::Done => (false, "Unfenced"),
    };
    Some(Happened {
        warning,
        reason,
        note,
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
