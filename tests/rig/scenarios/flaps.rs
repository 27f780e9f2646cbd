//! Paths that are gone for shorter than a policy waits, once, and again and again.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::fence::volumes_in_use;
use super::policy::{DELAY, QUIET, no_requests, wait_for_paths, with_policy};
use crate::harness::operator::condition;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say};

/// The scenarios of this file; they mostly wait for nothing to happen.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "policy-short-cut",
        about: "a cut shorter than the policy's delay: nothing happens, the Node's conditions tell; paths that flap for a minute: one fence at most",
        shape: Shape::kubernetes,
        tell: short_cut,
    }]
}

fn short_cut(cluster: &mut Cluster) -> Result {
    with_policy(cluster, 4 * DELAY, "")?;
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", 3)?;
    let boot_id = n1.boot_id()?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;

    say("every path of n1 is cut for less than the policy's delay");
    cluster.san.cut_all("n1", None)?;
    wait_for_paths(cluster, "n1", ("False", "AllPathsDown"))?;
    cluster.san.restore_all("n1", None)?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;
    conditions_stay(cluster)?;
    no_requests(cluster)?;
    let n1 = cluster.node("n1")?;
    let tables = n1.lv_targets("san")?;
    ensure(
        tables.iter().all(|(_, kind)| kind != "error"),
        "no table was touched",
    )?;
    for writer in &writers {
        ensure(!writer.state(n1)?.ended, format!("{} goes on", writer.name))?;
    }

    say("the paths flap for a minute");
    cluster.node_mut("n1")?.mark_dirty();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        cluster.san.cut_all("n1", None)?;
        std::thread::sleep(Duration::from_secs(1));
        cluster.san.restore_all("n1", None)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    std::thread::sleep(QUIET);
    let control_plane = cluster.control_plane()?;
    let requests = control_plane.kubectl(&["get", "sfr", "-o", "name"])?;
    ensure(
        requests.lines().count() <= 1,
        format!("it was fenced at most once: {requests:?}"),
    )?;
    let n1 = cluster.node("n1")?;
    ensure(
        n1.reset().is_none() && n1.boot_id()? == boot_id,
        "n1 was not reset",
    )?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// Our conditions of a Node, and who wrote when.
#[derive(Debug)]
struct Written {
    ours: Vec<Value>,
    by_us: Vec<Value>,
    kubelet: Value,
}

fn written(cluster: &Cluster) -> Result<Written> {
    let get = ["get", "node", "n1", "-o", "json", "--show-managed-fields"];
    let node: Value = serde_json::from_str(&cluster.control_plane()?.kubectl(&get)?)?;
    let some = |list: &Value, is: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        let all = list.as_array().into_iter().flatten();
        all.filter(|v| is(v)).cloned().collect()
    };
    let is_ours = |c: &Value| {
        let type_ = c["type"].as_str();
        type_.is_some_and(|t| t.starts_with("storagefence.io/"))
    };
    let by_us = some(&node["metadata"]["managedFields"], &|m| {
        m["manager"] == "storage-fence-agent"
    });
    Ok(Written {
        ours: some(&node["status"]["conditions"], &is_ours),
        by_us: by_us.iter().map(|m| m["time"].clone()).collect(),
        kubelet: condition(&node, "Ready").context("a kubelet reports")?["lastHeartbeatTime"]
            .clone(),
    })
}

/// While nothing happens and the kubelet writes its conditions every other second, ours are as they were, and nobody has to write them again.
fn conditions_stay(cluster: &Cluster) -> Result {
    let before = written(cluster)?;
    std::thread::sleep(QUIET);
    let after = written(cluster)?;
    ensure(
        before.kubelet != after.kubelet,
        format!(
            "the kubelet wrote its conditions meanwhile: {} {}",
            before.kubelet, after.kubelet
        ),
    )?;
    ensure(
        after.ours.len() == 2 && after.ours == before.ours,
        format!("both of ours are as they were: {:?}", after.ours),
    )?;
    ensure(
        !after.by_us.is_empty() && after.by_us == before.by_us,
        format!(
            "and nobody wrote them meanwhile: {:?} {:?}",
            before.by_us, after.by_us
        ),
    )
}
