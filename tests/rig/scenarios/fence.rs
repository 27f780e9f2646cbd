//! The main job, end to end: a node loses its SAN, a person applies a StorageFenceRequest, and the node lives on.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::control_plane::ControlPlane;
use crate::harness::node::Node;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::timeline::Timeline;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// From the request to the released locks. The mechanism needs 2 to 3 s; an emulated node that shares its CPU needs air.
pub const FENCE_LIMIT: Duration = Duration::from_secs(45);

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "dry-run",
            about: "a dry run changes nothing and lists exactly what the real run then does; a healthy node is fenced only when that is meant",
            shape: Shape::kubernetes,
            tell: dry_run,
        },
        Scenario {
            name: "no-multipath",
            about: "a node whose PVs are plain disks: straight to the swap; its agent comes on demand and goes again",
            shape: Shape::kubernetes,
            tell: no_multipath_on_demand,
        },
    ]
}

/// LVs `lv0`, `lv1`… of a VG on a node, each with a writer.
pub fn volumes_in_use(node: &Node, vg: &str, count: usize) -> Result<Vec<Writer>> {
    for n in 0..count {
        node.sh(&format!(
            "lvcreate -qq -y -aey -Wn -Zn -L 16M -n lv{n} {vg}"
        ))?;
    }
    (0..count)
        .map(|n| Writer::start(node, &format!("lv{n}"), &format!("/dev/{vg}/lv{n}")))
        .collect()
}

/// All tables of the VG's LVs are `error`, by the kernel's word and not by ours.
pub fn all_error(node: &Node, vg: &str, count: usize) -> Result {
    let targets = node.lv_targets(vg)?;
    let wrong: Vec<_> = targets.iter().filter(|(_, kind)| kind != "error").collect();
    ensure(
        targets.len() == count && wrong.is_empty(),
        format!(
            "dmsetup table on {} says `error` for all {count} volumes {wrong:?}",
            node.name()
        ),
    )
}

/// The watchdog does not count on any lockspace, sanlock has none, and the host is the one that it was.
pub fn lives_on(node: &Node, boot_id: &str) -> Result {
    ensure(
        !node.watchdog_armed()?,
        format!(
            "{}: wdmd has no client, the watchdog is disarmed",
            node.name()
        ),
    )?;
    ensure(
        node.reset().is_none() && node.boot_id()? == boot_id,
        format!("{} was not reset", node.name()),
    )
}

fn dry_run(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let control_plane = cluster.control_plane()?;
    let n1 = cluster.node("n1")?;
    first_steps(control_plane)?;
    let writers = volumes_in_use(n1, "san", 3)?;
    let tables = n1.sh("dmsetup table --showkeys; multipathd show maps raw format '%n %Q'")?;

    control_plane.apply(&request_yaml("healthy", "n1", &[]))?;
    let request = control_plane.wait_for_phase("healthy", "Rejected", FENCE_LIMIT)?;
    let message = request["status"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure(
        condition(&request, "Fenced").is_some_and(|c| c["reason"] == "NothingAffected"),
        format!("a healthy node is not fenced by a plain request: {message}"),
    )?;
    control_plane.kubectl(&["delete", "sfr", "healthy"])?;

    let spec = [
        "volumeGroups: {mode: Named, names: [san]}",
        "whenPathsRemain: Fence",
    ];
    control_plane.apply(&request_yaml(
        "planned",
        "n1",
        &[&spec[..], &["dryRun: true"]].concat(),
    ))?;
    let dry = control_plane.wait_for_phase("planned", "DryRunComplete", FENCE_LIMIT)?;
    ensure(
        n1.sh("dmsetup table --showkeys; multipathd show maps raw format '%n %Q'")? == tables,
        "after the dry run every table is what it was",
    )?;
    for writer in &writers {
        ensure(!writer.state(n1)?.ended, format!("{} goes on", writer.name))?;
    }
    control_plane.kubectl(&["delete", "sfr", "planned"])?;

    let boot_id = n1.boot_id()?;
    cluster.node_mut("n1")?.mark_dirty();
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    control_plane.apply(&request_yaml("meant", "n1", &spec))?;
    let real = control_plane.wait_for_condition("meant", "LocksReleased", "True", FENCE_LIMIT)?;
    ensure(
        steps(&dry) == steps(&real) && !steps(&dry).is_empty(),
        format!(
            "the real run took the steps of the dry run: {}",
            steps(&real).join(", ")
        ),
    )?;
    ensure(
        devices(&dry) == devices(&real) && devices(&dry).len() >= 3,
        format!(
            "to the devices of the dry run: {}",
            devices(&real).join(", ")
        ),
    )?;
    all_error(n1, "san", 3)?;
    lives_on(n1, &boot_id)
}

/// How long a request waits for its agent: measured on a node that has nothing else to do, by requests that touch nothing.
fn first_steps(control_plane: &ControlPlane) -> Result {
    let mut waits = Vec::new();
    for n in 0..5 {
        let name = format!("first-step-{n}");
        let timeline = Timeline::quiet(control_plane, &name)?;
        let spec = [
            "dryRun: true",
            "volumeGroups: {mode: AllShared}",
            "whenPathsRemain: Fence",
        ];
        let begin = Instant::now();
        control_plane.apply(&request_yaml(&name, "n1", &spec))?;
        let applied = begin.elapsed();
        let answered = timeline
            .wait_for("Fenced=", FENCE_LIMIT)?
            .saturating_duration_since(begin);
        waits.push((answered, applied));
        control_plane.kubectl(&["delete", "sfr", &name])?;
    }
    waits.sort();
    let (answered, applied) = waits[waits.len() / 2];
    say(format!(
        "    measured: from the start of kubectl apply to the agent's answer in the API {} ms (median of {}; kubectl itself took {} ms)",
        answered.as_millis(),
        waits.len(),
        applied.as_millis()
    ));
    Ok(())
}

/// Names of the steps of a request, in order.
fn steps(request: &Value) -> Vec<String> {
    let steps = request["status"]["node"]["steps"].as_array().cloned();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    steps
        .unwrap_or_default()
        .iter()
        .map(|step| text(&step["step"]))
        .collect()
}

/// Names of its devices.
fn devices(request: &Value) -> Vec<String> {
    let groups = request["status"]["node"]["volumeGroups"]
        .as_array()
        .cloned();
    let mut names: Vec<String> = groups
        .unwrap_or_default()
        .iter()
        .flat_map(|group| group["devices"].as_array().cloned().unwrap_or_default())
        .filter_map(|device| device["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn no_multipath_on_demand(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&["agent.mode=OnDemand"])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    until("no node has an agent", Duration::from_secs(120), || {
        Ok(
            (cluster.agent_pod("n1")?.is_none() && cluster.agent_pod("n2")?.is_none())
                .then_some(()),
        )
    })?;
    let n2 = cluster.node("n2")?;
    let writers = volumes_in_use(n2, "san", 2)?;
    let boot_id = n2.boot_id()?;
    cluster.node_mut("n2")?.mark_dirty();
    cluster.san.cut_all("n2", None)?;
    let (n2, control_plane) = (cluster.node("n2")?, cluster.control_plane()?);
    for writer in &writers {
        let end = writer.wait_for_end(n2, Duration::from_secs(60))?;
        ensure(
            end.errno == Some(5),
            format!("{}: without multipath EIO comes by itself", writer.name),
        )?;
    }
    ensure(
        n2.watchdog_armed()?,
        "the LVs are active all the same, and the watchdog counts",
    )?;
    // A path that fails only by its I/O is running as far as sysfs knows; the person says what is meant.
    control_plane.apply(&request_yaml(
        "n2-san",
        "n2",
        &[
            "volumeGroups: {mode: AllShared}",
            "whenPathsRemain: Fence",
            "deletionPolicy: Retain",
        ],
    ))?;
    let request =
        control_plane.wait_for_condition("n2-san", "LocksReleased", "True", FENCE_LIMIT)?;
    let quiesce = request["status"]["node"]["steps"]
        .as_array()
        .and_then(|steps| steps.iter().find(|step| step["step"] == "Quiesce"))
        .context("no Quiesce among the steps")?;
    ensure(
        quiesce["result"] == "Skipped",
        format!("no queueing had to be turned off: {quiesce}"),
    )?;
    ensure(cluster.agent_pod("n1")?.is_none(), "no agent came to n1")?;
    all_error(n2, "san", 2)?;
    lives_on(n2, &boot_id)?;
    control_plane.kubectl(&["delete", "sfr", "n2-san"])?;
    until(
        "n2's agent is gone when no request needs it",
        Duration::from_secs(120),
        || Ok(cluster.agent_pod("n2")?.is_none().then_some(())),
    )?;
    let label =
        control_plane.kubectl(&["get", "node", "n2", "-o", "jsonpath={.metadata.labels}"])?;
    ensure(!label.contains("agent-wanted"), "and its label is gone")
}
