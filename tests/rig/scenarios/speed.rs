//! How long a fence takes: against the bare ioctls, and against what people use today. Figures are told as ratios, and all that are compared
//! are of one run on one node.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::busy;
use super::programs::{BARE, OURS, load_ends, make, remove, send_programs, start_load};
use super::stacks::devices;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say};

/// The scenarios of this file; they take minutes.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "fence-speed",
            about: "20 volumes under direct I/O: from the swap to the proof within 3 times what the bare ioctls need",
            shape: Shape::arrays,
            tell: fence_speed,
        },
        Scenario {
            name: "busy-node",
            about: "64 programs with a hundred times a pod's share want every core: a fence from a pod does not wait for them, bare ioctls do",
            shape: Shape::arrays,
            tell: busy_node,
        },
    ]
}

/// Those that take much longer.
pub fn bench() -> Vec<Scenario> {
    vec![Scenario {
        name: "speed",
        about: "10, 100 and 1,000 volumes, idle and under I/O: against bare ioctls, dmsetup in a loop, one dmsetup, and lvmlockd(8)'s script",
        shape: Shape::arrays,
        tell: speed,
    }]
}

const LIMIT: Duration = Duration::from_secs(900);
/// A volume group that is none but in device mapper: there the alternatives, one of which wipes the leases' volume too, do no harm.
const PLAIN: &str = "plain";

fn fence_speed(cluster: &mut Cluster) -> Result {
    let bench = Bench::new(cluster)?;
    let load = Load(16);
    let (mut ours, mut bare) = (Vec::new(), BTreeMap::<u32, Vec<f64>>::new());
    for vg in &bench.groups {
        for threads in [1, 4, 16] {
            let took = bench.bare(20, load, threads, "two")?;
            bare.entry(threads).or_default().push(took);
        }
        ours.push(bench.ours(vg, 20, load)?.total);
    }
    let best = bare.values().map(|times| median(times));
    let best = best.min_by(f64::total_cmp).context("times")?;
    let ratio = median(&ours) / best;
    say(format!(
        "    from the swap to the proof {ours:.0?} ms; bare ioctls on 1, 4, 16 threads {bare:.0?} ms; ratio of the medians {ratio:.2}"
    ));
    ensure(
        ratio <= 3.0,
        "20 volumes under I/O within 3 times the bare ioctls' time",
    )
}

fn busy_node(cluster: &mut Cluster) -> Result {
    let mut bench = Bench::new(cluster)?;
    let (n, load) = (100, Load(0));
    let quiet = bench.ours(bench.groups.first().context("a LUN")?, n, load)?;
    let quiet_bare = bench.bare(n, load, 16, "two")?;
    bench.is_busy = true;
    let busy = bench.ours(bench.groups.get(1).context("a second LUN")?, n, load)?;
    let busy_bare = bench.bare(n, load, 16, "two")?;
    say(format!(
        "    {n} volumes, from the swap to the proof {:.0} ms, on the busy node {:.0} ms; bare ioctls on 16 threads {quiet_bare:.0} ms and {busy_bare:.0} ms",
        quiet.total, busy.total
    ));
    ensure(
        busy.total < busy_bare,
        "on a busy node the fence is done before ordinary threads would be",
    )
}

fn speed(cluster: &mut Cluster) -> Result {
    let bench = Bench::new(cluster)?;
    let mut misses = Vec::new();
    let only = std::env::var("SFO_SPEED_UNDER").ok();
    let loads = match only.as_deref() {
        None => vec![Load(0), Load(16)],
        Some("idle") => vec![Load(0)],
        Some("io") => vec![Load(16)],
        Some(other) => Err(format!("SFO_SPEED_UNDER is idle or io, not {other}"))?,
    };
    for n in sizes()? {
        for load in loads.clone() {
            misses.extend(bench.compare(n, load)?);
        }
    }
    ensure(
        misses.is_empty(),
        format!("every goal is reached {misses:?}"),
    )
}

/// SFO_SPEED names other numbers of volumes: `100 1000`; SFO_SPEED_UNDER one of the loads: `idle`, `io`. With SFO_SPEED_BARE only the bare ioctls are
/// measured beside ours: the others take 20 minutes for 1,000 volumes.
fn sizes() -> Result<Vec<u32>> {
    let sizes = std::env::var("SFO_SPEED").unwrap_or_else(|_| "10 100 1000".into());
    sizes
        .split_whitespace()
        .map(|n| n.parse().context("SFO_SPEED"))
        .collect()
}

/// Readings of each.
const ROUNDS: usize = 5;

/// Milliseconds of the bare ioctls, by how many of them after the load, and on how many threads.
type Bare = BTreeMap<(&'static str, u32), Vec<f64>>;

/// Threads that write to the volumes.
#[derive(Clone, Copy)]
struct Load(u32);

/// A volume group with a lockspace.
struct Group {
    name: String,
    uuid: String,
    /// Below its volumes: `MAJOR:MINOR` of its LUN.
    below: String,
}

/// What a fence took, in milliseconds.
pub struct Took {
    /// From the beginning of the swap to the proof.
    total: f64,
    steps: Vec<(String, f64)>,
}

impl Took {
    /// In words.
    pub fn told(&self) -> String {
        let steps = self
            .steps
            .iter()
            .map(|(step, ms)| format!("{step} {ms:.0}"));
        steps.collect::<Vec<_>>().join(", ")
    }
}

/// A node on which things are timed.
pub struct Bench<'a> {
    node: &'a Node,
    groups: Vec<Group>,
    plain: Group,
    /// Everything is timed in a pod of a node that is full of other work.
    is_busy: bool,
}

impl<'a> Bench<'a> {
    fn new(cluster: &'a mut Cluster) -> Result<Self> {
        cluster.mark_dirty();
        let node = cluster.node("n1")?;
        send_programs(node)?;
        let mut groups: Vec<Group> = Vec::new();
        for (at, device) in devices(node)?.iter().enumerate() {
            let name = format!("speed{at}");
            node.sh_within(&format!("vgcreate --shared {name} {device}"), LIMIT)?;
            let uuid = node.sh(&format!(
                "dmsetup info -c --noheadings -o uuid {name}-lvmlock | cut -c5-36"
            ))?;
            let below = node.sh(&format!(
                "cat /sys/block/$(basename $(readlink -f {device}))/dev"
            ))?;
            groups.push(Group { name, uuid, below });
        }
        let plain = Group {
            name: PLAIN.into(),
            uuid: format!("{:0>32}", "bench"),
            below: groups.last().context("a LUN")?.below.clone(),
        };
        Ok(Self {
            node,
            groups,
            plain,
            is_busy: false,
        })
    }

    /// Makes `n` volumes, puts them under I/O, does the thing, takes them away again.
    fn with_volumes<T>(
        &self,
        vg: &Group,
        n: u32,
        load: Load,
        thing: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (node, prefix) = (self.node, format!("{}-v", vg.name));
        make(node, &prefix, &vg.uuid, n, &vg.below)?;
        if load.0 > 0 {
            start_load(node, &prefix, load.0.min(n))?;
        }
        if self.is_busy {
            busy::fill(node)?;
        }
        let told = thing()?;
        if self.is_busy {
            busy::free(node)?;
        }
        if load.0 > 0 {
            load_ends(node)?;
        }
        remove(node, &prefix, n)?;
        Ok(told)
    }

    fn place(&self) -> &'static str {
        if self.is_busy { busy::IN_A_POD } else { "" }
    }

    fn plain<T>(&self, n: u32, load: Load, thing: impl FnOnce() -> Result<T>) -> Result<T> {
        self.with_volumes(&self.plain, n, load, thing)
    }

    /// Milliseconds of the bare ioctls.
    fn bare(&self, n: u32, load: Load, threads: u32, how: &str) -> Result<f64> {
        let swap = format!("{}{BARE} swap {PLAIN}-v {threads} {how}", self.place());
        let said = self.plain(n, load, || self.node.sh_within(&swap, LIMIT))?;
        let said: Value = serde_json::from_str(&said)?;
        ensure_quiet(said["devices"] == n, || format!("{n} devices: {said}"))?;
        said["ms"].as_f64().context("a time")
    }

    /// Milliseconds of a shell command, which has to leave `n` error targets.
    fn command(&self, n: u32, load: Load, command: &str) -> Result<f64> {
        self.plain(n, load, || {
            let timed =
                format!("a=$(date +%s%N); {command} >/dev/null; b=$(date +%s%N); echo $((b-a))");
            let said = self.node.sh_within(&timed, LIMIT)?;
            let left = self
                .node
                .sh(&format!("dmsetup table | grep -c '^{PLAIN}-v.* error'"))?;
            ensure_quiet(left == n.to_string(), || {
                format!("{left} of {n} after {command}")
            })?;
            Ok(said.parse::<f64>()? / 1e6)
        })
    }

    /// A fence of ours, by the release build, as the kill hook does it.
    fn ours(&self, vg: &Group, n: u32, load: Load) -> Result<Took> {
        self.with_volumes(vg, n, load, || {
            let hook = format!("{}timeout 60 {OURS} kill-hook {}", self.place(), vg.name);
            let fence = self.node.run(&hook, LIMIT)?;
            ensure_quiet(fence.code == 0, || format!("the fence: {}", fence.err))?;
            let targets = self.node.lv_targets(&vg.name)?;
            let errors = targets.iter().filter(|(_, kind)| kind == "error").count();
            ensure_quiet(errors == usize::try_from(n)?, || {
                format!("{errors} of {n} are fenced")
            })?;
            took(self.node)
        })
    }

    /// Every volume group has its lockspace again.
    fn join_again(&self) -> Result {
        let start = |g: &Group| format!("vgchange --lockstart {} &", g.name);
        let all: String = self.groups.iter().map(start).collect();
        self.node
            .sh_within(&format!("rm -rf /run/storage-fence/*; {all} wait"), LIMIT)?;
        Ok(())
    }

    /// Ours and the bare ioctls, in turns: what else the machine does goes up and down, and would be called the one's or the other's.
    fn side_by_side(&self, n: u32, load: Load) -> Result<(Vec<Took>, Bare)> {
        let (mut ours, mut bare) = (Vec::new(), Bare::new());
        for round in 0..ROUNDS {
            for (how, threads) in [("two", 1), ("two", 4), ("two", 16), ("two", 64)] {
                let took = self.bare(n, load, threads, how)?;
                bare.entry((how, threads)).or_default().push(took);
            }
            let group = self.groups.get(round % self.groups.len());
            ours.push(self.ours(group.context("a LUN")?, n, load)?);
            let one = self.bare(n, load, 64, "one")?;
            bare.entry(("one", 64)).or_default().push(one);
            self.join_again()?;
            let taken = round + 1;
            say(format!("    {taken} of {ROUNDS} readings of {n} volumes"));
        }
        Ok((ours, bare))
    }

    /// Tells everything about one size, and gives what missed its goal.
    fn compare(&self, n: u32, load: Load) -> Result<Vec<String>> {
        let under = if load.0 > 0 { "under I/O" } else { "idle" };
        let (ours, bare) = self.side_by_side(n, load)?;
        let totals: Vec<f64> = ours.iter().map(|t| t.total).collect();
        let mine = median(&totals);
        say(format!(
            "  {n} volumes, {under}: swapped and read back in {totals:.0?} ms, median {mine:.0}"
        ));
        for took in &ours {
            say(format!("    steps, ms: {}", took.told()));
        }
        let told = |what: &str, ms: f64| {
            let ratio = ms / mine;
            say(format!("    {what}: {ms:.0} ms, {ratio:.2} times ours"));
            ratio
        };
        let mut best = f64::MAX;
        for ((how, threads), times) in &bare {
            let ms = median(times);
            told(
                &format!("bare, {how} after the load, {threads} threads, {times:.0?}"),
                ms,
            );
            if *how == "two" {
                best = best.min(ms);
            }
        }
        let mut ratios = vec![(
            "the best bare suspend and resume",
            1.0,
            told("bare, two, at best", best),
        )];
        if std::env::var_os("SFO_SPEED_BARE").is_none() {
            ratios.extend(self.alternatives(n, load, &told)?);
        }
        let missed = ratios
            .iter()
            .filter(|(_, goal, ratio)| n == 1000 && ratio < goal);
        Ok(missed
            .map(|(what, goal, ratio)| {
                format!("{n} volumes, {under}: {what} {ratio:.2}, wanted {goal}")
            })
            .collect())
    }

    /// What people use today: its name, how many times ours it is wanted to take, and how many it takes.
    fn alternatives(
        &self,
        n: u32,
        load: Load,
        told: &dyn Fn(&str, f64) -> f64,
    ) -> Result<[(&'static str, f64, f64); 2]> {
        let of_vg = format!("-S 'uuid=~LVM && vgname={PLAIN} && lv_layer=\"\"'");
        let script =
            format!("dmsetup wipe_table {of_vg}; ! dmsetup table -c {of_vg} | grep -vw error");
        let all = format!("dmsetup wipe_table $(seq -f {PLAIN}-v%g 0 {})", n - 1);
        let each = format!(
            "for i in $(seq 0 {}); do dmsetup wipe_table {PLAIN}-v$i; done",
            n - 1
        );
        told("lvmlockd(8)'s script", self.command(n, load, &script)?);
        Ok([
            (
                "one dmsetup",
                4.0,
                told("one dmsetup wipe_table", self.command(n, load, &all)?),
            ),
            (
                "the loop",
                100.0,
                told(
                    "dmsetup wipe_table in a loop",
                    self.command(n, load, &each)?,
                ),
            ),
        ])
    }
}

/// The steps of the latest fence, as its journal has them.
fn took(node: &Node) -> Result<Took> {
    took_in(node, "/run/storage-fence")
}

/// The same where the state is elsewhere.
pub fn took_in(node: &Node, state: &str) -> Result<Took> {
    let journal = node.sh(&format!("tail -n 1 {state}/journal | cut -d' ' -f3-"))?;
    let record: Value = serde_json::from_str(&journal)?;
    let steps = record["Finished"]["steps"].as_array().context("steps")?;
    let millis = |value: &Value| {
        let part = |name: &str| value[name].as_f64().unwrap_or_default();
        part("secs") * 1e3 + part("nanos") / 1e6
    };
    let name = |step: &Value| step["kind"].as_str().unwrap_or_default().to_owned();
    let step = |kind: &str| steps.iter().find(|s| s["kind"] == kind);
    let begin = step("Swap").map(|s| millis(&s["at"])).context("a swap")?;
    let end = step("Verify")
        .map(|s| millis(&s["at"]) + millis(&s["took"]))
        .context("a proof")?;
    Ok(Took {
        total: end - begin,
        steps: steps
            .iter()
            .map(|s| (name(s), millis(&s["took"])))
            .collect(),
    })
}

/// The middle one.
pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ensure_quiet(holds: bool, what: impl FnOnce() -> String) -> Result {
    if holds {
        Ok(())
    } else {
        Err(format!("not so: {}", what()).into())
    }
}
