//! The death of a daemon at every stage of a fence, on a real node. Each volume group's hook is held right before another step, then the daemon is
//! killed, and they all go on.

use std::time::{Duration, Instant};

use super::crashes::{LIMIT, Look, cut, hook, set_up, steps, successor};
use crate::harness::agent::Pending;
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "multipathd-killed-at-each-stage",
            about: "kill -9 of multipathd at each stage of a fence: it is proven and released all the same",
            shape: Shape::arrays,
            tell: multipathd_killed,
        },
        Scenario {
            name: "lvmlockd-killed-at-each-stage",
            about: "kill -9 of lvmlockd at each stage of a fence: nothing is called released that is not, and the watchdog resets the node",
            shape: Shape::arrays,
            tell: lvmlockd_killed,
        },
        Scenario {
            name: "sanlock-killed-at-each-stage",
            about: "kill -9 of sanlock at each stage of a fence: what can be cut off is, nothing is called released, and the watchdog resets the node",
            shape: Shape::arrays,
            tell: sanlock_killed,
        },
    ]
}

/// A volume group, and the step before which its hook is held: nothing is touched yet; the locks are frozen; everything is proven.
const STAGES: [(&str, &str); 3] = [("s0", "kill_vg"), ("s1", "dm swap"), ("s2", "drop_vg")];

fn groups() -> Vec<&'static str> {
    STAGES.iter().map(|(vg, _)| *vg).collect()
}

/// Cuts the SAN, holds every hook at its stage, does `deed`, and lets them go on.
fn at_each_stage(cluster: &mut Cluster, deed: &str) -> Result<Vec<Pending>> {
    cut(cluster, &groups())?;
    let n1 = cluster.node("n1")?;
    n1.sh("rm -f /run/held.* /run/go")?;
    let hooks = STAGES.iter().map(|(vg, step)| {
        let held = format!("touch /run/held.{vg}; until test -e /run/go; do sleep 0.05; done");
        let program = hook(vg);
        let command = format!(
            "/payload/bin/rig guest-stepper before '{step}' '{held}' {program} 2>/run/said.{vg}"
        );
        n1.start(&command, LIMIT)
    });
    let hooks = hooks.collect::<Result<_>>()?;
    until("every hook is held", Duration::from_secs(30), || {
        let held = n1.sh("ls /run/held.* 2>/dev/null | wc -l")?;
        Ok((held == STAGES.len().to_string()).then_some(()))
    })?;
    n1.sh(&format!("{deed}; touch /run/go"))?;
    say(format!("    {deed}"));
    Ok(hooks)
}

/// What each volume group looks like, and what its hook has said so far.
fn tell(node: &Node) -> Result<Look> {
    let look = Look::at(node)?;
    for vg in groups() {
        let said = node.sh(&format!("tail -n 1 /run/said.{vg}"))?;
        let (open, held) = (look.open(vg).len(), look.held(vg));
        say(format!("    {vg}: {open} open, held: {held}; {said}"));
    }
    Ok(look)
}

fn multipathd_killed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &groups())?;
    let boot = cluster.node("n1")?.boot_id()?;
    let hooks = at_each_stage(cluster, "kill -9 $(pidof multipathd)")?;
    let n1 = cluster.node("n1")?;
    for (hook, vg) in hooks.into_iter().zip(groups()) {
        let told = steps(&hook.wait(LIMIT)?)?;
        ensure(
            told.at.is_some() && told.code == 0,
            format!("{vg}: the fence is proven"),
        )?;
    }
    tell(n1)?;
    successor(n1, &groups())?;
    ensure(
        n1.run("pidof multipathd", LIMIT)?.code != 0,
        "all cut off, the watchdog lets go, and nobody started multipathd again",
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

fn lvmlockd_killed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &groups())?;
    let hooks = at_each_stage(cluster, "kill -9 $(pidof lvmlockd)")?;
    left_to_the_watchdog(cluster, hooks, &["s1", "s2"])
}

fn sanlock_killed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &groups())?;
    let hooks = at_each_stage(cluster, "kill -9 $(pidof sanlock)")?;
    left_to_the_watchdog(cluster, hooks, &["s0", "s1", "s2"])
}

/// `cut_off` are fenced, the others are not touched; nobody says that anything is released, and the watchdog resets the node.
fn left_to_the_watchdog(cluster: &Cluster, hooks: Vec<Pending>, cut_off: &[&str]) -> Result {
    let began = Instant::now();
    let n1 = cluster.node("n1")?;
    until("what can be cut off is", Duration::from_secs(20), || {
        let look = Look::at(n1)?;
        Ok(cut_off
            .iter()
            .all(|vg| look.open(vg).is_empty())
            .then_some(()))
    })?;
    std::thread::sleep(Duration::from_secs(10));
    let look = tell(n1)?;
    for vg in groups() {
        let open = look.open(vg).len();
        let expected = if cut_off.contains(&vg) { 0 } else { 2 };
        ensure(
            open == expected && look.suspended().is_empty() && look.watched(vg),
            format!("{vg}: {open} volumes open, none suspended, and the watchdog still waits"),
        )?;
    }
    let said = n1.sh("cat /run/said.* /run/sf/*/journal /run/sf/*/fenced/* 2>/dev/null || true")?;
    ensure(
        !said.contains("let go of every") && !said.contains("\"Released\""),
        "nobody calls anything released",
    )?;
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    drop(hooks);
    ensure(
        reset.by_watchdog,
        format!(
            "the watchdog resets the node, {:.1} s after the death",
            reset.at.duration_since(began).as_secs_f64()
        ),
    )
}
