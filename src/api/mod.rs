//! The custom resources of `storagefence.io/v1alpha1`: types, schema and CEL rules.
//!
//! Nothing here knows a runtime or a client: the same types serve the controller, the agent, the
//! command-line tools and the generator of `crds/`.

pub mod condition;
pub mod crds;
pub mod eviction;
pub mod governing;
pub mod node_storage;
pub mod policy;
pub mod record;
pub mod remediation;
pub mod request;
pub mod takeover;
pub mod unfence;

pub use condition::{Condition, ConditionStatus};
pub use node_storage::{NodeStorage, NodeStorageSpec, NodeStorageStatus};
pub use policy::{StorageFencePolicy, StorageFencePolicySpec, StorageFencePolicyStatus};
pub use remediation::{StorageFenceRemediation, StorageFenceRemediationTemplate};
pub use request::{StorageFenceRequest, StorageFenceRequestSpec, StorageFenceRequestStatus};

/// API group of every kind in this crate.
pub const GROUP: &str = "storagefence.io";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// Node label that the controller sets while a request needs the agent there (`OnDemand` mode); the
/// agent's `DaemonSet` selects it.
pub const AGENT_WANTED_LABEL: &str = "storagefence.io/agent-wanted";
/// Node label, of any value, that keeps the node out of every StorageFencePolicy.
pub const EXCLUDE_LABEL: &str = "storagefence.io/exclude-from-policies";
/// Types of the Node's conditions that the agent writes.
pub mod node_condition_type {
    /// Some path of every SAN volume group works. Seen below the fence, so that recovery is visible on a fenced node.
    pub const SAN_PATHS_AVAILABLE: &str = "storagefence.io/SANPathsAvailable";
    /// At least one volume group stands fenced.
    pub const STORAGE_FENCED: &str = "storagefence.io/StorageFenced";
    /// Reason of both when they are Unknown because no agent answers: written by the controller.
    pub const AGENT_GONE: &str = "AgentGone";
}
/// Finalizer that keeps a deleted request until its node was given its storage back.
pub const UNFENCE_FINALIZER: &str = "storagefence.io/unfence";
/// Server-side-apply field manager of the controller.
pub const CONTROLLER_FIELD_MANAGER: &str = "storage-fence-controller";
/// Server-side-apply field manager of the controller's take-overs: tasks in `NodeStorage.spec`, and the condition `TakenOver` of a request.
pub const TAKEOVER_FIELD_MANAGER: &str = "storage-fence-takeover";
/// Server-side-apply field manager of an agent.
pub const AGENT_FIELD_MANAGER: &str = "storage-fence-agent";
/// Of an agent for `status.affectedPods`. Apart from the fence's own words: these are written whatever becomes of that list, also while the installed
/// CRD is older than the agent and does not know the field.
pub const AGENT_PODS_FIELD_MANAGER: &str = "storage-fence-agent-pods";
/// Of the controller for the condition `WorkloadsEvicted`: a stage of its own.
pub const CONTROLLER_EVICTION_FIELD_MANAGER: &str = "storage-fence-controller-eviction";
