//! Policies: what a node does by itself, what is said about it, and what it may write.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use storage_fence::api::condition::find;
use storage_fence::api::{EXCLUDE_LABEL, StorageFencePolicy, StorageFenceRequest};

use crate::bed::{Bed, client, refusal};
use crate::node::{TestNode, storage};
use crate::objects::{request, summary, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

pub(super) const PATHS: &str = "storagefence.io/SANPathsAvailable";
pub(super) const FENCED: &str = "storagefence.io/StorageFenced";

/// A policy for one node.
pub(super) fn policy(name: &str, node: &str, more: &Value) -> Result<StorageFencePolicy> {
    let mut object = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFencePolicy",
        "metadata": { "name": name },
        "spec": {
            "response": "Fence",
            "nodeSelector": { "matchLabels": { "kubernetes.io/hostname": node } },
            "triggers": { "allPathsDown": { "forSeconds": 2 } },
        },
    });
    for (key, value) in more.as_object().context("a map")? {
        object["spec"][key] = value.clone();
    }
    Ok(serde_json::from_value(object)?)
}

pub(super) async fn in_force(bed: &Bed, name: &str, node: &str, more: &Value) -> Result {
    let policies = bed.all::<StorageFencePolicy>();
    let made = policy(name, node, more)?;
    policies.create(&PostParams::default(), &made).await?;
    bed.reports(node, &format!("policy {name} governs san"), |s| {
        let groups = s.status.iter().flat_map(|s| &s.volume_groups);
        let mut san = groups.filter(|g| g.name == "san");
        san.any(|g| g.policy.as_deref() == Some(name))
    })
    .await
    .map(drop)
}

pub(super) async fn withdraw(bed: &Bed, name: &str) -> Result {
    let policies = bed.all::<StorageFencePolicy>();
    policies.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

pub(super) async fn records(bed: &Bed, node: &str) -> Result<Vec<StorageFenceRequest>> {
    let of_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    Ok(bed.requests().list(&of_it).await?.items)
}

/// Waits until the node has one record that says that all is done.
pub(super) async fn recorded(bed: &Bed, node: &str) -> Result<StorageFenceRequest> {
    until(
        &format!("the fence of {node} is recorded"),
        LIMIT,
        async || {
            let all = records(bed, node).await?;
            let done = |r: &&StorageFenceRequest| {
                word(r, "Fenced") == "Fenced=True/Proven"
                    && word(r, "LocksReleased") == "LocksReleased=True/Released"
            };
            Ok(match all.iter().find(done) {
                Some(record) => Ok(record.clone()),
                None => Err(all.iter().map(summary).collect::<Vec<_>>().join("\n")),
            })
        },
    )
    .await
}

async fn condition(bed: &Bed, node: &str, type_: &str) -> Result<Option<NodeCondition>> {
    let node = bed.all::<Node>().get(node).await?;
    let all = node.status.and_then(|s| s.conditions).unwrap_or_default();
    Ok(all.into_iter().find(|c| c.type_ == type_))
}

pub(super) async fn becomes(
    bed: &Bed,
    node: &str,
    type_: &str,
    status: &str,
) -> Result<NodeCondition> {
    until(
        &format!("{type_} of {node} is {status}"),
        LIMIT,
        async || {
            Ok(match condition(bed, node, type_).await? {
                Some(found) if found.status == status => Ok(found),
                other => Err(format!("{other:?}")),
            })
        },
    )
    .await
}

pub async fn a_node_fences_itself_by_policy_and_records_it_once(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "self-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    in_force(bed, "self", &node.name, &json!({})).await?;
    becomes(bed, &node.name, PATHS, "True").await?;
    ensure_eq("requests", records(bed, &node.name).await?.len(), 0)?;
    node.untouched()?;
    node.paths(0);
    let record = recorded(bed, &node.name).await?;
    node.releases().await?;
    let annotations = record.annotations();
    ensure_eq(
        "the policy in the record",
        annotations
            .get("storagefence.io/policy")
            .map(String::as_str),
        Some("self"),
    )?;
    let down = becomes(bed, &node.name, PATHS, "False").await?;
    ensure_eq("reason", down.reason.as_deref(), Some("AllPathsDown"))?;
    becomes(bed, &node.name, FENCED, "True").await?;
    bed.told("Node", &node.name, "PolicyTriggered", "storage-fence-agent")
        .await?;
    agent.kill().await?;
    let agent = node.start_agent().await?;
    // Below the fence: the node stays fenced.
    node.paths(2);
    becomes(bed, &node.name, PATHS, "True").await?;
    becomes(bed, &node.name, FENCED, "True").await?;
    let all = records(bed, &node.name).await?;
    ensure_eq("records", all.len(), 1)?;
    ensure_eq("swaps of one volume", node.count("swap san-lv0"), 1)?;
    // What others say of the Node stays.
    becomes(bed, &node.name, "Ready", "True").await?;
    withdraw(bed, "self").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_policy_needs_no_api_server(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "alone-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    in_force(bed, "alone", &node.name, &json!({})).await?;
    bed.stop_api_server().await?;
    agent.kill().await?;
    // The next one knows the policy from its files alone; its credentials are as good as none now.
    let pod = k8s_openapi::api::core::v1::Pod::default();
    let agent = node.start_agent_with(bed.access("none")?, &pod)?;
    node.paths(0);
    let released = node.releases().await;
    agent.kill().await?;
    bed.start_api_server().await?;
    released?;
    bed.controllers.only_one(bed, "Resident").await?;
    let agent = node.start_agent().await?;
    let record = recorded(bed, &node.name).await?;
    let fence = record.status.as_ref().and_then(|s| s.node.as_ref());
    ensure(
        fence.is_some_and(|f| !f.steps.is_empty() && f.volume_groups[0].devices_proven > 0),
        "the record holds the timeline and the proof of a fence that no API server saw",
    )?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure_eq("records", records(bed, &node.name).await?.len(), 1)?;
    withdraw(bed, "alone").await?;
    bed.withdraw(&record.name_any()).await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_policy_that_reports_touches_nothing(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "report-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    in_force(bed, "report", &node.name, &json!({ "response": "Report" })).await?;
    node.paths(0);
    bed.told("Node", &node.name, "PolicyTriggered", "storage-fence-agent")
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure_eq("requests", records(bed, &node.name).await?.len(), 0)?;
    withdraw(bed, "report").await?;
    agent.stop().await?;
    node.untouched()
}

pub async fn of_two_policies_it_is_said_which_governs(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "two-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let quiet = json!({ "response": "ConditionOnly" });
    in_force(bed, "two-low", &node.name, &quiet).await?;
    let high = json!({ "response": "ConditionOnly", "priority": 1 });
    in_force(bed, "two-high", &node.name, &high).await?;
    for (name, active) in [("two-high", "Governs"), ("two-low", "Outranked")] {
        is_said(bed, name, active).await?;
    }
    let low = bed.all::<StorageFencePolicy>().get("two-low").await?;
    let outranked = low.status.unwrap_or_default().outranked;
    ensure_eq("by whom", outranked, vec!["two-1/san: two-high".to_owned()])?;
    // No policy overrides the label that keeps a node out.
    let labelled = json!({ "metadata": { "labels": { EXCLUDE_LABEL: "" } } });
    bed.all::<Node>()
        .patch(&node.name, &PatchParams::default(), &Patch::Merge(labelled))
        .await?;
    for name in ["two-high", "two-low"] {
        is_said(bed, name, "NoNodeSelected").await?;
    }
    bed.reports(&node.name, "no policy governs", |s| {
        let groups = s.status.iter().flat_map(|s| &s.volume_groups);
        groups.filter(|g| g.policy.is_some()).count() == 0
    })
    .await?;
    withdraw(bed, "two-high").await?;
    withdraw(bed, "two-low").await?;
    agent.stop().await
}

/// Waits until a policy's condition gives that reason.
async fn is_said(bed: &Bed, name: &str, reason: &str) -> Result {
    until(&format!("policy {name} is {reason}"), LIMIT, async || {
        let policy = bed.all::<StorageFencePolicy>().get(name).await?;
        let status = policy.status.unwrap_or_default();
        let said = find(&status.conditions, "Active").map(|c| c.reason.clone());
        Ok(if said.as_deref() == Some(reason) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        })
    })
    .await
}

pub async fn the_conditions_say_unknown_when_the_agent_is_gone(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "gone-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    agent.stop().await?;
    let nothing = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let pod = node.pod().await?.context("the agent's pod")?;
    let params = PatchParams::default();
    let pods = bed.ours::<k8s_openapi::api::core::v1::Pod>();
    pods.patch_status(&pod.name_any(), &params, &Patch::Strategic(nothing))
        .await?;
    for type_ in [PATHS, FENCED] {
        let unknown = becomes(bed, &node.name, type_, "Unknown").await?;
        ensure_eq("reason", unknown.reason.as_deref(), Some("AgentGone"))?;
    }
    becomes(bed, &node.name, "Ready", "True").await?;
    let agent = node.start_agent().await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    // As after a partition: the agent is called gone, and has not stopped.
    let gone = json!({ "status": { "conditions": [{ "type": FENCED, "status": "Unknown", "reason": "AgentGone" }] } });
    bed.all::<Node>()
        .patch_status(&node.name, &params, &Patch::Strategic(gone))
        .await?;
    becomes(bed, &node.name, FENCED, "False").await?;
    agent.stop().await
}

pub async fn an_agent_records_and_tells_for_its_own_node_only(bed: &Bed) -> Result {
    let (mine, other) = (
        TestNode::join(bed, "own-1").await?,
        TestNode::join(bed, "own-2").await?,
    );
    let pod = mine.run_pod().await?;
    let token = bed.token("storage-fence-agent", Some(&pod)).await?;
    let agent = client(&bed.access(&token)?)?;
    let requests: Api<StorageFenceRequest> = Api::all(agent.clone());
    let nodes: Api<Node> = Api::all(agent);
    let says = |node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
            "status": { "conditions": [{ "type": FENCED, "status": "True", "reason": "Fenced" }] },
        })
    };
    let create = async |node: &str, name: &str| -> Result<kube::Result<StorageFenceRequest>> {
        let request = request(name, node, json!({}))?;
        Ok(requests.create(&PostParams::default(), &request).await)
    };
    let apply = PatchParams::apply("test").force();
    until("the admission policy is in force", LIMIT, async || {
        let tried = nodes
            .patch_status(&other.name, &apply, &Patch::Apply(says(&other.name)))
            .await;
        Ok(match tried {
            Err(_) => Ok(()),
            Ok(_) => Err("a foreign Node's status was taken".to_owned()),
        })
    })
    .await?;
    let foreign = nodes
        .patch_status(&other.name, &apply, &Patch::Apply(says(&other.name)))
        .await;
    let (code, why) = refusal(foreign)?;
    ensure(
        code == 403 && why.contains("may not write objects of node"),
        why,
    )?;
    let (code, why) = refusal(create(&other.name, "foreign").await?)?;
    ensure(
        code == 403 && why.contains("may not write objects of node"),
        why,
    )?;
    nodes
        .patch_status(&mine.name, &apply, &Patch::Apply(says(&mine.name)))
        .await?;
    create(&mine.name, "own").await??;
    bed.withdraw("own").await
}

pub async fn a_policy_that_makes_no_sense_is_refused(bed: &Bed) -> Result {
    let policies = bed.all::<StorageFencePolicy>();
    for (triggers, says) in [
        (json!({}), "at least one trigger"),
        (json!({ "nodeConditions": [] }), "at least one trigger"),
        (
            json!({ "allPathsDown": { "forSeconds": -1 } }),
            "forSeconds",
        ),
    ] {
        let bad = policy("bad", "n", &json!({ "triggers": triggers }))?;
        let answer = policies.create(&PostParams::default(), &bad).await;
        let (code, why) = refusal(answer)?;
        ensure(code == 422 && why.contains(says), why)?;
    }
    for (most, right) in [
        (json!(0), true),
        (json!(100_000), true),
        (json!("0%"), true),
        (json!("7%"), true),
        (json!("100%"), true),
        (json!(-1), false),
        (json!(100_001), false),
        (json!("101%"), false),
        (json!("050%"), false),
        (json!("5"), false),
        (json!("half"), false),
        (json!(1.5), false),
    ] {
        let limits = json!({ "limits": { "maxFencedNodes": most } });
        let mut any = serde_json::to_value(policy("limited", "n", &json!({}))?)?;
        any["spec"]["limits"] = limits["limits"].clone();
        let raw = Api::<DynamicObject>::all_with(
            bed.client.clone(),
            &ApiResource::erase::<StorageFencePolicy>(&()),
        );
        let never = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let answer = raw.create(&never, &serde_json::from_value(any)?).await;
        if right {
            answer.context(format!("{limits}"))?;
            continue;
        }
        let (code, why) = refusal(answer).context(format!("{limits}"))?;
        ensure(code == 422 && why.contains("maxFencedNodes"), why)?;
    }
    let plain = policy("plain", "n", &json!({}))?;
    let stored = policies.create(&PostParams::default(), &plain).await?;
    ensure_eq("default priority", stored.spec.priority, 0)?;
    let limits = serde_json::to_value(&stored.spec.limits)?;
    ensure_eq("default limits", limits, json!({ "maxFencedNodes": "50%" }))?;
    withdraw(bed, "plain").await
}
