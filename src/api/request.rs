//! `StorageFenceRequest`: fence (or un-fence) the SAN storage of one node.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;
use super::eviction::AffectedPods;
use super::unfence::NodeUnfence;

/// Condition types of a request. One writer each, see the docs of the constant.
pub mod condition_type {
    /// Controller: the request is well-formed and nothing that the cluster knows speaks against it.
    pub const ACCEPTED: &str = "Accepted";
    /// Controller: an agent runs on the node and answers.
    pub const AGENT_READY: &str = "AgentReady";
    /// Agent: True only with proof that no device of the volume groups leads to the SAN.
    pub const FENCED: &str = "Fenced";
    /// Agent: True only when the lock manager was seen to have let go of the lockspaces.
    pub const LOCKS_RELEASED: &str = "LocksReleased";
}

/// Reasons of the conditions of a request.
pub mod reason {
    /// Accepted: nothing speaks against the request.
    pub const VALID: &str = "Valid";
    /// Accepted: there is no such Node.
    pub const NODE_NOT_FOUND: &str = "NodeNotFound";
    /// Accepted/Fenced: an older request for the same node governs it.
    pub const OTHER_REQUEST_GOVERNS: &str = "OtherRequestGoverns";
    /// Accepted/Fenced: a volume group that was named is not on the node.
    pub const VOLUME_GROUP_UNKNOWN: &str = "VolumeGroupUnknown";
    /// Accepted/Fenced: a volume group that was named has no lockspace: it is local to the node.
    pub const VOLUME_GROUP_NOT_SHARED: &str = "VolumeGroupNotShared";
    /// Accepted/Fenced: a volume group that was named has the volume of its leases active, and lvmlockd knows no lockspace of it. It is looked at anew.
    pub const LOCKSPACE_NOT_ADOPTED: &str = "LockspaceNotAdopted";
    /// Accepted/Fenced: a path still works, and `whenPathsRemain` is `Refuse`.
    pub const PATHS_REMAIN: &str = "PathsRemain";
    /// Accepted/Fenced: no shared volume group has lost all its paths.
    pub const NOTHING_AFFECTED: &str = "NothingAffected";
    /// AgentReady: the agent answers.
    pub const AGENT_RUNNING: &str = "AgentRunning";
    /// AgentReady: the agent has been asked for and is expected.
    pub const WAITING_FOR_AGENT: &str = "WaitingForAgent";
    /// AgentReady: the agent did not come within the stated time.
    pub const NO_AGENT: &str = "NoAgent";
    /// AgentReady: OnDemand mode, and the agent has said its last word on the request, so that it is not kept on the node.
    pub const AGENT_NOT_NEEDED: &str = "AgentNotNeeded";
    /// Fenced/LocksReleased: the work is going on.
    pub const IN_PROGRESS: &str = "InProgress";
    /// Fenced: read back from the kernel for every device.
    pub const PROVEN: &str = "Proven";
    /// Fenced: at least one device fell short by the deadline. The message says whether anything had been released before.
    pub const NOT_PROVEN: &str = "NotProven";
    /// Fenced: the request went away before anything irreversible was done, or the volume group is in use anew.
    pub const CALLED_OFF: &str = "CalledOff";
    /// Fenced: `dryRun` is set: only the plan was made.
    pub const DRY_RUN: &str = "DryRun";
    /// Fenced: `/dev/mapper/control` cannot be used.
    pub const DEVICE_MAPPER_UNAVAILABLE: &str = "DeviceMapperUnavailable";
    /// Fenced/LocksReleased: lvmlockd does not answer, or not in its language.
    pub const LVMLOCKD_UNAVAILABLE: &str = "LvmlockdUnavailable";
    /// Fenced/LocksReleased: sanlock does not answer, or not in its language.
    pub const SANLOCK_UNAVAILABLE: &str = "SanlockUnavailable";
    /// Fenced: the node is to be given its storage back, and something still speaks against it; the message says what. It goes on by itself.
    pub const UNFENCE_WAITING: &str = "UnfenceWaiting";
    /// Fenced/LocksReleased: the node is being given its storage back.
    pub const UNFENCING: &str = "Unfencing";
    /// Fenced/LocksReleased: nothing stands fenced for this request (any more); the lockspaces were joined again.
    pub const UNFENCED: &str = "Unfenced";
    /// LocksReleased: seen released in sanlock and wdmd.
    pub const RELEASED: &str = "Released";
    /// LocksReleased: the request says so (`releaseLocks: Never`), or proof is missing.
    pub const LOCKS_KEPT: &str = "LocksKept";
    /// LocksReleased: the drop was sent, but the lock manager was not seen to let go.
    pub const RELEASE_NOT_CONFIRMED: &str = "ReleaseNotConfirmed";
    /// Fenced/LocksReleased: the node was restarted since, which ended the fence. Nothing is begun again for this spec.
    pub const NODE_RESTARTED: &str = "NodeRestarted";
    /// Fenced: the agent cannot do what the spec asks for in this version.
    pub const NOT_SUPPORTED: &str = "NotSupported";
}

/// What the node's storage should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FenceState {
    /// Cut off from the SAN, locks released.
    #[default]
    Fenced,
    /// In use as before the fence.
    Unfenced,
}

/// What becomes of the fence when the request is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The node is given its storage back first, as with `fenceState: Unfenced`; the request stays until that is done.
    #[default]
    Unfence,
    /// The request goes at once, the fence stays.
    Retain,
}

/// Which volume groups a request is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeGroupMode {
    /// Shared volume groups whose paths are all gone when the agent looks.
    #[default]
    Affected,
    /// Every shared volume group of the node.
    AllShared,
    /// Those in `names`.
    Named,
}

/// Which volume groups to fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.mode == 'Named' ? (has(self.names) && size(self.names) > 0) : (!has(self.names) || size(self.names) == 0)", "names is required with mode Named, and only allowed there"))]
pub struct VolumeGroupSelection {
    /// Affected (default): shared volume groups whose paths are all gone. AllShared: every shared volume
    /// group of the node. Named: those in names.
    #[serde(default)]
    pub mode: VolumeGroupMode,
    /// Names of volume groups, with mode Named only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 127),
            regex(pattern = r"^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$")
        )
    )]
    pub names: Vec<String>,
}

/// What to do about a volume group that can still reach its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenPathsRemain {
    /// Touch nothing: a typing error must not cut a healthy node off.
    #[default]
    Refuse,
    /// Fence it all the same.
    Fence,
}

/// Whether the lock manager is told to let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReleaseLocks {
    /// Once the fence is proven.
    #[default]
    AfterProof,
    /// Not at all: the locks stay, and so does the watchdog.
    Never,
}

/// How other hosts get the locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Takeover {
    /// When the leases have run out.
    #[default]
    Wait,
    /// A healthy host declares the fenced one dead at once.
    Expedite,
}

/// What becomes of pods that use the fenced volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Workloads {
    /// They are left to see their I/O errors.
    #[default]
    None,
    /// They are evicted.
    Evict,
}

/// Fence the SAN storage of one node, instead of the node.
///
/// The agent on the node forbids every further I/O from the volume groups' logical volumes to the SAN, proves it, and then has the lock
/// manager let go, so that the watchdog does not reset the host. Everything else on the node goes on.
#[derive(kube::CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storagefence.io",
    version = "v1alpha1",
    kind = "StorageFenceRequest",
    plural = "storagefencerequests",
    shortname = "sfr",
    category = "storagefence",
    doc = "Fences the SAN storage of one node instead of the node: cuts the node off, proves it, and then has the lock manager let go.",
    status = "StorageFenceRequestStatus",
    selectable = ".spec.nodeName",
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".spec.fenceState"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Fenced","type":"string","jsonPath":".status.conditions[?(@.type==\"Fenced\")].status"}"#,
    printcolumn = r#"{"name":"Released","type":"string","jsonPath":".status.conditions[?(@.type==\"LocksReleased\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Fenced\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRequestSpec {
    /// Name of the Node whose storage is to be fenced. Cannot be changed: a fence is about one node.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "nodeName is immutable: make another request for another node"))]
    pub node_name: String,
    /// Fenced (default), or Unfenced: the node is given its storage back as soon as nothing speaks against it.
    #[serde(default)]
    pub fence_state: FenceState,
    /// What becomes of the fence when the request is deleted. Unfence (default): the request stays until the node was given its storage back,
    /// or was rebooted, or is gone. Retain: the request goes at once and the fence stays, without a request that tells of it.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How long every physical volume has to be reachable, without losing a path, before the node is given its storage back, in seconds. Default 30.
    #[serde(default = "default_unfence_after")]
    #[schemars(range(min = 0, max = 86400))]
    pub unfence_after_seconds: i32,
    /// Which volume groups. Default: the shared ones whose paths are all gone.
    #[serde(default)]
    pub volume_groups: VolumeGroupSelection,
    /// Refuse (default): a volume group with a working path is not touched. Fence: it is fenced all the same,
    /// where volumeGroups names it or means AllShared (what is Affected has no working path).
    #[serde(default)]
    pub when_paths_remain: WhenPathsRemain,
    /// AfterProof (default): the lockspace is dropped once the fence is proven, which disarms the watchdog. Never: the locks are kept, and
    /// the watchdog resets the host when they run out.
    #[serde(default)]
    pub release_locks: ReleaseLocks,
    /// Wait (default): other hosts get the locks when the leases have run out. Expedite: a healthy host declares this one dead as soon as the fence is
    /// proven and the locks are released; see the condition TakenOver.
    #[serde(default)]
    pub takeover: Takeover,
    /// None (default): pods on the fenced volumes see I/O errors. Evict: once the fence is proven they are evicted, and only they.
    #[serde(default)]
    pub workloads: Workloads,
    /// How long I/O that was already issued may take to end, in seconds, before the fence is given up as not proven. Never longer than the
    /// watchdog leaves. Default 60.
    #[serde(default = "default_drain_timeout")]
    #[schemars(range(min = 1, max = 600))]
    pub drain_timeout_seconds: i32,
    /// Only make the plan and show it in the status: nothing is touched.
    #[serde(default)]
    pub dry_run: bool,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}

fn default_drain_timeout() -> i32 {
    60
}

/// Default of `unfenceAfterSeconds`.
pub const UNFENCE_AFTER_SECONDS: i32 = 30;

fn default_unfence_after() -> i32 {
    UNFENCE_AFTER_SECONDS
}

/// Where a request stands, for people. Programs read the conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nobody has looked at it yet.
    Pending,
    /// Something speaks against it, see Accepted and Fenced. Nothing was touched.
    Rejected,
    /// The agent is not there yet.
    WaitingForAgent,
    /// The agent is at work.
    Fencing,
    /// Proven, and the locks are released (or kept, if the request says so).
    Fenced,
    /// Proven, but the lock manager was not seen to let go: the watchdog may still reset the host.
    FencedLocksHeld,
    /// Not proven. The message says whether the watchdog resets the host, or somebody has to.
    Failed,
    /// The plan is in the status, nothing was touched.
    DryRunComplete,
    /// Called off before anything irreversible was done.
    CalledOff,
    /// The node is to be given its storage back: waiting for what speaks against it, or at work.
    Unfencing,
    /// The node has its storage back, as far as this request goes.
    Unfenced,
}

/// What is known of a request. The node part is written by that node's agent, the rest by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRequestStatus {
    /// Controller: generation of the spec that phase and message were derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Controller: where the request stands, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Controller: what happened and what to do next, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// For programs: Accepted, AgentReady, and where they are asked for WorkloadsEvicted and TakenOver (controller), Fenced and LocksReleased (agent).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Agent: what it found and did on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeFence>,
    /// Agent: pods that hold fenced volumes open, while the fence stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affected_pods: Option<AffectedPods>,
}

/// The agent's part of the status: evidence, read back from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFence {
    /// Generation of the spec that this part is about.
    pub observed_generation: i64,
    /// Boot ID of the node when the fence began: after a reboot none of this holds any more.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub agent_version: String,
    /// When the agent's first step began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>")]
    pub started_at: Option<Timestamp>,
    /// When the last step ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>")]
    pub finished_at: Option<Timestamp>,
    /// True for a dry run: volumeGroups and steps are then the plan.
    #[serde(default)]
    pub dry_run: bool,
    /// One entry a volume group of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volume_groups: Vec<VolumeGroupFence>,
    /// What was done (or, dry run, would be done), in order. Bounded: steps on single devices are counted in volumeGroups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub steps: Vec<StepRecord>,
    /// The watchdog as the fence met it and left it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogRecord>,
    /// How the node is, or was, given its storage back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfence: Option<NodeUnfence>,
}

/// One volume group of a fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupFence {
    /// Name of the volume group.
    #[schemars(length(max = 127))]
    pub name: String,
    /// UUID of the volume group, as in device-mapper UUIDs (32 characters, no dashes).
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Name of the sanlock lockspace, lvm_NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub lockspace: Option<String>,
    /// This node's host id in the lockspace when the fence began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<i64>,
    /// Generation of that host id when the fence began: what a peer needs to declare exactly this incarnation dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Paths of the volume group's physical volumes, working or not, when the fence began.
    pub paths_total: i32,
    /// Of these, paths that still worked.
    pub paths_active: i32,
    /// Multipath maps under the volume group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 127)))]
    pub maps: Vec<String>,
    /// Devices to be swapped.
    pub devices_total: i32,
    /// Devices whose table was read back as `error`.
    pub devices_proven: i32,
    /// Bounded list: first those that fell short, then the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub devices: Vec<DeviceFence>,
    /// Devices that the list above had no room for.
    #[serde(default)]
    pub devices_omitted: i32,
    /// Whether the lockspace was seen to be gone from the lock manager.
    #[serde(default)]
    pub locks_released: bool,
}

/// What became of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeviceOutcome {
    /// In the plan, not touched yet.
    #[default]
    Planned,
    /// Read back: one error target, no inactive table, not suspended.
    Error,
    /// It went away by itself.
    Gone,
    /// The deadline passed before it was proven. message says why.
    NotProven,
}

/// One device of a fence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceFence {
    /// Device-mapper name.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Device-mapper UUID.
    #[schemars(length(max = 129))]
    pub uuid: String,
    /// What became of it.
    pub outcome: DeviceOutcome,
    /// How many openers it had when the fence began.
    pub open_count: i32,
    /// Milliseconds from the start of the swap to its return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_milliseconds: Option<i64>,
    /// Why it fell short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How one step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepResult {
    /// In the plan.
    Planned,
    /// Going on.
    Running,
    /// Done.
    Done,
    /// Not needed; the message says why.
    Skipped,
    /// It did not succeed; the message says why.
    Failed,
}

/// One step of the fence, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepRecord {
    /// FreezeLocks, Quiesce, Swap, Verify, Release, ConfirmRelease; for an un-fence RemoveDevices, DropLockspace, RestoreQueueing, JoinLockspace,
    /// ConfirmJoin.
    #[schemars(length(max = 64))]
    pub step: String,
    /// Volume group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 127))]
    pub volume_group: Option<String>,
    /// How it ended.
    pub result: StepResult,
    /// When it began, in milliseconds after startedAt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_milliseconds: Option<i64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_milliseconds: Option<i64>,
    /// What was done to what, or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// The watchdog before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchdogRecord {
    /// Whether a lockspace of the fence kept the watchdog armed when it began.
    pub armed: bool,
    /// Milliseconds that were left until the earliest reset when the fence began. Absent: it could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_milliseconds: Option<i64>,
    /// Milliseconds after startedAt when the lockspaces of the fence were seen to be gone from wdmd. Absent: not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarmed_after_milliseconds: Option<i64>,
}
