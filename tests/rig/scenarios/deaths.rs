//! What may die while a fence is going on: the agent, the controllers, the API server. A black hole keeps the fence going on for as long as
//! that takes: I/O that is under way neither completes nor fails, so the swap waits. Then the SAN answers again, in time.

use std::time::Duration;

use crate::harness::operator::request_yaml;
use crate::harness::timeline::Timeline;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "agent-and-controllers-killed",
            about: "kill -9 of the agent and of both controllers during a fence: the next agent completes it, the status tells",
            shape: Shape::kubernetes,
            tell: agent_and_controllers_killed,
        },
        Scenario {
            name: "api-server-down",
            about: "the API server is stopped during a fence: it completes, and the status catches up",
            shape: Shape::kubernetes,
            tell: api_server_down,
        },
    ]
}

const SPEC: [&str; 2] = ["volumeGroups: {mode: AllShared}", "whenPathsRemain: Fence"];

/// Processes of our image with that first argument.
pub fn pids(role: &str) -> String {
    format!("pgrep -f '^/storage-fence {role}' || true")
}

/// Begins a fence of a node that cannot end, since its SAN answers nothing; gives the watch of the request.
fn begin_without_end(cluster: &mut Cluster, node: &str, request: &str) -> Result<Timeline> {
    cluster.node_mut(node)?.mark_dirty();
    volumes_in_use(cluster.node(node)?, "san", 3)?;
    let timeline = Timeline::start(cluster.control_plane()?, request)?;
    say(format!("the SAN of {node} becomes a black hole"));
    cluster.san.black_hole_all(node, None)?;
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml(request, node, &SPEC))?;
    timeline.wait_for("Swap           Running", Duration::from_secs(30))?;
    Ok(timeline)
}

fn agent_and_controllers_killed(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let boot_id = cluster.node("n1")?.boot_id()?;
    let _timeline = begin_without_end(cluster, "n1", "n1-san")?;

    let n1 = cluster.node("n1")?;
    let agent = n1.sh(&pids("agent"))?;
    ensure(
        !agent.is_empty(),
        format!("the agent of n1 is process {agent}"),
    )?;
    n1.sh(&format!("kill -9 {agent}"))?;
    let mut killed = 0;
    for node in cluster.nodes() {
        let controllers = node.sh(&pids("controller"))?;
        for pid in controllers.lines() {
            node.sh(&format!("kill -9 {pid}"))?;
            killed += 1;
        }
    }
    ensure(
        killed > 0,
        format!("it was killed, and {killed} controllers"),
    )?;
    let successor = until("n1 has another agent", Duration::from_secs(40), || {
        let pid = n1.sh(&pids("agent"))?;
        Ok((!pid.is_empty() && pid != agent).then_some(pid))
    })?;
    say(format!("    n1 has another agent: process {successor}"));
    ensure(n1.watchdog_armed()?, "nothing was released meanwhile")?;

    say("the SAN of n1 answers again");
    cluster.san.restore_all("n1", None)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    control_plane.wait_for_condition("n1-san", "LocksReleased", "True", FENCE_LIMIT)?;
    control_plane.wait_for_phase("n1-san", "Fenced", Duration::from_secs(60))?;
    all_error(n1, "san", 3)?;
    lives_on(n1, &boot_id)
}

fn api_server_down(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let boot_id = cluster.node("n2")?.boot_id()?;
    let timeline = begin_without_end(cluster, "n2", "n2-san")?;
    drop(timeline);

    say("the control plane is stopped, and then the SAN of n2 answers again");
    cluster.control_plane_mut()?.stop();
    cluster.san.restore_all("n2", None)?;
    let n2 = cluster.node("n2")?;
    until("n2 completes its fence by itself", FENCE_LIMIT, || {
        let targets = n2.lv_targets("san")?;
        let cut_off = targets.iter().all(|(_, kind)| kind == "error");
        Ok((cut_off && !n2.watchdog_armed()?).then_some(()))
    })?;
    all_error(n2, "san", 3)?;
    lives_on(n2, &boot_id)?;

    say("the control plane is started again");
    cluster.control_plane_mut()?.start_again()?;
    let control_plane = cluster.control_plane()?;
    control_plane.wait_for_condition(
        "n2-san",
        "LocksReleased",
        "True",
        Duration::from_secs(120),
    )?;
    control_plane.wait_for_phase("n2-san", "Fenced", Duration::from_secs(120))?;
    ensure(true, "and the status has caught up")
}
