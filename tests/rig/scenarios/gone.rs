//! Storage that does not return: the LUN is unmapped, and its disks are taken away from the node.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::operator::condition;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on};
use super::policy::{no_requests, wait_for_paths, with_policy};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "policy-device-gone",
        about: "a LUN is unmapped, under multipath and without: fenced at once as gone for good, and not after the delay for paths that may return",
        shape: Shape::kubernetes,
        tell: device_gone,
    }]
}

/// Longer than any node of this lives without its storage: it cannot be what sets the policy off.
const PATHS_DOWN: u64 = 300;
const GONE: &str = "    permanentDeviceLoss: {forSeconds: 2}\n";
/// An agent that is told by nobody looks every 5 s; the rest is the trigger's 2 s, and air for an emulated node.
const KNOWN: Duration = Duration::from_secs(20);

fn device_gone(cluster: &mut Cluster) -> Result {
    with_policy(cluster, PATHS_DOWN, GONE)?;
    cluster.mark_dirty();
    for name in ["n1", "n2"] {
        cluster.node(name)?.sh_within(
            &format!("for n in 0 1; do lvcreate -qq -y -aey -Wn -Zn -L 16M -n {name}-$n san; done"),
            Duration::from_secs(120),
        )?;
    }
    let n1 = cluster.node("n1")?;
    let boot_id = n1.boot_id()?;
    let writer = Writer::start(n1, "gone", "/dev/san/n1-0")?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;

    // No longer than the lease, which is lost 16 s after its last renewal.
    say("every path of n1 is cut for some seconds: they may return, and do");
    cluster.san.cut_all("n1", None)?;
    wait_for_paths(cluster, "n1", ("False", "AllPathsDown"))?;
    std::thread::sleep(Duration::from_secs(5));
    cluster.san.restore_all("n1", None)?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;
    no_requests(cluster)?;
    let n1 = cluster.node("n1")?;
    ensure(
        !writer.state(n1)?.ended && linear(cluster, "n1")?,
        "nothing was fenced for that, and the writer goes on",
    )?;

    say("the LUN is unmapped from n1");
    let unmapped = Instant::now();
    cluster.node_mut("n1")?.unmap(0)?;
    fenced_as_gone(cluster, "n1", unmapped)?;
    let n1 = cluster.node("n1")?;
    let end = writer.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(end.errno == Some(5), "the writer got EIO")?;
    ensure(
        cluster.node("n2")?.watchdog_armed()? && linear(cluster, "n2")?,
        "n2, which still has it, was left alone",
    )?;

    say("and from n2, which has no multipath");
    let n2 = cluster.node("n2")?;
    let n2_boot = n2.boot_id()?;
    wait_for_paths(cluster, "n2", ("True", "PathsWork"))?;
    let also = Instant::now();
    cluster.node_mut("n2")?.unmap(0)?;
    fenced_as_gone(cluster, "n2", also)?;

    // A watchdog that still counted would have reset n1 76 s after its last renewal, and n2 as well.
    std::thread::sleep(Duration::from_secs(90).saturating_sub(also.elapsed()));
    for (name, boot_id) in [("n1", boot_id), ("n2", n2_boot)] {
        lives_on(cluster.node(name)?, &boot_id)?;
    }
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// Whether every volume that is active there still has its table.
fn linear(cluster: &Cluster, node: &str) -> Result<bool> {
    let targets = cluster.node(node)?.lv_targets("san")?;
    Ok(targets.len() == 2 && targets.iter().all(|(_, kind)| kind == "linear"))
}

/// The node fences itself in the time that what is gone for good takes, and its record says so.
fn fenced_as_gone(cluster: &Cluster, name: &str, unmapped: Instant) -> Result {
    let control_plane = cluster.control_plane()?;
    let record = until(
        &format!("{name} fences itself: its storage is gone for good"),
        KNOWN,
        || {
            let said = control_plane.kubectl(&["get", "sfr", "-o", "json"])?;
            let all: Value = serde_json::from_str(&said)?;
            let all = all["items"].as_array().cloned().unwrap_or_default();
            Ok(all.into_iter().find(|r| r["spec"]["nodeName"] == name))
        },
    )?;
    let seconds = unmapped.elapsed().as_secs_f64();
    let request = record["metadata"]["name"].as_str().context("a name")?;
    let reason = record["spec"]["reason"].as_str().unwrap_or_default();
    ensure(
        record["metadata"]["annotations"]["storagefence.io/trigger"] == "PermanentDeviceLoss"
            && reason.contains("gone for good"),
        format!("recorded {seconds:.1} s after it was unmapped: {reason}"),
    )?;
    wait_for_paths(cluster, name, ("False", "PermanentDeviceLoss"))?;
    let proven = control_plane.wait_for_condition(request, "LocksReleased", "True", FENCE_LIMIT)?;
    ensure(
        condition(&proven, "Fenced").is_some_and(|c| c["status"] == "True"),
        format!(
            "proven and released {:.1} s after it was unmapped",
            unmapped.elapsed().as_secs_f64()
        ),
    )?;
    let node = cluster.node(name)?;
    all_error(node, "san", 2)?;
    ensure(!node.watchdog_armed()?, "the watchdog lets go")
}
