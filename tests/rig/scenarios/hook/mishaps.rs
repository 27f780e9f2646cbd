//! What else may go wrong around a death: the journal torn or not to be written, the clock set, a volume group joined again before the successor
//! comes. On a real node.

use std::time::Duration;

use super::agent_in;
use super::crashes::{GROUPS, LIMIT, Look, cut, give_back, hook, set_up, stepped, successor};
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say};

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
