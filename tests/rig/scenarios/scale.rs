//! A node with thousands of devices: what it costs to know them, once and all the time.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use super::programs::{BARE, OURS, make, send_programs, start_agent};
use super::speed::{median, took_in};
use crate::harness::node::Node;
use crate::harness::process::{output, root};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The scenarios of this file; they take minutes.
pub fn bench() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "scale",
            about: "1,000 and 10,000 devices: the inventory against lsblk and dmsetup, the agent's memory, and what it costs when nothing changes",
            shape: roomy,
            tell: scale,
        },
        Scenario {
            name: "scale-fence",
            about: "10,000 volumes of a volume group are fenced by an agent that has 32 MiB at most all the while",
            shape: roomy,
            tell: scale_fence,
        },
    ]
}

fn roomy() -> Shape {
    Shape {
        // A device costs the kernel some 100 KiB.
        memory: Some(4096),
        ..Shape::arrays().with_luns(1)
    }
}

const LIMIT: Duration = Duration::from_secs(900);
/// What the agent tells of itself.
const METRICS: &str =
    "exec 3<>/dev/tcp/127.0.0.1/9871; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
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
    let emulated = slower(n1)?;
    say(format!(
        "    this machine does the same work in {emulated:.1} times less time than the node"
    ));
    let mut misses = Vec::new();
    let mut goal = |reached: bool, what: String| {
        say(format!(
            "    {}: {what}",
            if reached { "reached" } else { "MISSED" }
        ));
        if !reached {
            misses.push(what);
        }
    };
    let small = agent(n1, "no volumes")?;
    say(format!(
        "    idle: {:.2} % of a core of the node, {:.2} % of this machine's",
        share(small.ticks),
        share(small.ticks) / emulated
    ));
    goal(
        share(small.ticks) <= 0.5,
        "an idle agent takes less than 0.5 % of a core of the node".into(),
    );
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
        goal(
            lsblk / ours >= 10.0,
            format!("{n} devices: ten times faster than lsblk, from nothing"),
        );
        goal(
            dmsetup / ours >= 10.0,
            format!("{n} devices: ten times faster than dmsetup table, from nothing"),
        );
        goal(
            dmsetup / agent.look >= 10.0,
            format!("{n} devices: ten times faster than dmsetup table, when nothing has changed"),
        );
        goal(
            agent.resident <= 32 << 10,
            format!("{n} devices: the agent has 32 MiB or less"),
        );
        let more = agent.ticks.saturating_sub(small.ticks);
        goal(
            share(more) <= 0.5,
            format!(
                "{n} devices: less than 0.5 % of a core of the node for them: {:.2} %, {:.2} % of this machine's",
                share(more),
                share(more) / emulated
            ),
        );
    }
    ensure(
        misses.is_empty(),
        format!("every goal is reached {misses:?}"),
    )
}

fn scale_fence(cluster: &mut Cluster) -> Result {
    const N: u32 = 10_000;
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    let device = n1.device(0)?;
    n1.sh_within(&format!("vgcreate --shared big {device}"), LIMIT)?;
    let uuid = n1.sh("dmsetup info -c --noheadings -o uuid big-lvmlock | cut -c5-36")?;
    let below = n1.sh(&format!(
        "cat /sys/block/$(basename $(readlink -f {device}))/dev"
    ))?;
    // Without udev, which would have all their events to go through before the volumes of the fence can be made.
    let bare = n1.sh_within(
        &format!(
            "udevadm settle; udevadm control --exit; while pgrep -x systemd-udevd >/dev/null; do sleep 0.1; done; \
             {BARE} make {PREFIX} {:0>32} {N} {below} >/dev/null; {BARE} swap {PREFIX} 64 two; {BARE} remove {PREFIX} >/dev/null",
            "bare"
        ),
        LIMIT,
    )?;
    say(format!(
        "    what the kernel needs, by the bare ioctls on 64 threads: {bare}"
    ));
    make(n1, "big-v", &uuid, N, &below)?;
    start_agent(n1)?;
    let of_agent = |what: &str| -> Result<u64> {
        let read =
            format!("awk '/^{what}/ {{ print $2 }}' /proc/$(cat /run/bench/agent.pid)/status");
        Ok(n1.sh(&read)?.parse()?)
    };
    let has_seen_all = || {
        let what = "the agent has seen them all";
        until(what, Duration::from_secs(180), || {
            let looked = format!("{METRICS} | grep -q 'observation.*_count [4-9]'");
            Ok((n1.run(&looked, LIMIT)?.code == 0).then_some(()))
        })
    };
    has_seen_all()?;
    let (before, cpu) = (of_agent("VmHWM")?, Ticks::of(n1)?);
    let hook = format!("STATE_DIRECTORY=/run/bench/state timeout 100 {OURS} kill-hook big");
    let fence = n1.run(&hook, LIMIT)?;
    ensure(
        fence.code == 0 && !fence.err.contains("fencing without it"),
        format!("the agent fences for the hook: {}", fence.err),
    )?;
    let errors = n1.lv_targets("big")?;
    let errors = errors.iter().filter(|(_, kind)| kind == "error").count();
    ensure(
        errors == usize::try_from(N)?,
        format!("all {N} are fenced: {errors}"),
    )?;
    let cpu = Ticks::of(n1)?.since(&cpu);
    let (most, now) = (of_agent("VmHWM")?, of_agent("VmRSS")?);
    say(format!(
        "    hundredths of a second of the node's CPU time, by thread: {}",
        cpu.told()
    ));
    say(format!(
        "    resident: {before} KiB before, {most} KiB at most, {now} KiB after; the steps, ms: {}",
        took_in(n1, "/run/bench/state")?.told()
    ));
    ensure(most <= 32 << 10, "the agent never has more than 32 MiB")?;
    // It reads what is recorded of the fence, and watches over it.
    n1.sh("kill $(cat /run/bench/agent.pid); sleep 3")?;
    start_agent(n1)?;
    has_seen_all()?;
    let successor = of_agent("VmHWM")?;
    say(format!(
        "    the agent that comes next: {successor} KiB at most"
    ));
    ensure(
        successor <= 32 << 10,
        "the agent that comes next never has more than 32 MiB",
    )
}

/// Of a core, in per cent.
fn share(ticks: u64) -> f64 {
    f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)) / f64::from(IDLE)
}

/// How many times longer the node takes for work that is nothing but computing.
fn slower(node: &Node) -> Result<f64> {
    let there = time(
        node,
        &format!("for i in 1 2 3 4 5; do {OURS} crds /run/bench/crds; done"),
    )?;
    let binary = output(&mut Command::new(root().join("hack/release-binary")))?;
    let folder = std::env::temp_dir().join(format!("sf-crds-{}", std::process::id()));
    let mut here = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        for _ in 0..5 {
            output(Command::new(binary.trim()).arg("crds").arg(&folder))?;
        }
        here.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(there / median(&here))
}

/// Milliseconds, median of three.
fn time(node: &Node, command: &str) -> Result<f64> {
    let timed = format!("a=$(date +%s%N); {command} >/dev/null; b=$(date +%s%N); echo $((b-a))");
    let times: Vec<f64> = (0..3)
        .map(|_| Ok(node.sh_within(&timed, LIMIT)?.parse::<f64>()? / 1e6))
        .collect::<Result<_>>()?;
    Ok(median(&times))
}

/// Hundredths of a second of CPU time that an agent has taken.
struct Ticks {
    /// Of all its threads, those that have ended among them.
    all: u64,
    by_thread: BTreeMap<String, u64>,
}

impl Ticks {
    fn of(node: &Node) -> Result<Self> {
        let sum = |ticks: &str| ticks.split('+').filter_map(|n| n.parse::<u64>().ok()).sum();
        let lines = node.sh(
            "cd /proc/$(cat /run/bench/agent.pid); for t in . task/*; do echo \"$(sed 's/.*) //' $t/stat | cut -d' ' -f12,13 | tr ' ' '+') $(cat $t/comm)\"; done",
        )?;
        let mut lines = lines.lines().filter_map(|l| l.split_once(' '));
        let all = lines.next().context("a process")?.0;
        let mut by_thread = BTreeMap::new();
        for (ticks, name) in lines {
            let sum: u64 = sum(ticks);
            *by_thread.entry(name.to_owned()).or_default() += sum;
        }
        let all = sum(all);
        Ok(Self { all, by_thread })
    }

    fn since(&self, before: &Self) -> Self {
        let less = |(name, n): (&String, &u64)| {
            let before = before.by_thread.get(name).copied().unwrap_or_default();
            (name.clone(), n.saturating_sub(before))
        };
        Self {
            all: self.all.saturating_sub(before.all),
            by_thread: self.by_thread.iter().map(less).collect(),
        }
    }

    /// The threads that took some, by name.
    fn told(&self) -> String {
        let busy = self.by_thread.iter().filter(|(_, n)| **n > 0);
        let ended = self.all.saturating_sub(self.by_thread.values().sum());
        let mut told: Vec<_> = busy.map(|(name, n)| format!("{name} {n}")).collect();
        told.push(format!("those that have ended {ended}"));
        told.join(", ")
    }
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
    start_agent(node)?;
    let looks = || -> Result<(f64, f64)> {
        let text = node.sh_within(METRICS, LIMIT)?;
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
    let (before, cpu) = (looks()?, Ticks::of(node)?);
    node.sh_within(&format!("sleep {IDLE}"), LIMIT)?;
    let (after, cpu) = (looks()?, Ticks::of(node)?.since(&cpu));
    let resident =
        node.sh("awk '/^VmRSS/ { print $2 }' /proc/$(cat /run/bench/agent.pid)/status")?;
    let told = Agent {
        resident: resident.parse()?,
        ticks: cpu.all,
        look: (after.0 - before.0) / (after.1 - before.1) * 1e3,
    };
    say(format!(
        "    {with}: the agent has {} KiB resident, and takes {} ticks in {IDLE} s; {:.0} looks of {:.1} ms",
        told.resident,
        told.ticks,
        after.1 - before.1,
        told.look
    ));
    say(format!("    by thread: {}", cpu.told()));
    node.sh("kill $(cat /run/bench/agent.pid); sleep 3")?;
    Ok(told)
}
