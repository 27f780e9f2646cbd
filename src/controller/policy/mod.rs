//! What the status of policies says: which govern, where, and which are outranked by which. Written when it changes. And how many records of
//! theirs are kept ([`history`]).
//!
//! Not a reconciler of single policies: one that comes, goes or changes its priority says something about every other.

pub mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::context::Context;
use super::unreadable;
use super::watches::Caches;
use crate::api::condition::{find, since};
use crate::api::policy::{condition_type, governing, reason, selects_node, selects_volume_group};
use crate::api::{
    CONTROLLER_FIELD_MANAGER, Condition, ConditionStatus, EXCLUDE_LABEL, StorageFencePolicy,
};
use crate::kubernetes::apply::{Target, apply_status};

/// Several changes within this time are one.
const GATHER: Duration = Duration::from_secs(1);
/// For what a watch may miss, and for writes that failed.
const AGAIN: Duration = Duration::from_mins(1);
/// Entries of `outranked`.
const OUTRANKED: usize = 20;

/// A node as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Names of its shared or fenced volume groups, as its agent reports them.
    pub volume_groups: Vec<String>,
}

/// The controller's status of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    observed_generation: Option<i64>,
    nodes: String,
    outranked: Vec<String>,
    conditions: Vec<Condition>,
}

/// Where a policy governs, and where it does not.
#[derive(Debug, Default)]
struct Tally {
    selected: usize,
    governed: BTreeSet<String>,
    groups: usize,
    outranked: Vec<String>,
    rivals: BTreeSet<String>,
}

fn tally(
    policy: &StorageFencePolicy,
    all: &[StorageFencePolicy],
    nodes: &[Node],
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for node in nodes {
        if !selects_node(&policy.spec, &node.labels)? {
            continue;
        }
        tally.selected += 1;
        let of_the_node: Vec<&StorageFencePolicy> = all
            .iter()
            .filter(|p| selects_node(&p.spec, &node.labels) == Ok(true))
            .collect();
        let mine = |name: &&String| selects_volume_group(&policy.spec, name);
        for name in node.volume_groups.iter().filter(mine) {
            match governing(name, of_the_node.iter().copied()) {
                Some(winner) if winner.metadata.name == policy.metadata.name => {
                    tally.governed.insert(node.name.clone());
                    tally.groups += 1;
                }
                Some(winner) => {
                    let winner = winner.name_any();
                    tally
                        .outranked
                        .push(format!("{}/{name}: {winner}", node.name));
                    tally.rivals.insert(winner);
                }
                None => {}
            }
        }
    }
    Ok(tally)
}

impl Tally {
    /// Whether the policy is active, why, and in words.
    fn verdict(&self) -> (bool, &'static str, String) {
        if self.groups > 0 {
            let mut message = format!(
                "It governs {} volume groups on {} nodes",
                self.groups,
                self.governed.len()
            );
            if !self.outranked.is_empty() {
                let rivals = in_words(&self.rivals);
                let others = self.outranked.len();
                message = format!("{message}; of {others} others it is outranked by {rivals}");
            }
            return (true, reason::GOVERNS, message);
        }
        if self.selected == 0 {
            let message = format!(
                "No node matches its nodeSelector, or those that do carry the label {EXCLUDE_LABEL}"
            );
            return (false, reason::NO_NODE_SELECTED, message);
        }
        if self.outranked.is_empty() {
            let message =
                "None of the nodes that it selects reports a shared volume group that it means";
            return (false, reason::NO_VOLUME_GROUP_SELECTED, message.to_owned());
        }
        let message = format!(
            "Wherever it would govern it is outranked by {}: a higher priority counts, then the older policy, then the first name",
            in_words(&self.rivals)
        );
        (false, reason::OUTRANKED, message)
    }
}

/// Derives the status of one of `all` policies. Pure.
#[must_use]
pub fn derive(
    policy: &StorageFencePolicy,
    all: &[StorageFencePolicy],
    nodes: &[Node],
    now: Timestamp,
) -> Status {
    let (tally, (active, reason, message)) = match tally(policy, all, nodes) {
        Ok(tally) => {
            let verdict = tally.verdict();
            (tally, verdict)
        }
        Err(why) => (
            Tally::default(),
            (false, reason::INVALID, format!("{why}. It governs nothing")),
        ),
    };
    let status = if active {
        ConditionStatus::True
    } else {
        ConditionStatus::False
    };
    let stored = policy.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::ACTIVE));
    let since = since(stored, status, now);
    let outranked = tally.outranked.iter().take(OUTRANKED);
    Status {
        observed_generation: policy.metadata.generation,
        nodes: format!("{}/{}", tally.governed.len(), tally.selected),
        outranked: outranked.map(|o| o.chars().take(512).collect()).collect(),
        conditions: vec![Condition {
            type_: condition_type::ACTIVE.to_owned(),
            status,
            observed_generation: policy.metadata.generation,
            last_transition_time: since,
            reason: reason.to_owned(),
            message: message.chars().take(4096).collect(),
        }],
    }
}

/// A few names, and how many there are beyond.
fn in_words(names: &BTreeSet<String>) -> String {
    const FEW: usize = 5;
    let few: Vec<&str> = names.iter().take(FEW).map(String::as_str).collect();
    match names.len().saturating_sub(FEW) {
        0 => few.join(", "),
        more => format!("{} and {more} more", few.join(", ")),
    }
}

/// Whether the API server holds it already.
#[must_use]
pub fn is_current(policy: &StorageFencePolicy, wanted: &Status) -> bool {
    policy.status.as_ref().is_some_and(|stored| {
        stored.observed_generation == wanted.observed_generation
            && stored.nodes == wanted.nodes
            && stored.outranked == wanted.outranked
            && stored.conditions == wanted.conditions
    })
}

/// Keeps all statuses current, and the records within their limits, for ever.
pub async fn run(context: Arc<Context>, changed: Arc<tokio::sync::Notify>) {
    let mut pruner = history::Pruner::default();
    loop {
        let _ = tokio::time::timeout(AGAIN, changed.notified()).await;
        tokio::time::sleep(GATHER).await;
        if context.leads() {
            let policies = context.caches.readable_policies();
            write_all(&context, &policies).await;
            pruner.prune(&context, &policies).await;
        }
    }
}

async fn write_all(context: &Context, policies: &[StorageFencePolicy]) {
    for policy in context.caches.policies.state() {
        unreadable::report(context, &policy);
    }
    if policies.is_empty() {
        return;
    }
    let nodes = nodes(&context.caches);
    let api = Api::<StorageFencePolicy>::all(context.client.clone());
    for policy in policies {
        let wanted = derive(policy, policies, &nodes, Timestamp::now());
        if is_current(policy, &wanted) {
            continue;
        }
        let name = policy.name_any();
        let target = Target {
            name: &name,
            uid: policy.metadata.uid.as_deref(),
            manager: CONTROLLER_FIELD_MANAGER,
        };
        if let Err(error) = apply_status(&api, target, &wanted).await {
            tracing::warn!(policy = name, %error, "the status of a policy is not written yet");
        }
    }
}

fn nodes(caches: &Caches) -> Vec<Node> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for storage in caches.storages.state() {
        let Ok(storage) = &storage.0 else { continue };
        let Some(status) = &storage.status else {
            continue;
        };
        let of_the_san = status.volume_groups.iter().filter(|g| g.shared || g.fenced);
        groups.insert(
            storage.name_any(),
            of_the_san.map(|g| g.name.clone()).collect(),
        );
    }
    let mut nodes: Vec<Node> = caches
        .nodes
        .state()
        .iter()
        .map(|node| {
            let name = node.name_any();
            Node {
                volume_groups: groups.remove(&name).unwrap_or_default(),
                labels: node.labels().clone(),
                name,
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

#[cfg(test)]
mod tests;
