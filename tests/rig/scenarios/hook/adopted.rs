//! An lvmlockd that died and was started again, and the lockspace that it left in sanlock: adopted before a fence, gone after one; and one that stays
//! away.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::crashes::Look;
use super::{HOOK, LIMIT, agent, cut, target, volume};
use crate::harness::node::Node;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "lvmlockd-adopted",
        about: "lvmlockd dies, and the next one adopts its lockspace: it is seen again, and a fence of it is proven; one that stays away is left to the \
                watchdog",
        shape: Shape::arrays,
        tell: adopted,
    }]
}

const KILL: &str =
    "pid=$(pidof lvmlockd); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done";
const START: &str = "lvmlockd -o 2; for i in $(seq 100); do ! timeout 2 lvmlockctl --info >/dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1";
/// Of what its predecessor left: the lockspace, and then the lock of the volume. `lvmlockd --adopt 1` would do both, but only where the one that
/// died ran with it too, since no other notes its locks; and that of lvm2 2.03.31 then waits for ever for its own answer.
const ADOPT: &str =
    "vgchange --lockstart --lockopt adoptls san && lvchange -aey --lockopt adoptlv san/lv";

fn adopted(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let (n1, writer) = volume(cluster)?;
    let boot = n1.boot_id()?;
    agent(n1)?;
    let before = seen(n1)?;
    ensure(
        before["lvLocks"] == 1 && before["state"] == "Healthy",
        format!("a volume group in use: {before}"),
    )?;

    say("lvmlockd dies, and another one adopts its lockspace");
    n1.sh(KILL)?;
    let inspected = inspect(n1)?;
    let problem = inspected["lockManager"]["problem"].as_str();
    ensure(
        problem.is_some_and(|p| p.contains("/run/lvm/lvmlockd.socket")),
        format!("while it is dead that is told: {problem:?}"),
    )?;
    ensure(
        writing(n1, &writer)? && holds_on(n1)?,
        "the writer goes on, and sanlock and the watchdog hold on",
    )?;
    n1.sh(START)?;
    let inspected = inspect(n1)?;
    let checks = inspected["preflight"].as_array().cloned();
    let warned = checks.unwrap_or_default().iter().any(|c| {
        c["name"] == "LockManager"
            && c["result"] == "Warning"
            && c["message"]
                .as_str()
                .is_some_and(|m| m.contains("adoptls san"))
    });
    ensure(
        warned,
        "that it cannot be fenced now is told, with what to do",
    )?;
    let left = inspected["lockManager"]["lockspaces"].clone();
    ensure(
        left[0]["name"] == "lvm_san"
            && left[0]["lvLocks"] == 0
            && left[0]["vgUUID"] == ""
            && seen(n1).is_err()
            && holds_on(n1)?,
        format!("a new one does not know it, and sanlock still has it: {left}"),
    )?;
    n1.sh(ADOPT)?;
    let after = until(
        "the lockspace is seen again",
        Duration::from_secs(30),
        || Ok(Some(seen(n1)?).filter(|l| l["lvLocks"] == 1)),
    )?;
    ensure(
        same_life(&before, &after) && Look::at(n1)?.held("san"),
        format!("as it was: {after}"),
    )?;
    ensure(writing(n1, &writer)?, "the writer still goes on")?;

    say("the SAN is lost");
    let n1 = cut(cluster)?;
    let end = n1.run(HOOK, LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    ensure(
        end.code == 0 && target(n1)? == "error",
        "what was adopted is fenced: proven",
    )?;
    until("the locks are released", Duration::from_secs(30), || {
        Ok(Look::at(n1)?.released("san").then_some(()))
    })?;
    let written = writer.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(written.errno == Some(5), "the writer got EIO")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")?;
    after_the_fence(cluster, &before)?;
    away_for_good(cluster)
}

/// There is nothing to adopt then, and the fence stands all the same, until the storage is given back by hand.
fn after_the_fence(cluster: &mut Cluster, before: &Value) -> Result {
    say("the SAN is back, lvmlockd dies once more, and there is nothing to adopt");
    cluster.san.restore_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    until("the paths are back", Duration::from_secs(60), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    n1.sh(KILL)?;
    n1.sh(START)?;
    std::thread::sleep(Duration::from_secs(10));
    let standing = n1.sh("ls -A /run/storage-fence/fenced")?;
    ensure(
        target(n1)? == "error"
            && !standing.is_empty()
            && seen(n1).is_err()
            && Look::at(n1)?.released("san"),
        "the fence stands, and no lockspace is joined",
    )?;
    n1.sh_within(
        "set -e; for map in $(dmsetup ls --target multipath | cut -f1); do multipathd restorequeueing map $map >/dev/null; done; \
         dmsetup remove --retry --noudevsync san-lv; for i in 1 2 3 4 5 6; do ! vgchange -qq --lockstart san || break; sleep 1; done; \
         lvchange -aey san/lv",
        LIMIT,
    )?;
    let now = seen(n1)?;
    ensure(
        target(n1)? == "linear" && now["lvLocks"] == 1 && now["state"] == before["state"],
        format!("given back by hand, it is in use again: {now}"),
    )
}

/// Without lvmlockd nobody can have the locks released: that is told, nothing is touched, and the watchdog does what it is there for.
fn away_for_good(cluster: &mut Cluster) -> Result {
    say("lvmlockd dies for good, and then the SAN is lost");
    let n1 = cluster.node("n1")?;
    n1.sh(KILL)?;
    let n1 = cut(cluster)?;
    let begin = Instant::now();
    let hook = n1.run(&format!("timeout 15 {HOOK}"), LIMIT)?;
    say(format!("    {}", hook.err.trim()));
    ensure(
        hook.code != 0
            && hook.err.contains("lvmlockd at /run/lvm/lvmlockd.socket")
            && hook.err.contains("systemctl start lvmlockd"),
        "the hook and the agent say what is missing, and what to do",
    )?;
    ensure(
        target(n1)? == "linear" && holds_on(n1)?,
        "nothing is touched, and nothing released",
    )?;
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    ensure(
        reset.by_watchdog,
        format!(
            "the watchdog resets the node, {:.1} s after the paths were lost",
            reset.at.duration_since(begin).as_secs_f64()
        ),
    )
}

/// Whether sanlock and the watchdog hold on to the lockspace, whatever lvmlockd knows.
fn holds_on(node: &Node) -> Result<bool> {
    let joined = |l: &String| l.contains("lvm_san:") && !l.contains(" REM");
    Ok(Look::at(node)?.watched("san") && node.lockspaces()?.iter().any(joined))
}

/// Whether the writer's writes end well.
fn writing(node: &Node, writer: &Writer) -> Result<bool> {
    let before = writer.state(node)?.writes;
    std::thread::sleep(Duration::from_secs(2));
    let now = writer.state(node)?;
    Ok(!now.ended && now.writes > before)
}

/// The node as `inspect` sees it.
pub fn inspect(node: &Node) -> Result<Value> {
    let told = node.run("/payload/bin/storage-fence inspect", LIMIT)?;
    serde_json::from_str(&told.out).context(format!("inspect said {}{}", told.out, told.err))
}

/// The lockspace of the volume group.
fn seen(node: &Node) -> Result<Value> {
    let told = inspect(node)?;
    let all = told["volumeGroups"].as_array().context("volume groups")?;
    let group = all.iter().find(|g| g["name"] == "san").context("no san")?;
    let lockspace = &group["lockspace"];
    if lockspace.is_null() {
        return Err(format!("no lockspace: {}", told["lockManager"]).into());
    }
    Ok(lockspace.clone())
}

fn same_life(before: &Value, after: &Value) -> bool {
    let same = |field: &str| before[field] == after[field];
    [
        "name",
        "hostID",
        "generation",
        "ioTimeout",
        "state",
        "frozen",
    ]
    .into_iter()
    .all(same)
}
