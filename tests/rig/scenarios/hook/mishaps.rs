//! What else may go wrong around a death: the journal torn or not to be written, the clock set, a volume group joined again before the successor
//! comes. On a real node.

use std::time::Duration;

use serde_json::Value;

use super::super::outage;
use super::super::programs::send_programs;
use super::adopted::inspect;
use super::agent_in;
use super::crashes::{
    GROUPS, LIMIT, Look, cut, give_back, hook, paths_return, set_up, stepped, successor,
};
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "journal-torn-and-clock-set",
            about: "killed with a torn journal, on a full tmpfs, with the clock a day back or ahead: the next one completes it",
            shape: Shape::arrays,
            tell: journal_torn_and_clock_set,
        },
        Scenario {
            name: "joined-again-before-the-successor",
            about: "killed, and the lockspace joined anew by hand before the agent comes: it touches nothing of the new life",
            shape: Shape::arrays,
            tell: joined_again,
        },
        Scenario {
            name: "lvmlockd-dies-after-the-lease",
            about: "a lease runs out, nobody fences, lvmlockd dies: sanlock and the watchdog let go of what is open: that is told, and a policy \
                    fences it",
            shape: Shape::arrays,
            tell: dies_after_the_lease,
        },
    ]
}

fn journal_torn_and_clock_set(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    n1.sh("mkdir -p /run/sf/s1; mount -t tmpfs -o size=64k tmpfs /run/sf/s1; ! dd if=/dev/zero of=/run/sf/s1/full bs=1k 2>/dev/null")?;
    for (way, torn) in [("back", "-7"), ("ahead", "100")] {
        say(format!(
            "s0: torn at {torn}; s1: on a full tmpfs; s2: the clock is set a day {way}"
        ));
        let date = if way == "back" { "-1 day" } else { "+2 days" };
        cut(cluster, &GROUPS)?;
        let n1 = cluster.node("n1")?;
        // As if it had died while it wrote: in its last line, or in its first.
        killed(n1, "s0", "dm swap")?;
        n1.sh(&format!("truncate -s {torn} /run/sf/s0/journal"))?;
        killed(n1, "s1", "drop_vg")?;
        let set = format!("date -s \"{date}\" >/dev/null");
        let told = stepped(n1, "before", "dm swap", &set, &hook("s2"))?;
        ensure(
            told.at.is_some() && told.code == 0,
            format!("a clock that is set {way} during the fence changes nothing"),
        )?;
        for vg in GROUPS {
            Look::at(n1)?.check(vg)?;
        }
        successor(n1, &GROUPS)?;
        ensure(true, "the next ones complete it")?;
        let from_journal = n1.run("grep -q 'completing the fence' /run/said.s0", LIMIT)?;
        ensure(
            (from_journal.code == 0) == (way == "back"),
            "what is whole of the journal counts, and what is torn does not",
        )?;
        n1.sh("grep -q 'tmpfs with free space' /run/said.s1")?;
        ensure(true, "a tmpfs that is full is told")?;
        if way == "back" {
            give_back(cluster, &GROUPS)?;
        }
    }
    ensure(
        cluster.node("n1")?.boot_id()? == boot,
        "the node was not reset",
    )
}

/// Names of the volume groups that are said to reach the SAN without a lock.
fn without_lock(node: &Node) -> Result<Vec<String>> {
    let told = inspect(node)?;
    let all = told["withoutLock"].as_array().context("withoutLock")?;
    let mut names: Vec<_> = all.iter().filter_map(|n| n.as_str()).collect();
    names.sort_unstable();
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn dies_after_the_lease(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    ensure(
        without_lock(cluster.node("n1")?)?.is_empty(),
        "nothing reaches the SAN without a lock",
    )?;
    cut(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    // The default of lvm.conf: no command.
    until("every lease has run out", Duration::from_secs(40), || {
        let dead = n1.sanlock()?.matches("space_dead=1").count();
        Ok((dead == GROUPS.len()).then_some(()))
    })?;
    let look = Look::at(n1)?;
    ensure(
        GROUPS.iter().all(|vg| look.watched(vg)) && without_lock(n1)?.is_empty(),
        "the leases have run out, and the watchdog waits for all three",
    )?;
    n1.sh("kill -9 $(pidof lvmlockd)")?;
    until("the watchdog lets go", Duration::from_secs(20), || {
        let look = Look::at(n1)?;
        Ok((!GROUPS.iter().any(|vg| look.watched(vg))).then_some(()))
    })?;
    let look = Look::at(n1)?;
    ensure(
        GROUPS.iter().all(|vg| look.open(vg).len() == 2),
        "lvmlockd is dead, sanlock and the watchdog have let go, and every volume still leads to the SAN",
    )?;
    let told = without_lock(n1)?;
    ensure(told == GROUPS, format!("that is told: {told:?}"))?;
    let boot = n1.boot_id()?;
    say("an agent comes whose policy fences what has lost its paths");
    send_programs(n1)?;
    outage::agent_in(n1, 0, "")?;
    until("every volume is cut off", Duration::from_secs(60), || {
        let look = Look::at(n1)?;
        Ok(GROUPS
            .iter()
            .all(|vg| look.open(vg).is_empty())
            .then_some(()))
    })?;
    ensure(
        without_lock(n1)?.is_empty(),
        "lvmlockd is still dead, and nothing reaches the SAN any more",
    )?;
    let ended = until("its fences have ended", Duration::from_secs(90), || {
        let kept = n1.sh("cat /run/bench/state/local-fences.json 2>/dev/null || echo '{}'")?;
        let kept: Value = serde_json::from_str(&kept).context("local-fences.json")?;
        let all = kept["content"].as_array().cloned().unwrap_or_default();
        let over = |f: &Value| !f["report"]["finished_after"].is_null();
        Ok((!all.is_empty() && all.iter().all(over)).then_some(all))
    })?;
    let says = |f: &Value, what: &str, word: &str| f["report"][what] == word;
    ensure(
        ended
            .iter()
            .all(|f| says(f, "outcome", "Proven") && says(f, "locks", "Released")),
        format!(
            "sanlock has no lockspace of any volume group, so they count as released with lvmlockd still dead: {}",
            ended
                .iter()
                .map(|f| f["report"]["locks_message"].to_string())
                .collect::<String>()
        ),
    )?;
    paths_return(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    std::thread::sleep(Duration::from_secs(5));
    let look = Look::at(n1)?;
    ensure(
        GROUPS.iter().all(|vg| look.open(vg).is_empty()) && look.suspended().is_empty(),
        "the paths are back, and every volume is still cut off",
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// The hook of `vg` dies before that step.
fn killed(node: &Node, vg: &str, step: &str) -> Result {
    let told = stepped(node, "before", step, "kill", &hook(vg))?;
    let Some(at) = told.at else {
        return Err(format!("{vg}: no step is {step}: {:?}", told.calls).into());
    };
    say(format!("    {vg}: killed before {}", told.calls[at]));
    Ok(())
}

fn joined_again(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    cut(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    killed(n1, "s0", "dm swap")?;
    killed(n1, "s1", "drop_vg")?;
    // The drop is sent, and nothing of it is in the journal but that it began.
    let told = stepped(n1, "after", "drop_vg", "kill", &hook("s2"))?;
    ensure(told.at.is_some(), "s2: killed after the drop was sent")?;
    for vg in GROUPS {
        Look::at(n1)?.check(vg)?;
        // Somebody puts it right by hand, and no agent is there.
        n1.sh(&format!(
            "lvmlockctl --drop {vg}; for lv in a b; do dmsetup remove --retry {vg}-$lv; done"
        ))?;
    }
    give_back(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    for vg in GROUPS {
        agent_in(n1, &format!("/run/sf/{vg}"))?;
        // A fence takes a second or two.
        std::thread::sleep(Duration::from_secs(8));
        let look = Look::at(n1)?;
        ensure(
            look.open(vg).len() == 2 && look.held(vg) && look.suspended().is_empty(),
            format!("{vg}: an agent that finds the old journal leaves the new life alone"),
        )?;
        let journal = n1.sh(&format!("grep -c CalledOff /run/sf/{vg}/journal"))?;
        ensure(journal != "0", "and notes why")?;
        n1.sh("kill -9 $(cat /run/agent.pid)")?;
    }
    Ok(())
}
