//! Agents without an API server, each with a policy of its own for one volume group: it fences that when its paths are gone. And their death at
//! every step of that.

use std::time::{Duration, Instant};

use super::super::programs::{OURS, send_programs};
use super::crashes::{
    GROUPS, Look, Point, STEPS, asked, completed, cut, give_back, set_up, stepper, traced,
};
use crate::guest::stepper::Steps;
use crate::harness::agent::Pending;
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};
use crate::wire::Answer;

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "agent-killed-at-every-step",
        about: "kill -9 of the agent before every step of a fence, one after the other: the next agent completes it, and leaves the next life of the lockspace alone",
        shape: Shape::arrays,
        tell: killed_at_every_step,
    }]
}

/// Of an agent's life.
pub const LIFE: Duration = Duration::from_secs(300);
/// Of a fence, after which an agent that nobody has killed is ended.
const FENCE: Duration = Duration::from_secs(60);
/// That its paths are gone for a second is enough.
const TRIGGERS: &str = r#"{"allPathsDown":{"forSeconds":1}}"#;

/// What an agent of that volume group would have kept of a policy.
pub fn keep_policy(node: &Node, vg: &str) -> Result {
    let boot = node.boot_id()?;
    let spec = format!(
        r#"{{"response":"Fence","volumeGroups":{{"names":["{vg}"]}},"triggers":{TRIGGERS}}}"#
    );
    let policy = format!(
        r#"{{"apiVersion":"storagefence.io/v1alpha1","kind":"StorageFencePolicy","metadata":{{"name":"{vg}"}},"spec":{spec}}}"#
    );
    node.write_file(
        &format!("/run/sf/{vg}/policies.json"),
        &format!(r#"{{"boot_id":"{boot}","content":[{policy}]}}"#),
    )?;
    node.write_file(
        "/run/kubeconfig",
        "apiVersion: v1\nkind: Config\ncurrent-context: none\nclusters: [{name: none, cluster: {server: \"http://127.0.0.1:9\"}}]\n\
         contexts: [{name: none, context: {cluster: none, user: none}}]\nusers: [{name: none, user: {}}]\n",
    )
}

/// The command that is an agent of that volume group, for a shell or the stepper. Its log is /run/agent.VG.log.
pub fn program(binary: &str, vg: &str) -> String {
    let port = 9871 + GROUPS.iter().position(|g| *g == vg).unwrap_or(GROUPS.len());
    format!(
        "/bin/sh -c \"exec env KUBECONFIG=/run/kubeconfig {binary} agent --node-name n1-{vg} --state-directory /run/sf/{vg} \
         --health-listen 127.0.0.1:{port} >>/run/agent.{vg}.log 2>&1\""
    )
}

/// Starts an agent for each that does a deed at each of the points.
pub fn start_stepped(node: &Node, binary: &str, all: &[(&str, &[Point])]) -> Result<Vec<Pending>> {
    node.sh("rm -f /run/sf/*/agent.sock")?;
    let start =
        |(vg, points): &(&str, &[Point])| node.start(&stepper(points, &program(binary, vg)), LIFE);
    let started = all.iter().map(start).collect::<Result<_>>()?;
    until("every agent listens", Duration::from_secs(60), || {
        let there = node.sh("ls /run/sf/*/agent.sock 2>/dev/null | wc -l")?;
        Ok((there == all.len().to_string()).then_some(()))
    })?;
    Ok(started)
}

/// Starts one for each volume group that is killed before or after (`order`) that step of it.
pub fn start_killed(node: &Node, order: &str, which: &[String]) -> Result<Vec<Pending>> {
    let point = |w| [(order, w, "kill")];
    let points: Vec<[Point; 1]> = which.iter().map(String::as_str).map(point).collect();
    let points = points.iter().map(|p| &p[..]);
    let all: Vec<_> = GROUPS.into_iter().zip(points).collect();
    start_stepped(node, OURS, &all)
}

/// kill -9, if it lives.
pub fn end(node: &Node, vg: &str) -> Result {
    // Not whoever has its command line in his own, as the stepper.
    node.sh(&format!(
        "for p in $(pgrep -x storage-fence); do ! grep -qz '^/run/sf/{vg}$' /proc/$p/cmdline || kill -9 $p; done"
    ))?;
    Ok(())
}

/// What the stepper of an agent tells in the end. One that lives when its volume group is let go of is ended a little later.
pub fn told(node: &Node, vg: &str, agent: &Pending) -> Result<Steps> {
    let until = Instant::now() + FENCE;
    loop {
        if let Some(answer) = agent.poll(Duration::from_secs(1))? {
            return within_bounds(&answer);
        }
        let late = Instant::now() >= until;
        if late || Look::at(node)?.released(vg) {
            if let Some(answer) = agent.poll(Duration::from_secs(4))? {
                return within_bounds(&answer);
            }
            end(node, vg)?;
            let told = within_bounds(&agent.wait(Duration::from_secs(20))?)?;
            if late {
                return Err(format!("{vg} is not let go of: {:?}", told.calls).into());
            }
            return Ok(told);
        }
    }
}

/// What the stepper told of an agent, which opens no device either, neither to notice an outage nor to fence, and starts nothing. Other than a hook
/// it calls its API server and hears the kernel's events; and what starts it and loads its libraries is watched as well.
fn within_bounds(answer: &Answer) -> Result<Steps> {
    let told = traced(answer)?;
    let started = |call: &str| call.ends_with("/env") || call.ends_with("/storage-fence");
    let expected = |call: &&String| match call.split_once(' ') {
        Some(("socket", _)) => true,
        Some(("open", path)) => !path.starts_with("/dev/"),
        Some(("execve", path)) => started(path),
        _ => false,
    };
    let calls = told.out_of_bounds.iter();
    let bad: Vec<_> = calls.filter(|call| !expected(call)).collect();
    if !bad.is_empty() {
        return Err(format!("an agent has no business with this: {bad:?}").into());
    }
    Ok(told)
}

/// In use as if nothing had happened. Asked again: a daemon that is slow to answer is not one that has let go.
pub fn in_use(node: &Node, when: &str) -> Result {
    let mut last = String::new();
    let all = until("all is in use", Duration::from_secs(10), || {
        let look = Look::at(node)?;
        let suspended = look.suspended();
        let not = GROUPS.into_iter().find_map(|vg| {
            let (held, open) = (look.held(vg), look.open(vg));
            let well = held && open.len() == 2 && suspended.is_empty();
            (!well).then(|| format!("{vg}: held {held}, open {open:?}, suspended {suspended:?}"))
        });
        last = not.clone().unwrap_or_default();
        Ok(not.is_none().then_some(()))
    });
    all.map_err(|e| format!("{when}: {last}: {e}").into())
}

fn killed_at_every_step(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    send_programs(n1)?;
    for vg in GROUPS {
        keep_policy(n1, vg)?;
    }
    let (first, last) = asked()?;
    let mut number = first - 1;
    let mut going_on = true;
    while going_on {
        going_on = false;
        let n1 = cluster.node("n1")?;
        n1.sh("rm -f /run/cut")?;
        let numbers: Vec<usize> = (number + 1..).take(GROUPS.len()).collect();
        let which: Vec<_> = numbers
            .iter()
            .map(|n| format!("{n} once /run/cut"))
            .collect();
        let agents = start_killed(n1, "before", &which)?;
        in_use(
            n1,
            "the next agent, which finds the former fence in its journal",
        )?;
        n1.sh("touch /run/cut")?;
        cut(cluster, &GROUPS)?;
        let n1 = cluster.node("n1")?;
        let mut deaths = Vec::new();
        for (vg, agent) in GROUPS.into_iter().zip(agents) {
            number += 1;
            let told = told(n1, vg, &agent)?;
            let at = told.at.map(|at| told.calls[at].clone());
            let death = format!("{number}: {}", at.as_deref().unwrap_or("not killed"));
            say(format!("    {death}"));
            going_on |= at.is_some();
            deaths.push(death);
        }
        let deaths = deaths.join(", ");
        // All are dead: what is half done now stays so.
        let look = Look::at(n1)?;
        for vg in GROUPS {
            look.check(vg).map_err(|e| format!("{deaths}: {e}"))?;
        }
        let plain: Vec<_> = GROUPS.into_iter().map(|vg| (vg, &[][..])).collect();
        let successors = start_stepped(n1, OURS, &plain)?;
        completed(n1, &GROUPS).map_err(|e| format!("after {deaths}: {e}"))?;
        give_back(cluster, &GROUPS).map_err(|e| format!("after {deaths}: {e}"))?;
        std::thread::sleep(Duration::from_secs(3));
        let n1 = cluster.node("n1")?;
        in_use(
            n1,
            &format!("{deaths}: given back, with the successors there"),
        )?;
        going_on &= number < last;
        for (vg, successor) in GROUPS.into_iter().zip(successors) {
            end(n1, vg)?;
            let told = within_bounds(&successor.wait(Duration::from_secs(20))?)?;
            let drops = told.calls.iter().filter(|c| c.contains("drop_vg"));
            if drops.count() > 1 {
                return Err(format!("{deaths}: the successor drops {vg} twice").into());
            }
        }
    }
    let same = cluster.node("n1")?.boot_id()? == boot;
    ensure(
        same && (number >= last || number >= STEPS),
        "every one was completed, nothing of the next life was touched, and the node was not reset",
    )
}
