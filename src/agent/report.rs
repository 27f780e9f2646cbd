//! The agent's part of a request's status, and what is told as events. Pure: reports in, status out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::decide::waits;
use crate::api::condition::{self, find, whole_seconds};
use crate::api::request::{
    DeviceFence, DeviceOutcome, NodeFence, StepRecord, StepResult, VolumeGroupFence,
    WatchdogRecord, condition_type, reason,
};
use crate::api::{Condition, ConditionStatus, StorageFenceRequestStatus};
use crate::fence::report::{self, FenceReport, LocksOutcome, Outcome, StepKind};
use crate::fence::selection::RefusalReason;

/// Version of this agent, as it stands in the status.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

// The limits of the schema: an API server refuses a whole status for one entry too many.
pub(super) const GROUPS: usize = 64;
const DEVICES: usize = 64;
const MAPS: usize = 64;
pub(super) const STEPS: usize = 128;
/// Longest message of a condition, in characters.
const CONDITION_MESSAGE: usize = 4096;
/// Longest message of a step or device, in characters.
pub(super) const SHORT_MESSAGE: usize = 1024;

/// Exactly the fields of a request's status that the agent writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPart {
    /// Fenced and LocksReleased.
    pub conditions: Vec<Condition>,
    /// Evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeFence>,
}

impl AgentPart {
    /// As it stands in a status.
    #[must_use]
    pub fn of(status: &StorageFenceRequestStatus) -> Self {
        let ours = [condition_type::FENCED, condition_type::LOCKS_RELEASED];
        let conditions = ours.iter().filter_map(|t| find(&status.conditions, t));
        Self {
            conditions: conditions.cloned().collect(),
            node: status.node.clone(),
        }
    }

    pub(super) fn set(&mut self, type_: &str, now: Timestamp, generation: i64, says: Says) {
        let Says {
            status,
            reason,
            message,
        } = says;
        let new = Condition {
            type_: type_.to_owned(),
            status,
            observed_generation: Some(generation),
            last_transition_time: whole_seconds(now),
            reason: reason.to_owned(),
            message: cut(&message, CONDITION_MESSAGE),
        };
        condition::set(&mut self.conditions, new);
    }
}

pub(super) struct Says {
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

pub(super) fn says(
    status: ConditionStatus,
    reason: &'static str,
    message: impl Into<String>,
) -> Says {
    Says {
        status,
        reason,
        message: message.into(),
    }
}

/// What is known besides the report.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Generation of the spec that the report answers.
    pub generation: i64,
    /// Generation of the spec as it is now: another one when it was edited half-way.
    pub current_generation: i64,
    /// When the fence began, by the wall clock.
    pub started: Timestamp,
    /// Now, for transitions.
    pub now: Timestamp,
    /// What the status said before, for the times of its transitions.
    pub before: &'a AgentPart,
}

/// The status for a report.
#[must_use]
pub fn from_report(report: &FenceReport, context: Context<'_>) -> AgentPart {
    let mut part = AgentPart {
        conditions: context.before.conditions.clone(),
        node: Some(node(report, context)),
    };
    let mut fenced = fenced(report);
    if context.current_generation != context.generation && report.outcome == Outcome::InProgress {
        fenced.message.push_str(
            ". The spec was changed meanwhile: the fence goes on as it began, then the new spec is looked at",
        );
    }
    for note in &report.notes {
        fenced.message.push_str(". Note: ");
        fenced.message.push_str(note);
    }
    part.set(
        condition_type::FENCED,
        context.now,
        context.generation,
        fenced,
    );
    part.set(
        condition_type::LOCKS_RELEASED,
        context.now,
        context.generation,
        locks(report),
    );
    part
}

fn fenced(report: &FenceReport) -> Says {
    let (status, reason) = match &report.outcome {
        // Proof comes before the locks are released, and that may take a while: it is said as soon as it is there.
        Outcome::InProgress if proven(report) => (ConditionStatus::True, reason::PROVEN),
        Outcome::InProgress => (ConditionStatus::Unknown, reason::IN_PROGRESS),
        Outcome::Refused(why) => (ConditionStatus::False, refusal(*why)),
        Outcome::DryRun => (ConditionStatus::False, reason::DRY_RUN),
        Outcome::CalledOff => (ConditionStatus::False, reason::CALLED_OFF),
        Outcome::Proven => (ConditionStatus::True, reason::PROVEN),
        Outcome::NotProven => (ConditionStatus::False, reason::NOT_PROVEN),
    };
    let message = match &report.outcome {
        Outcome::InProgress if proven(report) => {
            format!("{}: every table is error", devices_in_words(report))
        }
        Outcome::InProgress => in_progress(report),
        Outcome::Refused(why) if waits(*why) => format!(
            "{}. The agent looks again whenever the node's storage changes",
            report.message.trim_end_matches('.')
        ),
        _ => report.message.clone(),
    };
    says(status, reason, message)
}

/// Whether every step up to the proof is done.
fn proven(report: &FenceReport) -> bool {
    let mut verify = report
        .steps
        .iter()
        .filter(|s| s.kind == StepKind::Verify)
        .peekable();
    verify.peek().is_some()
        && verify.all(|s| s.result == report::StepResult::Done)
        && report
            .volume_groups
            .iter()
            .all(|g| g.devices_proven() == g.devices.len())
}

fn devices_in_words(report: &FenceReport) -> String {
    let all: usize = report.volume_groups.iter().map(|g| g.devices.len()).sum();
    let proven: usize = report
        .volume_groups
        .iter()
        .map(report::VolumeGroupReport::devices_proven)
        .sum();
    let names: Vec<&str> = report
        .volume_groups
        .iter()
        .map(|g| g.name.as_str())
        .collect();
    format!("{proven} of {all} devices of {} proven", names.join(", "))
}

fn in_progress(report: &FenceReport) -> String {
    let running = report
        .steps
        .iter()
        .find(|s| s.result == report::StepResult::Running);
    let step = running.map_or_else(String::new, |s| {
        format!("{} of {}: ", s.kind.as_str(), s.volume_group)
    });
    format!("{step}{}", devices_in_words(report))
}

fn locks(report: &FenceReport) -> Says {
    let message = report.locks_message.clone();
    match (report.locks, &report.outcome) {
        (LocksOutcome::Pending, _) => says(
            ConditionStatus::Unknown,
            reason::IN_PROGRESS,
            if message.is_empty() {
                "The locks are released once the fence is proven".to_owned()
            } else {
                message
            },
        ),
        (LocksOutcome::Released, _) => says(ConditionStatus::True, reason::RELEASED, message),
        (LocksOutcome::NotConfirmed, _) => says(
            ConditionStatus::False,
            reason::RELEASE_NOT_CONFIRMED,
            message,
        ),
        (
            LocksOutcome::Kept,
            Outcome::Refused(
                why @ (RefusalReason::LvmlockdUnavailable | RefusalReason::SanlockUnavailable),
            ),
        ) => says(ConditionStatus::False, refusal(*why), message),
        (LocksOutcome::Kept, _) => says(ConditionStatus::False, reason::LOCKS_KEPT, message),
    }
}

/// A refusal's reason as it stands in the condition.
#[must_use]
pub const fn refusal(why: RefusalReason) -> &'static str {
    match why {
        RefusalReason::VolumeGroupUnknown => reason::VOLUME_GROUP_UNKNOWN,
        RefusalReason::VolumeGroupNotShared => reason::VOLUME_GROUP_NOT_SHARED,
        RefusalReason::LockspaceNotAdopted => reason::LOCKSPACE_NOT_ADOPTED,
        RefusalReason::PathsRemain => reason::PATHS_REMAIN,
        RefusalReason::NothingAffected => reason::NOTHING_AFFECTED,
        RefusalReason::DeviceMapperUnavailable => reason::DEVICE_MAPPER_UNAVAILABLE,
        RefusalReason::LvmlockdUnavailable => reason::LVMLOCKD_UNAVAILABLE,
        RefusalReason::SanlockUnavailable => reason::SANLOCK_UNAVAILABLE,
    }
}

fn node(report: &FenceReport, context: Context<'_>) -> NodeFence {
    let touched = !matches!(report.outcome, Outcome::Refused(_));
    let finished = report.finished_after.and_then(|after| {
        SignedDuration::try_from(after)
            .ok()
            .and_then(|after| context.started.checked_add(after).ok())
    });
    NodeFence {
        observed_generation: context.generation,
        boot_id: report.boot_id.clone(),
        agent_version: VERSION.to_owned(),
        // A refusal that is looked at again and again must not be written again and again for its time.
        started_at: touched.then(|| milliseconds_only(context.started)),
        finished_at: finished.filter(|_| touched).map(milliseconds_only),
        dry_run: report.outcome == Outcome::DryRun,
        volume_groups: report
            .volume_groups
            .iter()
            .take(GROUPS)
            .map(group)
            .collect(),
        steps: report.steps.iter().take(STEPS).map(step).collect(),
        watchdog: touched.then(|| WatchdogRecord {
            armed: report.watchdog.armed,
            budget_milliseconds: report.watchdog.budget.map(milliseconds),
            disarmed_after_milliseconds: report.watchdog.disarmed_after.map(milliseconds),
        }),
        unfence: None,
    }
}

fn group(group: &report::VolumeGroupReport) -> VolumeGroupFence {
    let mut devices: Vec<&report::DeviceReport> = group.devices.iter().collect();
    // Those that fell short first: the list has an end.
    devices.sort_by_key(|d| match d.outcome {
        report::DeviceOutcome::NotProven => 0,
        report::DeviceOutcome::Planned => 1,
        report::DeviceOutcome::Error | report::DeviceOutcome::Gone => 2,
    });
    VolumeGroupFence {
        name: cut(&group.name, 127),
        uuid: cut(&group.uuid, 64),
        lockspace: group.lockspace.as_deref().map(|l| cut(l, 64)),
        host_id: group.host_id.and_then(|id| id.try_into().ok()),
        generation: group.generation.and_then(|g| g.try_into().ok()),
        paths_total: count(group.paths_total),
        paths_active: count(group.paths_active),
        maps: group.maps.iter().take(MAPS).map(|m| cut(m, 127)).collect(),
        devices_total: count(group.devices.len()),
        devices_proven: count(group.devices_proven()),
        devices_omitted: count(devices.len().saturating_sub(DEVICES)),
        devices: devices.into_iter().take(DEVICES).map(device).collect(),
        locks_released: group.released_after.is_some(),
    }
}

fn device(device: &report::DeviceReport) -> DeviceFence {
    DeviceFence {
        name: cut(&device.name, 128),
        uuid: cut(&device.uuid, 129),
        outcome: match device.outcome {
            report::DeviceOutcome::Planned => DeviceOutcome::Planned,
            report::DeviceOutcome::Error => DeviceOutcome::Error,
            report::DeviceOutcome::Gone => DeviceOutcome::Gone,
            report::DeviceOutcome::NotProven => DeviceOutcome::NotProven,
        },
        open_count: device.open_count.try_into().unwrap_or(i32::MAX),
        swap_milliseconds: device.swap_took.map(milliseconds),
        message: device.message.as_deref().map(|m| cut(m, SHORT_MESSAGE)),
    }
}

fn step(step: &report::StepReport) -> StepRecord {
    let map = step.map.as_deref().map(|map| format!("{map}: "));
    let message = match (map, step.message.as_deref()) {
        (None, None) => None,
        (map, message) => Some(format!(
            "{}{}",
            map.unwrap_or_default(),
            message.unwrap_or_default()
        )),
    };
    StepRecord {
        step: step.kind.as_str().to_owned(),
        volume_group: Some(cut(&step.volume_group, 127)),
        result: step_result(step.result),
        at_milliseconds: step.at.map(milliseconds),
        took_milliseconds: step.took.map(milliseconds),
        message: message.map(|m| cut(m.trim_end_matches([':', ' ']), SHORT_MESSAGE)),
    }
}

/// As it stands in a status.
pub(super) const fn step_result(result: report::StepResult) -> StepResult {
    match result {
        report::StepResult::Planned => StepResult::Planned,
        report::StepResult::Running => StepResult::Running,
        report::StepResult::Done => StepResult::Done,
        report::StepResult::Skipped => StepResult::Skipped,
        report::StepResult::Failed => StepResult::Failed,
    }
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

pub(super) fn milliseconds_only(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

pub(super) fn count(n: usize) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}

/// The schema counts characters.
pub(super) fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars()
        .take(limit.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Something worth an event on the request and on the Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// Whether a person should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// What happened between two reports of one fence; `before` is None for its first.
#[must_use]
pub fn happened(before: Option<&FenceReport>, now: &FenceReport) -> Vec<Happened> {
    let mut all = Vec::new();
    let mut tell = |warning, reason, note: String| {
        all.push(Happened {
            warning,
            reason,
            note,
        });
    };
    let names: Vec<&str> = now.volume_groups.iter().map(|g| g.name.as_str()).collect();
    let of = format!("Request {}, generation {}", now.request, now.generation);
    let going = |r: &FenceReport| r.outcome == Outcome::InProgress;
    if going(now) && before.is_none() {
        let note = format!("{of}: fencing {} began", names.join(", "));
        tell(false, "FenceBegan", note);
    }
    if before.map(|b| &b.outcome) != Some(&now.outcome) {
        match &now.outcome {
            Outcome::InProgress => {}
            Outcome::Proven => tell(false, "Fenced", format!("{of}: {}", now.message)),
            Outcome::NotProven => tell(true, "FenceNotProven", format!("{of}: {}", now.message)),
            Outcome::Refused(why) => tell(
                true,
                "FenceRefused",
                format!("{of}: {}: {}", refusal(*why), now.message),
            ),
            Outcome::CalledOff => tell(false, "FenceCalledOff", format!("{of}: {}", now.message)),
            Outcome::DryRun => tell(false, "DryRun", format!("{of}: {}", now.message)),
        }
    }
    if before.is_none_or(|b| b.locks != now.locks) {
        match now.locks {
            LocksOutcome::Released => tell(
                false,
                "LocksReleased",
                format!("{of}: {}", now.locks_message),
            ),
            LocksOutcome::NotConfirmed => {
                tell(
                    true,
                    "LocksNotReleased",
                    format!("{of}: {}", now.locks_message),
                );
            }
            LocksOutcome::Pending | LocksOutcome::Kept => {}
        }
    }
    all
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
