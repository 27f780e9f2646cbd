//! A big cluster on its worst night: a thousand nodes, and a hundred of them ask at once. The figures are printed; docs/measurements.md has them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use storage_fence::api::NodeStorage;

use super::cost::{answered, grown, with_agents};
use crate::bed::Bed;
use crate::objects::{summary, word};
use crate::support::progress::say;
use crate::support::{Context, Result};
use crate::wait::{ensure, ensure_eq};

const NODES: usize = 1000;
const REQUESTS: usize = 100;
/// Agents and control plane share this machine's processors here: what is waited for, not what is promised.
const LIMIT: Duration = Duration::from_mins(8);
const AT_ONCE: usize = 16;

/// Nodes that have a report like that one, and no agent: nobody asks them for anything.
async fn bystanders(bed: &Bed, like: &NodeStorage, count: usize) -> Result {
    let status = serde_json::to_value(like.status.as_ref().context("no report")?)?;
    let (nodes, storages) = (bed.all::<Node>(), bed.all::<NodeStorage>());
    let make = |n: usize| {
        let (nodes, storages, mut status) = (&nodes, &storages, status.clone());
        async move {
            let name = format!("bystander-{n}");
            // No label that the DaemonSet selects.
            let node =
                json!({ "metadata": { "name": name, "labels": { crate::node::LABEL: "" } } });
            let node = nodes
                .create(&PostParams::default(), &serde_json::from_value(node)?)
                .await?;
            status["nodeUid"] = json!(node.uid());
            let storage = json!({
                "apiVersion": "storagefence.io/v1alpha1", "kind": "NodeStorage", "metadata": { "name": name }, "spec": {},
            });
            storages
                .create(&PostParams::default(), &serde_json::from_value(storage)?)
                .await?;
            let status = Patch::Merge(json!({ "status": status }));
            storages
                .patch_status(&name, &PatchParams::default(), &status)
                .await?;
            Result::Ok(())
        }
    };
    let mut made = futures::stream::iter((0..count).map(make)).buffer_unordered(AT_ONCE);
    while let Some(one) = made.next().await {
        one?;
    }
    Ok(())
}

/// Requests to our kinds and of events that the API server answered between two looks.
fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Value {
    let ours = |key: &str| key.starts_with("storagefence.io/") || key.starts_with("events.k8s.io/");
    let grown = grown(before, after).into_iter();
    let grown = grown.filter(|(key, _)| ours(key));
    Value::Object(grown.map(|(key, n)| (key, json!(n))).collect())
}

pub async fn a_hundred_requests_at_once_among_a_thousand_nodes(bed: &Bed) -> Result {
    // A hundred agents in one process that each looked every second would leave no time to the control plane.
    let nodes = with_agents(bed, "crowd", REQUESTS, 0, 30).await?;
    let (first, _) = nodes.first().context("no node")?;
    let report = bed.all::<NodeStorage>().get(&first.name).await?;
    bystanders(bed, &report, NODES - REQUESTS).await?;
    let there = bed
        .all::<NodeStorage>()
        .list(&ListParams::default())
        .await?;
    ensure(
        there.items.len() >= NODES,
        format!("{} reports are there", there.items.len()),
    )?;
    drop(there);
    // The controller has read them.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (idle, _) = bed.controllers.memory()?;
    let before = answered(bed).await?;
    let called_before = bed.controllers.calls().await?;

    let began = Instant::now();
    let asked = nodes.iter().map(|(node, _)| async {
        bed.ask(&node.name, &node.name, json!({})).await?;
        Result::Ok(())
    });
    for one in futures::future::join_all(asked).await {
        one?;
    }
    let asked = began.elapsed();
    let all = loop {
        let requests = bed.requests().list(&ListParams::default()).await?.items;
        let open: Vec<_> = requests
            .iter()
            .filter(|r| {
                word(r, "Fenced") != "Fenced=True/Proven"
                    || word(r, "LocksReleased") != "LocksReleased=True/Released"
            })
            .collect();
        if open.is_empty() {
            break requests.len();
        }
        if began.elapsed() > LIMIT {
            let first = open
                .first()
                .map(|r| format!("{}: {}", r.name_any(), summary(r)));
            return Err(format!("{} are not fenced, such as {first:?}", open.len()).into());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let fenced = began.elapsed();
    ensure_eq("requests", all, REQUESTS)?;
    // What is told afterwards.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let spent = between(&before, &answered(bed).await?);
    let called = grown(&called_before, &bed.controllers.calls().await?);
    let (_, busy) = bed.controllers.memory()?;
    say(format!(
        "measured: {NODES} nodes, {REQUESTS} requests within {} ms, all fenced and released after {:.1} s; the controller has {idle} kB resident \
         before, at most {busy} kB; requests to the API server, the agents' and this look's own among them: {spent}; \
         of these the controller's: {called:?}",
        asked.as_millis(),
        fenced.as_secs_f64()
    ));
    for (node, agent) in nodes {
        node.unharmed()?;
        ensure_eq("drops", node.count("drop_vg san"), 1)?;
        agent.stop().await?;
    }
    ensure(
        busy < 256 << 10,
        format!("the controller stays below the chart's memory limit of 256 MiB: {busy} kB"),
    )
}
