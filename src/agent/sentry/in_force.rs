//! The policies in force on this node, and what is known of the Node: from the API server while it is there, from a file when it is not.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::store::Store;
use crate::api::policy::{StorageFencePolicy, Triggers, selects_node};
use crate::fence::Monotonic;
use crate::fence::trigger::{ConditionRule, NodeCondition, Rules};

const FILE: &str = "policies.json";
const TRANSITIONS: &str = "node-conditions.json";

/// A condition of the Node, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenCondition {
    /// Type.
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Since when, by the clock of whoever wrote it.
    pub since: Timestamp,
}

/// A condition, and when this node came to see that transition. Only the latter is counted from: clocks of other machines may be wrong, and that of this
/// one may be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Transition {
    condition: SeenCondition,
    seen: Monotonic,
}

/// What the API server tells.
#[derive(Clone, Debug)]
pub enum Learned {
    /// All policies there are.
    Policies(Vec<StorageFencePolicy>),
    /// The Node: its labels and conditions.
    Node(BTreeMap<String, String>, Vec<SeenCondition>),
    /// The Node cannot be seen at present.
    NodeOutOfSight,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    all: Option<Vec<StorageFencePolicy>>,
    labels: Option<BTreeMap<String, String>>,
    /// Also while the Node is out of sight: what is seen again unchanged has held meanwhile.
    transitions: Vec<Transition>,
    in_sight: bool,
    policies: Vec<StorageFencePolicy>,
}

impl InForce {
    /// Those that an earlier agent of this boot kept.
    #[must_use]
    pub fn load(store: &Store) -> Self {
        Self {
            policies: store.load(FILE),
            transitions: store.load(TRANSITIONS),
            ..Self::default()
        }
    }

    /// The policies that select this node.
    #[must_use]
    pub fn policies(&self) -> &[StorageFencePolicy] {
        &self.policies
    }

    /// Takes in what the API server tells. Once it has told of both the policies and the Node, they replace what was kept.
    pub fn hear(&mut self, news: Learned, now: Monotonic, store: &Store) {
        match news {
            Learned::Policies(all) => self.all = Some(all),
            Learned::Node(labels, conditions) => {
                self.labels = Some(labels);
                self.see(conditions, now, store);
            }
            // What holds now cannot be told: a condition of before is no reason to act.
            Learned::NodeOutOfSight => self.in_sight = false,
        }
        let (Some(all), Some(labels)) = (&self.all, &self.labels) else {
            return;
        };
        let selected = |policy: &StorageFencePolicy| match selects_node(&policy.spec, labels) {
            Ok(selects) => selects,
            Err(why) => {
                tracing::warn!(
                    policy = policy.metadata.name,
                    why,
                    "a policy is not in force"
                );
                false
            }
        };
        let policies: Vec<StorageFencePolicy> = all
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .filter(|p| selected(p))
            .map(bare)
            .collect();
        if policies != self.policies {
            let names: Vec<&str> = policies
                .iter()
                .filter_map(|p| p.metadata.name.as_deref())
                .collect();
            tracing::info!(policies = names.join(","), "policies in force");
            self.policies = policies;
            store.save(FILE, &self.policies);
        }
    }

    fn see(&mut self, conditions: Vec<SeenCondition>, now: Monotonic, store: &Store) {
        self.in_sight = true;
        let known = std::mem::take(&mut self.transitions);
        let transition = |condition: SeenCondition| {
            let before = known.iter().find(|t| t.condition == condition);
            let seen = before.map_or(now, |t| t.seen);
            Transition { condition, seen }
        };
        self.transitions = conditions.into_iter().map(transition).collect();
        if self.transitions != known {
            store.save(TRANSITIONS, &self.transitions);
        }
    }

    /// The Node's conditions as rules ask for them.
    #[must_use]
    pub fn conditions(&self, now: Monotonic) -> Vec<NodeCondition> {
        let seen = self.transitions.iter().filter(|_| self.in_sight);
        seen.map(|Transition { condition, seen }| NodeCondition {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            since: condition.since.to_string(),
            held: now.since(*seen),
        })
        .collect()
    }
}

/// Without what says nothing about what to do: a file of it is small, and equal as long as nothing has changed.
fn bare(policy: &StorageFencePolicy) -> StorageFencePolicy {
    let mut bare = policy.clone();
    bare.metadata.managed_fields = None;
    bare.metadata.resource_version = None;
    bare.metadata.annotations = None;
    bare.status = None;
    bare
}

/// The rules of a policy.
#[must_use]
pub fn rules(triggers: &Triggers) -> Rules {
    let seconds = |n: i32| Duration::from_secs(u64::try_from(n).unwrap_or_default());
    Rules {
        all_paths_down: triggers.all_paths_down.map(|t| seconds(t.for_seconds)),
        device_gone: triggers
            .permanent_device_loss
            .map(|t| seconds(t.for_seconds)),
        renewals_failing: triggers.renewals_failing.map(|t| seconds(t.for_seconds)),
        budget_below: triggers.watchdog_budget_below.map(|t| seconds(t.seconds)),
        conditions: triggers
            .node_conditions
            .iter()
            .map(|c| ConditionRule {
                type_: c.type_.clone(),
                status: format!("{:?}", c.status),
                held: seconds(c.for_seconds),
            })
            .collect(),
    }
}
