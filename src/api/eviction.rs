//! The parts of a request's status that tell whose pods have lost their storage, and what became of them.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Condition type of a request, with `workloads: Evict` only.
pub mod condition_type {
    /// Controller: no pod that could be evicted holds a fenced volume open any more.
    pub const WORKLOADS_EVICTED: &str = "WorkloadsEvicted";
}

/// Reasons of that condition.
pub mod reason {
    /// False: the fence is not proven, or the storage is to be given back. No pod is evicted.
    pub const NOT_FENCED: &str = "NotFenced";
    /// False: proven, but the agent has not told yet, or not of this boot, which pods hold fenced volumes open.
    pub const PODS_UNKNOWN: &str = "PodsUnknown";
    /// False: of a policy's fence, it is seen first whether other nodes lose their storage too.
    pub const COUNTING_NODES: &str = "CountingNodes";
    /// False: too many nodes of the policy are lost.
    pub const LIMIT_REACHED: &str = "LimitReached";
    /// False: pods were evicted and have not ended yet.
    pub const EVICTING: &str = "Evicting";
    /// False: a PodDisruptionBudget holds an eviction up; it is tried again.
    pub const WAITING_FOR_DISRUPTION_BUDGET: &str = "WaitingForDisruptionBudget";
    /// False: the API server will not have an eviction; it is tried again.
    pub const EVICTION_FAILED: &str = "EvictionFailed";
    /// True: those that were evicted have ended.
    pub const EVICTED: &str = "Evicted";
    /// True: no pod that could be evicted holds a fenced volume open.
    pub const NOTHING_TO_EVICT: &str = "NothingToEvict";
}

/// Pods that the list has room for.
pub const PODS: usize = 64;
/// Volumes of a pod that the list has room for.
pub const VOLUMES: usize = 16;

/// A pod that holds fenced volumes open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffectedPod {
    /// UID, as in the names of its cgroups and folders. A static pod's is the hash of its file.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Device-mapper names of the devices that it holds open, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128)))]
    pub volumes: Vec<String>,
}

/// The pods that hold fenced volumes open, as the agent sees them in procfs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffectedPods {
    /// Boot ID of the node that they were seen in.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// How many there are.
    pub total: i32,
    /// Bounded list. Those that are gone leave it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pods: Vec<AffectedPod>,
    /// True: the last search did not come to its end, so that there may be more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}
