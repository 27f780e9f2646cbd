//! The part of a request's status that tells how the node is given its storage back.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::StepRecord;

/// What speaks against giving the node its storage back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlockerReason {
    /// A physical volume cannot be reached, or was not reachable for long enough.
    PathsUnhealthy,
    /// Something still holds a fenced device open.
    DeviceOpen,
    /// A device of the volume group is not on the error target: it may be in use.
    DeviceNotFenced,
    /// Device mapper, lvmlockd or sanlock does not answer, so it is not known how things stand.
    StateUnknown,
    /// The former lockspace is still there.
    LockspaceRemains,
    /// A step failed; it is tried again.
    StepFailed,
}

/// One thing that speaks against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnfenceBlocker {
    /// What kind of thing it is.
    pub reason: BlockerReason,
    /// Volume group.
    #[schemars(length(max = 127))]
    pub volume_group: String,
    /// Device-mapper name of the device that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub device: Option<String>,
    /// Who holds the device open: process, mount or device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub holder: Option<String>,
    /// UID of the pod that the holder belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// What it is and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// One volume group of an un-fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupUnfence {
    /// Name of the volume group.
    #[schemars(length(max = 127))]
    pub name: String,
    /// UUID of the volume group, as in device-mapper UUIDs (32 characters, no dashes).
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Devices on the error target when it began.
    pub devices_total: i32,
    /// Devices that were removed, or were gone.
    pub devices_removed: i32,
    /// Whether the lockspace was seen to be joined.
    pub joined: bool,
    /// This node's host id in the lockspace that was joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<i64>,
    /// Generation of that host id: another one than before the fence, when the lock manager tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// How the node is, or was, given its storage back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUnfence {
    /// Generation of the request that asked for it.
    pub observed_generation: i64,
    /// When the first step began. Absent while something still speaks against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>")]
    pub started_at: Option<Timestamp>,
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>")]
    pub finished_at: Option<Timestamp>,
    /// Volume groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volume_groups: Vec<VolumeGroupUnfence>,
    /// What speaks against it now, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub blockers: Vec<UnfenceBlocker>,
    /// Blockers that the list above had no room for.
    #[serde(default)]
    pub blockers_omitted: i32,
    /// Steps in order, with times relative to startedAt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub steps: Vec<StepRecord>,
}
