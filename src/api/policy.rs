//! `StorageFencePolicy`: what a node does by itself when it loses its SAN.
//!
//! Pure, and the one place that says which of several policies counts: agent and controller both ask here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use kube::core::{Selector, SelectorExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{ReleaseLocks, Takeover, WhenPathsRemain, Workloads};
use super::{Condition, ConditionStatus};

/// Condition types of a policy.
pub mod condition_type {
    /// Controller: the policy is understood and governs a volume group of some node.
    pub const ACTIVE: &str = "Active";
}

/// Reasons of a policy's condition.
pub mod reason {
    /// It governs at least one volume group.
    pub const GOVERNS: &str = "Governs";
    /// Its selectors match, but another policy outranks it everywhere.
    pub const OUTRANKED: &str = "Outranked";
    /// No node matches its selector, or those that do are excluded.
    pub const NO_NODE_SELECTED: &str = "NoNodeSelected";
    /// Nodes match, but none has a shared volume group that it means.
    pub const NO_VOLUME_GROUP_SELECTED: &str = "NoVolumeGroupSelected";
    /// Its node selector makes no sense: it governs nothing.
    pub const INVALID: &str = "Invalid";
}

/// Which volume groups a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSelector {
    /// Names of shared volume groups; `*` stands for any characters. Empty (default): every shared volume group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 127), regex(pattern = r"^[a-zA-Z0-9+_.*-]+$"))
    )]
    pub names: Vec<String>,
    /// Names of volume groups that it is not about, although `names` means them; `*` stands for any characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 127), regex(pattern = r"^[a-zA-Z0-9+_.*-]+$"))
    )]
    pub except: Vec<String>,
}

/// After how long something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllPathsDownTrigger {
    /// For how many seconds no path may work, without an interruption worth the name, before it counts. Default 10. Choose it longer than
    /// what your array needs for a failover, and much shorter than the budget that `kubectl get nst NODE -o yaml` shows under watchdog.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 3600))]
    pub for_seconds: i32,
}

/// The devices are gone for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermanentDeviceLossTrigger {
    /// For how many seconds. Default 2: a host that scans its bus anew drops devices and finds them again.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 3600))]
    pub for_seconds: i32,
}

/// The lease is not renewed, whatever the paths look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewalsFailingTrigger {
    /// For how many seconds the last successful renewal may be past. Renewals come every two I/O time-outs of sanlock (20 s by default), so choose
    /// it above three of them. Default 40.
    #[serde(default = "forty")]
    #[schemars(range(min = 1, max = 3600))]
    pub for_seconds: i32,
}

/// The watchdog is about to reset the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchdogBudgetTrigger {
    /// It counts when fewer than this many seconds are left until the earliest reset, and only while the lease is not being renewed: a limit that
    /// a healthy node is below does nothing.
    #[schemars(range(min = 1, max = 3600))]
    pub seconds: i32,
}

/// A condition of the Node, by whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeConditionTrigger {
    /// Type of the condition.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// For how many seconds since the agent saw it become so. Default 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 86_400))]
    pub for_seconds: i32,
}

fn two() -> i32 {
    2
}

fn ten() -> i32 {
    10
}

fn forty() -> i32 {
    40
}

/// What sets a policy off: any one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.allPathsDown) || has(self.permanentDeviceLoss) || has(self.renewalsFailing) || has(self.watchdogBudgetBelow) || (has(self.nodeConditions) && size(self.nodeConditions) > 0)", "a policy needs at least one trigger"))]
pub struct Triggers {
    /// No path of the volume group works (they may return): for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_paths_down: Option<AllPathsDownTrigger>,
    /// No path works, and the devices are gone for good: denied by their targets (unmapped at the array), dropped after dev_loss_tmo, or given up by the
    /// kernel (offline).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permanent_device_loss: Option<PermanentDeviceLossTrigger>,
    /// sanlock cannot renew the lease of the volume group, although paths may look alive (a black hole). It fences whatever the paths look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewals_failing: Option<RenewalsFailingTrigger>,
    /// The watchdog is about to reset the host because of the volume group. It fences whatever the paths look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_budget_below: Option<WatchdogBudgetTrigger>,
    /// A condition of the Node, by type, status and duration. Only as long as the agent can see the Node: without an API server no condition
    /// counts. Volume groups with a working path are left alone unless request.whenPathsRemain says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub node_conditions: Vec<NodeConditionTrigger>,
}

/// What a trigger leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Response {
    /// The node fences the volume group by itself, and records it as a StorageFenceRequest.
    Fence,
    /// Nothing is touched. An event on the Node says what would have been done.
    #[default]
    Report,
    /// Nothing is touched and nothing is told; the conditions of the Node are there anyway.
    ConditionOnly,
}

/// What a fence by this policy is told; as in a StorageFenceRequest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestSettings {
    /// AfterProof (default) or Never.
    #[serde(default)]
    pub release_locks: ReleaseLocks,
    /// Wait (default) or Expedite.
    #[serde(default)]
    pub takeover: Takeover,
    /// None (default) or Evict, within the limits.
    #[serde(default)]
    pub workloads: Workloads,
    /// Of a trigger by a Node condition: Refuse (default) leaves a volume group with a working path alone, Fence does not. The triggers that look at
    /// paths never fence one that works, and those that look at the lease do not ask for the paths.
    #[serde(default)]
    pub when_paths_remain: WhenPathsRemain,
    /// How long I/O that was already issued may take to end, in seconds. Default 60.
    #[serde(default = "sixty")]
    #[schemars(range(min = 1, max = 600))]
    pub drain_timeout_seconds: i32,
}

fn sixty() -> i32 {
    60
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self {
            release_locks: ReleaseLocks::default(),
            takeover: Takeover::default(),
            workloads: Workloads::default(),
            when_paths_remain: WhenPathsRemain::default(),
            drain_timeout_seconds: sixty(),
        }
    }
}

/// Limits for what comes after the fence. The fence itself is never limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// As many of the policy's nodes may stand fenced at the same time, a number or a percentage (rounded down) of the nodes that have a volume
    /// group which the policy means. When there are more, evictions and take-overs of the policy's fences wait: there may be nowhere to go. They go
    /// on by themselves when there are fewer. Nodes that have lost all paths of such a volume group count as well. Default 50%.
    #[serde(default = "half")]
    #[x_kube(validation = ("type(self) == int ? (self >= 0 && self <= 100000) : self.matches('^(100|[1-9]?[0-9])%$')", "maxFencedNodes is a number of nodes from 0 to 100000, or a percentage from 0% to 100%"))]
    pub max_fenced_nodes: Option<IntOrString>,
}

/// Default of `maxFencedNodes`.
pub const MAX_FENCED_NODES: &str = "50%";

#[expect(
    clippy::unnecessary_wraps,
    reason = "null is no reason for an agent not to read the policy"
)]
fn half() -> Option<IntOrString> {
    Some(IntOrString::String(MAX_FENCED_NODES.to_owned()))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_fenced_nodes: half(),
        }
    }
}

/// What nodes do by themselves when they lose their SAN. Without a policy, nothing is fenced unless somebody asks for it.
///
/// Each node keeps the policies that are in force for it, and acts by them without the API server, the controller or the network. For one volume group of
/// one node, exactly one policy counts as a whole: that of the highest priority, of these the oldest, of these the first by name.
#[derive(kube::CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storagefence.io",
    version = "v1alpha1",
    kind = "StorageFencePolicy",
    plural = "storagefencepolicies",
    shortname = "sfp",
    category = "storagefence",
    derive = "PartialEq",
    doc = "What nodes do by themselves when they lose their SAN. Without a policy, nothing is fenced unless somebody asks for it.",
    status = "StorageFencePolicyStatus",
    printcolumn = r#"{"name":"Response","type":"string","jsonPath":".spec.response"}"#,
    printcolumn = r#"{"name":"DryRun","type":"boolean","jsonPath":".spec.dryRun"}"#,
    printcolumn = r#"{"name":"Priority","type":"integer","jsonPath":".spec.priority"}"#,
    printcolumn = r#"{"name":"Active","type":"string","jsonPath":".status.conditions[?(@.type==\"Active\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Active\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Active\")].message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct StorageFencePolicySpec {
    /// Which of several policies counts for a volume group of a node: the highest, of these the oldest, of these the first by name. Default 0.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// Which nodes, by their labels. Empty (default): every node with an agent. A node with the label storagefence.io/exclude-from-policies is never
    /// selected, whatever its value.
    #[serde(default)]
    pub node_selector: LabelSelector,
    /// Which volume groups. Empty (default): every shared one.
    #[serde(default)]
    pub volume_groups: VolumeGroupSelector,
    /// What sets it off: any one of these.
    pub triggers: Triggers,
    /// Fence, Report (default) or ConditionOnly.
    #[serde(default)]
    pub response: Response,
    /// What the fence is told.
    #[serde(default)]
    pub request: RequestSettings,
    /// Limits for evictions and take-overs, never for the fence.
    #[serde(default)]
    pub limits: Limits,
    /// With response Fence: only the plan is made and recorded, nothing is touched.
    #[serde(default)]
    pub dry_run: bool,
    /// How many records of fences that are over are kept for each node, the newest: given back, ended by a restart of the node, or dry runs. Those that
    /// stand do not count and always stay. Default 10.
    #[serde(default = "default_record_history_limit")]
    #[schemars(range(min = 0, max = 1000))]
    pub record_history_limit: i32,
}

/// Default of `recordHistoryLimit`.
pub const RECORD_HISTORY_LIMIT: i32 = 10;

fn default_record_history_limit() -> i32 {
    RECORD_HISTORY_LIMIT
}

/// Written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageFencePolicyStatus {
    /// Generation of the spec that the rest was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes where it governs a volume group, of those that it selects, such as 3/4.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub nodes: String,
    /// Names of some nodes where another policy outranks it, with the volume group and that policy: node/vg: policy. Bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 512)))]
    pub outranked: Vec<String>,
    /// Active.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Whether a node keeps out of every policy.
#[must_use]
pub fn excluded(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(super::EXCLUDE_LABEL)
}

/// Whether a policy selects a node with these labels.
///
/// # Errors
/// When the selector makes no sense, in words. Such a policy governs nothing.
pub fn selects_node(
    spec: &StorageFencePolicySpec,
    labels: &BTreeMap<String, String>,
) -> Result<bool, String> {
    let selector: Selector = spec
        .node_selector
        .clone()
        .try_into()
        .map_err(|error| format!("its nodeSelector makes no sense: {error}"))?;
    Ok(!excluded(labels) && selector.matches(labels))
}

/// Whether a policy is about a volume group of that name.
#[must_use]
pub fn selects_volume_group(spec: &StorageFencePolicySpec, name: &str) -> bool {
    let any = |patterns: &[String]| patterns.iter().any(|p| matches_pattern(p, name));
    let named = spec.volume_groups.names.is_empty() || any(&spec.volume_groups.names);
    named && !any(&spec.volume_groups.except)
}

/// Whether `*` in the pattern can stand for something so that it reads like the name.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Where a policy stands among others: the least counts. An object that the API server has not stored yet comes after all that it has.
#[must_use]
pub fn rank(policy: &StorageFencePolicy) -> (i64, bool, Option<Timestamp>, Option<&str>) {
    let created = policy.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (
        -i64::from(policy.spec.priority),
        created.is_none(),
        created,
        policy.metadata.name.as_deref(),
    )
}

/// The policy that governs a volume group, of those that select its node.
#[must_use]
pub fn governing<'a>(
    volume_group: &str,
    of_the_node: impl IntoIterator<Item = &'a StorageFencePolicy>,
) -> Option<&'a StorageFencePolicy> {
    of_the_node
        .into_iter()
        .filter(|policy| policy.metadata.deletion_timestamp.is_none())
        .filter(|policy| selects_volume_group(&policy.spec, volume_group))
        .min_by(|a, b| rank(a).cmp(&rank(b)))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
