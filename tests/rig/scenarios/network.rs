//! A node whose network is gone: its packets are dropped, so that calls hang instead of being refused. And the controller's leader on the node that
//! loses its storage.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on};
use super::policy::{
    DELAY, RENEWALS, figures, is_complete, leader_node, no_requests, node_condition, tells_all,
    wait_for_paths, with_policy,
};

/// The scenarios of this file: each waits for watchdogs that must not fire.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "policy-no-network",
        about: "the leader's node loses its network, packets are dropped, and every path: it fences itself, another leads, one record appears when the \
                network is back; then that leader's node loses every path with the API server up",
        shape: Shape::kubernetes,
        tell: no_network,
    }]
}

/// Drops whatever goes through the node's card, but for ARP: an address that does not answer would be told as unreachable.
const DROP: &str = "device=$(for p in /sys/class/net/*/device; do basename \"$(dirname \"$p\")\"; done | head -n1); nft -f - <<RULES
table netdev dropped {
	chain in { type filter hook ingress device \"$device\" priority -500; ether type ip drop; }
	chain out { type filter hook egress device \"$device\" priority -500; ether type ip drop; }
}
RULES";
const UNDROP: &str = "nft delete table netdev dropped";
/// Calls that hang are given up after 10 s, and tried again after some seconds more; a watch that heard nothing meanwhile goes on when the other side
/// sends again.
const TOLD: Duration = Duration::from_secs(120);
/// A reset would come 66 to 76 s after the last renewal.
const RESET: Duration = Duration::from_secs(95);

/// The records of a node.
fn records(cluster: &Cluster, node: &str) -> Result<Vec<Value>> {
    let text = cluster
        .control_plane()?
        .kubectl(&["get", "sfr", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let of_it = |r: &Value| r["spec"]["nodeName"] == node;
    Ok(all.into_iter().filter(of_it).collect())
}

/// Waits until the node's record is there and complete: the agent's proof, and the controller's phase.
fn recorded(cluster: &Cluster, node: &str, since: Instant, limit: Duration) -> Result {
    let record = until(&format!("{node} has its record"), limit, || {
        let all = records(cluster, node)?;
        Ok(all.into_iter().find(is_complete))
    })?;
    say(format!("    after {:.1} s", since.elapsed().as_secs_f64()));
    tells_all(&record)?;
    // Whatever else was on its way.
    std::thread::sleep(Duration::from_secs(20));
    ensure(
        records(cluster, node)?.len() == 1,
        format!("{node} has exactly one record"),
    )?;
    let type_ = "storagefence.io/StorageFenced";
    until(&format!("{type_} of {node}"), TOLD, || {
        let (status, _) = node_condition(cluster, node, type_)?;
        Ok((status == "True").then_some(()))
    })
}

/// Waits until the node has fenced itself and its watchdog lets go.
fn fenced(cluster: &Cluster, name: &str, cut: Instant) -> Result {
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
    say(format!(
        "    {:.1} s after its paths were cut",
        cut.elapsed().as_secs_f64()
    ));
    figures(node)
}

fn no_network(cluster: &mut Cluster) -> Result {
    with_policy(cluster, DELAY, RENEWALS)?;
    let lost = leader_node(cluster)?;
    let other = cluster
        .nodes()
        .iter()
        .map(|n| n.name().to_owned())
        .find(|n| *n != lost)
        .context("another node")?;
    let mut boots = Vec::new();
    for name in [&lost, &other] {
        cluster.node_mut(name)?.mark_dirty();
        let node = cluster.node(name)?;
        boots.push(node.boot_id()?);
        node.sh_within(
            &format!("for n in 0 1; do lvcreate -qq -y -aey -Wn -Zn -L 16M -n {name}-$n san; done"),
            Duration::from_secs(120),
        )?;
        wait_for_paths(cluster, name, ("True", "PathsWork"))?;
    }
    no_requests(cluster)?;

    say(format!(
        "the network of {lost}, where the controller leads, drops everything; then it loses every path"
    ));
    cluster.node(&lost)?.sh(DROP)?;
    let cut = Instant::now();
    cluster.san.cut_all(&lost, None)?;
    fenced(cluster, &lost, cut)?;
    until("the controller leads elsewhere", TOLD, || {
        Ok((leader_node(cluster)? == other).then_some(()))
    })?;
    no_requests(cluster)?;
    std::thread::sleep(RESET.saturating_sub(cut.elapsed()));
    let node = cluster.node(&lost)?;
    all_error(node, "san", 2)?;
    lives_on(node, &boots[0])?;
    no_requests(cluster)?;

    say("the network is back");
    node.sh(UNDROP)?;
    let back = Instant::now();
    recorded(cluster, &lost, back, TOLD)?;

    let leader = leader_node(cluster)?;
    ensure(
        leader == other,
        format!("{other} leads, where the storage works"),
    )?;
    say(format!(
        "{other} loses every path as well; API server and network are there"
    ));
    let cut = Instant::now();
    cluster.san.cut_all(&other, None)?;
    fenced(cluster, &other, cut)?;
    recorded(cluster, &other, cut, Duration::from_secs(DELAY) + TOLD)?;
    ensure(
        leader_node(cluster)? == other,
        "the controller leads there all the while",
    )?;
    std::thread::sleep(RESET.saturating_sub(cut.elapsed()));
    for (name, boot) in [&lost, &other].into_iter().zip(&boots) {
        let node = cluster.node(name)?;
        all_error(node, "san", 2)?;
        lives_on(node, boot)?;
        ensure(
            records(cluster, name)?.len() == 1,
            format!("{name} still has exactly one record"),
        )?;
    }
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}
