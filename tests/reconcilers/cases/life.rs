//! A request's life as it should be.

use futures::StreamExt;
use kube::api::{WatchEvent, WatchParams};
use serde_json::{Value, json};
use storage_fence::api::StorageFenceRequest;
use storage_fence::fence::DevNo;
use storage_fence::host::simulated::uuid_of;

use crate::bed::Bed;
use crate::node::{TestNode, storage};
use crate::objects::{phase, version};
use crate::support::{Context, Result};
use crate::wait::{ensure, ensure_eq};

/// Every phase that the request goes through, in order, until the last one.
async fn phases(bed: &Bed, name: &str, last: &str) -> Result<Vec<String>> {
    let of_it = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(280);
    let requests = bed.requests();
    let mut watch = std::pin::pin!(requests.watch(&of_it, "0").await?.boxed());
    let mut seen: Vec<String> = Vec::new();
    while let Some(event) = watch.next().await {
        if let WatchEvent::Added(request) | WatchEvent::Modified(request) = event? {
            let phase = phase(&request);
            if !phase.is_empty() && seen.last() != Some(&phase) {
                seen.push(phase);
            }
        }
        if seen.last().is_some_and(|phase| phase == last) {
            break;
        }
    }
    Ok(seen)
}

pub async fn a_request_is_carried_out_and_told(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "life-1").await?;
    node.hold();
    bed.ask(
        "life",
        &node.name,
        json!({ "reason": "all paths are down" }),
    )
    .await?;
    let story = async {
        bed.settles(
            "life",
            "WaitingForAgent",
            &["Accepted=True/Valid", "AgentReady=False/WaitingForAgent"],
        )
        .await
        .or(
            // On a slow machine the wait for the agent may be over before the scheduler has placed it.
            bed.settles("life", "WaitingForAgent", &["AgentReady=False/NoAgent"])
                .await,
        )?;
        let agent = node.start_agent().await?;
        bed.settles(
            "life",
            "Fencing",
            &["AgentReady=True/AgentRunning", "Fenced=Unknown/InProgress"],
        )
        .await?;
        node.let_go();
        let end = bed
            .settles(
                "life",
                "Fenced",
                &[
                    "Accepted=True/Valid",
                    "Fenced=True/Proven",
                    "LocksReleased=True/Released",
                ],
            )
            .await?;
        Result::Ok((end, agent))
    };
    let waited = bed.kubectl(&[
        "wait",
        "sfr/life",
        "--for=condition=LocksReleased",
        "--timeout=180s",
    ]);
    let (told, waited, seen) = tokio::join!(story, waited, phases(bed, "life", "Fenced"));
    let (end, agent) = told?;
    ensure(waited?.contains("condition met"), "kubectl wait ends")?;
    let in_order = ["Pending", "WaitingForAgent", "Pending", "Fencing", "Fenced"];
    let seen = seen?;
    let mut order = in_order.iter();
    let follows = seen.iter().all(|phase| order.any(|known| known == phase));
    ensure(
        follows && seen.contains(&"Fencing".to_owned()),
        format!("phases {seen:?} are in the order {in_order:?}"),
    )?;

    evidence(&end, &node)?;
    managers(&end)?;
    let (agent_says, controller_says) = ("storage-fence-agent", "storage-fence-controller");
    for reason in ["FenceBegan", "Fenced", "LocksReleased"] {
        bed.told("StorageFenceRequest", "life", reason, agent_says)
            .await?;
        bed.told("Node", &node.name, reason, agent_says).await?;
    }
    bed.told("StorageFenceRequest", "life", "Fencing", controller_says)
        .await?;
    bed.told("Node", &node.name, "Fenced", controller_says)
        .await?;
    // What people look at: the events of `kubectl describe` are found by the object's UID.
    let described = bed.kubectl(&["describe", "sfr", "life"]).await?;
    ensure(described.contains("FenceBegan"), described)?;

    bed.reports(
        &node.name,
        "san stands fenced, and the watchdog is idle",
        |storage| {
            let status = storage.status.as_ref();
            status.is_some_and(|s| {
                s.fenced_volume_groups == "san"
                    && s.watchdog.as_ref().is_some_and(|w| w.state == "Idle")
            })
        },
    )
    .await?;
    bed.withdraw("life").await?;
    bed.forgets("life").await?;
    agent.stop().await?;
    node.unharmed()
}

pub async fn a_fence_that_is_opened_is_closed_and_told_with_its_time(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "opened-1").await?;
    let agent = node.start_agent().await?;
    bed.ask("opened", &node.name, json!({})).await?;
    bed.settles("opened", "Fenced", &["LocksReleased=True/Released"])
        .await?;
    // As lvchange --refresh does.
    let below = DevNo { major: 8, minor: 9 };
    node.simulation.state(|s| s.refresh("san-lv0", below));
    bed.reports(
        &node.name,
        "one opening, how long it lasted and of what",
        |storage| {
            let fences = storage.status.as_ref().map(|s| s.fences.as_slice());
            let told = fences
                .unwrap_or_default()
                .iter()
                .find(|f| f.volume_group == "san");
            told.is_some_and(|f| {
                f.openings == 1
                    && f.last_opening_milliseconds.is_some_and(|ms| ms >= 0)
                    && f.last_opening_devices == ["san-lv0"]
            })
        },
    )
    .await?;
    for reason in ["FenceOpened", "FenceClosedAgain"] {
        bed.told("Node", &node.name, reason, "storage-fence-agent")
            .await?;
    }
    let open = node.simulation.state(|s| s.not_fenced(&uuid_of("san")));
    ensure(open.is_empty(), format!("closed again: {open:?}"))?;
    bed.withdraw("opened").await?;
    bed.forgets("opened").await?;
    agent.stop().await?;
    node.unharmed()
}

/// What the status says is what was done on the node.
fn evidence(request: &StorageFenceRequest, node: &TestNode<'_>) -> Result {
    let status = request.status.as_ref().context("no status")?;
    let fence = status.node.as_ref().context("no status.node")?;
    ensure(
        fence.started_at.is_some() && fence.finished_at >= fence.started_at,
        "began and ended",
    )?;
    let [group] = fence.volume_groups.as_slice() else {
        return Err(format!("one volume group: {:?}", fence.volume_groups).into());
    };
    ensure_eq("name", group.name.as_str(), "san")?;
    ensure_eq("UUID", group.uuid.clone(), uuid_of("san"))?;
    ensure_eq(
        "host id and generation",
        (group.host_id, group.generation),
        (Some(7), Some(3)),
    )?;
    ensure_eq("paths", (group.paths_active, group.paths_total), (0, 2))?;
    ensure_eq(
        "devices",
        (group.devices_proven, group.devices_total),
        (3, 3),
    )?;
    ensure(group.locks_released, "locks released")?;
    let open = node.simulation.state(|s| s.not_fenced(&uuid_of("san")));
    ensure(
        open.is_empty(),
        format!("on the node itself nothing is left open: {open:?}"),
    )?;
    ensure(
        !node.simulation.state(|s| s.held(&uuid_of("san"))),
        "nor is the lockspace held",
    )?;
    let steps: Vec<&str> = fence.steps.iter().map(|s| s.step.as_str()).collect();
    let mut last = 0;
    for wanted in [
        "FreezeLocks",
        "Quiesce",
        "Swap",
        "Verify",
        "Release",
        "ConfirmRelease",
    ] {
        let at = steps
            .iter()
            .position(|s| *s == wanted)
            .context(format!("no step {wanted} in {steps:?}"))?;
        ensure(at >= last, format!("{wanted} in its place: {steps:?}"))?;
        last = at;
    }
    let watchdog = fence.watchdog.as_ref().context("no watchdog")?;
    ensure(
        watchdog.armed && watchdog.disarmed_after_milliseconds.is_some(),
        format!("{watchdog:?}"),
    )
}

/// Each writes its own fields, and no other.
fn managers(request: &StorageFenceRequest) -> Result {
    let of = |manager: &str| -> Result<Value> {
        let entries = request
            .metadata
            .managed_fields
            .as_ref()
            .context("no managed fields")?;
        let mut ours = entries.iter().filter(|e| {
            e.manager.as_deref() == Some(manager) && e.subresource.as_deref() == Some("status")
        });
        let entry = ours
            .next()
            .context(format!("{manager} has written nothing"))?;
        ensure(
            ours.next().is_none(),
            format!("{manager} writes in one way"),
        )?;
        ensure_eq("operation", entry.operation.as_deref(), Some("Apply"))?;
        let fields = entry.fields_v1.as_ref().context("no fields")?;
        Ok(fields.0["f:status"].clone())
    };
    let has = |fields: &Value, type_: &str| {
        !fields["f:conditions"][format!("k:{{\"type\":\"{type_}\"}}")].is_null()
    };
    let (agent, controller) = (of("storage-fence-agent")?, of("storage-fence-controller")?);
    for (field, whose) in [
        ("f:node", &agent),
        ("f:phase", &controller),
        ("f:message", &controller),
    ] {
        for fields in [&agent, &controller] {
            ensure_eq(
                &format!("{field} is written"),
                !fields[field].is_null(),
                std::ptr::eq(fields, whose),
            )?;
        }
    }
    for (type_, by_agent) in [
        ("Accepted", false),
        ("AgentReady", false),
        ("Fenced", true),
        ("LocksReleased", true),
    ] {
        let by = (has(&agent, type_), has(&controller, type_));
        ensure_eq(
            &format!("{type_} is written by agent and controller"),
            by,
            (by_agent, !by_agent),
        )?;
    }
    Ok(())
}

pub async fn nothing_is_written_while_nothing_changes(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "quiet-1").await?;
    let other = TestNode::join_with(bed, "quiet-2", &storage(2)).await?;
    let (agent, other_agent) = (node.start_agent().await?, other.start_agent().await?);
    bed.ask("quiet-fenced", &node.name, json!({})).await?;
    bed.ask("quiet-refused", &other.name, json!({})).await?;
    bed.settles("quiet-fenced", "Fenced", &["LocksReleased=True/Released"])
        .await?;
    bed.settles(
        "quiet-refused",
        "Rejected",
        &["Fenced=False/NothingAffected"],
    )
    .await?;
    bed.reports(&node.name, "fenced, idle", |storage| {
        let status = storage.status.as_ref();
        status.is_some_and(|s| {
            s.fenced_volume_groups == "san"
                && s.watchdog.as_ref().is_some_and(|w| w.state == "Idle")
                && s.volume_groups.iter().all(|g| g.lockspace.is_none())
        })
    })
    .await?;
    // Whose pods are affected is told when two searches have looked.
    bed.sees("quiet-fenced", "nobody's", |r| {
        r.status.as_ref().is_some_and(|s| s.affected_pods.is_some())
    })
    .await?;
    let versions = async || -> Result<Vec<String>> {
        let storages = bed.all::<storage_fence::api::NodeStorage>();
        Ok(vec![
            version(&bed.requests().get("quiet-fenced").await?),
            version(&bed.requests().get("quiet-refused").await?),
            version(&storages.get(&node.name).await?),
            version(&storages.get(&other.name).await?),
        ])
    };
    // The agents look every second, and decide anew every five: twice that and more.
    let before = versions().await?;
    tokio::time::sleep(std::time::Duration::from_secs(13)).await;
    ensure_eq(
        "resource versions of requests and reports",
        versions().await?,
        before,
    )?;

    // And the paths' return is a change.
    other.paths(1);
    bed.reports(&other.name, "1/2 paths", |s| {
        s.status.as_ref().is_some_and(|s| s.paths == "1/2")
    })
    .await?;
    for name in ["quiet-fenced", "quiet-refused"] {
        bed.withdraw(name).await?;
    }
    other.untouched()?;
    agent.stop().await?;
    other_agent.stop().await
}
