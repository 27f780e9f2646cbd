//! The kill hook and the guard on a real host: called by sanlock itself, with the agent dead, alive and hung; black holes; a refresh.

mod adopted;
mod agents;
pub mod crashes;
mod joined;
mod lvm;
mod matrix;
mod mishaps;
mod missing;
mod races;
mod returns;
mod stages;
mod together;
mod unread;

use std::time::{Duration, Instant};

use super::stacks::holds;
use crate::harness::node::Node;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};
use crashes::expedited;

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario {
            name: "hook-by-sanlock",
            about: "no agent, nobody asks: the lease runs out, sanlock has lvmlockctl call the installed hook, and the node lives",
            shape: Shape::arrays,
            tell: called_by_sanlock,
        },
        Scenario {
            name: "black-hole-ends",
            about: "a black hole that ends in time: the hook waits, and then the fence is proven",
            shape: Shape::arrays,
            tell: black_hole_ends,
        },
        Scenario {
            name: "black-hole-refused",
            about: "a black hole that lasts: nothing is released, the reason is told, and the watchdog resets the node",
            shape: Shape::arrays,
            tell: black_hole_refused,
        },
        Scenario {
            name: "refresh-is-closed",
            about: "a fence by the agent on the hook's word; an lvchange --refresh opens it, and the agent closes it at once",
            shape: Shape::arrays,
            tell: refresh_is_closed,
        },
    ];
    all.extend(crashes::scenarios());
    all.extend(missing::scenarios());
    all.extend(unread::scenarios());
    all
}

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    let mut long = vec![Scenario {
        name: "hook-agent-hung",
        about: "the agent is there and does not move: the hook fences without it, and the agent tells when it moves again",
        shape: Shape::arrays,
        tell: agent_hung,
    }];
    long.extend(crashes::long());
    long.extend(agents::long());
    long.extend(races::long());
    long.extend(joined::long());
    long.extend(stages::long());
    long.extend(lvm::long());
    long.extend(matrix::long());
    long.extend(mishaps::long());
    long.extend(adopted::long());
    long.extend(returns::long());
    long.extend(together::long());
    long
}

const HOOK: &str = "/payload/bin/storage-fence kill-hook san";
/// Of the whole way: what was in flight when the black hole ended has SCSI time-outs to wait for.
const LIMIT: Duration = Duration::from_secs(100);

/// A shared VG with one LV on LUN 0, and a writer on it.
fn volume(cluster: &Cluster) -> Result<(&Node, Writer)> {
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    n1.sh("lvcreate -y -aey -L 64M -n lv san")?;
    let writer = Writer::start(n1, "lv", "/dev/san/lv")?;
    Ok((n1, writer))
}

fn target(node: &Node) -> Result<String> {
    let table = node.lv_table("san", "lv")?;
    Ok(table.split(' ').nth(2).unwrap_or_default().to_owned())
}

/// An agent without an API server: it does everything that a node does by itself.
pub fn agent(node: &Node) -> Result {
    agent_in(node, "/run/storage-fence")
}

/// The same with a state folder of its own.
fn agent_in(node: &Node, folder: &str) -> Result {
    agent_that_logs_to(node, folder, "/run/agent.log")
}

fn agent_that_logs_to(node: &Node, folder: &str, log: &str) -> Result {
    node.write_file(
        "/run/kubeconfig",
        "apiVersion: v1\nkind: Config\ncurrent-context: none\nclusters: [{name: none, cluster: {server: \"http://127.0.0.1:9\"}}]\n\
         contexts: [{name: none, context: {cluster: none, user: none}}]\nusers: [{name: none, user: {}}]\n",
    )?;
    node.sh(&format!(
        "STATE_DIRECTORY={folder} KUBECONFIG=/run/kubeconfig setsid /payload/bin/storage-fence agent --node-name n1 >{log} 2>&1 </dev/null & echo $! >/run/agent.pid"
    ))?;
    until("the agent listens", Duration::from_secs(30), || {
        let there = node.run(&format!("test -S {folder}/agent.sock"), LIMIT)?;
        Ok((there.code == 0).then_some(()))
    })
}

fn log(node: &Node) -> Result<String> {
    node.sh("cat /run/agent.log")
}

fn cut(cluster: &mut Cluster) -> Result<&Node> {
    cluster.san.cut_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    until("both paths have failed", Duration::from_secs(40), || {
        Ok((n1.path_states(0)? == "FF").then_some(()))
    })?;
    Ok(n1)
}

fn black_hole_ends(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let (n1, writer) = volume(cluster)?;
    let boot = n1.boot_id()?;
    cluster.san.black_hole_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    std::thread::sleep(Duration::from_secs(2));
    let hook = n1.start(HOOK, LIMIT)?;
    std::thread::sleep(Duration::from_secs(10));
    ensure(
        target(n1)? == "linear" && holds(&n1.wdmd()?, "san"),
        "while I/O is under way nothing is swapped and nothing released",
    )?;
    ensure(expedited(n1)?, "the kernel hurries its grace periods along")?;
    cluster.san.restore_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    let end = hook.wait(LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    ensure(end.code == 0, "when it ends, the fence is proven")?;
    ensure(target(n1)? == "error", "the volume is cut off")?;
    ensure(!expedited(n1)?, "and no longer than that")?;
    ensure(!holds(&n1.wdmd()?, "san"), "the watchdog lets go")?;
    let written = writer.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(written.errno == Some(5), "the writer got EIO")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

fn agent_hung(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    volume(cluster)?;
    let n1 = cluster.node("n1")?;
    agent(n1)?;
    let n1 = cut(cluster)?;
    n1.sh("kill -STOP $(cat /run/agent.pid)")?;
    let end = n1.run(HOOK, LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    ensure(
        end.code == 0 && end.err.contains("fencing without it"),
        "the hook fences without the agent",
    )?;
    ensure(
        target(n1)? == "error" && !holds(&n1.wdmd()?, "san"),
        "the volume is cut off, and the watchdog lets go",
    )?;
    n1.sh("kill -CONT $(cat /run/agent.pid)")?;
    until("the agent tells of it", Duration::from_secs(20), || {
        Ok(log(n1)?.contains("FencedByKillHook").then_some(()))
    })?;
    let journal = n1.sh("grep -c '\"Begun\"' /run/storage-fence/journal")?;
    ensure(
        journal == "1" && !log(n1)?.contains("an order's turn"),
        "one fence ran, not two",
    )
}

fn refresh_is_closed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    volume(cluster)?;
    let n1 = cluster.node("n1")?;
    agent(n1)?;
    let n1 = cut(cluster)?;
    let end = n1.run(HOOK, LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    ensure(
        end.code == 0 && !end.err.contains("fencing without it"),
        "the agent fences on the hook's word",
    )?;
    ensure(target(n1)? == "error", "the volume is cut off")?;
    cluster.san.restore_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    until("the paths are back", Duration::from_secs(60), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    let refresh = n1.run("lvchange --refresh san/lv", LIMIT)?;
    say(format!(
        "    lvchange --refresh ended with {}: {}",
        refresh.code,
        refresh.err.trim()
    ));
    closed_again(n1, 1)?;
    ensure(target(n1)? == "error", "the volume is cut off again")?;
    // Three times, since the agent's regular look each second may come by chance in the same moment.
    for n in 2..=4 {
        // After a closing it looks more often for a while.
        std::thread::sleep(Duration::from_millis(5300));
        let open = n1.sh(OPEN)?;
        let open: u64 = open.parse().context("how long it was open")?;
        let told = closed_again(n1, n)?;
        ensure(
            told >= open,
            format!("told is at most {told} ms, and {open} ms were seen"),
        )?;
    }
    ensure(log(n1)?.contains("FenceOpened"), "both are told")?;
    n1.sh(LATE)?;
    closed_again(n1, 5)?;
    ensure(
        n1.sh("dmsetup table san-late")?.contains(" error"),
        "a volume that comes up later is cut off too",
    )?;
    // With a working path queueing is harmless, and left to multipathd.
    cluster.san.cut_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    until(
        "the paths are gone, and queueing is off",
        Duration::from_secs(60),
        || Ok((n1.path_states(0)? == "FF" && !n1.queues(0)?).then_some(())),
    )?;
    // It may be turned off again before it is looked at.
    let seen = (0..5).try_fold(false, |seen, _| -> Result<bool> {
        Ok(seen || n1.sh(QUEUE)? == "1")
    })?;
    ensure(seen, "multipathd turns queueing on")?;
    until("queueing is off again", Duration::from_secs(20), || {
        Ok((!n1.queues(0)?).then_some(()))
    })
}

/// A volume of the volume group, as if somebody activated it without asking for a lock.
const LATE: &str = "pv=$(dmsetup deps -o devno san-lvmlock | sed 's/.*(\\([0-9]*\\), \\([0-9]*\\)).*/\\1:\\2/'); \
     vg=$(dmsetup info -c --noheadings -o uuid san-lv | cut -c1-36); \
     dmsetup create --noudevsync --uuid ${vg}$(printf l%.0s $(seq 32)) --table \"0 8192 linear $pv 2048\" san-late";
/// Has multipathd restore the queueing of the volume group's map, and prints whether it is on.
const QUEUE: &str = "map=$(dmsetup deps -o devname san-lvmlock | sed 's/.*(\\(.*\\)).*/\\1/'); multipathd restorequeueing map $map >/dev/null; \
     dmsetup table $map | grep -c queue_if_no_path; true";

/// Gives the volume its table back as `lvchange --refresh` does at last, and prints for how many milliseconds it was seen open.
const OPEN: &str = "now() { date +%s%3N; }; is() { dmsetup table san-lv | grep -q \" $1 \"; }; \
     pv=$(dmsetup deps -o devno san-lvmlock | sed 's/.*(\\([0-9]*\\), \\([0-9]*\\)).*/\\1:\\2/'); size=$(blockdev --getsz /dev/mapper/san-lv); \
     dmsetup load san-lv --table \"0 $size linear $pv 2048\"; dmsetup resume --noudevsync san-lv; a=$(now); b=$a; \
     while is linear; do b=$(now); done; echo $((b - a))";

/// Waits until the agent has told so many times that it closed the fence again; gives the milliseconds that it told last.
fn closed_again(node: &Node, times: usize) -> Result<u64> {
    let last = until("it is closed again", Duration::from_secs(20), || {
        let log = log(node)?;
        let told: Vec<&str> = log
            .lines()
            .filter(|l| l.contains("FenceClosedAgain"))
            .collect();
        Ok((told.len() >= times).then(|| told.last().copied().unwrap_or_default().to_owned()))
    })?;
    say(format!("    {last}"));
    let (_, rest) = last.split_once("for at most ").context("no time is told")?;
    let (ms, _) = rest.split_once(" ms").context("no milliseconds are told")?;
    ms.parse().context("the time that is told")
}

fn called_by_sanlock(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let (n1, writer) = volume(cluster)?;
    let boot = n1.boot_id()?;
    let check = "/payload/bin/storage-fence install-hook --check";
    ensure(n1.run(check, LIMIT)?.code == 1, "the hook is not installed")?;
    n1.sh("/payload/bin/storage-fence install-hook")?;
    n1.sh(check)?;
    let set = n1.sh("lvmconfig --typeconfig full global/lvmlockctl_kill_command")?;
    ensure(
        set == "lvmlockctl_kill_command=\"/usr/local/sbin/storage-fence kill-hook\"",
        "LVM reads the setting as it is meant",
    )?;
    let cut_at = Instant::now();
    let n1 = cut(cluster)?;
    // The lease is lost 16 s after its last renewal.
    until("the volume is cut off", Duration::from_secs(60), || {
        Ok((target(n1)? == "error").then_some(()))
    })?;
    until("the watchdog lets go", Duration::from_secs(60), || {
        Ok((!holds(&n1.wdmd()?, "san")).then_some(()))
    })?;
    say(format!(
        "    {:.1} s after the cut",
        cut_at.elapsed().as_secs_f64()
    ));
    // The watchdog's daemon lets go first, then sanlock, and then the hook has seen both.
    until("the kernel's log tells it", Duration::from_secs(30), || {
        let log = n1.sh("dmesg | grep storage-fence: || true")?;
        Ok((log.contains("no agent") && log.contains("cut off from its storage")).then_some(()))
    })?;
    let written = writer.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(written.errno == Some(5), "the writer got EIO")?;
    until("lvmlockctl is done too", Duration::from_secs(30), || {
        Ok((n1.run("pgrep -f 'lvmlockctl --kill'", LIMIT)?.code != 0).then_some(()))
    })?;
    until(
        "sanlock has no lockspace left",
        Duration::from_secs(30),
        || Ok(n1.lockspaces()?.is_empty().then_some(())),
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")?;
    n1.sh("/payload/bin/storage-fence install-hook --remove")?;
    ensure(
        n1.run(check, LIMIT)?.code == 1
            && n1.run("test -e /usr/local/sbin/storage-fence", LIMIT)?.code == 1,
        "the hook is removed",
    )
}

fn black_hole_refused(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    volume(cluster)?;
    cluster.san.black_hole_all("n1", Some(0))?;
    let cut = Instant::now();
    let n1 = cluster.node("n1")?;
    let hook = n1.start(&format!("{HOOK} 2>/dev/kmsg"), LIMIT)?;
    std::thread::sleep(Duration::from_secs(30));
    ensure(
        target(n1)? == "linear" && holds(&n1.wdmd()?, "san"),
        "nothing is swapped, and nothing released",
    )?;
    // Ten seconds before the reset it is given up as not proven; it is tried on all the same.
    let told = until(
        "it is told what falls short",
        Duration::from_secs(75),
        || {
            let journal = n1.run(
                "grep -o 'not proven by the deadline: [^\"]*' /run/storage-fence/journal",
                LIMIT,
            )?;
            Ok((journal.code == 0).then_some(journal.out))
        },
    )?;
    ensure(
        told.contains("san-lv"),
        format!("the device is named: {}", told.trim()),
    )?;
    ensure(
        target(n1)? == "linear" && holds(&n1.wdmd()?, "san"),
        "still nothing is swapped, and nothing released",
    )?;
    let ended = hook.poll(Duration::from_secs(1))?;
    ensure(
        ended.as_ref().is_none_or(|e| e.code != 0),
        "the hook does not say that it is done",
    )?;
    // 66 to 76 s after the last renewal; emulation is slower than its clock.
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    ensure(
        reset.by_watchdog,
        format!(
            "the watchdog resets the node, {:.1} s after the black hole began",
            reset.at.duration_since(cut).as_secs_f64()
        ),
    )
}
