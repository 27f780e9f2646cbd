//! Counts the requests by phase and by reason, for the metrics.

use std::collections::BTreeMap;

use super::metrics::{Metrics, PhaseLabels, ReasonLabels};
use crate::api::request::{Phase, condition_type, reason};
use crate::api::{StorageFenceRequest, eviction, takeover};

const PHASES: [Phase; 11] = [
    Phase::Pending,
    Phase::Rejected,
    Phase::WaitingForAgent,
    Phase::Fencing,
    Phase::Fenced,
    Phase::FencedLocksHeld,
    Phase::Failed,
    Phase::DryRunComplete,
    Phase::CalledOff,
    Phase::Unfencing,
    Phase::Unfenced,
];

const CONDITIONS: [&str; 6] = [
    condition_type::ACCEPTED,
    condition_type::AGENT_READY,
    condition_type::FENCED,
    condition_type::LOCKS_RELEASED,
    eviction::condition_type::WORKLOADS_EVICTED,
    takeover::condition_type::TAKEN_OVER,
];

const REASONS: [&str; 43] = [
    reason::VALID,
    reason::NODE_NOT_FOUND,
    reason::OTHER_REQUEST_GOVERNS,
    reason::VOLUME_GROUP_UNKNOWN,
    reason::VOLUME_GROUP_NOT_SHARED,
    reason::LOCKSPACE_NOT_ADOPTED,
    reason::PATHS_REMAIN,
    reason::NOTHING_AFFECTED,
    reason::AGENT_RUNNING,
    reason::WAITING_FOR_AGENT,
    reason::NO_AGENT,
    reason::AGENT_NOT_NEEDED,
    reason::IN_PROGRESS,
    reason::PROVEN,
    reason::NOT_PROVEN,
    reason::CALLED_OFF,
    reason::DRY_RUN,
    reason::DEVICE_MAPPER_UNAVAILABLE,
    reason::LVMLOCKD_UNAVAILABLE,
    reason::SANLOCK_UNAVAILABLE,
    reason::RELEASED,
    reason::LOCKS_KEPT,
    reason::RELEASE_NOT_CONFIRMED,
    reason::UNFENCE_WAITING,
    reason::UNFENCING,
    reason::UNFENCED,
    reason::NOT_SUPPORTED,
    eviction::reason::NOT_FENCED,
    eviction::reason::PODS_UNKNOWN,
    eviction::reason::COUNTING_NODES,
    eviction::reason::LIMIT_REACHED,
    eviction::reason::EVICTING,
    eviction::reason::WAITING_FOR_DISRUPTION_BUDGET,
    eviction::reason::EVICTION_FAILED,
    eviction::reason::EVICTED,
    eviction::reason::NOTHING_TO_EVICT,
    takeover::reason::WAITING,
    takeover::reason::EXPEDITING,
    takeover::reason::TAKEN_OVER,
    takeover::reason::NO_PEER,
    takeover::reason::PEERS_TOO_OLD,
    takeover::reason::GENERATION_UNKNOWN,
    takeover::reason::HOST_ID_IN_USE,
];

/// Sets the gauges. Phases without a request stay visible as 0, so that an alert can be written before the first one.
pub fn publish<'a>(requests: impl Iterator<Item = &'a StorageFenceRequest>, metrics: &Metrics) {
    let mut phases: BTreeMap<&'static str, i64> = PHASES.map(|p| (name(p), 0)).into();
    let mut reasons: BTreeMap<(&'static str, &'static str), i64> = BTreeMap::new();
    for status in requests.map(|request| request.status.as_ref()) {
        let phase = status
            .and_then(|status| status.phase)
            .unwrap_or(Phase::Pending);
        *phases.entry(name(phase)).or_default() += 1;
        for condition in status.map(|s| s.conditions.as_slice()).unwrap_or_default() {
            let Some(type_) = CONDITIONS.iter().find(|c| **c == condition.type_) else {
                continue;
            };
            let reason = REASONS.iter().find(|r| **r == condition.reason);
            *reasons
                .entry((type_, reason.copied().unwrap_or("Other")))
                .or_default() += 1;
        }
    }
    for (phase, count) in phases {
        metrics
            .phases
            .get_or_create(&PhaseLabels { phase })
            .set(count);
    }
    // A reason that nobody has any more goes away.
    metrics.reasons.clear();
    for ((condition, reason), count) in reasons {
        metrics
            .reasons
            .get_or_create(&ReasonLabels { condition, reason })
            .set(count);
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Rejected => "Rejected",
        Phase::WaitingForAgent => "WaitingForAgent",
        Phase::Fencing => "Fencing",
        Phase::Fenced => "Fenced",
        Phase::FencedLocksHeld => "FencedLocksHeld",
        Phase::Failed => "Failed",
        Phase::DryRunComplete => "DryRunComplete",
        Phase::CalledOff => "CalledOff",
        Phase::Unfencing => "Unfencing",
        Phase::Unfenced => "Unfenced",
    }
}
