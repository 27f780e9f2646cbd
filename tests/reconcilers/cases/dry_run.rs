//! A dry run.

use std::collections::BTreeSet;

use serde_json::json;
use storage_fence::agent::report::AgentPart;
use storage_fence::api::StorageFenceRequest;
use storage_fence::api::request::{DeviceOutcome, StepResult};

use crate::bed::Bed;
use crate::node::TestNode;
use crate::support::{Context, Result};
use crate::wait::{ensure, ensure_eq};

/// Steps in order, and devices with their UUIDs, as a status lists them.
type Listed = (Vec<(String, Option<String>)>, BTreeSet<(String, String)>);

fn listed(request: &StorageFenceRequest) -> Result<Listed> {
    let fence = request
        .status
        .as_ref()
        .and_then(|s| s.node.as_ref())
        .context("no status.node")?;
    let steps = fence
        .steps
        .iter()
        .map(|s| (s.step.clone(), s.volume_group.clone()));
    let devices = fence.volume_groups.iter().flat_map(|g| &g.devices);
    Ok((
        steps.collect(),
        devices.map(|d| (d.name.clone(), d.uuid.clone())).collect(),
    ))
}

pub async fn a_dry_run_touches_nothing_and_lists_what_the_run_does(bed: &Bed) -> Result {
    let node = TestNode::join(bed, "dry-1").await?;
    let agent = node.start_agent().await?;
    let tables = || {
        node.simulation
            .state(|s| s.devices.values().map(|d| d.dm.clone()).collect::<Vec<_>>())
    };
    let before = tables();
    bed.ask("dry", &node.name, json!({ "dryRun": true }))
        .await?;
    let dry = bed
        .settles(
            "dry",
            "DryRunComplete",
            &["Accepted=True/Valid", "Fenced=False/DryRun"],
        )
        .await?;
    node.untouched()?;
    ensure(tables() == before, "every table is as it was")?;
    let plan = dry
        .status
        .as_ref()
        .and_then(|s| s.node.as_ref())
        .context("no plan")?;
    ensure(
        plan.dry_run && plan.steps.iter().all(|s| s.result == StepResult::Planned),
        "all steps are Planned",
    )?;
    let outcomes = plan
        .volume_groups
        .iter()
        .flat_map(|g| &g.devices)
        .map(|d| d.outcome);
    ensure(
        outcomes.clone().count() == 3 && outcomes.clone().all(|o| o == DeviceOutcome::Planned),
        "all three devices are Planned",
    )?;

    // It neither keeps a real one waiting nor is it touched by it.
    bed.ask("dry-meant", &node.name, json!({})).await?;
    let real = bed
        .settles(
            "dry-meant",
            "Fenced",
            &["Fenced=True/Proven", "LocksReleased=True/Released"],
        )
        .await?;
    ensure_eq(
        "what the run did is what was listed",
        listed(&real)?,
        listed(&dry)?,
    )?;
    let swapped: BTreeSet<String> = node
        .simulation
        .log()
        .iter()
        .filter_map(|l| l.strip_prefix("swap ").map(str::to_owned))
        .collect();
    let names: BTreeSet<String> = listed(&dry)?.1.into_iter().map(|(name, _)| name).collect();
    ensure_eq("swapped on the node", swapped, names)?;
    let after = bed.requests().get("dry").await?;
    ensure(
        AgentPart::of(&after.status.unwrap_or_default())
            == AgentPart::of(&dry.status.unwrap_or_default()),
        "the dry run's answer stays",
    )?;
    for name in ["dry", "dry-meant"] {
        bed.withdraw(name).await?;
    }
    agent.stop().await?;
    node.unharmed()
}
