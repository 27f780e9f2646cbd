//! What an outage takes, from the kernel's failing the last path to the proof: by the node's own clock.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::programs::{BARE, load_ends, make, remove, send_programs, start_agent_in, start_load};
use super::speed::took_in;
use super::stacks::{devices, holds};
use crate::harness::node::Node;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The scenarios of this file; they take minutes.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "policy-speed",
            about: "100 open volumes under I/O and a policy that waits for nothing: from the last path's failing to the proof, against what the kernel \
                needs to swap as many",
            shape: Shape::arrays,
            tell: policy_speed,
        },
        Scenario {
            name: "no-memory",
            about: "a node without any memory left and much of it dirty for the SAN, where the kernel ends programs for it: the agent, with what a pod is \
                given, fences it by itself, and it lives",
            shape: Shape::arrays,
            tell: no_memory,
        },
        Scenario {
            name: "outage-noticed",
            about: "every path of an array is cut and brought back, again and again: how long after the kernel's failing the last path the agent knows",
            shape: Shape::arrays,
            tell: noticed,
        },
    ]
}

/// What became of a fence that a node began by itself: seconds after the kernel failed the last path.
pub struct Outage {
    looked: f64,
    /// When the agent knew.
    pub known: f64,
    began: f64,
    swap: (f64, f64),
    /// When everything was proven.
    pub proven: f64,
    released: f64,
}

/// The kernel's lines of paths that it fails, and where the time is in them.
const FAILED: &str = "dmesg | grep 'Failing path'";
const FAILED_AT: &str = "^\\[ *\\([0-9.]*\\)\\].*";
/// Where the time is in what the agent says of an outage.
const KNOWN_AT: &str = ".*uptime[^0-9]*\\([0-9.]*\\).*";

impl Outage {
    /// The latest, from the files of the agent's folder and its log (a pattern of the shell's).
    pub fn of(node: &Node, folder: &str, log: &str) -> Result<Self> {
        let failed = last(node, FAILED, FAILED_AT)?;
        let kept = node.sh(&format!("cat {folder}/local-fences.json"))?;
        let kept: Value = serde_json::from_str(&kept).context("local-fences.json")?;
        let fence = &kept["content"][0];
        let episode = fence["answers"]
            .as_object()
            .and_then(|a| a.values().next())
            .and_then(|e| e.as_str())
            .and_then(|e| e.strip_prefix("outage@"))
            .context("the outage that was answered")?;
        let looked: f64 = episode.parse::<f64>().context("its time")? / 1e3;
        let known = last(node, &format!("cat {log} | grep 'no path works'"), KNOWN_AT)?;
        let report = &fence["report"];
        let began = seconds(&report["started"]);
        let step = |kind: &str| -> Result<(f64, f64)> {
            let steps = report["steps"].as_array().context("steps")?;
            let step = steps.iter().find(|s| s["kind"] == kind).context(kind)?;
            let at = began + seconds(&step["at"]);
            Ok((at, at + seconds(&step["took"])))
        };
        let (swap, verify) = (step("Swap")?, step("Verify")?);
        Ok(Self {
            looked: looked - failed,
            known: known - failed,
            began: began - failed,
            swap: (swap.0 - failed, swap.1 - failed),
            proven: verify.1 - failed,
            released: began + seconds(&report["finished_after"]) - failed,
        })
    }
}

fn seconds(value: &Value) -> f64 {
    let part = |name: &str| value[name].as_f64().unwrap_or_default();
    part("secs") + part("nanos") / 1e9
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "last path failed -> look that saw it began {:.3} s; -> known {:.3} s; -> fence began {:.3} s; -> swap {:.3} to {:.3} s; -> proven {:.3} s; \
             -> locks seen released {:.3} s",
            self.looked,
            self.known,
            self.began,
            self.swap.0,
            self.swap.1,
            self.proven,
            self.released
        )
    }
}

const VOLUMES: u32 = 100;
const LIMIT: Duration = Duration::from_secs(300);

fn policy_speed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    let number = |device: &str| {
        n1.sh(&format!(
            "cat /sys/block/$(basename $(readlink -f {device}))/dev"
        ))
    };
    let all = devices(n1)?;
    let (ours, other) = (number(&all[0])?, number(&all[1])?);
    let uuid = n1.sh("dmsetup info -c --noheadings -o uuid san-lvmlock | cut -c5-36")?;

    say(format!(
        "what the kernel needs: {VOLUMES} volumes under I/O, by the bare ioctls"
    ));
    let mut bare = f64::MAX;
    for threads in [1, 4, 16] {
        make(n1, "plain-v", &format!("{:0>32}", "bench"), VOLUMES, &other)?;
        start_load(n1, "plain-v", VOLUMES)?;
        let said = n1.sh_within(&format!("{BARE} swap plain-v {threads} two"), LIMIT)?;
        let said: Value = serde_json::from_str(&said)?;
        let took = said["ms"].as_f64().context("a time")? / 1e3;
        say(format!("    on {threads} threads {took:.3} s"));
        bare = bare.min(took);
        load_ends(n1)?;
        remove(n1, "plain-v", VOLUMES)?;
    }

    make(n1, "san-v", &uuid, VOLUMES, &ours)?;
    start_load(n1, "san-v", VOLUMES)?;
    let boot = n1.boot_id()?;
    agent(n1, 0)?;

    say("every path of the array is cut");
    cluster.san.cut_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    released(n1)?;
    let outage = ended(n1)?;
    say(format!("    {outage}"));
    say(format!(
        "    beyond the {bare:.3} s that the bare ioctls need at best: {:.3} s",
        outage.proven - bare
    ));
    let targets = n1.lv_targets("san")?;
    let errors = targets.iter().filter(|(_, kind)| kind == "error").count();
    ensure(
        errors == usize::try_from(VOLUMES)?,
        format!("{errors} of {VOLUMES} are fenced"),
    )?;
    load_ends(n1)?;
    ensure(n1.boot_id()? == boot, "the node was not reset")?;
    ensure(
        outage.proven - bare <= 1.0,
        "proven within a second beyond what the kernel needs",
    )
}

/// An agent under a policy, with no API server.
fn agent(node: &Node, for_seconds: u32) -> Result {
    agent_in(node, for_seconds, "")
}

/// The same where a command of the shell's leads.
pub fn agent_in(node: &Node, for_seconds: u32, place: &str) -> Result {
    let policy = json!({"boot_id": node.boot_id()?, "content": [{
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFencePolicy", "metadata": {"name": "san"},
        "spec": {"response": "Fence", "triggers": {"allPathsDown": {"forSeconds": for_seconds}}},
    }]});
    node.write_file("/run/bench/state/policies.json", &policy.to_string())?;
    start_agent_in(node, place)?;
    // It has looked, and knows that the paths work.
    std::thread::sleep(Duration::from_secs(12));
    Ok(())
}

/// Waits until the watchdog no longer counts on the lease.
pub fn released(node: &Node) -> Result {
    until("the watchdog lets go", Duration::from_secs(50), || {
        Ok((!holds(&node.wdmd()?, "san")).then_some(()))
    })
}

/// Waits until its fence has ended.
pub fn ended(node: &Node) -> Result<Outage> {
    until("the agent is done", Duration::from_secs(30), || {
        let kept = node.sh("cat /run/bench/state/local-fences.json 2>/dev/null || true")?;
        Ok(kept.contains("finished_after\":{").then_some(()))
    })?;
    Outage::of(node, "/run/bench/state", "/run/bench/agent.log")
}

/// Takes memory until the kernel says that 24 MiB are left, by a tmpfs: without swap it gives nothing back, and it has no process that could be
/// killed for it.
const TAKE: &str = "available() { awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }; \
     mkdir -p /run/full; mount -t tmpfs -o size=100% full /run/full; \
     for i in 1 2 3 4 5 6 7 8; do n=$(($(available) - 24)); test $n -gt 0 || break; \
     dd if=/dev/zero bs=1M count=$n status=none >>/run/full/it; done; available";

/// Takes the rest too, until the kernel ends it for that, and again: a `tail` waits for the end of a line that has none. The kernel takes it first, by
/// its own word; who starts it is as much spared as who told it to.
const TAKE_ALL: &str = "sysctl -qw vm.oom_dump_tasks=0; setsid bash -c 'until test -e /run/enough; do (echo 1000 >/proc/self/oom_score_adj; exec tail /dev/zero) >/dev/null 2>&1; sleep 0.7; done' \
     >/dev/null 2>&1 </dev/null &";
const ENOUGH: &str = "touch /run/enough; pkill -x tail; true";
/// The kernel's lines of what it has ended for want of memory.
const VICTIMS: &str = "dmesg | grep 'ut of memory: Killed process' || true";
/// A file system on the SAN whose pages are dirty nearly all the time: none of them can be freed while its paths are away.
const DIRTY: &str = "lvcreate -y -aey -L 192M -n files san && mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/san/files && \
     mkdir -p /files && mount /dev/san/files /files && sysctl -qw vm.dirty_bytes=$((64 << 20)) vm.dirty_background_bytes=$((32 << 20)); \
     setsid bash -c 'until test -e /run/enough; do dd if=/dev/zero of=/files/it bs=1M count=48 conv=notrunc,fsync status=none || break; done; echo ended' \
     >/run/files.log 2>&1 </dev/null &";
/// How many KiB are dirty, or on their way, five times a second: by nothing but a shell's own commands, since another program may not start.
const DIRTY_LOG: &str = "setsid bash -c 'exec 9<> <(:); until test -e /run/dirty.enough; do d=0; while read -r k v _; do case $k in Dirty:|Writeback:) d=$((d + v));; esac; done </proc/meminfo; \
     read -r up _ </proc/uptime; echo $up $d; read -rt 0.2 -u 9; done' >/run/dirty.log 2>&1 </dev/null &";
/// KiB that have to be dirty for the SAN while it is away.
const DIRTY_AT_LEAST: u64 = 8 << 10;
/// What the chart allows an agent, as a pod has it: with no more than that it is a fence's memory that counts and not the node's.
const LIMITED: &str = "cd /sys/fs/cgroup && echo +memory >cgroup.subtree_control && mkdir -p pod && echo 96M >pod/memory.max; cd /; \
     echo $$ >/sys/fs/cgroup/pod/cgroup.procs; ";
/// Without any of them nothing is released.
const OURS: [&str; 6] = [
    "storage-fence",
    "sanlock",
    "lvmlockd",
    "wdmd",
    "multipathd",
    "rig",
];
/// Of the agent's resident memory, all of which it locks, in KiB.
const RESIDENT_AT_MOST: u64 = 32 << 10;

fn no_memory(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    // As docs/install.md has it: without them nothing can be released. What this node is told to do is spared too, but for the agent.
    n1.sh("for p in $(pidof sanlock lvmlockd wdmd multipathd systemd-udevd); do echo -1000 >/proc/$p/oom_score_adj; done; echo -1000 >/proc/$PPID/oom_score_adj")?;
    n1.sh("lvcreate -y -aey -L 64M -n lv san")?;
    let writer = Writer::start(n1, "lv", "/dev/san/lv")?;
    let boot = n1.boot_id()?;
    agent_in(n1, 2, LIMITED)?;
    let pid = n1.sh("cat /run/bench/agent.pid")?;
    n1.sh(&format!(
        "cd /sys/fs/cgroup/pod && grep -qx {pid} cgroup.procs && grep -qx $((96 << 20)) memory.max"
    ))?;
    n1.sh_within(DIRTY, LIMIT)?;
    n1.sh(DIRTY_LOG)?;
    let left = n1.sh_within(TAKE, LIMIT)?;
    say(format!("    memory is taken, {left} MiB can be had"));
    n1.sh(TAKE_ALL)?;
    until("there is none left", Duration::from_secs(60), || {
        Ok((!n1.sh(VICTIMS)?.is_empty()).then_some(()))
    })?;
    cluster.san.cut_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    released(n1)?;
    let after = n1.uptime()?;
    until("there is still none left", Duration::from_secs(60), || {
        let times = victims(n1)?;
        Ok(times.iter().any(|(at, _)| *at > after).then_some(()))
    })?;
    n1.sh(ENOUGH)?;
    let outage = ended(n1)?;
    let steps = took_in(n1, "/run/bench/state")?.told();
    say(format!("    {outage}; the steps, ms: {steps}"));
    ran_out(n1, &outage)?;
    let status = n1.sh(&format!("cat /proc/{pid}/status"))?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let resident: u64 = resident
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .context("its resident memory")?;
    ensure(
        resident <= RESIDENT_AT_MOST,
        format!("the agent lives, and never had more than {resident} KiB"),
    )?;
    was_dirty(n1, &outage)?;
    cut_off_and_alive(n1, &writer, &boot)
}

/// From the last path's failing to the fence a part of the memory waited for the SAN, and after it none does: who wrote knows that it is lost.
fn was_dirty(node: &Node, outage: &Outage) -> Result {
    until(
        "who wrote to files has ended",
        Duration::from_secs(60),
        || {
            Ok(node
                .sh("cat /run/files.log")?
                .contains("ended")
                .then_some(()))
        },
    )?;
    let failed = last(node, FAILED, FAILED_AT)?;
    let log = || -> Result<Vec<(f64, u64)>> {
        let log = node.sh("cat /run/dirty.log")?;
        let reading = |line: &str| {
            let (at, kib) = line.split_once(' ')?;
            Some((at.parse().ok()?, kib.parse().ok()?))
        };
        let all: Vec<_> = log.lines().filter_map(reading).collect();
        if all.is_empty() {
            return Err(format!("no reading of what is dirty: {log}").into());
        }
        Ok(all)
    };
    until("nothing is dirty any more", Duration::from_secs(60), || {
        let is_clean = log()?
            .last()
            .is_some_and(|(_, kib)| *kib < DIRTY_AT_LEAST / 4);
        Ok(is_clean.then_some(()))
    })?;
    node.sh("touch /run/dirty.enough")?;
    let waited = |(at, _): &(f64, u64)| (failed..failed + outage.began).contains(at);
    let all = log()?;
    let kib: Vec<u64> = all
        .iter()
        .filter(|r| waited(r))
        .map(|(_, kib)| *kib)
        .collect();
    ensure(
        kib.iter().min().is_some_and(|kib| *kib >= DIRTY_AT_LEAST),
        format!("KiB of memory that waited for the SAN until it was fenced: {kib:?}"),
    )?;
    let told = node.sh("cat /run/files.log")?;
    ensure(
        told.contains("Input/output error") || told.contains("Read-only file system"),
        format!("who wrote to the file system knows it: {told}"),
    )
}

/// What the kernel has ended for want of memory: when, in seconds since boot, and its words.
fn victims(node: &Node) -> Result<Vec<(f64, String)>> {
    let lines = node.sh(VICTIMS)?;
    let read = |line: &str| -> Result<(f64, String)> {
        let (time, rest) = line.split_once(']').context(line.to_owned())?;
        let at = time.trim_start_matches(['[', ' ']).parse();
        Ok((at.context(time.to_owned())?, rest.to_owned()))
    };
    lines.lines().map(read).collect()
}

/// Memory had run out before the last path failed, and still did after the proof; and nobody of ours was ended for it. A node that is as slow as an
/// emulated one may be busy for longer than a fence takes with finding out that there is none.
fn ran_out(node: &Node, outage: &Outage) -> Result {
    let victims = victims(node)?;
    let failed = last(node, FAILED, FAILED_AT)?;
    let before = victims.iter().filter(|(at, _)| *at < failed).count();
    let after = victims
        .iter()
        .filter(|(at, _)| *at > failed + outage.proven);
    let after = after.count();
    let is_ours = |words: &str| OURS.iter().any(|o| words.contains(&format!("({o})")));
    let ours: Vec<_> = victims.iter().filter(|(_, v)| is_ours(v)).collect();
    ensure(
        before > 0 && after > 0 && ours.is_empty(),
        format!(
            "memory ran out {} times, {before} of them before the fence and {after} after it, and nothing that a fence needs was ended for it {ours:?}",
            victims.len()
        ),
    )
}

/// As a fence leaves a node: its volumes are cut off, who wrote knows it, and it is in the boot that it was in.
pub fn cut_off_and_alive(node: &Node, writer: &Writer, boot: &str) -> Result {
    let targets = node.lv_targets("san")?;
    ensure(
        !targets.is_empty() && targets.iter().all(|(_, kind)| kind == "error"),
        "every volume is cut off",
    )?;
    let written = writer.wait_for_end(node, Duration::from_secs(20))?;
    ensure(written.errno == Some(5), "the writer got EIO")?;
    ensure(node.boot_id()? == boot, "the node was not reset")
}

/// How often the paths are cut.
const ROUNDS: usize = 12;
/// What no single time may reach: a look that had just begun, the rest after it and one more, on an emulated node of a busy machine. The next regular
/// look may be 5 s away.
const NOTICED_AT_MOST: f64 = 2.0;

fn noticed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    n1.sh("lvcreate -y -aey -L 64M -n lv san")?;
    let writer = Writer::start(n1, "lv", "/dev/san/lv")?;
    // Longer than any of these outages.
    agent(n1, 300)?;
    n1.sh(READ_IS_COUNTED)?;
    let before = transferred(n1)?;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        cluster.san.cut_all("n1", Some(0))?;
        let n1 = cluster.node("n1")?;
        told(n1, "no path works", round)?;
        let failed = last(n1, FAILED, FAILED_AT)?;
        let known = last(n1, "grep 'no path works' /run/bench/agent.log", KNOWN_AT)?;
        times.push(known - failed);
        cluster.san.restore_all("n1", Some(0))?;
        told(cluster.node("n1")?, "paths work again", round)?;
    }
    let n1 = cluster.node("n1")?;
    ensure(!writer.state(n1)?.ended, "nothing was fenced")?;
    let after = transferred(n1)?;
    ensure(
        after == before,
        format!(
            "the agent has read and written nothing of any disk meanwhile: {before:?} {after:?}"
        ),
    )?;
    times.sort_by(f64::total_cmp);
    let (median, longest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    let all: Vec<String> = times.iter().map(|t| format!("{t:.3}")).collect();
    say(format!(
        "    from the last path's failing to the agent's knowing, s: {}; median {median:.3}",
        all.join(" ")
    ));
    ensure(
        longest < NOTICED_AT_MOST,
        format!("never more than {NOTICED_AT_MOST} s: {longest:.3} s at most"),
    )
}

/// Whoever reads a block of the SAN is told so by its kernel's account: a shell does it here.
const READ_IS_COUNTED: &str = "count() { awk '/^read_bytes/ { print $2 }' /proc/$$/io; }; blockdev --flushbufs /dev/san/lv; \
     before=$(count); exec 3</dev/san/lv; IFS= read -r -N 1 -u 3 byte; test $(count) -gt $before";

/// Bytes that the agent had read from any disk, and written to one, so far: by the kernel's account of its threads.
fn transferred(node: &Node) -> Result<(u64, u64)> {
    let io = node.sh("cat /proc/$(cat /run/bench/agent.pid)/io")?;
    let of = |what: &str| -> Result<u64> {
        let line = io.lines().find_map(|l| l.strip_prefix(what));
        line.context(what.to_owned())?
            .parse()
            .context(what.to_owned())
    };
    Ok((of("read_bytes: ")?, of("write_bytes: ")?))
}

/// Waits until the agent has said it so often.
fn told(node: &Node, what: &str, times: usize) -> Result {
    until(
        &format!("{what:?} for the {times}. time"),
        Duration::from_secs(30),
        || {
            let said = node.sh(&format!("grep -c '{what}' /run/bench/agent.log || true"))?;
            Ok((said.parse::<usize>()? >= times).then_some(()))
        },
    )
}

/// The number that the last of these lines has where the pattern says.
fn last(node: &Node, lines: &str, pattern: &str) -> Result<f64> {
    let said = node.sh(&format!("{lines} | tail -n1 | sed 's/{pattern}/\\1/'"))?;
    said.parse::<f64>().context(format!("a time in {said:?}"))
}
