//! What fails around a fence: an object that nobody can read, the leader, the API server.

use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::Status;
use serde_json::json;
use storage_fence::api::condition::find;
use storage_fence::api::node_storage::condition_type::LOCKS_HELD;
use storage_fence::api::{ConditionStatus, NodeStorage, StorageFenceRequest};

use crate::bed::Bed;
use crate::controller::leader;
use crate::node::{TestNode, storage};
use crate::objects::{phase, request, word};
use crate::support::{Context, Result};
use crate::wait::{LIMIT, ensure, ensure_eq, until};

/// As if by a newer version: the schema knows a state that this one does not.
pub async fn an_unreadable_request_stops_nobody(bed: &Bed) -> Result {
    let (node, other) = (
        TestNode::join(bed, "newer-1").await?,
        TestNode::join(bed, "newer-2").await?,
    );
    let (agent, other_agent) = (node.start_agent().await?, other.start_agent().await?);
    let at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/fenceState/enum/-";
    let newer = json!([{ "op": "add", "path": at, "value": "Frozen" }]).to_string();
    let crd = "crd/storagefencerequests.storagefence.io";
    bed.kubectl(&["patch", crd, "--type=json", "-p", &newer])
        .await?;
    let untyped = kube::Api::<DynamicObject>::all_with(
        bed.client.clone(),
        &ApiResource::erase::<StorageFenceRequest>(&()),
    );
    let mut object = serde_json::to_value(request("newer", &node.name, json!({}))?)?;
    object["spec"]["fenceState"] = json!("Frozen");
    let object: DynamicObject = serde_json::from_value(object)?;
    until("the newer request is stored", LIMIT, async || {
        Ok(
            match untyped.create(&PostParams::default(), &object).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) => Err(said(&status)),
                Err(other) => return Err(other.into()),
            },
        )
    })
    .await?;
    bed.told(
        "StorageFenceRequest",
        "newer",
        "Unreadable",
        "storage-fence-controller",
    )
    .await?;
    // The others go on: the watches of controller and agents still work.
    bed.ask("newer-not", &other.name, json!({})).await?;
    bed.settles(
        "newer-not",
        "Fenced",
        &["Fenced=True/Proven", "LocksReleased=True/Released"],
    )
    .await?;
    // On the very same node, too.
    node.untouched()?;
    bed.ask("newer-beside", &node.name, json!({})).await?;
    bed.settles("newer-beside", "Fenced", &["Fenced=True/Proven"])
        .await?;
    for name in ["newer", "newer-not", "newer-beside"] {
        untyped.delete(name, &DeleteParams::default()).await?;
    }
    bed.install_crds().await?;
    agent.stop().await?;
    other_agent.stop().await?;
    node.unharmed()
}

fn said(status: &Status) -> String {
    status.message.clone()
}

pub async fn a_dead_leader_does_not_hold_the_fence_up(bed: &Bed) -> Result {
    bed.controllers.start(bed, "resident-2", "Resident").await?;
    let node = TestNode::join(bed, "leader-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask("leader", &node.name, json!({})).await?;
    bed.settles("leader", "Fencing", &["Fenced=Unknown/InProgress"])
        .await?;
    let dead = leader(bed).await?.context("nobody leads")?;
    bed.controllers.kill(&dead)?;
    node.let_go();
    // The agent waits for nobody: its word is there while nobody leads. The lease takes 15 s to run out.
    let agents_word = bed
        .sees("leader", "the agent says that it is done", |r| {
            word(r, "Fenced") == "Fenced=True/Proven"
                && word(r, "LocksReleased") == "LocksReleased=True/Released"
        })
        .await?;
    ensure_eq(
        "phase while nobody leads",
        phase(&agents_word).as_str(),
        "Fencing",
    )?;
    bed.settles("leader", "Fenced", &["LocksReleased=True/Released"])
        .await?;
    let heir = leader(bed).await?.context("nobody leads")?;
    ensure(heir != dead, format!("{heir} leads after {dead}"))?;
    bed.withdraw("leader").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_fence_needs_no_api_server(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "outage-1").await?;
    let agent = node.start_agent().await?;
    node.hold();
    bed.ask("outage", &node.name, json!({ "drainTimeoutSeconds": 600 }))
        .await?;
    bed.settles("outage", "Fencing", &["Fenced=Unknown/InProgress"])
        .await?;
    bed.stop_api_server().await?;
    ensure(
        bed.requests().get("outage").await.is_err(),
        "the API server is away",
    )?;
    node.let_go();
    let released = node.releases().await;
    let back = jiff::Timestamp::now();
    bed.start_api_server().await?;
    released?;
    // A leader that could not renew its lease has ended by itself; the kubelet would start it anew.
    bed.controllers.only_one(bed, "Resident").await?;
    let end = bed
        .settles(
            "outage",
            "Fenced",
            &["Fenced=True/Proven", "LocksReleased=True/Released"],
        )
        .await?;
    let fence = end.status.and_then(|s| s.node).context("no status.node")?;
    let finished = fence.finished_at.context("it has not finished")?;
    // The release is confirmed a moment after the lockspace was seen to go.
    let late = finished.duration_since(back);
    ensure(
        late < jiff::SignedDuration::from_secs(5),
        format!("it ended during the outage, not {late:?} after it"),
    )?;
    bed.told("Node", &node.name, "LocksReleased", "storage-fence-agent")
        .await?;
    bed.withdraw("outage").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn what_reaches_the_san_without_a_lock_is_told(bed: &Bed) -> Result {
    let node = TestNode::join_with(bed, "unlocked-1", &storage(2)).await?;
    let agent = node.start_agent().await?;
    let says = |status: ConditionStatus, reason: &'static str| {
        let is = move |s: &NodeStorage| {
            let conditions = s.status.as_ref().map(|s| s.conditions.as_slice());
            let held = find(conditions.unwrap_or_default(), LOCKS_HELD);
            held.is_some_and(|c| c.status == status && c.reason == reason)
        };
        bed.reports(&node.name, reason, is)
    };
    says(ConditionStatus::True, "AllHeld").await?;
    let before = node.simulation.state(|s| std::mem::take(&mut s.lockspaces));
    says(ConditionStatus::False, "OpenWithoutLock").await?;
    bed.told("Node", &node.name, "OpenWithoutLock", "storage-fence-agent")
        .await?;
    node.simulation.state(|s| s.lockspaces = before);
    says(ConditionStatus::True, "AllHeld").await?;
    node.untouched()?;
    // And once more: now somebody asks for the fence that nothing else stands for.
    node.simulation.state(|s| s.lockspaces.clear());
    says(ConditionStatus::False, "OpenWithoutLock").await?;
    let spec = json!({
        "volumeGroups": { "mode": "Named", "names": ["san"] },
        "whenPathsRemain": "Fence",
    });
    bed.ask("unlocked", &node.name, spec).await?;
    let released = ["Fenced=True/Proven", "LocksReleased=True/Released"];
    bed.settles("unlocked", "Fenced", &released).await?;
    ensure(
        node.count("kill_vg san") + node.count("drop_vg san") == 0,
        "there was nothing to be frozen or dropped",
    )?;
    bed.withdraw("unlocked").await?;
    agent.stop().await?;
    node.unharmed()
}
