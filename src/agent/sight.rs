//! The node's own Node as the API server has it: what of it the agent answers for, and whose it is.

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::ResourceExt;

use crate::api::node_condition_type::{SAN_PATHS_AVAILABLE, STORAGE_FENCED};

/// What was seen of it last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// UID: another one means that the Node was deleted and registered anew.
    pub uid: Option<String>,
    /// The conditions that the agent writes.
    pub conditions: Vec<NodeCondition>,
    /// Resource versions are numbers that grow (promised since Kubernetes 1.35, true of etcd before).
    version: Option<u64>,
}

impl Sight {
    /// Of a Node.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        let ours =
            |c: &&NodeCondition| [SAN_PATHS_AVAILABLE, STORAGE_FENCED].contains(&c.type_.as_str());
        Self {
            uid: node.uid(),
            conditions: conditions
                .into_iter()
                .flatten()
                .filter(ours)
                .cloned()
                .collect(),
            version: node.resource_version().and_then(|v| v.parse().ok()),
        }
    }

    /// Takes in what was seen by another way, unless that is older: a watch may lag behind the answer to a write.
    pub fn hear(&mut self, seen: &Self) {
        if seen.version.is_none() || seen.version >= self.version {
            self.clone_from(seen);
        }
    }

    /// Whether it says the same, whatever else of the Node has changed.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.conditions == other.conditions
    }
}
