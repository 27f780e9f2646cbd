//! Remediations as Cluster API's MachineHealthCheck makes, leaves and deletes them; and as NHC did when it checked Machines.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;
use storage_fence::api::{StorageFenceRemediation, StorageFenceRemediationTemplate};

use super::policies::{PATHS, becomes};
use crate::bed::Bed;
use crate::health::{CAPI, NAMESPACE, Phase};
use crate::machines::{Look, MachineHealthCheck};
use crate::node::{TestNode, storage};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// The whole of it: a Machine without a node, a node that is well, one that is not, and one that is well again.
pub async fn mhc_has_the_node_of_its_machine_fenced(bed: &Bed) -> Result {
    let mhc = MachineHealthCheck::with_template(bed, "machine", PATHS).await?;
    let node = TestNode::join_with(bed, "mhc-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let machine = mhc.machine("machine-a", None, &json!({})).await?;
    ensure_eq(
        "a Machine that is provisioned",
        mhc.look("machine-a").await?,
        Look::NoNode,
    )?;
    mhc.machine("machine-a", Some(&node.name), &json!({}))
        .await?;
    becomes(bed, &node.name, PATHS, "True").await?;
    ensure_eq(
        "a node that is well",
        mhc.look("machine-a").await?,
        Look::Healthy,
    )?;
    node.paths(0);
    mhc.comes_to("machine-a", &Look::Made).await?;
    let done = mhc.controller.sees("machine-a", Phase::Succeeded).await?;
    ensure_eq(
        "its owner",
        done.owner_references().first().map(|o| o.uid.clone()),
        machine.uid(),
    )?;
    let status = done.status.clone().unwrap_or_default();
    ensure_eq("its node", status.node_name.as_deref(), Some("mhc-1"))?;
    ensure_eq(
        "its spec is the template's",
        done.spec.unfence_after_seconds,
        0,
    )?;
    // It sees only that the remediation is there, and that the node, below the fence, is as it was.
    ensure_eq("meanwhile", mhc.look("machine-a").await?, Look::There)?;
    node.give_back();
    mhc.comes_to("machine-a", &Look::Deleted).await?;
    mhc.controller.gone("machine-a").await?;
    ensure_eq("afterwards", mhc.look("machine-a").await?, Look::Healthy)?;
    agent.stop().await?;
    node.unharmed()
}

/// It reads no status: where nothing can be fenced it sees what it sees when all is well, and makes no second one. People read why; and the node is fenced
/// as soon as there is something to fence.
pub async fn what_cannot_be_fenced_for_mhc_waits_and_says_why(bed: &Bed) -> Result {
    const TYPE: &str = "example.com/Disk";
    let mhc = MachineHealthCheck::with_template(bed, "machine-useless", TYPE).await?;
    let node = TestNode::join_with(bed, "mhc-2", &storage(2)).await?;
    let agent = node.start_agent().await?;
    mhc.machine("machine-b", Some(&node.name), &json!({}))
        .await?;
    node.says(TYPE, "False").await?;
    mhc.comes_to("machine-b", &Look::Made).await?;
    let failed = mhc.controller.sees("machine-b", Phase::Failed).await?;
    ensure_eq(
        "reason",
        mhc.controller.reason(&failed),
        "NothingAffected".to_owned(),
    )?;
    for _ in 0..3 {
        ensure_eq("what it sees", mhc.look("machine-b").await?, Look::There)?;
    }
    node.untouched()?;
    // Nobody has marked it as timed out, as NHC would have.
    node.paths(0);
    mhc.controller.sees("machine-b", Phase::Succeeded).await?;
    node.give_back();
    node.says(TYPE, "True").await?;
    mhc.comes_to("machine-b", &Look::Deleted).await?;
    mhc.controller.gone("machine-b").await?;
    agent.stop().await?;
    node.unharmed()
}

/// Without its template it makes none; what it made before is completed, and deleted all the same.
pub async fn without_its_template_mhc_takes_back_what_it_made(bed: &Bed) -> Result {
    let mhc = MachineHealthCheck::with_template(bed, "machine-bare", PATHS).await?;
    let node = TestNode::join(bed, "mhc-3").await?;
    let agent = node.start_agent().await?;
    mhc.machine("machine-c", Some(&node.name), &json!({}))
        .await?;
    // I/O keeps the fence from being completed before the template goes.
    node.hold();
    mhc.comes_to("machine-c", &Look::Made).await?;
    mhc.controller.sees("machine-c", Phase::Processing).await?;
    let templates =
        kube::Api::<StorageFenceRemediationTemplate>::namespaced(bed.client.clone(), NAMESPACE);
    templates
        .delete("machine-bare", &DeleteParams::default())
        .await?;
    node.let_go();
    mhc.controller.sees("machine-c", Phase::Succeeded).await?;
    ensure_eq(
        "the one that is there",
        mhc.look("machine-c").await?,
        Look::There,
    )?;
    mhc.machine("machine-d", Some(&node.name), &json!({}))
        .await?;
    ensure_eq("another", mhc.look("machine-d").await?, Look::NoTemplate)?;
    node.give_back();
    mhc.comes_to("machine-c", &Look::Deleted).await?;
    mhc.controller.gone("machine-c").await?;
    agent.stop().await?;
    node.unharmed()
}

/// A Machine that is deleted takes what it owns along, and Cluster API takes its Node away: nobody is left who could give anything back.
pub async fn a_machine_that_is_deleted_takes_its_remediation_along(bed: &Bed) -> Result {
    let mhc = MachineHealthCheck::with_template(bed, "machine-gone", PATHS).await?;
    let node = TestNode::join(bed, "mhc-4").await?;
    let agent = node.start_agent().await?;
    mhc.machine("machine-e", Some(&node.name), &json!({}))
        .await?;
    mhc.comes_to("machine-e", &Look::Made).await?;
    mhc.controller.sees("machine-e", Phase::Succeeded).await?;
    mhc.delete_machine("machine-e").await?;
    until(
        "the garbage collector deletes what it owned",
        LIMIT,
        async || {
            let there = mhc.controller.get("machine-e").await?;
            let there = there.context("it went while its node stands fenced")?;
            Ok(match there.metadata.deletion_timestamp {
                Some(_) => Ok(()),
                None => Err(format!("{:?}", there.metadata)),
            })
        },
    )
    .await?;
    let before = node.simulation.log();
    // Longer than it takes to let it go.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure(
        mhc.controller.get("machine-e").await?.is_some(),
        "it stays while the node stands fenced",
    )?;
    agent.stop().await?;
    bed.all::<Node>()
        .delete(&node.name, &DeleteParams::default())
        .await?;
    mhc.controller.gone("machine-e").await?;
    ensure_eq("on the node", node.simulation.log(), before)?;
    node.unharmed()
}

/// NHC 0.9, when it checked Machines, wrote the Machine's name where the node's belongs. A node of that name is another Machine's, and has lost its SAN as
/// well: an outage hits all.
pub async fn a_machine_that_is_called_like_another_node_is_not_taken_for_it(bed: &Bed) -> Result {
    let mhc = MachineHealthCheck::with_template(bed, "machine-twin", PATHS).await?;
    let (meant, namesake) = (
        TestNode::join(bed, "mhc-5").await?,
        TestNode::join(bed, "machine-f").await?,
    );
    let agents = (meant.start_agent().await?, namesake.start_agent().await?);
    let machine = mhc
        .machine("machine-f", Some(&meant.name), &json!({}))
        .await?;
    let owner = |kind: &str, name: &str, uid| json!({ "apiVersion": CAPI, "kind": kind, "name": name, "uid": uid });
    let check = mhc.check();
    let owners = json!([
        owner("MachineHealthCheck", &check.name_any(), check.uid()),
        owner("Machine", "machine-f", machine.uid()),
    ]);
    let metadata = json!({
        "name": "machine-f", "ownerReferences": owners,
        "annotations": { "remediation.medik8s.io/node-name": "machine-f" },
    });
    let made: StorageFenceRemediation = mhc.controller.create(metadata).await?;
    ensure_eq("its name", made.name_any(), "machine-f".to_owned())?;
    let done = mhc.controller.sees("machine-f", Phase::Succeeded).await?;
    let found = done.status.and_then(|s| s.node_name);
    ensure_eq("its node", found.as_deref(), Some("mhc-5"))?;
    namesake.untouched()?;
    meant.give_back();
    mhc.controller.delete("machine-f").await?;
    mhc.controller.gone("machine-f").await?;
    agents.0.stop().await?;
    agents.1.stop().await?;
    meant.unharmed()
}
