//! The policies in force on this node, and what is known of the Node: from the API server while it is there, from a file when it is not.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::store::Store;
use crate::api::policy::{StorageFencePolicy, Triggers, selects_node};
use crate::fence::trigger::{ConditionRule, NodeCondition, Rules};

const FILE: &str = "policies.json";

/// A condition of the Node, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCondition {
    /// Type.
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Since when.
    pub since: Timestamp,
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
    conditions: Vec<SeenCondition>,
    policies: Vec<StorageFencePolicy>,
}

impl InForce {
    /// Those that an earlier agent of this boot kept.
    #[must_use]
    pub fn load(store: &Store) -> Self {
        Self {
            policies: store.load(FILE),
            ..Self::default()
        }
    }

    /// The policies that select this node.
    #[must_use]
    pub fn policies(&self) -> &[StorageFencePolicy] {
        &self.policies
    }

    /// Takes in what the API server tells. Once it has told of both the policies and the Node, they replace what was kept.
    pub fn hear(&mut self, news: Learned, store: &Store) {
        match news {
            Learned::Policies(all) => self.all = Some(all),
            Learned::Node(labels, conditions) => {
                self.labels = Some(labels);
                self.conditions = conditions;
            }
            // What holds now cannot be told: a condition of before is no reason to act.
            Learned::NodeOutOfSight => self.conditions.clear(),
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

    /// The Node's conditions as rules ask for them.
    #[must_use]
    pub fn conditions(&self, now: Timestamp) -> Vec<NodeCondition> {
        let held = |since| Duration::try_from(now.duration_since(since)).unwrap_or_default();
        self.conditions
            .iter()
            .map(|c| NodeCondition {
                type_: c.type_.clone(),
                status: c.status.clone(),
                since: c.since.to_string(),
                held: held(c.since),
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
