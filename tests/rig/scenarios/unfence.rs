//! The way back: a fenced node is given its storage again, by deleting the request or by its spec, and not while anybody holds a volume.

use std::time::Duration;

use serde_json::Value;

use crate::harness::node::Node;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, volumes_in_use};

/// Joining takes 5 s with these time-outs, 25 s with the usual ones, and longer on an emulated node that shares its CPU.
const UNFENCE_LIMIT: Duration = Duration::from_secs(240);
const VOLUMES: usize = 3;

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "unfence",
        about: "cut, fence, return, un-fence, volumes active again with their data; twice in a row; not while a process holds one",
        shape: Shape::kubernetes,
        tell: unfence,
    }]
}

fn unfence(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    let boot_id = n1.boot_id()?;
    let writers = volumes_in_use(n1, "san", VOLUMES)?;
    let first = generation(cluster)?;

    let fenced = fence(cluster, "first", &writers)?;
    ensure(
        fenced.is_some() && fenced == first,
        format!("the fence met generation {fenced:?}"),
    )?;
    say("a process opens a fenced volume, the SAN returns, and the request is deleted");
    let n1 = cluster.node("n1")?;
    n1.sh("setsid sleep 100000 3</dev/san/lv1 >/dev/null 2>&1 & echo $! >/run/holder")?;
    let holder = n1.sh("cat /run/holder")?.trim().to_owned();
    paths_return(cluster)?;
    let control_plane = cluster.control_plane()?;
    control_plane.kubectl(&["delete", "sfr", "first", "--wait=false"])?;
    let blocker = until("the status names the process", UNFENCE_LIMIT, || {
        let request = control_plane.request("first")?;
        let blockers = request["status"]["node"]["unfence"]["blockers"].as_array();
        let open = blockers
            .into_iter()
            .flatten()
            .find(|b| b["reason"] == "DeviceOpen" && b["device"] == "san-lv1");
        Ok(open
            .filter(|b| b["holder"].as_str().is_some_and(|h| h.contains("sleep")))
            .cloned())
    })?;
    ensure(
        blocker["holder"]
            .as_str()
            .is_some_and(|h| h.contains(&format!("process {holder} "))),
        format!("it is un-fenced only once {} has ended", blocker["holder"]),
    )?;
    // For longer than the paths have to be healthy.
    std::thread::sleep(Duration::from_secs(20));
    let request = control_plane.request("first")?;
    ensure(
        condition(&request, "Fenced")
            .is_some_and(|c| c["status"] == "True" && c["reason"] == "UnfenceWaiting"),
        "Fenced stays True, with the reason UnfenceWaiting",
    )?;
    let n1 = cluster.node("n1")?;
    all_error(n1, "san", VOLUMES)?;
    ensure(
        n1.lockspaces()?.is_empty(),
        "and no lockspace was joined meanwhile",
    )?;
    n1.sh(&format!("kill {holder}"))?;
    until(
        "the request goes by itself when the process has ended",
        UNFENCE_LIMIT,
        || {
            let request = control_plane.object("sfr", "first")?;
            Ok(request.is_none().then_some(()))
        },
    )
    .map_err(|error| told(cluster, "first", &error.to_string()))?;
    let second = usable_again(cluster, first, &boot_id)?;

    say("once more, by the spec this time");
    let n1 = cluster.node("n1")?;
    let writers = (0..VOLUMES)
        .map(|n| Writer::start(n1, &format!("again{n}"), &format!("/dev/san/lv{n}")))
        .collect::<Result<Vec<Writer>>>()?;
    let fenced = fence(cluster, "second", &writers)?;
    ensure(
        fenced == second,
        format!("the fence met generation {fenced:?}"),
    )?;
    paths_return(cluster)?;
    let control_plane = cluster.control_plane()?;
    let unfenced = r#"{"spec":{"fenceState":"Unfenced"}}"#;
    control_plane.kubectl(&["patch", "sfr", "second", "--type=merge", "-p", unfenced])?;
    let request = control_plane
        .wait_for_phase("second", "Unfenced", UNFENCE_LIMIT)
        .map_err(|error| told(cluster, "second", &error.to_string()))?;
    let steps: Vec<&Value> = request["status"]["node"]["unfence"]["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    for step in &steps {
        say(format!(
            "    {} {} at {} ms, took {} ms: {}",
            step["step"],
            step["result"],
            step["atMilliseconds"],
            step["tookMilliseconds"],
            step["message"]
        ));
    }
    ensure(
        steps.len() == 5
            && steps
                .iter()
                .all(|s| s["result"] == "Done" || s["step"] == "DropLockspace"),
        "every step was done, but for dropping a lockspace that the fence had dropped",
    )?;
    usable_again(cluster, second, &boot_id)?;
    let control_plane = cluster.control_plane()?;
    control_plane.kubectl(&["delete", "sfr", "second", "--timeout=60s"])?;
    Ok(())
}

/// The node loses the SAN and is fenced. Gives the generation of its host id that the fence met.
fn fence(cluster: &mut Cluster, name: &str, writers: &[Writer]) -> Result<Option<i64>> {
    say(format!(
        "every path of n1 is cut, and request {name} is made"
    ));
    cluster.san.cut_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until(
        "n1's kernel knows that both paths are gone",
        Duration::from_secs(30),
        || Ok((n1.path_states(0)? == "FF").then_some(())),
    )?;
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml(name, "n1", &["unfenceAfterSeconds: 5"]))?;
    let request = control_plane.wait_for_condition(name, "LocksReleased", "True", FENCE_LIMIT)?;
    all_error(n1, "san", VOLUMES)?;
    for writer in writers {
        writer.wait_for_end(n1, Duration::from_secs(30))?;
    }
    Ok(request["status"]["node"]["volumeGroups"][0]["generation"].as_i64())
}

fn paths_return(cluster: &mut Cluster) -> Result {
    cluster.san.restore_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until(
        "both paths are active again",
        Duration::from_secs(60),
        || Ok((n1.path_states(0)? == "AA").then_some(())),
    )?;
    Ok(())
}

/// Generation of n1's host id, as its agent reports it.
fn generation(cluster: &Cluster) -> Result<Option<i64>> {
    let storage = cluster.control_plane()?.object("nodestorage", "n1")?;
    let groups = storage.context("no NodeStorage")?["status"]["volumeGroups"].clone();
    let group = groups
        .as_array()
        .and_then(|all| all.iter().find(|g| g["name"] == "san").cloned());
    Ok(group.and_then(|g| g["lockspace"]["generation"].as_i64()))
}

/// Nothing of the fence is left, the lockspace is a new one, and the volumes hold their data. Gives the new generation.
fn usable_again(cluster: &Cluster, before: Option<i64>, boot_id: &str) -> Result<Option<i64>> {
    let n1 = cluster.node("n1")?;
    ensure(
        n1.lv_targets("san")?.is_empty(),
        "no device of the fence is left, and no volume was activated",
    )?;
    ensure(links(n1)?.is_empty(), "udev took the links away")?;
    ensure(
        n1.lockspaces()?
            .iter()
            .any(|l| l.contains("lvm_san:") && !l.ends_with("REM")),
        "n1 has joined the lockspace again",
    )?;
    let now = until(
        "NodeStorage shows the new generation",
        Duration::from_secs(60),
        || Ok(generation(cluster)?.filter(|now| Some(*now) != before)),
    )?;
    ensure(
        before.is_none_or(|before| now > before),
        format!("generation {now} after {before:?}"),
    )?;
    ensure(n1.queues(0)?, "multipath queues again while no path works")?;
    for n in 0..VOLUMES {
        n1.sh(&format!("lvchange -aey san/lv{n}"))?;
        let stamp = n1.sh(&format!(
            "dd if=/dev/san/lv{n} iflag=direct bs=4096 count=1 2>/dev/null | head -n1"
        ))?;
        ensure(
            stamp.starts_with("owner=n1 "),
            format!("lv{n} is active again and holds what n1 wrote"),
        )?;
    }
    ensure(
        n1.watchdog_armed()? && n1.reset().is_none() && n1.boot_id()? == boot_id,
        "the watchdog counts on the lockspace again, and n1 was never reset",
    )?;
    Ok(Some(now))
}

fn links(node: &Node) -> Result<String> {
    Ok(node
        .sh("ls /dev/san /dev/mapper 2>/dev/null | grep -E '^(san-)?lv[0-9]' || true")?
        .trim()
        .to_owned())
}

fn told(cluster: &Cluster, name: &str, error: &str) -> Box<dyn std::error::Error + Send + Sync> {
    let request = cluster
        .control_plane()
        .and_then(|c| c.object("sfr", name))
        .ok()
        .flatten();
    let status = request.map(|r| r["status"].to_string());
    format!("{error}\n{}", status.unwrap_or_default()).into()
}
