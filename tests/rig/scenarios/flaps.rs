//! Paths that are gone for shorter than a policy waits, once, and again and again.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::fence::volumes_in_use;
use super::hook::crashes::Look;
use super::policy::{DELAY, QUIET, in_force, no_requests, wait_for_paths, with_policy};
use crate::harness::node::Node;
use crate::harness::operator::condition;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

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
    idle(cluster)?;

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

    flapping(cluster, &boot_id)?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// The CPU time of each of the agent's threads, in the kernel's own ticks of 10 ms, now and a minute later.
const BY_THREAD: &str = "p=$(pgrep -of '^/storage-fence agent'); \
     all() { for t in /proc/$p/task/*; do echo \"$(cat $t/comm) $(sed 's/.*) //' $t/stat | awk '{print $12+$13}')\"; done; }; \
     all >/run/before; sleep 60; all >/run/after; paste -d ' ' /run/before /run/after | awk '{d=$NF-$(NF/2); sum+=d; printf \"%s %d, \", $1, d} END {print \"all \" sum}'";

/// What the agent takes while nothing happens. The emulated core is a dozen times slower than the machine's: said, not judged.
fn idle(cluster: &Cluster) -> Result {
    std::thread::sleep(Duration::from_secs(30));
    let ready = || -> Result<Value> {
        let node = cluster.control_plane()?.object("node", "n1")?;
        let ready = condition(&node.context("a Node")?, "Ready").cloned();
        Ok(ready.context("a kubelet reports")?["lastTransitionTime"].clone())
    };
    let before = ready()?;
    let ticks = cluster
        .node("n1")?
        .sh_within(BY_THREAD, Duration::from_secs(120))?;
    say(format!(
        "    the idle agent of n1, in ticks of 10 ms within a minute: {ticks}"
    ));
    ensure(
        ready()? == before,
        "the Node was Ready all the time: else nothing was idle",
    )
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

/// The kubelet once more, which writes its conditions every other second now, changed or not.
const WRITES_OFTEN: &str = "sed '$a nodeStatusUpdateFrequency: 2s' /payload/node/kubelet.yaml >/run/kubelet.yaml; \
     p=$(pgrep -of '^/payload/bin/kubernetes kubelet'); tr '\\0' '\\n' </proc/$p/cmdline | sed 's|/payload/node/kubelet.yaml|/run/kubelet.yaml|' >/run/kubelet.args; \
     kill $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done; \
     setsid xargs -a /run/kubelet.args -d '\\n' env >/run/kubelet-again.log 2>&1 </dev/null &";

/// The kubelet writes its conditions every other second meanwhile, and ours are as they were.
fn conditions_stay(cluster: &Cluster) -> Result {
    let restarted = written(cluster)?.kubelet;
    cluster.node("n1")?.sh(WRITES_OFTEN)?;
    until("the kubelet writes again", Duration::from_secs(60), || {
        Ok((written(cluster)?.kubelet != restarted).then_some(()))
    })?;
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

/// What `begun` has, once for each fence that begins while it runs: the journal's first line, which the next fence's takes the place of.
const BEGUN: &str = "rm -f /run/flap.*; cd /run; head -n1 storage-fence/journal >flap.before 2>/dev/null; \
     setsid sh -c 'until test -e flap.over; do head -n1 storage-fence/journal >>flap.begun 2>/dev/null; sleep 0.2; done' >/dev/null 2>&1 </dev/null &";
/// How many of them were not there before.
const HOW_MANY: &str =
    "touch /run/flap.over; sort -u /run/flap.begun | grep -cvxFf /run/flap.before || true";
/// A path is looked at every second, failed or not: what is failed for a second comes back within another.
const LOOK_OFTEN: &str = "sed -i 's/polling_interval 2/polling_interval 1\\n\\tmax_polling_interval 1/' /etc/multipath.conf && multipathd reconfigure";
/// Of the kernel's lines that it fails or reinstates a path, by then: thirty times two in a minute, if it sees all of them.
const FLAPS: usize = 10;

fn count(node: &Node, line: &str) -> Result<usize> {
    let count = node.sh(&format!("dmesg | grep -c '{line}' || true"))?;
    count.parse().context("a number of lines")
}

/// Under a policy that waits for hardly longer than a path is gone each time: what becomes of it may be a fence, and is not two, nor half of one.
fn flapping(cluster: &mut Cluster, boot_id: &str) -> Result {
    say("the policy waits for 2 s only, and the paths flap for a minute");
    in_force(cluster, 2, "")?;
    cluster.node_mut("n1")?.mark_dirty();
    let n1 = cluster.node("n1")?;
    n1.sh(LOOK_OFTEN)?;
    until("both paths work", Duration::from_secs(60), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;
    n1.sh(BEGUN)?;
    let seen = [count(n1, "Failing path")?, count(n1, "Reinstating path")?];
    let begin = Instant::now();
    let (mut failed, mut reinstated) = (0, 0);
    // multipathd does not see each of them: on a slow machine it takes longer until it has seen enough.
    while begin.elapsed() < Duration::from_secs(60)
        || (failed.min(reinstated) < FLAPS && begin.elapsed() < Duration::from_secs(120))
    {
        cluster.san.cut_all("n1", None)?;
        std::thread::sleep(Duration::from_secs(1));
        cluster.san.restore_all("n1", None)?;
        std::thread::sleep(Duration::from_secs(1));
        let n1 = cluster.node("n1")?;
        failed = count(n1, "Failing path")?.saturating_sub(seen[0]);
        reinstated = count(n1, "Reinstating path")?.saturating_sub(seen[1]);
    }
    let n1 = cluster.node("n1")?;
    ensure(
        failed >= FLAPS && reinstated >= FLAPS,
        format!("the kernel failed a path {failed} times, and reinstated one {reinstated} times"),
    )?;
    std::thread::sleep(QUIET);
    let begun: usize = n1.sh(HOW_MANY)?.parse().context("how many began")?;
    let kept = n1.sh("cat /run/storage-fence/local-fences.json 2>/dev/null || echo '{}'")?;
    let kept: Value = serde_json::from_str(&kept).context("local-fences.json")?;
    let kept = kept["content"].as_array().map_or(0, Vec::len);
    let requests = cluster
        .control_plane()?
        .kubectl(&["get", "sfr", "-o", "name"])?;
    let records = requests.lines().count();
    ensure(
        begun <= 1 && kept <= 1 && records <= begun,
        format!("at most one fence began: {begun}; {kept} kept, {records} recorded"),
    )?;
    let look = Look::at(n1)?;
    let targets = n1.lv_targets("san")?;
    let cut_off = targets.iter().filter(|(_, kind)| kind == "error").count();
    ensure(
        look.suspended().is_empty()
            && look.waiting().is_empty()
            && !targets.is_empty()
            && (cut_off == 0 || cut_off == targets.len()),
        format!(
            "nothing is suspended or half swapped: {cut_off} of {} volumes are cut off",
            targets.len()
        ),
    )?;
    ensure(
        cut_off == 0 || begun == 1 && records == 1,
        "what is cut off was seen to begin, and is recorded",
    )?;
    let frozen =
        n1.sh("/payload/bin/storage-fence inspect | grep -c '\"frozen\": *true' || true")?;
    ensure(
        if cut_off == 0 {
            look.held("san") && frozen == "0"
        } else {
            look.released("san")
        },
        format!("and nothing is half released: {frozen} lockspaces are frozen"),
    )?;
    ensure(
        n1.reset().is_none() && n1.boot_id()? == boot_id,
        "n1 was not reset",
    )
}
