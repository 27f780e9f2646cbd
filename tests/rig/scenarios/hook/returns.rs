//! The agent's death at every step of giving a node its storage back, on a real node with a real API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::programs::{OURS, send_programs};
use super::agents::{end, in_use, start_killed, start_stepped};
use super::crashes::{GROUPS, LIMIT, Look, asked, completed, cut, paths_return, set_up, traced};
use crate::guest::stepper::{STARTS, Steps};
use crate::harness::agent::Pending;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "return-killed-at-every-step",
        about: "kill -9 of the agent before every step of an un-fence, one after the other: the next agent ends it, fences nothing, and all is in use again",
        shape: || Shape {
            kubernetes: true,
            ..Shape::arrays()
        },
        tell: killed_at_every_step,
    }]
}

/// Of a fence or an un-fence, three at a time on an emulated core.
const TURN: Duration = Duration::from_secs(150);
/// A way back has so many steps at least.
const STEPS: usize = 10;
/// Some of them, by what their descriptions have in them: whoever sees fewer has gone blind for some.
const AMONG_THEM: [&str; 5] = [
    "/unfence",
    "/fenced/",
    "dm remove",
    "restorequeueing",
    STARTS,
];
/// Of LVM's tools a way back starts so many at least: one finds the name, one joins the lockspace.
const TOOLS: usize = 2;
/// What the agents wait for: from here on their steps count.
const BEGIN: &str = "/run/back";

/// Each volume group's agent is a node of its own to the API server.
fn node_of(vg: &str) -> String {
    format!("n1-{vg}")
}

fn killed_at_every_step(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let boot = cluster.node("n1")?.boot_id()?;
    send_programs(cluster.node("n1")?)?;
    let_in(cluster)?;
    let (first, last) = asked()?;
    let mut number = first - 1;
    let mut deaths = BTreeMap::new();
    let mut going_on = true;
    // How many steps there are differs from one to the other: until nobody of a round is killed any more.
    while going_on {
        let numbers: Vec<usize> = (number + 1..=number + GROUPS.len()).collect();
        let which = |n: usize| format!("{n} once {BEGIN}");
        let met = round(cluster, "before", &numbers, which)?;
        number += GROUPS.len();
        going_on = !met.is_empty() && number < last;
        deaths.extend(met);
    }
    let seen = |what: &&&str| deaths.values().any(|s| s.contains(**what));
    let missed: Vec<_> = AMONG_THEM.iter().filter(|what| !seen(what)).collect();
    let all = (first, last) == (1, usize::MAX);
    ensure(
        !all || (deaths.len() >= STEPS && missed.is_empty()),
        format!("each of {} steps was met {missed:?}", deaths.len()),
    )?;
    // Once more where a tool of LVM's is at work by then, and lives on. Of which number such a step is differs: what others write comes in between.
    let mut starts = BTreeMap::new();
    let mut going_on = all;
    while going_on {
        let next = starts.len() + 1;
        let numbers: Vec<usize> = (next..next + GROUPS.len()).collect();
        let which = |n: usize| format!("{n} of {STARTS}");
        let met = round(cluster, "after", &numbers, which)?;
        going_on = met.len() == numbers.len();
        starts.extend(met);
    }
    ensure(
        !all || starts.len() >= TOOLS,
        format!("killed while a tool of LVM's was at work: {starts:?}"),
    )?;
    ensure(
        cluster.node("n1")?.boot_id()? == boot,
        "every one was ended by the next agent, which fenced nothing, and the node was not reset",
    )
}

/// Definitions, nodes and credentials. No controller: what it has to do with an un-fence is shown elsewhere.
fn let_in(cluster: &Cluster) -> Result {
    let control_plane = cluster.control_plane()?;
    control_plane.kubectl(&["apply", "--server-side", "-f", "crds/"])?;
    let established = ["wait", "--for=condition=Established", "--timeout=60s"];
    control_plane.kubectl(&[&established[..], &["-f", "crds/"]].concat())?;
    for vg in GROUPS {
        let node = node_of(vg);
        control_plane.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n"
        ))?;
    }
    let file = cluster.run_dir().join("agents.kubeconfig");
    control_plane.guest_kubeconfig("agents", "system:masters", &file)?;
    let text = std::fs::read_to_string(&file)?;
    cluster.node("n1")?.write_file("/run/kubeconfig", &text)
}

/// A fence of each volume group, and the way back, on which its agent is killed before or after a step (`which`, by its number). Gives the steps that
/// were met.
fn round(
    cluster: &mut Cluster,
    order: &str,
    numbers: &[usize],
    which: impl Fn(usize) -> String,
) -> Result<BTreeMap<usize, String>> {
    let n1 = cluster.node("n1")?;
    n1.sh(&format!("rm -f {BEGIN}"))?;
    let which: Vec<_> = numbers.iter().map(|n| which(*n)).collect();
    let agents = start_killed(n1, order, &which)?;
    let first = numbers.first().copied().unwrap_or_default();
    let name = |vg: &str| format!("{vg}-{order}-{first}");
    fence(cluster, &name)?;
    paths_return(cluster, &GROUPS)?;
    cluster.node("n1")?.sh(&format!("touch {BEGIN}"))?;
    let control_plane = cluster.control_plane()?;
    for vg in GROUPS {
        let back = r#"{"spec":{"fenceState":"Unfenced"}}"#;
        control_plane.kubectl(&["patch", "sfr", &name(vg), "--type=merge", "-p", back])?;
    }
    let mut deaths = BTreeMap::new();
    for ((vg, number), agent) in GROUPS.into_iter().zip(numbers).zip(agents) {
        let told = told(cluster, vg, &name(vg), &agent)?;
        let at = told.at.map(|at| told.calls[at].clone());
        let death = at.as_deref().unwrap_or("not killed");
        say(format!("    {order} {number}: {death}"));
        deaths.extend(at.map(|at| (*number, at)));
    }
    ended_by_the_next(cluster, &name).map_err(|e| format!("after {deaths:?}: {e}"))?;
    Ok(deaths)
}

/// All paths are cut, and each is fenced on request.
fn fence(cluster: &mut Cluster, name: &dyn Fn(&str) -> String) -> Result {
    cut(cluster, &GROUPS)?;
    let control_plane = cluster.control_plane()?;
    for vg in GROUPS {
        let groups = format!("volumeGroups: {{ mode: Named, names: [{vg}] }}");
        let spec = [groups.as_str(), "unfenceAfterSeconds: 1"];
        control_plane.apply(&request_yaml(&name(vg), &node_of(vg), &spec))?;
    }
    for vg in GROUPS {
        control_plane.wait_for_condition(&name(vg), "LocksReleased", "True", TURN)?;
    }
    completed(cluster.node("n1")?, &GROUPS)
}

/// Whether the request says that it was given back.
fn given_back(cluster: &Cluster, name: &str) -> Result<bool> {
    let request = cluster.control_plane()?.request(name)?;
    let fenced = condition(&request, "Fenced").context("no condition")?;
    Ok(fenced["status"] == "False" && fenced["reason"] == "Unfenced")
}

/// What the stepper of an agent tells in the end: of its death, or that there was no such step.
fn told(cluster: &Cluster, vg: &str, name: &str, agent: &Pending) -> Result<Steps> {
    let late = Instant::now() + TURN;
    let n1 = cluster.node("n1")?;
    loop {
        if let Some(answer) = agent.poll(Duration::from_secs(1))? {
            return traced(&answer);
        }
        if given_back(cluster, name)? {
            // What it notes after that are steps as well.
            if let Some(answer) = agent.poll(Duration::from_secs(4))? {
                return traced(&answer);
            }
            end(n1, vg)?;
            return traced(&agent.wait(Duration::from_secs(20))?);
        }
        if Instant::now() >= late {
            let status = cluster.control_plane()?.request(name)?["status"].clone();
            return Err(format!("{vg} is neither given back nor its agent dead: {status}").into());
        }
    }
}

/// The next agents end what is half done, and the volumes are in use again as if nothing had happened.
fn ended_by_the_next(cluster: &Cluster, name: &dyn Fn(&str) -> String) -> Result {
    let n1 = cluster.node("n1")?;
    // All are dead: what is half done stays so, but for a tool of LVM's that may be at work still.
    let look = Look::at(n1)?;
    GROUPS.iter().try_for_each(|vg| look.check(vg))?;
    let plain: Vec<_> = GROUPS.into_iter().map(|vg| (vg, &[][..])).collect();
    let successors = start_stepped(n1, OURS, &plain)?;
    for vg in GROUPS {
        let back = until(&format!("{vg} is given back"), TURN, || {
            Look::at(n1)?.check(vg)?;
            Ok(given_back(cluster, &name(vg))?.then_some(()))
        });
        back.map_err(|e| {
            let status = cluster.control_plane().and_then(|c| c.request(&name(vg)));
            format!(
                "{e}: {}",
                status.map_or_else(|e| e.to_string(), |r| r["status"].to_string())
            )
        })?;
    }
    let look = Look::at(n1)?;
    for (lun, vg) in GROUPS.into_iter().enumerate() {
        ensure_quietly(look.held(vg), &format!("{vg} is joined to its lockspace"))?;
        let left = n1.lv_targets(vg)?;
        ensure_quietly(
            left.is_empty(),
            &format!("nothing is left of {vg}: {left:?}"),
        )?;
        ensure_quietly(n1.queues(lun)?, &format!("the map of {vg} queues again"))?;
    }
    let all = GROUPS.join(" ");
    n1.sh_within(&format!("vgchange -qq --noudevsync -aey {all}"), LIMIT)?;
    std::thread::sleep(Duration::from_secs(3));
    in_use(n1, "given back, with the next agents there")?;
    for (vg, successor) in GROUPS.into_iter().zip(successors) {
        end(n1, vg)?;
        let told = traced(&successor.wait(Duration::from_secs(20))?)?;
        let fences = |c: &&String| c.contains("drop_vg") || c.contains("dm load");
        let fenced: Vec<_> = told.calls.iter().filter(fences).collect();
        ensure_quietly(
            fenced.is_empty(),
            &format!("the next agent of {vg} fences nothing: {fenced:?}"),
        )?;
    }
    Ok(())
}

/// One of many, which nobody wants to read when it holds.
fn ensure_quietly(so: bool, what: &str) -> Result {
    if so {
        return Ok(());
    }
    Err(format!("it is not so that {what}").into())
}
