//! Remediations, as node-health controllers make, stop and delete them: by the rights that our role gives them, and no others.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use storage_fence::api::condition::find;
use storage_fence::api::remediation::{REMEDIATION_UID_LABEL, StorageFenceRemediationTemplate};
use storage_fence::api::{StorageFenceRemediation, StorageFenceRequest};

use crate::bed::Bed;
use crate::controller::AGENT_TIMEOUT;
use crate::health::{HealthController, Phase};
use crate::node::{TestNode, storage};
use crate::support::progress::say;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

pub const KIND: &str = "StorageFenceRemediation";
const CONTROLLER: &str = "storage-fence-controller";

/// Until False is said, once it is clear. Everything on the way is told by a watch and answered at once, on a node in a fraction of a second; this
/// leaves room for a machine with little time, and for no wait in between.
const SOON: Duration = Duration::from_secs(10);

fn said_within(limit: Duration, asked: Instant, what: &str) -> Result {
    let took = asked.elapsed();
    say(format!(
        "measured: from the remediation to Succeeded=False, {what}: {} ms",
        took.as_millis()
    ));
    ensure(
        took <= limit,
        format!("{what} is said within {limit:?}: {took:?}"),
    )
}

/// The request that serves a remediation.
pub async fn request_of(
    bed: &Bed,
    remediation: &StorageFenceRemediation,
) -> Result<Option<StorageFenceRequest>> {
    let label = format!(
        "{REMEDIATION_UID_LABEL}={}",
        remediation.uid().unwrap_or_default()
    );
    let found = bed
        .requests()
        .list(&ListParams::default().labels(&label))
        .await?;
    ensure(found.items.len() < 2, "a remediation has one request")?;
    Ok(found.items.into_iter().next())
}

/// Waits until the request that served a remediation is gone.
pub async fn withdrawn(bed: &Bed, remediation: &StorageFenceRemediation) -> Result {
    until("the request is withdrawn", LIMIT, async || {
        let there = request_of(bed, remediation).await?;
        Ok(if there.is_none() {
            Ok(())
        } else {
            Err("it is there".to_owned())
        })
    })
    .await
}

/// The whole of it, as it should be: created, carried out, and taken back when the node is healthy.
pub async fn nhc_has_a_node_fenced_and_takes_it_back(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "whole").await?;
    let node = TestNode::join(bed, "rem-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    let made = nhc.remediate(&node.name).await?;
    let name = made.name_any();
    ensure(
        name.starts_with("rem-1-"),
        format!("NHC had the name generated: {name}"),
    )?;
    nhc.sees(&name, Phase::Processing).await?;
    bed.told(KIND, &name, "RemediationStarted", CONTROLLER)
        .await?;
    let request = request_of(bed, &made).await?.context("no request")?;
    ensure_eq("its node", request.spec.node_name.as_str(), "rem-1")?;
    ensure_eq(
        "its owner says nothing that the API cannot hold",
        request.owner_references().len(),
        0,
    )?;
    node.let_go();
    let done = nhc.sees(&name, Phase::Succeeded).await?;
    let status = done.status.clone().unwrap_or_default();
    ensure_eq(
        "reason",
        nhc.reason(&done),
        "RemediationFinishedSuccessfully".to_owned(),
    )?;
    ensure_eq("node", status.node_name.as_deref(), Some("rem-1"))?;
    ensure(
        status.node_boot_id.is_some(),
        "it knows which boot was fenced",
    )?;
    bed.told(KIND, &name, "RemediationFinished", CONTROLLER)
        .await?;
    ensure(node.count("drop_vg san") == 1, "and so it was on the node")?;

    // The paths are back, so NHC finds the node healthy and deletes what it made.
    node.give_back();
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    ensure(
        request_of(bed, &made).await?.is_none(),
        "the request went first",
    )?;
    agent.stop().await?;
    node.unharmed()
}

/// Where the fence cannot help, NHC is told at once, and escalates: it marks the remediation and leaves it.
pub async fn what_cannot_help_is_said_at_once_and_then_stopped(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "useless").await?;
    let node = TestNode::join_with(bed, "rem-2", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let asked = Instant::now();
    let name = nhc.remediate(&node.name).await?.name_any();
    let failed = nhc.sees(&name, Phase::Failed).await?;
    said_within(SOON, asked, "NothingAffected")?;
    ensure_eq("reason", nhc.reason(&failed), "NothingAffected".to_owned())?;
    bed.told(KIND, &name, "RemediationCannotStart", CONTROLLER)
        .await?;
    nhc.time_out(&name).await?;
    let stopped = nhc.sees_reason(&name, "RemediationTimeoutByNHC").await?;
    ensure(nhc.phase(&stopped) == Phase::Failed, "it stays failed")?;
    bed.told(KIND, &name, "RemediationStopped", CONTROLLER)
        .await?;
    withdrawn(bed, &stopped).await?;
    // Now that it would, it is too late: another remediator is at work.
    node.paths(0);
    bed.reports(&node.name, "the paths are gone", |s| {
        s.status.as_ref().is_some_and(|s| s.paths == "0/2")
    })
    .await?;
    nhc.sees_reason(&name, "RemediationTimeoutByNHC").await?;
    node.untouched()?;
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    agent.stop().await
}

/// Nobody is on the node who could fence it: that is known when the agent's time is over, and said then.
pub async fn a_node_without_an_agent_is_given_up_in_time(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "nobody").await?;
    let node = TestNode::join(bed, "rem-9").await?;
    let asked = Instant::now();
    let name = nhc.remediate(&node.name).await?.name_any();
    nhc.sees(&name, Phase::Processing).await?;
    let failed = nhc.sees(&name, Phase::Failed).await?;
    said_within(AGENT_TIMEOUT + SOON, asked, "NoAgent")?;
    ensure_eq("reason", nhc.reason(&failed), "NoAgent".to_owned())?;
    ensure(
        asked.elapsed() + Duration::from_secs(1) >= AGENT_TIMEOUT,
        format!("not sooner: {:?}", asked.elapsed()),
    )?;
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    node.untouched()
}

/// NHC waits and loses its patience before the agent has come.
pub async fn a_remediation_that_times_out_begins_nothing_more(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "late").await?;
    let node = TestNode::join(bed, "rem-3").await?;
    let made = nhc.remediate(&node.name).await?;
    let name = made.name_any();
    nhc.sees(&name, Phase::Processing).await?;
    nhc.time_out(&name).await?;
    nhc.sees_reason(&name, "RemediationTimeoutByNHC").await?;
    withdrawn(bed, &made).await?;
    let agent = node.start_agent().await?;
    bed.reports(&node.name, "the agent is there", |s| s.status.is_some())
        .await?;
    node.untouched()?;
    nhc.delete(&name).await?;
    nhc.gone(&name).await?;
    agent.stop().await
}

/// Older versions of NHC call the remediation like the node and say no more; a node that is not there is said at once.
pub async fn the_node_is_the_name_where_nothing_else_says_it(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "old").await?;
    let made = nhc.create(json!({ "name": "rem-4" })).await?;
    let skipped = nhc.sees(&made.name_any(), Phase::Failed).await?;
    ensure_eq(
        "reason",
        nhc.reason(&skipped),
        "RemediationSkippedNodeNotFound".to_owned(),
    )?;
    ensure(skipped.finalizers().is_empty(), "nothing holds it")?;
    nhc.delete("rem-4").await?;
    nhc.gone("rem-4").await?;
    let node = TestNode::join(bed, "rem-4").await?;
    let agent = node.start_agent().await?;
    nhc.create(json!({ "name": "rem-4" })).await?;
    nhc.sees("rem-4", Phase::Succeeded).await?;
    node.give_back();
    nhc.delete("rem-4").await?;
    nhc.gone("rem-4").await?;
    agent.stop().await?;
    node.unharmed()
}

/// Something keeps the request (here a finalizer of somebody else's): NHC has to wait, but not for a node or a boot that is no more.
pub async fn a_lost_node_or_boot_frees_the_remediation(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "lost").await?;
    for (number, lost) in [(5, "node"), (6, "boot")] {
        let node = TestNode::join(bed, &format!("rem-{number}")).await?;
        let agent = node.start_agent().await?;
        let made = nhc.remediate(&node.name).await?;
        let name = made.name_any();
        nhc.sees(&name, Phase::Succeeded).await?;
        let request = request_of(bed, &made)
            .await?
            .context("no request")?
            .name_any();
        let held =
            |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
        bed.requests()
            .patch(
                &request,
                &PatchParams::default(),
                &held(json!(["example.com/held"])),
            )
            .await?;
        nhc.delete(&name).await?;
        until("the request is being deleted", LIMIT, async || {
            let there = bed.requests().get(&request).await?;
            let goes = there.metadata.deletion_timestamp.is_some();
            Ok(if goes {
                Ok(())
            } else {
                Err("it is not".to_owned())
            })
        })
        .await?;
        ensure(
            nhc.get(&name).await?.is_some(),
            "NHC does not count the node as healthy yet",
        )?;
        agent.stop().await?;
        if lost == "node" {
            bed.all::<Node>()
                .delete(&node.name, &DeleteParams::default())
                .await?;
        } else {
            let fields = [
                "architecture",
                "containerRuntimeVersion",
                "kernelVersion",
                "kubeProxyVersion",
                "kubeletVersion",
                "machineID",
                "operatingSystem",
                "osImage",
                "systemUUID",
            ];
            let mut info: Value = fields
                .iter()
                .map(|&f| (f.to_owned(), json!("test")))
                .collect();
            info["bootID"] = json!("another-boot");
            let patch = Patch::Merge(json!({ "status": { "nodeInfo": info } }));
            bed.all::<Node>()
                .patch_status(&node.name, &PatchParams::default(), &patch)
                .await?;
        }
        nhc.gone(&name)
            .await
            .context(format!("the {lost} is another"))?;
        bed.requests()
            .patch(&request, &PatchParams::default(), &held(json!([])))
            .await?;
        node.unharmed()?;
    }
    Ok(())
}

/// Preflight, and the annotation without which NHC takes no two templates of one kind.
pub async fn a_template_says_whom_it_could_serve(bed: &Bed) -> Result {
    let nhc = HealthController::nhc(bed, "preflight").await?;
    let node = TestNode::join_with(bed, "rem-8", &storage(2)).await?;
    node.simulation
        .state(|s| s.sanlock = storage_fence::host::simulated::Daemon::Dead);
    let agent = node.start_agent().await?;
    let lists = |template: &StorageFenceRemediationTemplate, wanted: bool| {
        let status = template.status.clone().unwrap_or_default();
        let listed = status
            .not_ready
            .iter()
            .any(|n| n.name == "rem-8" && n.reason == "SanlockUnavailable");
        listed == wanted && find(&status.conditions, "Ready").is_some()
    };
    let template = nhc.sees_template(|t| lists(t, true)).await?;
    let annotation = "remediation.medik8s.io/multiple-templates-support";
    ensure(
        template.annotations().contains_key(annotation),
        "the annotation is there",
    )?;
    node.simulation
        .state(|s| s.sanlock = storage_fence::host::simulated::Daemon::Alive);
    nhc.sees_template(|t| lists(t, false)).await?;
    agent.stop().await
}
