//! What nodes do by themselves: a StorageFencePolicy is in force, and nobody asks for anything.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::node::Node;
use crate::harness::operator::condition;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};
use super::outage::Outage;

/// Longer than it takes a person to see that nothing happens, and than the policy's delay.
pub const QUIET: Duration = Duration::from_secs(25);
/// The policy's delay.
pub const DELAY: u64 = 10;

/// The scenarios of this file that always run.
pub fn scenarios() -> Vec<Scenario> {
    vec![alone_scenario()]
}

/// Those that mostly wait for nothing to happen.
pub fn long() -> Vec<Scenario> {
    vec![black_hole_scenario()]
}

fn alone_scenario() -> Scenario {
    Scenario {
        name: "policy-alone",
        about: "the API server is stopped, then every node loses every path in the same second: each fences itself, none is reset, the \
                    records appear when the API server returns, also after a restart of the agent",
        shape: Shape::kubernetes,
        tell: alone,
    }
}

fn black_hole_scenario() -> Scenario {
    Scenario {
        name: "policy-black-hole",
        about: "a black hole: no path fails, the lease tells; nothing is released while I/O is under way, and when it ends in time the fence is \
                    proven",
        shape: Shape::kubernetes,
        tell: black_hole,
    }
}

/// With io_timeout 2, renewals come every 4 s: 20 s are five of them.
pub const RENEWALS: &str = "    renewalsFailing: {forSeconds: 20}\n";

fn policy_yaml(delay: u64, more: &str) -> String {
    format!(
        "apiVersion: storagefence.io/v1alpha1\nkind: StorageFencePolicy\nmetadata:\n  name: san\nspec:\n  response: Fence\n  triggers:\n    \
         allPathsDown: {{forSeconds: {delay}}}\n{more}"
    )
}

/// Installs the operator and a policy, and waits until every node has it in force.
pub fn with_policy(cluster: &mut Cluster, delay: u64, more: &str) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    in_force(cluster, delay, more)
}

/// The policy, as it is from now on.
pub fn in_force(cluster: &Cluster, delay: u64, more: &str) -> Result {
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&policy_yaml(delay, more))?;
    until(
        "the policy governs both nodes",
        Duration::from_secs(60),
        || {
            let policy = control_plane.object("storagefencepolicy", "san")?;
            Ok(policy
                .is_some_and(|p| p["status"]["nodes"] == "2/2")
                .then_some(()))
        },
    )?;
    let seconds = format!("\"forSeconds\":{delay}");
    for node in cluster.nodes() {
        until(
            &format!("{} keeps the policy", node.name()),
            Duration::from_secs(30),
            || {
                let kept = node.sh("cat /run/storage-fence/policies.json 2>/dev/null || true")?;
                Ok(kept.contains(&seconds).then_some(()))
            },
        )?;
    }
    Ok(())
}

/// A condition of the Node: its status and reason.
pub fn node_condition(cluster: &Cluster, node: &str, type_: &str) -> Result<(String, String)> {
    let node = cluster
        .control_plane()?
        .object("node", node)?
        .context(format!("there is no node {node}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(condition(&node, type_)
        .map(|c| (text(&c["status"]), text(&c["reason"])))
        .unwrap_or_default())
}

pub fn wait_for_paths(cluster: &Cluster, node: &str, wanted: (&str, &str)) -> Result {
    let type_ = "storagefence.io/SANPathsAvailable";
    until(
        &format!("{type_} of {node} is {} ({})", wanted.0, wanted.1),
        Duration::from_secs(60),
        || {
            let (status, reason) = node_condition(cluster, node, type_)?;
            Ok((status == wanted.0 && reason == wanted.1).then_some(()))
        },
    )
}

pub fn no_requests(cluster: &Cluster) -> Result {
    let requests = cluster
        .control_plane()?
        .kubectl(&["get", "sfr", "-o", "name"])?;
    ensure(
        requests.is_empty(),
        format!("there is no request {requests}"),
    )
}

fn alone(cluster: &mut Cluster) -> Result {
    // n2's disks are plain ones: they fail command by command, and sysfs calls them running. Its lease tells.
    with_policy(cluster, DELAY, RENEWALS)?;
    let names: Vec<String> = cluster
        .nodes()
        .iter()
        .map(|n| n.name().to_owned())
        .collect();
    let mut boots = Vec::new();
    for (n, name) in names.iter().enumerate() {
        cluster.node_mut(name)?.mark_dirty();
        let node = cluster.node(name)?;
        boots.push(node.boot_id()?);
        let make: Vec<String> = (0..2)
            .map(|lv| format!("lvcreate -qq -y -aey -Wn -Zn -L 16M -n own{n}-{lv} san"))
            .collect();
        node.sh_within(&make.join(" && "), Duration::from_secs(180))?;
    }
    for name in &names {
        wait_for_paths(cluster, name, ("True", "PathsWork"))?;
    }
    no_requests(cluster)?;

    say(format!(
        "the control plane is stopped, and then every node loses every path: {} with the controller's leader too",
        leader_node(cluster)?
    ));
    cluster.control_plane_mut()?.stop();
    let cut = Instant::now();
    for name in &names {
        cluster.san.cut_all(name, None)?;
    }
    for name in &names {
        let node = cluster.node(name)?;
        until(
            &format!("{name} fences itself"),
            Duration::from_secs(DELAY) + FENCE_LIMIT,
            || {
                let targets = node.lv_targets("san")?;
                let cut_off = targets.iter().all(|(_, kind)| kind == "error");
                Ok((cut_off && !targets.is_empty() && !node.watchdog_armed()?).then_some(()))
            },
        )?;
        figures(node)?;
    }
    let agent = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/storage-fence agent' && basename $p; done; true";
    let n1 = cluster.node("n1")?;
    let pid = n1.sh(agent)?;
    n1.sh(&format!("kill -9 {pid}"))?;
    until("n1 has another agent", Duration::from_secs(60), || {
        let next = n1.sh(agent)?;
        Ok((!next.is_empty() && next != pid).then_some(()))
    })?;
    // Longer than the watchdog would have taken: 66 to 76 s after the last renewal.
    std::thread::sleep(Duration::from_secs(95).saturating_sub(cut.elapsed()));
    for (name, boot_id) in names.iter().zip(&boots) {
        let node = cluster.node(name)?;
        all_error(node, "san", 2)?;
        lives_on(node, boot_id)?;
    }

    say("the control plane is started again");
    cluster.control_plane_mut()?.start_again()?;
    let control_plane = cluster.control_plane()?;
    let records = until(
        "every node has its record",
        Duration::from_secs(120),
        || {
            let text = control_plane.kubectl(&["get", "sfr", "-o", "json"])?;
            let all: Value = serde_json::from_str(&text)?;
            let all = all["items"].as_array().cloned().unwrap_or_default();
            let complete = all.iter().all(is_complete);
            Ok((all.len() >= names.len() && complete).then_some(all))
        },
    )?;
    std::thread::sleep(Duration::from_secs(10));
    let count = control_plane.kubectl(&["get", "sfr", "-o", "name"])?;
    ensure(
        count.lines().count() == names.len(),
        format!("each node has exactly one record:\n{count}"),
    )?;
    for record in &records {
        tells_all(record)?;
    }
    for name in &names {
        let type_ = "storagefence.io/StorageFenced";
        until(
            &format!("{type_} of {name}"),
            Duration::from_secs(60),
            || {
                let (status, _) = node_condition(cluster, name, type_)?;
                Ok((status == "True").then_some(()))
            },
        )?;
    }
    say("the paths of n1 return: seen below the fence, and n1 stays fenced");
    cluster.san.restore_all("n1", None)?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;
    all_error(cluster.node("n1")?, "san", 2)?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// The node whose pod leads.
pub fn leader_node(cluster: &Cluster) -> Result<String> {
    let control_plane = cluster.control_plane()?;
    let lease = control_plane.kubectl(&[
        "get",
        "lease",
        "storage-fence-controller",
        "-n",
        "storage-fence",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ])?;
    let pod = lease.split('_').next().unwrap_or_default();
    let node = control_plane.kubectl(&[
        "get",
        "pod",
        pod,
        "-n",
        "storage-fence",
        "-o",
        "jsonpath={.spec.nodeName}",
    ])?;
    cluster.node(&node)?;
    Ok(node)
}

fn black_hole(cluster: &mut Cluster) -> Result {
    with_policy(cluster, DELAY, RENEWALS)?;
    cluster.node_mut("n1")?.mark_dirty();
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", 2)?;
    let boot_id = n1.boot_id()?;
    cluster.san.black_hole_all("n1", None)?;
    let hole = Instant::now();
    let control_plane = cluster.control_plane()?;
    let request = until("n1 fences itself", Duration::from_secs(60), || {
        let text = control_plane.kubectl(&["get", "sfr", "-o", "json"])?;
        let all: Value = serde_json::from_str(&text)?;
        let first = all["items"].as_array().and_then(|all| all.first());
        Ok(first
            .filter(|r| r["status"]["phase"] == "Fencing")
            .and_then(|r| r["metadata"]["name"].as_str())
            .map(str::to_owned))
    })?;
    say(format!(
        "    {request} after {:.1} s",
        hole.elapsed().as_secs_f64()
    ));
    std::thread::sleep(Duration::from_secs(5));
    wait_for_paths(cluster, "n1", ("False", "NoAnswer"))?;
    let n1 = cluster.node("n1")?;
    ensure(n1.path_states(0)? == "AA", "every path counts as active")?;
    let targets = n1.lv_targets("san")?;
    ensure(
        targets.iter().all(|(_, kind)| kind != "error") && n1.watchdog_armed()?,
        "while I/O is under way nothing is swapped and nothing released",
    )?;
    cluster.san.restore_all("n1", None)?;
    let control_plane = cluster.control_plane()?;
    control_plane.wait_for_phase(&request, "Fenced", FENCE_LIMIT)?;
    let n1 = cluster.node("n1")?;
    all_error(n1, "san", 2)?;
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(20))?;
        ensure(end.errno == Some(5), format!("{} got EIO", writer.name))?;
    }
    lives_on(n1, &boot_id)?;
    ensure(!n1.watchdog_armed()?, "the watchdog lets go")?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// From the kernel's failing the last path to the agent's knowing, and to the proof.
pub fn figures(node: &Node) -> Result {
    if !node.spec.multipath() {
        return Ok(());
    }
    let pods = "/var/log/pods/storage-fence_storage-fence-agent-*/agent/*.log";
    let outage = Outage::of(node, "/run/storage-fence", pods)?;
    say(format!(
        "    {}: {outage} (the policy waits {DELAY} s)",
        node.name()
    ));
    // The mechanism needs some milliseconds; the next regular look may be 5 s away.
    ensure(
        outage.known < 2.0,
        "the outage was known at once, not at the next regular look",
    )
}

/// Whether a record has the agent's proof and the controller's phase.
pub fn is_complete(record: &Value) -> bool {
    let is = |type_| condition(record, type_).is_some_and(|c| c["status"] == "True");
    is("Fenced") && is("LocksReleased") && record["status"]["phase"] == "Fenced"
}

/// A record names the policy `san`, and holds the fence's timeline.
pub fn tells_all(record: &Value) -> Result {
    let steps = record["status"]["node"]["steps"].as_array();
    ensure(
        record["metadata"]["annotations"]["storagefence.io/policy"] == "san"
            && steps.is_some_and(|steps| steps.len() >= 5),
        format!(
            "{} names its policy, and holds the timeline: {}",
            record["metadata"]["name"], record["spec"]["reason"]
        ),
    )
}
