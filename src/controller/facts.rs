//! What the cluster knows that bears on the requests of one node, as plain data: what the pure stages work on.

use std::time::Duration;

use clap::ValueEnum;

use super::request::finalizer;
use crate::api::condition::find;
use crate::api::node_storage::VolumeGroupStatus;
use crate::api::request::{DeletionPolicy, condition_type, reason};
use crate::api::{Condition, ConditionStatus, NodeStorageStatus, StorageFenceRequest};

/// How agents come to nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum AgentMode {
    /// An agent on every node of the DaemonSet's selector, always.
    #[default]
    Resident,
    /// The DaemonSet selects `storagefence.io/agent-wanted=true`, which the controller sets while a request needs the agent.
    OnDemand,
}

/// What does not change while the controller runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How agents come to nodes.
    pub agent_mode: AgentMode,
    /// How long an agent may take before `AgentReady` says `NoAgent`.
    pub agent_wait: Duration,
    /// Namespace of the agents' pods, for messages.
    pub namespace: String,
}

/// A pod of the agent's DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Whether its Ready condition is True and it is not being deleted.
    pub ready: bool,
    /// Why it is not ready, in the kubelet's or the scheduler's word, such as `ImagePullBackOff`.
    pub trouble: Option<String>,
}

/// A Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// UID of the object: another one means another node of the same name.
    pub uid: String,
}

/// All of it, for one request.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The Node, when there is one.
    pub node: Option<NodeFacts>,
    /// What the node's agent last published.
    pub storage: Option<NodeStorageStatus>,
    /// The agent's pods on the node: more than one while a DaemonSet replaces them.
    pub agent_pods: Vec<AgentPod>,
    /// Name of the older request that governs the node instead of this one.
    pub governed_by: Option<String>,
}

impl Facts {
    /// The ready pod of the agent and what exactly this pod has published about exactly this node.
    ///
    /// Anything else in a NodeStorage is hearsay: of a former pod, or of a former node of the same name.
    #[must_use]
    pub fn current_agent(&self) -> Option<(&AgentPod, &NodeStorageStatus)> {
        let node = self.node.as_ref()?;
        let storage = self.storage.as_ref()?;
        self.agent_pods
            .iter()
            .find(|pod| pod.speaks_for(&node.uid, storage))
            .map(|pod| (pod, storage))
    }
}

impl AgentPod {
    /// Whether this pod answers, and a NodeStorage is its report about the Node of this UID.
    #[must_use]
    pub fn speaks_for(&self, node_uid: &str, storage: &NodeStorageStatus) -> bool {
        let of_the_node = storage.node_uid.as_ref().is_none_or(|uid| uid == node_uid);
        self.ready && of_the_node && self.published(storage)
    }

    /// Whether a NodeStorage says that this pod wrote it. The field holds the pod's name and UID.
    fn published(&self, storage: &NodeStorageStatus) -> bool {
        storage.agent_pod.as_ref().is_none_or(|author| {
            author.contains(&self.uid) || author.split([' ', '/', '(', ')']).any(|w| w == self.name)
        })
    }
}

/// Whether no path of a volume group works. Unknown paths are not gone paths.
#[must_use]
pub fn all_paths_gone(group: &VolumeGroupStatus) -> bool {
    let mut paths = group.physical_volumes.iter().flat_map(|pv| &pv.paths);
    !group.physical_volumes.is_empty() && !paths.any(|path| path.active)
}

/// What the agent has said about a request: its `Fenced` condition, when that still means something.
///
/// What was done to a node does not go away when somebody edits the spec; what was refused or called off does, since nothing was touched
/// and the new spec deserves a look of its own.
#[must_use]
pub fn agents_word(request: &StorageFenceRequest) -> Option<&Condition> {
    let status = request.status.as_ref()?;
    let fenced = find(&status.conditions, condition_type::FENCED)?;
    let of_this_generation = fenced.observed_generation == request.metadata.generation;
    (of_this_generation || was_touched(fenced)).then_some(fenced)
}

/// Whether a `Fenced` condition tells of something that was done to the node and not undone.
#[must_use]
pub fn was_touched(fenced: &Condition) -> bool {
    fenced.status == ConditionStatus::True
        || matches!(
            fenced.reason.as_str(),
            reason::IN_PROGRESS | reason::NOT_PROVEN | reason::UNFENCE_WAITING | reason::UNFENCING
        )
}

/// Reasons of `Fenced` with which the agent says that it touched nothing and will not, as things stand.
pub const REFUSALS: [&str; 9] = [
    reason::VOLUME_GROUP_UNKNOWN,
    reason::VOLUME_GROUP_NOT_SHARED,
    reason::LOCKSPACE_NOT_ADOPTED,
    reason::PATHS_REMAIN,
    reason::NOTHING_AFFECTED,
    reason::NOT_SUPPORTED,
    reason::DEVICE_MAPPER_UNAVAILABLE,
    reason::LVMLOCKD_UNAVAILABLE,
    reason::SANLOCK_UNAVAILABLE,
];

/// Whether a request needs the agent on its node (OnDemand mode).
///
/// It does until the agent has said the last word and nothing stays to be looked after. A node that was touched keeps its agent as long as
/// the request exists: somebody has to see that the fence holds. A refusal that may end by itself keeps it too: paths may go, services may be
/// mended.
#[must_use]
pub fn needs_agent(request: &StorageFenceRequest, governed_by_another: bool) -> bool {
    if request.metadata.deletion_timestamp.is_some() {
        // The node is to be given its storage back, if it was taken.
        return finalizer::has(request)
            && request.spec.deletion_policy == DeletionPolicy::Unfence
            && agents_word(request).is_some_and(was_touched);
    }
    if governed_by_another {
        return false;
    }
    !agents_word(request).is_some_and(|fenced| {
        fenced.status != ConditionStatus::True
            && matches!(
                fenced.reason.as_str(),
                reason::DRY_RUN
                    | reason::CALLED_OFF
                    | reason::VOLUME_GROUP_UNKNOWN
                    | reason::VOLUME_GROUP_NOT_SHARED
                    | reason::NOT_SUPPORTED
                    | reason::UNFENCED
                    | reason::NODE_RESTARTED
            )
    })
}
