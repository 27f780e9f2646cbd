//! Whether pods are to be evicted, which ones, and what is said about it. Pure.

use std::collections::BTreeSet;

use crate::api::condition::find;
use crate::api::eviction::{AffectedPods, condition_type, reason as why};
use crate::api::request::{FenceState, Workloads, reason};
use crate::api::{ConditionStatus, StorageFenceRequest};
use crate::controller::facts::{Facts, agents_word};
use crate::controller::request::validate::Verdict;

/// Of pods, so many are named.
const NAMED: usize = 5;

/// What there is to do about a request, as far as the caches tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing is said about evictions: nobody asked for them.
    Silent,
    /// Only this is said.
    Say(Verdict),
    /// The affected pods are to be evicted, as far as they can be.
    Evict(AffectedPods),
}

/// What is wished.
#[must_use]
pub fn wish(request: &StorageFenceRequest, facts: &Facts) -> Wish {
    if request.spec.workloads != Workloads::Evict || request.spec.dry_run {
        return Wish::Silent;
    }
    if let Err(verdict) = proven(request, facts) {
        return Wish::Say(verdict);
    }
    let status = request.status.as_ref();
    let boot = status.and_then(|s| s.node.as_ref()).map(|n| &n.boot_id);
    let pods = status.and_then(|s| s.affected_pods.as_ref());
    match pods.filter(|p| Some(&p.boot_id) == boot) {
        Some(pods) if pods.pods.is_empty() => Wish::Say(nobody_left(request, pods, &[])),
        Some(pods) => Wish::Evict(pods.clone()),
        None => Wish::Say(no(
            why::PODS_UNKNOWN,
            format!(
                "the agent of node {} has not told yet which pods hold the fenced volumes open",
                request.spec.node_name
            ),
        )),
    }
}

/// No pod is touched without proof that its storage is gone.
fn proven(request: &StorageFenceRequest, facts: &Facts) -> Result<(), Verdict> {
    let not = |message: &str| Err(no(why::NOT_FENCED, message.to_owned()));
    if request.metadata.deletion_timestamp.is_some()
        || request.spec.fence_state == FenceState::Unfenced
    {
        return not("the storage is to be given back, so that no pod is evicted (any more)");
    }
    let word = agents_word(request);
    if !word.is_some_and(|w| w.status == ConditionStatus::True && w.reason == reason::PROVEN) {
        return not("no pod is evicted before the fence is proven; see Fenced");
    }
    let node = request.status.as_ref().and_then(|s| s.node.as_ref());
    let Some(fence) = node.filter(|n| !n.boot_id.is_empty()) else {
        return not("it is not known which boot of the node the fence is of");
    };
    let now = facts.current_agent().map(|(_, storage)| &storage.boot_id);
    if now.is_some_and(|now| *now != fence.boot_id) {
        return Err(rebooted());
    }
    Ok(())
}

/// What is said of a fence that ended with its kernel.
#[must_use]
pub fn rebooted() -> Verdict {
    let message = "the node was restarted since, which ended the fence: no pod is evicted";
    no(why::NOT_FENCED, message.to_owned())
}

/// What is said when the controller may not even ask.
#[must_use]
pub fn forbidden(error: &impl std::fmt::Display) -> Verdict {
    let message = format!(
        "no pod can be evicted: {error}. Is the controller's ClusterRole of this version? It is tried again"
    );
    no(why::EVICTION_FAILED, message)
}

/// What keeps a pod, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It may be evicted.
    Evictable,
    /// It is being deleted already.
    Ending,
    /// This DaemonSet would bring it back to the same node.
    DaemonSet(String),
    /// The kubelet runs it from a file, whatever the API server says.
    Static,
    /// It is in the operator's own namespace.
    Ours,
}

/// A pod on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// UID that the node knows it by.
    pub runs_as: String,
    /// What keeps it.
    pub kind: Kind,
}

impl Found {
    fn words(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Who is to go, and who is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// These are to be evicted.
    pub evict: Vec<Found>,
    /// These go already.
    pub ending: Vec<Found>,
    /// These stay.
    pub left_alone: Vec<Found>,
    /// UIDs of which the API server has no pod on the node any more.
    pub unknown: Vec<String>,
}

/// Plans: the affected pods and no other.
#[must_use]
pub fn plan(affected: &AffectedPods, on_the_node: Vec<Found>) -> Plan {
    let wanted: BTreeSet<&str> = affected.pods.iter().map(|p| p.uid.as_str()).collect();
    let mut plan = Plan::default();
    let mut known = BTreeSet::new();
    for pod in on_the_node {
        if !wanted.contains(pod.runs_as.as_str()) {
            continue;
        }
        known.insert(pod.runs_as.clone());
        match pod.kind {
            Kind::Evictable => plan.evict.push(pod),
            Kind::Ending => plan.ending.push(pod),
            Kind::DaemonSet(_) | Kind::Static | Kind::Ours => plan.left_alone.push(pod),
        }
    }
    plan.unknown = wanted
        .into_iter()
        .filter(|uid| !known.contains(*uid))
        .map(str::to_owned)
        .collect();
    plan
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// These go now.
    pub evicted: Vec<Found>,
    /// The API server has them no more, under this UID.
    pub gone: Vec<Found>,
    /// A disruption budget holds these: with its words.
    pub held: Vec<(Found, String)>,
    /// The API server will not have it: with its words.
    pub refused: Vec<(Found, String)>,
}

/// What is said about it, and whether asking again would only tell the same, as long as the agent names the same pods.
#[must_use]
pub fn verdict(
    request: &StorageFenceRequest,
    affected: &AffectedPods,
    plan: &Plan,
    done: &Done,
) -> (Verdict, bool) {
    let node = &request.spec.node_name;
    let alone = left_alone(&plan.left_alone);
    let going = done.evicted.iter().chain(&done.gone).chain(&plan.ending);
    let going: Vec<&Found> = going.collect();
    let named = affected.pods.len();
    let more = usize::try_from(affected.total).map_or(0, |total| total.saturating_sub(named));
    if let Some((pod, words)) = done.held.first() {
        let message = format!(
            "{} of {named} affected pods of node {node} are kept by a PodDisruptionBudget, the first of them {}: {}. It is tried again; to have it go on now, \
             raise the budget, or delete the pod{}{alone}",
            done.held.len(),
            pod.words(),
            words.trim_end_matches('.'),
            also(&going)
        );
        return (no(why::WAITING_FOR_DISRUPTION_BUDGET, message), false);
    }
    if let Some((pod, words)) = done.refused.first() {
        let message = format!(
            "{} of {named} affected pods of node {node} cannot be evicted, the first of them {}: {}. It is tried again; or delete the pod{}{alone}",
            done.refused.len(),
            pod.words(),
            words.trim_end_matches('.'),
            also(&going)
        );
        return (no(why::EVICTION_FAILED, message), false);
    }
    if !going.is_empty() || more > 0 {
        let rest = if more > 0 {
            format!("; {more} more come when these have ended")
        } else {
            String::new()
        };
        let message = format!(
            "evicted, and not yet ended: {}{rest}{alone}. Nothing keeps the scheduler from choosing this node again: kubectl cordon {node}",
            names(going.iter().map(|p| p.words()))
        );
        let settled = done.evicted.is_empty() && done.gone.is_empty();
        return (no(why::EVICTING, message), settled);
    }
    if !plan.unknown.is_empty() {
        let message = format!(
            "the API server has no pod of node {node} any more with UID {}, and its processes still hold fenced volumes open: the kubelet ends them, \
             or somebody has to on the node{alone}",
            names(plan.unknown.iter().cloned())
        );
        return (no(why::EVICTING, message), true);
    }
    (nobody_left(request, affected, &plan.left_alone), true)
}

/// No pod is left that could be evicted.
fn nobody_left(request: &StorageFenceRequest, affected: &AffectedPods, alone: &[Found]) -> Verdict {
    let node = &request.spec.node_name;
    if affected.incomplete {
        let message = format!(
            "the agent of node {node} could not search all processes yet for who holds the fenced volumes open"
        );
        return no(why::PODS_UNKNOWN, message);
    }
    let stored = request.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::WORKLOADS_EVICTED));
    let evicted = stored.is_some_and(|c| {
        [
            why::EVICTING,
            why::WAITING_FOR_DISRUPTION_BUDGET,
            why::EVICTED,
        ]
        .contains(&c.reason.as_str())
    });
    let (reason, words) = if evicted {
        (why::EVICTED, "the pods that were evicted have ended")
    } else {
        (
            why::NOTHING_TO_EVICT,
            "no pod that could be evicted holds the fenced volumes open",
        )
    };
    let message = format!(
        "{words} on node {node}{}. Nothing keeps the scheduler from choosing this node again: kubectl cordon {node}",
        left_alone(alone)
    );
    Verdict {
        status: ConditionStatus::True,
        reason: reason.to_owned(),
        message,
    }
}

fn left_alone(pods: &[Found]) -> String {
    if pods.is_empty() {
        return String::new();
    }
    let why = |pod: &Found| {
        let words = pod.words();
        match &pod.kind {
            Kind::DaemonSet(of) => format!("{words} (DaemonSet {of} would bring it back)"),
            Kind::Static => format!("{words} (a static pod)"),
            _ => format!("{words} (this operator's own)"),
        }
    };
    format!(". Left alone: {}", names(pods.iter().map(why)))
}

fn also(going: &[&Found]) -> String {
    if going.is_empty() {
        return String::new();
    }
    format!(
        ". Evicted meanwhile: {}",
        names(going.iter().map(|p| p.words()))
    )
}

/// A few of them, and how many there are beyond.
fn names(all: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = all.collect();
    all.sort();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    if more == 0 {
        all.join(", ")
    } else {
        format!("{} and {more} more", all.join(", "))
    }
}

/// `WorkloadsEvicted` is False, for this reason.
#[must_use]
pub fn no(reason: &str, message: String) -> Verdict {
    Verdict {
        status: ConditionStatus::False,
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
