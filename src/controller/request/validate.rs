//! What the cluster knows that speaks for or against a request. Pure.
//!
//! The agent does not wait for this: a fence is local and is never gated. So where the agent has spoken, its word is what `Accepted` says.

use std::time::Duration;

use jiff::Timestamp;

use super::status::bounded;
use crate::api::condition::{find, since};
use crate::api::node_storage::VolumeGroupStatus;
use crate::api::request::{VolumeGroupMode, WhenPathsRemain, condition_type, reason};
use crate::api::{Condition, ConditionStatus, NodeStorageStatus, StorageFenceRequest};
use crate::controller::facts::{
    AgentMode, Facts, REFUSALS, Settings, agents_word, all_paths_gone, needs_agent,
};

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Verdict {
    fn new(status: ConditionStatus, reason: &str, message: String) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
            message,
        }
    }

    /// The condition that says so of that generation, and has said so since `stored` did.
    #[must_use]
    pub fn condition(
        &self,
        type_: &str,
        generation: Option<i64>,
        stored: Option<&Condition>,
        now: Timestamp,
    ) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: self.status,
            observed_generation: generation,
            last_transition_time: since(stored, self.status, now),
            reason: self.reason.clone(),
            message: bounded(self.message.clone()),
        }
    }

    fn rejected(reason: &str, message: String) -> Self {
        Self::new(ConditionStatus::False, reason, message)
    }
}

/// The controller's view of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// `Accepted`.
    pub accepted: Verdict,
    /// `AgentReady`.
    pub agent_ready: Verdict,
    /// Look again after this time even if nothing changes: a wait ends.
    pub look_again: Option<Duration>,
}

/// Judges a request. `now` only serves to tell how long the agent has been waited for.
#[must_use]
pub fn validate(
    request: &StorageFenceRequest,
    facts: &Facts,
    settings: &Settings,
    now: Timestamp,
) -> Verdicts {
    let (agent_ready, look_again) = agent_ready(request, facts, settings, now);
    Verdicts {
        accepted: accepted(request, facts),
        agent_ready,
        look_again,
    }
}

fn accepted(request: &StorageFenceRequest, facts: &Facts) -> Verdict {
    let node = &request.spec.node_name;
    let word = agents_word(request);
    if let Some(word) = word {
        // A fenced node may be asked for what is not supported: it stays fenced, and the request is not accepted all the same.
        if REFUSALS.contains(&word.reason.as_str()) {
            return Verdict::rejected(&word.reason, word.message.clone());
        }
        if word.reason != reason::OTHER_REQUEST_GOVERNS {
            return Verdict::new(
                ConditionStatus::True,
                reason::VALID,
                format!("the agent of node {node} has taken the request up"),
            );
        }
    }
    if facts.node.is_none() {
        return Verdict::rejected(
            reason::NODE_NOT_FOUND,
            format!(
                "there is no node {node}. Nothing was touched: delete the request if the name is wrong; it goes on by itself when the node joins"
            ),
        );
    }
    if let Some(other) = &facts.governed_by {
        return Verdict::rejected(
            reason::OTHER_REQUEST_GOVERNS,
            format!(
                "the older request {other} governs node {node}. Nothing was touched: delete one of the two (kubectl get sfr)"
            ),
        );
    }
    if let Some((_, storage)) = facts.current_agent()
        && let Some(objection) = objection(request, storage)
    {
        return objection;
    }
    Verdict::new(
        ConditionStatus::True,
        reason::VALID,
        format!("nothing that is known of node {node} speaks against the request"),
    )
}

/// What the node's own report says against the request.
fn objection(request: &StorageFenceRequest, storage: &NodeStorageStatus) -> Option<Verdict> {
    let node = &request.spec.node_name;
    let selection = &request.spec.volume_groups;
    let groups = &storage.volume_groups;
    match selection.mode {
        VolumeGroupMode::Named => {
            let mut chosen = Vec::new();
            for name in &selection.names {
                let named: Vec<_> = groups.iter().filter(|vg| vg.name == *name).collect();
                if named.is_empty() {
                    return Some(Verdict::rejected(
                        reason::VOLUME_GROUP_UNKNOWN,
                        format!(
                            "node {node} has no volume group {name}; known are: {}. Correct spec.volumeGroups.names",
                            names(groups.iter())
                        ),
                    ));
                }
                // Two volume groups may have one name; the lock manager knows one of them by it.
                let Some(shared) = named.into_iter().find(|vg| vg.shared) else {
                    return Some(Verdict::rejected(
                        reason::VOLUME_GROUP_NOT_SHARED,
                        format!(
                            "volume group {name} of node {node} is not shared as far as the node knows: it has no lockspace there, so there is nothing to fence it from; \
                             shared are: {}. Correct spec.volumeGroups.names, or see the check LockManager of the node's NodeStorage",
                            names(groups.iter().filter(|vg| vg.shared))
                        ),
                    ));
                };
                chosen.push(shared);
            }
            paths_remain(request, &chosen)
        }
        VolumeGroupMode::AllShared => {
            let shared: Vec<_> = groups.iter().filter(|vg| vg.shared).collect();
            if shared.is_empty() {
                return Some(Verdict::rejected(
                    reason::NOTHING_AFFECTED,
                    format!(
                        "node {node} has no shared volume group: no lockspace is running there"
                    ),
                ));
            }
            paths_remain(request, &shared)
        }
        VolumeGroupMode::Affected => {
            let shared: Vec<_> = groups.iter().filter(|vg| vg.shared).collect();
            if shared.iter().any(|vg| all_paths_gone(vg)) {
                return None;
            }
            let state = if shared.is_empty() {
                "it has no shared volume group".to_owned()
            } else {
                in_words(&shared)
            };
            Some(Verdict::rejected(
                reason::NOTHING_AFFECTED,
                format!(
                    "no shared volume group of node {node} has lost all its paths: {state}. To fence them all the same, name them and set whenPathsRemain to Fence"
                ),
            ))
        }
    }
}

fn paths_remain(request: &StorageFenceRequest, chosen: &[&VolumeGroupStatus]) -> Option<Verdict> {
    if request.spec.when_paths_remain == WhenPathsRemain::Fence {
        return None;
    }
    let healthy: Vec<_> = chosen
        .iter()
        .copied()
        .filter(|vg| !all_paths_gone(vg))
        .collect();
    if healthy.is_empty() {
        return None;
    }
    Some(Verdict::rejected(
        reason::PATHS_REMAIN,
        format!(
            "{} on node {}. Set spec.whenPathsRemain to Fence to fence it all the same",
            in_words(&healthy),
            request.spec.node_name
        ),
    ))
}

/// Working and all paths of a volume group.
fn paths(vg: &VolumeGroupStatus) -> (usize, usize) {
    let all = vg.physical_volumes.iter().flat_map(|pv| &pv.paths);
    (all.clone().filter(|path| path.active).count(), all.count())
}

fn in_words(groups: &[&VolumeGroupStatus]) -> String {
    let words: Vec<String> = groups
        .iter()
        .map(|vg| {
            if vg.physical_volumes.is_empty() {
                return format!("the paths of volume group {} are not known", vg.name);
            }
            let (working, all) = paths(vg);
            format!("{working} of {all} paths of volume group {} work", vg.name)
        })
        .collect();
    words.join("; ")
}

fn names<'a>(groups: impl Iterator<Item = &'a VolumeGroupStatus>) -> String {
    let mut names: Vec<&str> = groups.map(|vg| vg.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn agent_ready(
    request: &StorageFenceRequest,
    facts: &Facts,
    settings: &Settings,
    now: Timestamp,
) -> (Verdict, Option<Duration>) {
    let node = &request.spec.node_name;
    if facts.node.is_none() {
        let message = format!("there is no node {node}, so no agent can run there");
        return (
            Verdict::new(ConditionStatus::Unknown, reason::WAITING_FOR_AGENT, message),
            None,
        );
    }
    if let Some((pod, _)) = facts.current_agent() {
        let message = format!("agent {} runs on node {node}", pod.name);
        return (
            Verdict::new(ConditionStatus::True, reason::AGENT_RUNNING, message),
            None,
        );
    }
    if settings.agent_mode == AgentMode::OnDemand
        && facts.governed_by.is_none()
        && !needs_agent(request, false)
    {
        let message = format!(
            "the agent has said its last word on this request and is no longer kept on node {node}"
        );
        return (Verdict::rejected(reason::AGENT_NOT_NEEDED, message), None);
    }
    let waited = waited(request, now);
    let missing = missing(node, facts, settings);
    if waited < settings.agent_wait {
        let message = format!("waiting for the agent of node {node}: {missing}");
        (
            Verdict::rejected(reason::WAITING_FOR_AGENT, message),
            Some(settings.agent_wait.saturating_sub(waited)),
        )
    } else {
        let message = format!(
            "no agent answers on node {node} after {} s: {missing}",
            settings.agent_wait.as_secs()
        );
        (Verdict::rejected(reason::NO_AGENT, message), None)
    }
}

/// How long the agent has been waited for: since `AgentReady` became False. Taken from the status, so that a new leader does not start anew.
fn waited(request: &StorageFenceRequest, now: Timestamp) -> Duration {
    request
        .status
        .as_ref()
        .and_then(|status| find(&status.conditions, condition_type::AGENT_READY))
        .filter(|condition| {
            condition.status == ConditionStatus::False
                && condition.reason != reason::AGENT_NOT_NEEDED
        })
        .and_then(|condition| {
            let waited = now.duration_since(condition.last_transition_time);
            // The stored time has lost up to a second.
            Duration::try_from(waited)
                .ok()
                .map(|waited| waited.saturating_sub(Duration::from_secs(1)))
        })
        .unwrap_or_default()
}

/// What is missing, and where to look.
fn missing(node: &str, facts: &Facts, settings: &Settings) -> String {
    let namespace = &settings.namespace;
    if let Some(pod) = facts.agent_pods.iter().find(|pod| pod.ready) {
        return format!(
            "pod {pod} is Ready, but has not published NodeStorage {node} yet (kubectl -n {namespace} logs {pod})",
            pod = pod.name
        );
    }
    if let Some(pod) = facts.agent_pods.first() {
        let trouble = pod
            .trouble
            .as_ref()
            .map(|trouble| format!(" ({trouble})"))
            .unwrap_or_default();
        return format!(
            "pod {pod} is not Ready{trouble} (kubectl -n {namespace} describe pod {pod})",
            pod = pod.name
        );
    }
    let label = match settings.agent_mode {
        AgentMode::Resident => String::new(),
        AgentMode::OnDemand => format!(
            ", that it selects {}=true, and that nothing keeps this label off the node",
            crate::api::AGENT_WANTED_LABEL
        ),
    };
    format!(
        "there is no agent pod on it. Check that the agents' DaemonSet is installed in namespace {namespace}, that its nodeSelector and \
         tolerations match the node{label} (kubectl -n {namespace} get daemonsets,pods -o wide)"
    )
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
