//! `workloads: Evict`: the pods that hold fenced volumes open, and no other, after the proof and within the limits.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use storage_fence::api::StorageFenceRequest;
use storage_fence::fence::unfence::Opener;
use storage_fence::kubernetes::evict::{Outcome, evict};

use super::policies::{in_force, recorded, withdraw};
use crate::bed::Bed;
use crate::node::{TestNode, storage};
use crate::objects::{message, summary, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// Where the users' pods are.
const NAMESPACE: &str = "default";
/// Long enough for a controller that would evict.
const A_WHILE: Duration = Duration::from_secs(4);
const CONDITION: &str = "WorkloadsEvicted";

fn pods(bed: &Bed) -> Api<Pod> {
    Api::namespaced(bed.client.clone(), NAMESPACE)
}

/// A pod that runs on a node, as its kubelet would say. Only one that runs counts for a disruption budget.
async fn runs(bed: &Bed, name: &str, node: &str) -> Result<Pod> {
    let accounts = Api::<ServiceAccount>::namespaced(bed.client.clone(), NAMESPACE);
    until("there is a service account", LIMIT, async || {
        let there = accounts.get_opt("default").await?;
        Ok(there.ok_or_else(|| "none".to_owned()))
    })
    .await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "none" }] },
    });
    let made = pods(bed)
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let status = json!({ "status": {
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True" }],
    }});
    let params = PatchParams::default();
    pods(bed)
        .patch_status(name, &params, &Patch::Strategic(status))
        .await?;
    Ok(made)
}

/// What a kubelet does with a pod that is to go.
async fn ends(bed: &Bed, name: &str) -> Result {
    let now = DeleteParams::default().grace_period(0);
    pods(bed).delete(name, &now).await?;
    Ok(())
}

/// A process of a pod has a volume open.
fn holds(node: &TestNode<'_>, pod_uid: &str) {
    node.simulation.state(|state| {
        let dev = state.device("san-lv0").map(|d| d.dm.dev);
        state.openers.extend(dev.map(|dev| Opener {
            dev,
            who: format!("process 7 (of {pod_uid})"),
            pod_uid: Some(pod_uid.to_owned()),
        }));
    });
}

/// It is gone.
fn lets_go(node: &TestNode<'_>, pod_uid: &str) {
    node.simulation.state(|state| {
        let others = |o: &Opener| o.pod_uid.as_deref() != Some(pod_uid);
        state.openers.retain(others);
    });
}

async fn is_ending(bed: &Bed, name: &str) -> Result<bool> {
    let pod = pods(bed).get_opt(name).await?;
    Ok(pod.is_none_or(|p| p.metadata.deletion_timestamp.is_some()))
}

async fn stays(bed: &Bed, name: &str) -> Result {
    ensure(
        !is_ending(bed, name).await?,
        format!("pod {name} is left alone"),
    )
}

async fn says(bed: &Bed, name: &str, wanted: &str) -> Result<StorageFenceRequest> {
    let wanted = format!("{CONDITION}={wanted}");
    bed.sees(name, &wanted, |r| word(r, CONDITION) == wanted)
        .await
}

fn affected(request: &StorageFenceRequest) -> Vec<String> {
    let status = request.status.as_ref();
    let pods = status.and_then(|s| s.affected_pods.as_ref());
    let pods = pods.iter().flat_map(|p| &p.pods);
    pods.map(|p| p.uid.clone()).collect()
}

/// From the fence to the last pod: the agent names who holds its volumes open, the controller evicts them.
pub async fn the_affected_pods_are_evicted_and_no_other(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "evict-1").await?;
    let agent = node.start_agent().await?;
    let uid = |pod: &Pod| pod.uid().unwrap_or_default();
    let user = runs(bed, "evict-user", &node.name).await?;
    runs(bed, "evict-bystander", &node.name).await?;
    let ours = node.pod().await?.context("the agent's pod")?;
    holds(&node, &uid(&user));
    holds(&node, &uid(&ours));
    bed.ask("evict-1", &node.name, json!({ "workloads": "Evict" }))
        .await?;
    until("the pod is evicted", LIMIT, async || {
        Ok(if is_ending(bed, "evict-user").await? {
            Ok(())
        } else {
            Err(summary(&bed.requests().get("evict-1").await?))
        })
    })
    .await?;
    let request = says(bed, "evict-1", "False/Evicting").await?;
    let text = message(&request, CONDITION);
    ensure(text.contains("default/evict-user"), &text)?;
    let why = bed.told(
        "Pod",
        "evict-user",
        "StorageFenced",
        "storage-fence-controller",
    );
    why.await?;
    ends(bed, "evict-user").await?;
    lets_go(&node, &uid(&user));
    let request = says(bed, "evict-1", "True/Evicted").await?;
    let text = message(&request, CONDITION);
    ensure(
        text.contains(&format!("{} (this operator's own)", ours.name_any())),
        &text,
    )?;
    ensure_eq("affected pods", affected(&request), vec![uid(&ours)])?;
    let accepted = message(&request, "Accepted");
    ensure(!accepted.contains("not done"), accepted)?;
    stays(bed, "evict-bystander").await?;
    // The list goes with the fence.
    node.give_back();
    lets_go(&node, &uid(&ours));
    let spec = json!({ "spec": { "fenceState": "Unfenced", "unfenceAfterSeconds": 0 } });
    let params = PatchParams::default();
    let patch = Patch::Merge(spec);
    bed.requests().patch("evict-1", &params, &patch).await?;
    bed.sees("evict-1", "given back, and no pod is affected", |r| {
        let status = r.status.as_ref();
        word(r, "Fenced") == "Fenced=False/Unfenced"
            && status.is_some_and(|s| s.affected_pods.is_none())
    })
    .await?;
    stays(bed, "evict-bystander").await?;
    ends(bed, "evict-bystander").await?;
    bed.withdraw("evict-1").await?;
    agent.stop().await?;
    node.unharmed()
}

/// What an agent would say, said by hand: there is none on this node that would set it right.
async fn claims(bed: &Bed, name: &str, fenced: &Value, pod: &Pod) -> Result {
    let mut condition = json!({
        "type": "Fenced", "message": "by hand", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    for key in ["status", "reason"] {
        condition[key] = fenced[key].clone();
    }
    let status = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest", "metadata": { "name": name },
        "status": {
            "conditions": [condition],
            "node": { "observedGeneration": 1, "bootId": "b", "agentVersion": "0", "startedAt": "2026-01-01T00:00:00Z" },
            "affectedPods": { "bootId": "b", "total": 1, "pods": [{ "uid": pod.uid(), "volumes": ["san-lv0"] }] },
        },
    });
    let params = PatchParams::apply("by-hand").force();
    bed.requests()
        .patch_status(name, &params, &Patch::Apply(status))
        .await?;
    Ok(())
}

pub async fn no_pod_is_evicted_without_proof(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "unproven-1").await?;
    let pod = runs(bed, "unproven-user", &node.name).await?;
    let evict = json!({ "workloads": "Evict" });
    bed.ask("unproven-1", &node.name, evict.clone()).await?;
    for (status, reason) in [("Unknown", "InProgress"), ("False", "NotProven")] {
        let said = json!({ "status": status, "reason": reason });
        claims(bed, "unproven-1", &said, &pod).await?;
        tokio::time::sleep(A_WHILE).await;
        stays(bed, "unproven-user").await?;
        says(bed, "unproven-1", "False/NotFenced").await?;
    }
    // Nobody asked for it, or only for a plan.
    for (name, spec) in [
        ("unproven-none", json!({})),
        (
            "unproven-dry",
            json!({ "workloads": "Evict", "dryRun": true }),
        ),
    ] {
        bed.ask(name, &node.name, spec).await?;
        let said = json!({ "status": "True", "reason": "Proven" });
        claims(bed, name, &said, &pod).await?;
        tokio::time::sleep(A_WHILE).await;
        stays(bed, "unproven-user").await?;
        let request = bed.requests().get(name).await?;
        ensure_eq(
            "condition",
            word(&request, CONDITION),
            format!("{CONDITION}=absent"),
        )?;
        bed.withdraw(name).await?;
    }
    // It was the proof that was missing.
    let said = json!({ "status": "True", "reason": "Proven" });
    claims(bed, "unproven-1", &said, &pod).await?;
    says(bed, "unproven-1", "False/Evicting").await?;
    ensure(is_ending(bed, "unproven-user").await?, "the pod is evicted")?;
    ends(bed, "unproven-user").await?;
    bed.withdraw("unproven-1").await?;
    node.untouched()
}

pub async fn a_disruption_budget_holds_an_eviction_up(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "budget-1").await?;
    let agent = node.start_agent().await?;
    let pod = runs(bed, "budget-user", &node.name).await?;
    let budgets = Api::<PodDisruptionBudget>::namespaced(bed.client.clone(), NAMESPACE);
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "budget-keeps" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "budget-user" } } },
    });
    budgets
        .create(&PostParams::default(), &serde_json::from_value(budget)?)
        .await?;
    until("the budget counts its pod", LIMIT, async || {
        let status = budgets.get("budget-keeps").await?.status;
        Ok(match status {
            Some(s) if s.current_healthy == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await?;
    holds(&node, &pod.uid().unwrap_or_default());
    bed.ask("budget-1", &node.name, json!({ "workloads": "Evict" }))
        .await?;
    let request = says(bed, "budget-1", "False/WaitingForDisruptionBudget").await?;
    let text = message(&request, CONDITION);
    for part in ["default/budget-user", "budget-keeps", "tried again"] {
        ensure(text.contains(part), format!("'{part}' in: {text}"))?;
    }
    tokio::time::sleep(A_WHILE).await;
    stays(bed, "budget-user").await?;
    budgets
        .delete("budget-keeps", &DeleteParams::default())
        .await?;
    says(bed, "budget-1", "False/Evicting").await?;
    ensure(is_ending(bed, "budget-user").await?, "the pod is evicted")?;
    ends(bed, "budget-user").await?;
    bed.withdraw("budget-1").await?;
    agent.stop().await?;
    node.unharmed()
}

/// A pod of the same name is another pod.
pub async fn an_eviction_means_one_pod_and_not_its_name(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "name-1").await?;
    let first = runs(bed, "name-user", &node.name).await?;
    ends(bed, "name-user").await?;
    let second = runs(bed, "name-user", &node.name).await?;
    let uid = |pod: &Pod| pod.uid().unwrap_or_default();
    let by = |uid: String| {
        let client = bed.client.clone();
        async move { evict(&client, NAMESPACE, "name-user", &uid).await }
    };
    ensure_eq("the former", by(uid(&first)).await?, Outcome::Gone)?;
    stays(bed, "name-user").await?;
    ensure_eq("this one", by(uid(&second)).await?, Outcome::Evicted)?;
    ensure(is_ending(bed, "name-user").await?, "it is evicted")?;
    ends(bed, "name-user").await
}

/// Two nodes lose the array, and half of two is one.
pub async fn evictions_by_policy_wait_while_too_many_nodes_are_lost(bed: &Bed) -> Result {
    let mut nodes = Vec::new();
    for name in ["limit-1", "limit-2"] {
        let node = TestNode::join_with(bed, name, &storage(2)).await?;
        let agent = node.start_agent().await?;
        let pod = runs(bed, &format!("{name}-user"), name).await?;
        holds(&node, &pod.uid().unwrap_or_default());
        nodes.push((node, agent));
    }
    let of_both = json!({
        "nodeSelector": { "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": ["limit-1", "limit-2"] },
        ]},
        "request": { "workloads": "Evict" },
    });
    in_force(bed, "limit", "limit-1", &of_both).await?;
    bed.reports("limit-2", "policy limit governs san", |s| {
        let groups = s.status.iter().flat_map(|s| &s.volume_groups);
        groups
            .into_iter()
            .any(|g| g.policy.as_deref() == Some("limit"))
    })
    .await?;
    for (node, _) in &nodes {
        node.paths(0);
    }
    let mut records = Vec::new();
    for (node, _) in &nodes {
        // The fence is not held up by it.
        let record = recorded(bed, &node.name).await?.name_any();
        let request = says(bed, &record, "False/LimitReached").await?;
        let text = message(&request, CONDITION);
        for part in ["2 of 2 nodes", "50%", "allows 1", "policy limit"] {
            ensure(text.contains(part), format!("'{part}' in: {text}"))?;
        }
        records.push(record);
    }
    // Longer than it is seen whether more nodes follow.
    tokio::time::sleep(Duration::from_secs(12)).await;
    for name in ["limit-1-user", "limit-2-user"] {
        stays(bed, name).await?;
    }
    // One gets its storage back, and the other's pods may go.
    let (second, _) = &nodes[1];
    second.simulation.state(|s| s.openers.clear());
    second.give_back();
    let spec = json!({ "spec": { "fenceState": "Unfenced", "unfenceAfterSeconds": 0 } });
    let params = PatchParams::default();
    bed.requests()
        .patch(&records[1], &params, &Patch::Merge(spec))
        .await?;
    says(bed, &records[0], "False/Evicting").await?;
    ensure(is_ending(bed, "limit-1-user").await?, "the pod is evicted")?;
    stays(bed, "limit-2-user").await?;
    bed.sees(&records[1], "given back", |r| {
        word(r, "Fenced") == "Fenced=False/Unfenced"
    })
    .await?;
    for (n, record) in records.iter().enumerate() {
        ends(bed, &format!("limit-{}-user", n + 1)).await?;
        bed.withdraw(record).await?;
    }
    withdraw(bed, "limit").await?;
    for (node, agent) in nodes {
        agent.stop().await?;
        node.unharmed()?;
    }
    Ok(())
}
