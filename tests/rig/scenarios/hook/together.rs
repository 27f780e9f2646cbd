//! One order for two volume groups on a node that has a third, on a real lvmlockd, which gives back the locks of both at a time.

use std::time::Duration;

use super::super::programs::{OURS, send_programs};
use super::super::stacks::{cut_array_a, renewed_all_along};
use super::agents::{LIFE, keep_policy_of, program};
use super::crashes::{GROUPS, Look, completed, give_back, set_up};
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "two-in-one-order",
        about: "array A is lost and has two volume groups: an agent's policy fences both by one order, again and again, and that of array B never notices",
        shape: Shape::arrays,
        tell: two_in_one_order,
    }]
}

/// lvmlockd died in the fifth drop of one that was asked all the time.
const ROUNDS: usize = 4;
const SPAN: Duration = Duration::from_secs(8);
const LOST: [&str; 2] = ["s0", "s1"];
const B: &str = "s2";

fn two_in_one_order(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    send_programs(n1)?;
    keep_policy_of(n1, "s0", &GROUPS)?;
    let _agent = n1.start(&program(OURS, "s0"), LIFE)?;
    until("the agent listens", Duration::from_secs(30), || {
        let there = n1.sh("ls /run/sf/s0/agent.sock 2>/dev/null; true")?;
        Ok((!there.is_empty()).then_some(()))
    })?;
    let lvmlockd = n1.sh("pidof lvmlockd")?;
    let other = Writer::start(n1, "other", &format!("/dev/{B}/a"))?;
    let mut bystanders = Bystanders::undisturbed(n1, vec![other], SPAN)?;
    for round in 1..=ROUNDS {
        let n1 = cluster.node("n1")?;
        let began = n1.uptime()?;
        bystanders.disturbed(n1)?;
        let n1 = cut_array_a(cluster)?;
        completed(n1, &LOST)?;
        say(format!("    {round}: both are fenced and released"));
        let journal = n1.sh("cat /run/sf/s0/journal")?;
        let told = |vg: &str| journal.contains(&format!("\"lvm_{vg}\""));
        ensure(
            LOST.into_iter().all(told) && !told(B),
            "by one order, which leaves out that of array B",
        )?;
        let look = Look::at(n1)?;
        ensure(
            look.held(B) && look.open(B).len() == 2 && n1.queues(2)?,
            "array B has its locks, its volumes and its queueing",
        )?;
        bystanders.never_noticed(n1)?;
        renewed_all_along(n1, B, began)?;
        ensure(
            n1.sh("pidof lvmlockd")? == lvmlockd,
            "lvmlockd is the one that it was",
        )?;
        give_back(cluster, &LOST)?;
    }
    ensure(
        cluster.node("n1")?.boot_id()? == boot,
        "the node was not reset",
    )
}
