//! Whether a policy in force on the node is about to fence what a remediation means, so that it would be too early to say that it has failed. Pure.
//!
//! A node says which policy governs a volume group, and of what it has lost; not since when. So the time is counted from when the remediation began
//! to wait: the policy's, and then what the remediation grants a fence. Only what counts already is waited for: no path works, or the lease is not
//! being renewed.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::condition::find;
use crate::api::node_storage::VolumeGroupStatus;
use crate::api::policy::Response;
use crate::api::remediation::condition_type;
use crate::api::request::VolumeGroupMode;
use crate::api::{ConditionStatus, NodeStorageStatus, StorageFencePolicy, StorageFenceRemediation};
use crate::controller::facts::all_paths_gone;

/// A policy that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// How much longer, at most.
    pub left: Duration,
    /// For what, for people.
    pub what: String,
}

/// What is known when it is asked.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The remediation.
    pub remediation: &'a StorageFenceRemediation,
    /// What the node's agent says now.
    pub storage: &'a NodeStorageStatus,
    /// All policies.
    pub policies: &'a [StorageFencePolicy],
    /// The time.
    pub now: Timestamp,
}

/// For the fence of every one of these volume groups, which another request's fence left out. None: one of them nobody is about to fence.
#[must_use]
pub fn for_all(view: View<'_>, missing: &[String]) -> Option<Wait> {
    let of = |name: &String| {
        let mut groups = view.storage.volume_groups.iter();
        groups.find(|g| g.name == *name && g.shared && !g.fenced)
    };
    let due: Option<Vec<Due<'_>>> = missing.iter().map(|name| due(view, of(name)?)).collect();
    wait(view, &due?)
}

/// For the fence of what the remediation means and its own request refuses: with `Affected`, whatever has lost its lease although its paths look
/// alive; otherwise every volume group that is not fenced yet, or it would be in vain.
#[must_use]
pub fn for_own(view: View<'_>) -> Option<Wait> {
    let selection = &view.remediation.spec.volume_groups;
    let meant = |g: &&VolumeGroupStatus| {
        g.shared
            && !g.fenced
            && (selection.mode != VolumeGroupMode::Named || selection.names.contains(&g.name))
    };
    let groups = view.storage.volume_groups.iter().filter(meant);
    let due = groups.map(|g| due(view, g));
    let due: Option<Vec<Due<'_>>> = if selection.mode == VolumeGroupMode::Affected {
        Some(due.flatten().collect())
    } else {
        due.collect()
    };
    wait(view, &due?)
}

/// A volume group, the policy that is to fence it, and after how many seconds of the outage at the latest.
type Due<'a> = (&'a str, &'a str, i32);

fn due<'a>(view: View<'a>, group: &'a VolumeGroupStatus) -> Option<Due<'a>> {
    let name = group.policy.as_deref()?;
    let mut policies = view.policies.iter();
    let policy = policies.find(|p| p.metadata.name.as_deref() == Some(name))?;
    if policy.spec.response != Response::Fence || policy.spec.dry_run {
        return None;
    }
    let triggers = &policy.spec.triggers;
    let paths = triggers.all_paths_down.map(|t| t.for_seconds);
    let lease = triggers.renewals_failing.map(|t| t.for_seconds);
    let paths = paths.filter(|_| all_paths_gone(group));
    let lease = lease.filter(|_| lease_is_failing(group));
    let seconds = paths.into_iter().chain(lease).min()?;
    Some((&group.name, name, seconds))
}

fn lease_is_failing(group: &VolumeGroupStatus) -> bool {
    let state = group.lockspace.as_ref().map(|l| l.state.as_str());
    matches!(state, Some("RenewalFailing" | "Expired"))
}

fn wait(view: View<'_>, due: &[Due<'_>]) -> Option<Wait> {
    let longest = due.iter().map(|d| d.2).max()?;
    let limit = longest.saturating_add(view.remediation.spec.drain_timeout_seconds);
    let limit = Duration::from_secs(u64::try_from(limit).unwrap_or_default());
    let waited = Duration::try_from(view.now.duration_since(since(view)?)).unwrap_or_default();
    let left = limit.checked_sub(waited).filter(|left| !left.is_zero())?;
    let words: Vec<String> = due
        .iter()
        .map(|(group, policy, seconds)| {
            format!("policy {policy} is to fence volume group {group} after {seconds} s")
        })
        .collect();
    Some(Wait {
        left,
        what: words.join("; "),
    })
}

/// Since when it waits. None: it has said that it failed, and the health controller may have turned to another already.
fn since(view: View<'_>) -> Option<Timestamp> {
    let conditions = view
        .remediation
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice());
    let succeeded = conditions.and_then(|c| find(c, condition_type::SUCCEEDED));
    match succeeded.map(|s| (s.status, s.last_transition_time)) {
        Some((ConditionStatus::False, _)) => None,
        Some((ConditionStatus::Unknown, since)) => Some(since),
        Some((ConditionStatus::True, _)) | None => Some(view.now),
    }
}

#[cfg(test)]
#[path = "patience_tests.rs"]
mod tests;
