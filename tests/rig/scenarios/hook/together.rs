//! One order for two volume groups on a node that has a third, on a real lvmlockd, which gives back the locks of both at a time.

use std::time::Duration;

use super::super::fence::FENCE_LIMIT;
use super::super::stacks::{cut_array_a, renewed_all_along};
use super::crashes::{GROUPS, Look, completed, paths_return, set_up};
use crate::harness::operator::request_yaml;
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "two-in-one-order",
        about: "array A is lost and has two volume groups: both are fenced by one order and given back, again and again, and that of array B never notices",
        shape: || Shape::kubernetes().with_luns(3),
        tell: two_in_one_order,
    }]
}

/// lvmlockd died in the fifth drop of one that was asked all the time.
const ROUNDS: usize = 4;
const SPAN: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(180);
const LOST: [&str; 2] = ["s0", "s1"];
const B: &str = "s2";

fn two_in_one_order(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    let lvmlockd = n1.sh("pidof lvmlockd")?;
    let other = Writer::start(n1, "other", &format!("/dev/{B}/a"))?;
    let mut bystanders = Bystanders::undisturbed(n1, vec![other], SPAN)?;
    for round in 1..=ROUNDS {
        let n1 = cluster.node("n1")?;
        let began = n1.uptime()?;
        bystanders.disturbed(n1)?;
        cut_array_a(cluster)?;
        let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
        let name = format!("both-{round}");
        control_plane.apply(&request_yaml(&name, "n1", &["unfenceAfterSeconds: 1"]))?;
        let request =
            control_plane.wait_for_condition(&name, "LocksReleased", "True", FENCE_LIMIT)?;
        say(format!("    {round}: both are fenced and released"));
        let groups = request["status"]["node"]["volumeGroups"].as_array();
        let names: Vec<_> = groups
            .context("volume groups")?
            .iter()
            .filter_map(|g| g["name"].as_str())
            .collect();
        ensure(
            names == LOST,
            format!("by one order, which leaves out that of array B: {names:?}"),
        )?;
        completed(n1, &LOST)?;
        let look = Look::at(n1)?;
        ensure(
            look.held(B) && look.open(B).len() == 2 && n1.queues(2)?,
            "array B has its locks, its volumes and its queueing",
        )?;
        // The node is busy with a cluster: pauses are measured where it is not (`stacks`).
        bystanders.went_on(n1)?;
        renewed_all_along(n1, B, began)?;
        ensure(
            n1.sh("pidof lvmlockd")? == lvmlockd,
            "lvmlockd is the one that it was",
        )?;
        paths_return(cluster, &LOST)?;
        let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
        control_plane.kubectl(&["delete", "sfr", &name, "--timeout=180s"])?;
        n1.sh_within(&format!("vgchange -qq -aey {}", LOST.join(" ")), LIMIT)?;
        let look = Look::at(n1)?;
        ensure(
            LOST.into_iter()
                .all(|vg| look.held(vg) && look.open(vg).len() == 2),
            "both are in use again",
        )?;
    }
    ensure(
        cluster.node("n1")?.boot_id()? == boot,
        "the node was not reset",
    )
}
