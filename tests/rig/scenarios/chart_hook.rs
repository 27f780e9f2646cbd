//! The kill hook as the chart installs it: by the agent's pod, on the host.

use std::time::{Duration, Instant};

use crate::harness::operator::condition;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

use super::fence::{all_error, lives_on, volumes_in_use};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "hook-by-chart",
        about: "the chart installs the kill hook; a lease runs out, nobody asks, no policy: sanlock's call fences the node, and the cluster is told",
        shape: Shape::kubernetes,
        tell: by_chart,
    }]
}

fn by_chart(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.install_operator(&["agent.killHook.enabled=true"])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let control_plane = cluster.control_plane()?;
    for node in cluster.nodes() {
        until(
            &format!("NodeStorage {} says that the hook is in force", node.name()),
            Duration::from_secs(120),
            || {
                let storage = control_plane.object("nodestorage", node.name())?;
                let state = storage.map(|s| s["status"]["killHook"]["state"].clone());
                Ok(state.is_some_and(|s| s == "InForce").then_some(()))
            },
        )?;
        // By the host's own tools.
        node.sh("/usr/local/sbin/storage-fence install-hook --check")?;
        let set = node.sh("lvmconfig --typeconfig full global/lvmlockctl_kill_command")?;
        ensure(
            set == "lvmlockctl_kill_command=\"/usr/local/sbin/storage-fence kill-hook\"",
            format!("LVM on {} reads it: {set}", node.name()),
        )?;
    }
    // As in `refusals`, where the chart does not install it.
    cluster.preflight_is(
        "n1",
        &[("DaemonsSpared", "Warning"), ("DeadExt", "Warning")],
    )?;
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", 2)?;
    let boot_id = n1.boot_id()?;
    cluster.san.cut_all("n1", None)?;
    let cut = Instant::now();
    let n1 = cluster.node("n1")?;
    // The lease is lost 16 s after its last renewal.
    until("n1 is fenced", Duration::from_secs(60), || {
        let targets = n1.lv_targets("san")?;
        let cut_off = !targets.is_empty() && targets.iter().all(|(_, kind)| kind == "error");
        Ok((cut_off && !n1.watchdog_armed()?).then_some(()))
    })?;
    say(format!(
        "    fenced and released {:.1} s after the cut",
        cut.elapsed().as_secs_f64()
    ));
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(20))?;
        ensure(end.errno == Some(5), format!("{} got EIO", writer.name))?;
    }
    let log = n1.sh("dmesg | grep storage-fence: || true")?;
    ensure(
        log.contains("cut off from its storage") && !log.contains("fencing without it"),
        "the agent fenced it on the hook's word, and the hook has read it back",
    )?;
    let control_plane = cluster.control_plane()?;
    until("the cluster is told", Duration::from_secs(60), || {
        let storage = control_plane.object("nodestorage", "n1")?;
        let fenced = storage.is_some_and(|s| s["status"]["fencedVolumeGroups"] == "san");
        let node = control_plane.object("node", "n1")?;
        let says = node
            .as_ref()
            .and_then(|n| condition(n, "storagefence.io/StorageFenced"));
        let says = says.is_some_and(|c| c["status"] == "True");
        Ok((fenced && says).then_some(()))
    })?;
    let events =
        control_plane.kubectl(&["get", "events", "-A", "-o", "custom-columns=R:.reason"])?;
    ensure(
        events
            .lines()
            .any(|r| matches!(r.trim(), "FencedByKillHook" | "Fenced")),
        format!("an event tells it: {}", events.replace('\n', " ")),
    )?;
    all_error(n1, "san", 2)?;
    lives_on(n1, &boot_id)
}
