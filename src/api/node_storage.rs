//! `NodeStorage`: what the agent of one node sees of its storage, locks and watchdog.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;
use super::takeover::{DeclareDead, DeclaredDead};

/// Condition types of a `NodeStorage`.
pub mod condition_type {
    /// Agent: this node can be fenced now.
    pub const READY: &str = "Ready";
    /// Agent: every shared volume group that reaches the SAN has its lockspace.
    pub const LOCKS_HELD: &str = "LocksHeld";
}

/// What the agent of a node reports about its shared storage. Named after the node.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "storagefence.io",
    version = "v1alpha1",
    kind = "NodeStorage",
    plural = "nodestorages",
    shortname = "nst",
    category = "storagefence",
    doc = "What the agent of one node sees of its shared storage, locks and watchdog, and what the controller asks of it. Named after the node.",
    status = "NodeStorageStatus",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"VGs","type":"integer","jsonPath":".status.sharedVolumeGroups"}"#,
    printcolumn = r#"{"name":"LVs","type":"integer","jsonPath":".status.activeLogicalVolumes"}"#,
    printcolumn = r#"{"name":"Paths","type":"string","jsonPath":".status.paths"}"#,
    printcolumn = r#"{"name":"Fenced","type":"string","jsonPath":".status.fencedVolumeGroups"}"#,
    printcolumn = r#"{"name":"Watchdog","type":"string","jsonPath":".status.watchdog.state"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","priority":1,"jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeStorageSpec {
    /// Controller: fenced peers that this node is to declare dead, so that others get their locks at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub declare_dead: Vec<DeclareDead>,
}

/// Written by the node's agent, on change only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStorageStatus {
    /// UID of the Node object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub node_uid: Option<String>,
    /// Boot ID of the running kernel.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub agent_version: String,
    /// Name and UID of the agent's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub agent_pod: Option<String>,
    /// How many shared volume groups there are.
    pub shared_volume_groups: i32,
    /// How many logical volumes of these are active, lvmlock aside.
    pub active_logical_volumes: i32,
    /// Working paths of all paths under shared and fenced volume groups, such as 2/4.
    #[schemars(length(max = 32))]
    pub paths: String,
    /// Names of the volume groups that stand fenced, comma-separated; empty when none does.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub fenced_volume_groups: String,
    /// Ready, LocksHeld.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The volume groups of the node as device mapper knows them, shared ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volume_groups: Vec<VolumeGroupStatus>,
    /// Fences that stand: volume groups that were cut off and have not been given back. They are watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub fences: Vec<FenceStatus>,
    /// The kill hook on the host; absent when the agent was not told where the host's files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_hook: Option<KillHookStatus>,
    /// What a fence of this node needs, checked now: always the same checks in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub preflight: Vec<PreflightCheck>,
    /// The watchdog that resets this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogStatus>,
    /// What came of the tasks in spec.declareDead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub declared_dead: Vec<DeclaredDead>,
}

/// How a check of the preflight ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PreflightResult {
    /// As it should be.
    Passed,
    /// It could not be told.
    Unknown,
    /// The node can be fenced, but not as well as it could be.
    Warning,
    /// The node cannot be fenced.
    Failed,
}

/// One check of what a fence needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreflightCheck {
    /// What was looked at: DeviceMapper, LockManager, Watchdog, Queueing, KillHook, MemoryLocked, DaemonsSpared, StateDirectory, HostName, DeadExt.
    #[schemars(length(max = 64))]
    pub name: String,
    /// How it ended.
    pub result: PreflightResult,
    /// What was found, and what to do about it.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// One volume group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupStatus {
    /// Name.
    #[schemars(length(max = 127))]
    pub name: String,
    /// UUID, as in device-mapper UUIDs (32 characters, no dashes).
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Whether other hosts may use it too: a lockspace of the lock manager belongs to it, or it is open though nobody holds its locks any more.
    pub shared: bool,
    /// The lockspace, when somebody holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockspace: Option<LockspaceStatus>,
    /// Physical volumes: multipath maps or plain disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub physical_volumes: Vec<PhysicalVolumeStatus>,
    /// Active logical volumes, lvmlock aside.
    pub logical_volumes: i32,
    /// Of these, opened ones.
    pub logical_volumes_open: i32,
    /// Names of the opened logical volumes' devices, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 128)))]
    pub open_devices: Vec<String>,
    /// Whether every device of it stands on the error target.
    #[serde(default)]
    pub fenced: bool,
    /// Name of the StorageFencePolicy that governs it on this node; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub policy: Option<String>,
}

/// A fence that stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FenceStatus {
    /// Name of the volume group.
    #[schemars(length(max = 127))]
    pub volume_group: String,
    /// UUID of the volume group.
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Name of the request that made it, or `kill-hook of VG`.
    #[schemars(length(max = 253))]
    pub by: String,
    /// What became of the locks: Released, Kept, NotConfirmed or Pending.
    #[schemars(length(max = 32))]
    pub locks: String,
    /// How often it did not hold: somebody loaded a table that leads to the SAN. It is closed again at once.
    pub openings: i32,
    /// How long the last of these lasted at most, in milliseconds; absent while it lasts, and when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_opening_milliseconds: Option<i64>,
    /// Devices of the last of these, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 128)))]
    pub last_opening_devices: Vec<String>,
}

/// What lvmlockctl runs when a lease is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KillHookStatus {
    /// InForce, NotInstalled, OtherCommand or Broken.
    #[schemars(length(max = 32))]
    pub state: String,
    /// What that means, and what to do next.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A lockspace as sanlock sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockspaceStatus {
    /// Name, lvm_VG.
    #[schemars(length(max = 64))]
    pub name: String,
    /// This host's id in it.
    pub host_id: i64,
    /// Generation of that id; absent when the lock manager does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// I/O time-out in seconds, from which every other time is derived.
    pub io_timeout_seconds: i32,
    /// Adding, Healthy, RenewalFailing, Expired, Removing or Killed.
    #[schemars(length(max = 32))]
    pub state: String,
}

/// What a physical volume lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PhysicalVolumeKind {
    /// A multipath map.
    Multipath,
    /// A disk without multipath.
    #[default]
    Disk,
}

/// One physical volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhysicalVolumeStatus {
    /// Device: the map's name, or the disk's kernel name.
    #[schemars(length(max = 128))]
    pub device: String,
    /// Multipath or Disk.
    pub kind: PhysicalVolumeKind,
    /// Whether the map queues I/O while no path works.
    #[serde(default)]
    pub queueing: bool,
    /// Paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<PathStatus>,
}

/// One path of a physical volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// Kernel name, such as sda.
    #[schemars(length(max = 64))]
    pub device: String,
    /// Whether I/O can use it, as far as the kernel knows.
    pub active: bool,
    /// State of the device in sysfs (running, offline, blocked, transport-offline); `gone` when it is not there; `no-such-lun` when it runs, and
    /// its target says that it has no such LUN (any more).
    #[schemars(length(max = 32))]
    pub device_state: String,
}

/// The watchdog, as wdmd and sanlock tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchdogStatus {
    /// Armed: lockspaces keep it so. Idle: wdmd runs without clients. Unknown: wdmd does not answer.
    #[schemars(length(max = 32))]
    pub state: String,
    /// Seconds from the last pet to the reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fire_timeout_seconds: Option<i32>,
    /// Seconds from the loss of the storage to the earliest reset, at the worst moment, derived from io_timeout and fire time-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_seconds: Option<i32>,
    /// While a lease is not renewed: when the watchdog resets the node at the earliest, if the lease is neither renewed nor given up before. Gone
    /// once it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>")]
    pub reset_at: Option<Timestamp>,
}
