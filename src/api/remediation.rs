//! `StorageFenceRemediation` and its template: what node-health controllers (medik8s NHC, Cluster API's MHC) make to have a node seen to.
//!
//! Their contract names the node nowhere in the spec: it is in an annotation, in the owner, or in the object's name.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;
use super::request::{ReleaseLocks, Takeover, VolumeGroupSelection, WhenPathsRemain, Workloads};

/// Condition types of a remediation: the contract's.
pub mod condition_type {
    /// It is being worked on.
    pub const PROCESSING: &str = "Processing";
    /// True: the node is fenced. False: it will not be, so that the health controller escalates at once. Unknown: not yet.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Template: at least one node could be served.
    pub const READY: &str = "Ready";
}

/// Reasons of the conditions. Besides these, the reasons of a request that was refused.
pub mod reason {
    /// Under way.
    pub const STARTED: &str = "RemediationStarted";
    /// Fenced, with proof.
    pub const FINISHED: &str = "RemediationFinishedSuccessfully";
    /// The health controller has stopped waiting, and so do we.
    pub const TIMED_OUT: &str = "RemediationTimeoutByNHC";
    /// There is no such node, or it cannot be told which one is meant.
    pub const NODE_NOT_FOUND: &str = "RemediationSkippedNodeNotFound";
    /// The fence was called off in time, or the volume group is in use anew.
    pub const CALLED_OFF: &str = "FenceCalledOff";
    /// The fence could not be proven.
    pub const NOT_PROVEN: &str = "FenceNotProven";
    /// Fenced, but the lock manager was not seen to let go: the watchdog may reset the host.
    pub const LOCKS_HELD: &str = "FencedLocksHeld";
    /// A request that is not ours has the name that ours would have.
    pub const NAME_TAKEN: &str = "RequestNameTaken";
}

/// The contract's words, as node-health controllers spell them.
pub mod contract {
    /// Annotation of a remediation: the node.
    pub const NODE_NAME: &str = "remediation.medik8s.io/node-name";
    /// Annotation of a remediation: NHC has stopped waiting for it.
    pub const TIMED_OUT: &str = "remediation.medik8s.io/nhc-timed-out";
    /// Annotation of a template: several templates of this kind may serve one node.
    pub const MULTIPLE_TEMPLATES: &str = "remediation.medik8s.io/multiple-templates-support";
}

/// Keeps a deleted remediation until its request is gone.
pub const FINALIZER: &str = "storagefence.io/remediation";
/// Label of a request: UID of the remediation that it serves.
pub const REMEDIATION_UID_LABEL: &str = "storagefence.io/remediation-uid";
/// Annotation of a request: NAMESPACE/NAME of the remediation that it serves.
pub const REMEDIATION_ANNOTATION: &str = "storagefence.io/remediation";

/// How the node's storage is to be fenced: a request's spec without the node.
#[derive(kube::CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storagefence.io",
    version = "v1alpha1",
    kind = "StorageFenceRemediation",
    plural = "storagefenceremediations",
    shortname = "sfrem",
    category = "storagefence",
    namespaced,
    doc = "Made by a node-health controller for an unhealthy node, from a template: has the node's SAN storage fenced by a StorageFenceRequest.",
    status = "StorageFenceRemediationStatus",
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.nodeName"}"#,
    printcolumn = r#"{"name":"Processing","type":"string","jsonPath":".status.conditions[?(@.type==\"Processing\")].status"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].reason"}"#,
    printcolumn = r#"{"name":"Request","type":"string","jsonPath":".status.request"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRemediationSpec {
    /// Which volume groups. Default: the shared ones whose paths are all gone.
    #[serde(default)]
    pub volume_groups: VolumeGroupSelection,
    /// Refuse (default): a volume group with a working path is not touched, and the remediation fails at once. Fence: it is fenced all the
    /// same, where volumeGroups names it or means AllShared (what is Affected has no working path).
    #[serde(default)]
    pub when_paths_remain: WhenPathsRemain,
    /// AfterProof (default): the lockspace is dropped once the fence is proven. Never: the locks are kept.
    #[serde(default)]
    pub release_locks: ReleaseLocks,
    /// Wait (default): other hosts get the locks when the leases have run out. Expedite: a healthy host declares this one dead.
    #[serde(default)]
    pub takeover: Takeover,
    /// None (default): pods on the fenced volumes see I/O errors. Evict: once the fence is proven they are evicted, and only they.
    #[serde(default)]
    pub workloads: Workloads,
    /// How long I/O that was already issued may take to end, in seconds, before the fence is given up as not proven. Default 60.
    #[serde(default = "default_drain_timeout")]
    #[schemars(range(min = 1, max = 600))]
    pub drain_timeout_seconds: i32,
    /// How long every physical volume has to be reachable before the node is given its storage back, once the remediation was deleted, in seconds.
    /// Default 30.
    #[serde(default = "default_unfence_after")]
    #[schemars(range(min = 0, max = 86400))]
    pub unfence_after_seconds: i32,
}

fn default_drain_timeout() -> i32 {
    60
}

fn default_unfence_after() -> i32 {
    30
}

impl Default for StorageFenceRemediationSpec {
    fn default() -> Self {
        Self {
            volume_groups: VolumeGroupSelection::default(),
            when_paths_remain: WhenPathsRemain::default(),
            release_locks: ReleaseLocks::default(),
            takeover: Takeover::default(),
            workloads: Workloads::default(),
            drain_timeout_seconds: default_drain_timeout(),
            unfence_after_seconds: default_unfence_after(),
        }
    }
}

/// How far it is. Node-health controllers read type and status of the conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRemediationStatus {
    /// Generation that the rest was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node. Fixed once it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// Boot ID of the node when it was fenced: after a reboot there is nothing to give back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub node_boot_id: Option<String>,
    /// Name of the StorageFenceRequest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub request: Option<String>,
    /// Requests that the node's agent made of what a policy had it fence, and on whose fences this one succeeded: given back with it. Bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub records: Vec<RecordReference>,
    /// Processing and Succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One of these requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordReference {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID: no other one of that name.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Whether it was seen being given back after the remediation was deleted: whoever sets it back to Fenced then is not contradicted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub returning: bool,
}

/// What remediations are made from.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "storagefence.io",
    version = "v1alpha1",
    kind = "StorageFenceRemediationTemplate",
    plural = "storagefenceremediationtemplates",
    shortname = "sfremt",
    category = "storagefence",
    namespaced,
    doc = "What node-health controllers make StorageFenceRemediations from. Its status says which nodes could be served.",
    status = "StorageFenceRemediationTemplateStatus",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRemediationTemplateSpec {
    /// The remediation to be made.
    pub template: RemediationTemplate,
}

/// A remediation to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemediationTemplate {
    /// Labels and annotations; Cluster API copies them, NHC does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<RemediationTemplateMetadata>,
    /// Spec of the remediation; all of it may be left out.
    #[serde(default)]
    pub spec: StorageFenceRemediationSpec,
}

/// Labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemediationTemplateMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Which nodes could be served now: preflight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceRemediationTemplateStatus {
    /// Generation that the rest was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes that could be fenced now of those whose agent has reported, such as 3/4.
    #[schemars(length(max = 32))]
    pub nodes: String,
    /// Nodes that could not, and why: bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_ready: Vec<NotReadyNode>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A node that could not be fenced now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotReadyNode {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Reason of its NodeStorage's Ready condition.
    #[schemars(length(max = 1024))]
    pub reason: String,
}
