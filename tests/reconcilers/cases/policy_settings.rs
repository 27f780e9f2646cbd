//! What a policy hands on to the fence that it sets off, and a condition of the Node that sets it off.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use storage_fence::api::record::annotation;
use storage_fence::api::request::{ReleaseLocks, Takeover, Workloads};
use storage_fence::api::{StorageFencePolicy, StorageFenceRequest};

use super::policies::{PATHS, becomes, in_force, policy, recorded, records, withdraw};
use super::takeover::{can_declare, declared, peer, storage as storage_of};
use crate::bed::Bed;
use crate::node::{TestNode, storage};
use crate::objects::{message, phase, summary, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// Longer than anything takes that is not to be done.
const A_WHILE: Duration = Duration::from_secs(3);

/// Waits until the node has a record of which that is so.
async fn record_that(
    bed: &Bed,
    node: &str,
    what: &str,
    is_so: impl Fn(&StorageFenceRequest) -> bool,
) -> Result<StorageFenceRequest> {
    until(&format!("a record of {node}: {what}"), LIMIT, async || {
        bed.controllers.all_alive()?;
        let all = records(bed, node).await?;
        Ok(match all.iter().find(|r| is_so(r)) {
            Some(record) => Ok(record.clone()),
            None => Err(all.iter().map(summary).collect::<Vec<_>>().join("\n")),
        })
    })
    .await
}

pub async fn a_policy_with_dry_run_plans_and_touches_nothing(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "plan-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let spec =
        json!({ "dryRun": true, "request": { "workloads": "Evict", "takeover": "Expedite" } });
    in_force(bed, "plan", &node.name, &spec).await?;
    node.paths(0);
    // The agent's word, and what the controller makes of it.
    let planned = |r: &StorageFenceRequest| {
        word(r, "Fenced") == "Fenced=False/DryRun" && phase(r) == "DryRunComplete"
    };
    let record = record_that(bed, &node.name, "a plan", planned).await?;
    ensure(record.spec.dry_run, "the record is of a dry run")?;
    let plan = record.status.as_ref().and_then(|s| s.node.as_ref());
    let plan = plan.context("no plan")?;
    let groups = &plan.volume_groups;
    ensure(
        plan.dry_run && groups.len() == 1 && groups[0].devices_total > 0,
        format!("it lists what would be fenced: {groups:?}"),
    )?;
    for type_ in ["TakenOver", "WorkloadsEvicted"] {
        ensure_eq(type_, word(&record, type_), format!("{type_}=absent"))?;
    }
    // An outage that was answered is not answered again, and nothing follows the plan.
    tokio::time::sleep(A_WHILE).await;
    ensure_eq("records", records(bed, &node.name).await?.len(), 1)?;
    node.untouched()?;
    withdraw(bed, "plan").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await
}

pub async fn a_policy_that_keeps_the_locks_fences_and_releases_none(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "keep-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let settings = json!({ "request": {
        "releaseLocks": "Never", "takeover": "Expedite", "workloads": "Evict", "drainTimeoutSeconds": 7,
    }});
    in_force(bed, "keep", &node.name, &settings).await?;
    node.paths(0);
    let kept = |r: &StorageFenceRequest| {
        word(r, "Fenced") == "Fenced=True/Proven"
            && word(r, "LocksReleased") == "LocksReleased=False/LocksKept"
    };
    let record = record_that(bed, &node.name, "fenced, and the locks are kept", kept).await?;
    let spec = &record.spec;
    ensure_eq(
        "what was handed on",
        (
            spec.release_locks,
            spec.takeover,
            spec.workloads,
            spec.drain_timeout_seconds,
        ),
        (ReleaseLocks::Never, Takeover::Expedite, Workloads::Evict, 7),
    )?;
    // Who keeps its locks is not declared dead.
    bed.sees(&record.name_any(), "nobody takes over", |r| {
        word(r, "TakenOver") == "TakenOver=False/LocksKept"
    })
    .await?;
    ensure_eq("drops", node.count("drop_vg san"), 0)?;
    ensure(node.count("swap san-lv0") == 1, "it is fenced")?;
    withdraw(bed, "keep").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await?;
    node.unharmed()
}

/// The node is alone in what the policy selects, so that its limit holds the take-over back until it is another. The fence waits for none of it.
pub async fn a_policy_has_its_fenced_node_declared_dead(bed: &Bed) -> Result {
    let n1 = TestNode::join_with(bed, "over-1", &storage_of("over", 2)).await?;
    let n2 = peer(bed, "over-2", "over", 8).await?;
    let agents = (n1.start_agent().await?, n2.start_agent().await?);
    can_declare(bed, &n2).await?;
    let made = policy(
        "over",
        &n1.name,
        &json!({ "request": { "takeover": "Expedite" } }),
    )?;
    let policies = bed.all::<StorageFencePolicy>();
    policies.create(&PostParams::default(), &made).await?;
    bed.reports(&n1.name, "policy over governs", |s| {
        let groups = s.status.iter().flat_map(|s| &s.volume_groups);
        groups
            .into_iter()
            .any(|g| g.policy.as_deref() == Some("over"))
    })
    .await?;
    n1.simulation.state(|s| {
        if let Some(map) = s.device("mpath-over-0") {
            map.active_paths = 0;
        }
    });
    let record = recorded(bed, &n1.name).await?.name_any();
    let waits = bed
        .sees(&record, "the limit holds it back", |r| {
            word(r, "TakenOver") == "TakenOver=False/LimitReached"
        })
        .await?;
    let text = message(&waits, "TakenOver");
    ensure(
        text.contains("1 of 1 nodes") && text.contains("policy over"),
        &text,
    )?;
    ensure_eq("declarations", declared(&n2), vec![])?;
    let all = Patch::Merge(json!({ "spec": { "limits": { "maxFencedNodes": "100%" } } }));
    policies
        .patch("over", &PatchParams::default(), &all)
        .await?;
    bed.sees(&record, "taken over", |r| {
        word(r, "TakenOver") == "TakenOver=True/TakenOver"
    })
    .await?;
    ensure_eq(
        "declarations",
        declared(&n2),
        vec!["declare_dead lvm_over 7 3".to_owned()],
    )?;
    withdraw(bed, "over").await?;
    bed.withdraw(&record).await?;
    agents.0.stop().await?;
    agents.1.stop().await?;
    n1.unharmed()?;
    n2.unharmed()
}

const DISK: &str = "example.com/DiskTrouble";

fn on_condition(seconds: u32, more: &Value) -> Value {
    let mut spec = json!({ "triggers": {
        "nodeConditions": [{ "type": DISK, "status": "True", "forSeconds": seconds }],
    }});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

/// Somebody's health check says it, by type, status and time; the paths have the last word unless the policy says otherwise.
pub async fn a_condition_of_the_node_sets_a_policy_off(bed: &Bed) -> Result {
    const SECONDS: u32 = 4;
    let node = TestNode::join_with(bed, "cond-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    in_force(bed, "cond", &node.name, &on_condition(SECONDS, &json!({}))).await?;
    let quiet = async |what: &str| -> Result {
        tokio::time::sleep(Duration::from_secs(u64::from(SECONDS)) + A_WHILE).await;
        ensure_eq(what, records(bed, &node.name).await?.len(), 0)?;
        node.untouched()
    };
    // It holds, and the paths work: that is no reason to cut anybody off.
    node.says(DISK, "True").await?;
    quiet("records while the paths work").await?;
    // The paths are gone, and it does not hold: this policy does not ask for paths.
    node.says(DISK, "False").await?;
    node.paths(0);
    becomes(bed, &node.name, PATHS, "False").await?;
    quiet("records while it does not hold").await?;
    // Neither does it hold for long enough, nor another condition.
    node.says("example.com/Other", "True").await?;
    node.says(DISK, "True").await?;
    tokio::time::sleep(Duration::from_secs(u64::from(SECONDS / 2))).await;
    node.says(DISK, "Unknown").await?;
    quiet("records of what held for half the time").await?;
    let began = Instant::now();
    node.says(DISK, "True").await?;
    let record = recorded(bed, &node.name).await?;
    let waited = began.elapsed() + Duration::from_secs(1);
    ensure(
        waited >= Duration::from_secs(u64::from(SECONDS)),
        format!("it was fenced after {waited:?}"),
    )?;
    let trigger = record.annotations().get(annotation::TRIGGER);
    ensure_eq(
        "trigger",
        trigger.map(String::as_str),
        Some("NodeCondition"),
    )?;
    let why = record.spec.reason.clone().unwrap_or_default();
    ensure(why.contains(DISK) && why.contains("policy cond"), why)?;
    tokio::time::sleep(A_WHILE).await;
    ensure_eq("records", records(bed, &node.name).await?.len(), 1)?;
    withdraw(bed, "cond").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_condition_fences_working_paths_only_where_the_policy_says_so(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "cond-2", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let spec = on_condition(1, &json!({ "request": { "whenPathsRemain": "Fence" } }));
    in_force(bed, "cond-force", &node.name, &spec).await?;
    node.says(DISK, "True").await?;
    let record = recorded(bed, &node.name).await?;
    let paths = record.status.as_ref().and_then(|s| s.node.as_ref());
    let active = paths.map(|n| n.volume_groups.iter().map(|g| g.paths_active).sum::<i32>());
    ensure_eq("working paths when it was fenced", active, Some(2))?;
    let listed = ListParams::default().labels(&format!(
        "{}={}",
        annotation::RECORDED_BY,
        annotation::AGENT
    ));
    let listed = bed.requests().list(&listed).await?;
    let name = record.name_any();
    listed
        .items
        .iter()
        .find(|r| r.name_any() == name)
        .context("it is marked as a record")?;
    withdraw(bed, "cond-force").await?;
    bed.withdraw(&name).await?;
    agent.stop().await?;
    node.unharmed()
}
