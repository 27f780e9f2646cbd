//! How a healthy node is asked to declare a fenced one dead, and what it says came of it.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition type of a request, with `takeover: Expedite` only.
pub mod condition_type {
    /// Controller: a healthy host was seen to have declared this one dead, for every volume group.
    pub const TAKEN_OVER: &str = "TakenOver";
}

/// Reasons of that condition.
pub mod reason {
    /// False: the fence is not proven yet, or the locks are not released: nobody may be declared dead.
    pub const WAITING: &str = "Waiting";
    /// False: a healthy host was asked to declare this one dead.
    pub const EXPEDITING: &str = "Expediting";
    /// True: other hosts can have the locks.
    pub const TAKEN_OVER: &str = "TakenOver";
    /// False: no other node is fit to declare this one dead now.
    pub const NO_PEER: &str = "NoPeer";
    /// False: other nodes would be fit, but for their sanlock.
    pub const PEERS_TOO_OLD: &str = "PeersTooOld";
    /// False: more of the policy's nodes are lost than its limit allows.
    pub const LIMIT_REACHED: &str = "LimitReached";
    /// False: the attestation lacks what a peer has to compare: lockspace, host id, generation or boot ID.
    pub const GENERATION_UNKNOWN: &str = "GenerationUnknown";
    /// False: another node reports the host id of the attestation as its own.
    pub const HOST_ID_IN_USE: &str = "HostIdInUse";
}

/// Most tasks of one node.
pub const MOST_TASKS: usize = 64;

/// Declare one host of a lockspace dead: that of a node that was fenced, in exactly the life in which it was.
///
/// The agent that is asked believes none of it. It compares all of it with what the fenced node's own agent has attested in the status of the
/// request, and with what its own sanlock says.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct DeclareDead {
    /// UID of the StorageFenceRequest that fenced the node.
    #[schemars(length(min = 1, max = 64))]
    pub request_uid: String,
    /// Name of that request.
    #[schemars(length(min = 1, max = 253))]
    pub request: String,
    /// The fenced node.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Boot ID of that node when it was fenced.
    #[schemars(length(min = 1, max = 64))]
    pub boot_id: String,
    /// UUID of the volume group.
    #[schemars(length(min = 1, max = 64))]
    pub volume_group_uuid: String,
    /// Its lockspace.
    #[schemars(length(min = 1, max = 48))]
    pub lockspace: String,
    /// The fenced node's host id in the lockspace.
    #[schemars(range(min = 1, max = 2000))]
    pub host_id: i64,
    /// Generation of that host id when the node was fenced.
    #[schemars(range(min = 1))]
    pub generation: i64,
}

/// What came of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeclareDeadResult {
    /// The agent is at it.
    #[default]
    InProgress,
    /// sanlock shows that generation as declared dead: its locks can be had.
    Declared,
    /// That host holds no lease any more: its locks can be had anyway.
    Free,
    /// It is not so, or not attested, that this host in this generation was fenced. The message says what; it is looked at again.
    Refused,
    /// It was tried, or could not be. The message says why; it is tried again.
    Failed,
}

/// What came of one task, as the agent read it back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredDead {
    /// UID of the StorageFenceRequest of the task.
    #[schemars(length(max = 64))]
    pub request_uid: String,
    /// UUID of the volume group of the task.
    #[schemars(length(max = 64))]
    pub volume_group_uuid: String,
    /// Host id of the task.
    pub host_id: i64,
    /// Generation of the task.
    pub generation: i64,
    /// What came of it.
    pub result: DeclareDeadResult,
    /// What was seen, and what to do next.
    #[schemars(length(max = 1024))]
    pub message: String,
}

impl DeclaredDead {
    /// Whether it is about exactly this task.
    #[must_use]
    pub fn is_of(&self, task: &DeclareDead) -> bool {
        self.request_uid == task.request_uid
            && self.volume_group_uuid == task.volume_group_uuid
            && self.host_id == task.host_id
            && self.generation == task.generation
    }

    /// Whether other hosts can have the locks.
    #[must_use]
    pub fn done(&self) -> bool {
        matches!(
            self.result,
            DeclareDeadResult::Declared | DeclareDeadResult::Free
        )
    }
}
