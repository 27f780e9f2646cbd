//! A node with thousands of devices: what it costs to know them, once and all the time.

use std::time::Duration;

use super::speed::{BARE, OURS, median, send_programs};
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The scenarios of this file; they take minutes.
pub fn bench() -> Vec<Scenario> {
    vec![Scenario {
        name: "scale",
        about: "1,000 and 10,000 devices: the inventory against lsblk and dmsetup, the agent's memory, and what it costs when nothing changes",
        shape: || Shape {
            // A device costs the kernel some 100 KiB.
            memory: Some(4096),
            ..Shape::arrays().with_luns(1)
        },
        tell: scale,
    }]
}

const LIMIT: Duration = Duration::from_secs(900);
const PREFIX: &str = "inv-v";
/// How long the agent is watched doing nothing.
const IDLE: u32 = 60;

fn scale(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    let device = n1.sh(&format!(
        "cat /sys/block/$(basename $(readlink -f {}))/dev",
        n1.device(0)?
    ))?;
    // Thousands of events would be what is measured.
    n1.sh_within("udevadm settle; udevadm control --exit", LIMIT)?;
    let nobody = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {token: t}}]\n";
    n1.write_file("/run/bench/kubeconfig", nobody)?;
    let small = agent(n1, "no volumes")?;
    for n in [1000, 10_000] {
        let uuid = format!("{:0>32}", "inventory");
        n1.sh_within(
            &format!("{BARE} remove {PREFIX}; {BARE} make {PREFIX} {uuid} {n} {device}"),
            LIMIT,
        )?;
        let ours = time(n1, &format!("{OURS} inspect"))?;
        let lsblk = time(n1, "lsblk -J")?;
        let dmsetup = time(n1, "dmsetup table")?;
        let seen = n1.sh_within(
            &format!("{OURS} inspect | grep -c '\"name\": \"{PREFIX}'"),
            LIMIT,
        )?;
        ensure(
            seen == n.to_string(),
            format!("the inventory has all {n} volumes"),
        )?;
        say(format!(
            "    {n} devices: the whole inventory, as a process: {ours:.0} ms; lsblk -J {lsblk:.0} ms, {:.1} times; dmsetup table {dmsetup:.0} ms, {:.1} times",
            lsblk / ours,
            dmsetup / ours
        ));
        let agent = agent(n1, &format!("{n} volumes"))?;
        say(format!(
            "    a look of the agent at a node that did not change: {:.1} ms; lsblk -J takes {:.0} times, dmsetup table {:.0} times as long",
            agent.look,
            lsblk / agent.look,
            dmsetup / agent.look
        ));
        ensure(
            lsblk / ours >= 10.0,
            "ten times faster than lsblk, from nothing",
        )?;
        ensure(
            dmsetup / agent.look >= 10.0,
            "ten times faster than dmsetup table, when nothing has changed",
        )?;
        ensure(
            agent.resident <= 32 << 10,
            format!("with {n} devices the agent has 32 MiB or less"),
        )?;
        let more = agent.ticks.saturating_sub(small.ticks);
        ensure(
            more * 200 <= u64::from(IDLE) * 100,
            format!("and takes less than 0.5 % of a core for them: {more} ticks more than without"),
        )?;
    }
    Ok(())
}

/// Milliseconds, median of three.
fn time(node: &Node, command: &str) -> Result<f64> {
    let timed = format!("a=$(date +%s%N); {command} >/dev/null; b=$(date +%s%N); echo $((b-a))");
    let times: Vec<f64> = (0..3)
        .map(|_| Ok(node.sh_within(&timed, LIMIT)?.parse::<f64>()? / 1e6))
        .collect::<Result<_>>()?;
    Ok(median(&times))
}

/// What an agent costs.
struct Agent {
    /// KiB.
    resident: u64,
    /// Hundredths of a second of CPU time within [`IDLE`].
    ticks: u64,
    /// Milliseconds, the mean of its looks within [`IDLE`].
    look: f64,
}

/// An agent whose API server is away, while nothing happens on the node.
fn agent(node: &Node, with: &str) -> Result<Agent> {
    node.sh(&format!(
        "KUBECONFIG=/run/bench/kubeconfig NODE_NAME=n1 setsid {OURS} agent >/run/bench/agent.log 2>&1 </dev/null & echo $! >/run/bench/agent.pid"
    ))?;
    let metrics =
        "exec 3<>/dev/tcp/127.0.0.1/9871; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let looks = || -> Result<(f64, f64)> {
        let text = node.sh_within(metrics, LIMIT)?;
        let value = |end: &str| {
            let line = text
                .lines()
                .find(|l| l.contains("observation") && l.contains(end))?;
            line.rsplit(' ').next()?.parse::<f64>().ok()
        };
        Ok((
            value("_sum").context("a sum")?,
            value("_count").context("a count")?,
        ))
    };
    until(
        "the agent has looked a few times",
        Duration::from_secs(180),
        || Ok(looks().ok().filter(|(_, n)| *n >= 4.0).map(|_| ())),
    )?;
    let ticks = || -> Result<u64> {
        let stat = node.sh("cut -d' ' -f14,15 /proc/$(cat /run/bench/agent.pid)/stat")?;
        stat.split(' ').map(|n| Ok(n.parse::<u64>()?)).sum()
    };
    let (before, cpu) = (looks()?, ticks()?);
    node.sh_within(&format!("sleep {IDLE}"), LIMIT)?;
    let (after, cpu) = (looks()?, ticks()? - cpu);
    let resident =
        node.sh("awk '/^VmRSS/ { print $2 }' /proc/$(cat /run/bench/agent.pid)/status")?;
    let told = Agent {
        resident: resident.parse()?,
        ticks: cpu,
        look: (after.0 - before.0) / (after.1 - before.1) * 1e3,
    };
    say(format!(
        "    {with}: the agent has {} KiB resident, and takes {} ticks in {IDLE} s; {:.0} looks of {:.1} ms",
        told.resident,
        told.ticks,
        after.1 - before.1,
        told.look
    ));
    node.sh("kill $(cat /run/bench/agent.pid); sleep 3")?;
    Ok(told)
}
