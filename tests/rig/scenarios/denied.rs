//! Storage that does not return while its disks stay: the target answers that it has no such LUN; and disks that the kernel drops under a
//! multipath map.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::node::Node;
use crate::harness::vm::wwn;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error};
use super::programs::{send_programs, start_agent_in};
use super::stacks::holds;

/// The scenario of this file; its cluster serves no other.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "policy-lun-denied",
        about: "the array denies a LUN (ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED) whose disks stay: fenced as gone for good, while paths that are \
                    cut for as long are waited for; and disks that are deleted under a map",
        shape: denying,
        tell: lun_denied,
    }]
}

/// No HBA tells of a LUN that is unmapped.
fn denying() -> Shape {
    Shape {
        tells_unmapped: false,
        ..Shape::arrays()
    }
}

/// How long a loss for good has to last.
const GONE: u64 = 2;
/// Longer than any node of this lives without its storage: it cannot be what sets the policy off.
const PATHS_DOWN: u64 = 300;
/// The checker asks every 2 s, the agent looks once a second while an outage lasts; the rest is the trigger's time, and air for an emulated node.
const KNOWN: Duration = Duration::from_secs(20);

/// LUN 0 is the one that every target has.
const SAN: usize = 1;
const OTHER: usize = 2;

/// An agent under a policy by which it matters how storage is lost.
fn agent(node: &Node) -> Result {
    let policy = json!({"boot_id": node.boot_id()?, "content": [{
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFencePolicy", "metadata": {"name": "san"},
        "spec": {"response": "Fence", "triggers": {
            "allPathsDown": {"forSeconds": PATHS_DOWN}, "permanentDeviceLoss": {"forSeconds": GONE}}},
    }]});
    node.write_file("/run/bench/state/policies.json", &policy.to_string())?;
    start_agent_in(node, "")?;
    // It has looked, and knows that the paths work.
    std::thread::sleep(Duration::from_secs(12));
    Ok(())
}

/// Waits until every path of a LUN is as `wanted` says, one letter a path.
fn paths(node: &Node, lun: usize, wanted: &str) -> Result {
    until(
        &format!("the paths of LUN {lun} are {wanted}"),
        Duration::from_secs(40),
        || Ok((node.path_states(lun)? == wanted).then_some(())),
    )
}

/// What set the fences off that the node began by itself, by volume group.
fn triggers(node: &Node) -> Result<Vec<(String, String)>> {
    let kept =
        node.sh("cat /run/bench/state/local-fences.json 2>/dev/null || echo '{\"content\":[]}'")?;
    let kept: Value = serde_json::from_str(&kept).context("local-fences.json")?;
    let fences = kept["content"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(fences
        .iter()
        .map(|f| {
            let record = &f["record"];
            (
                text(&record["spec"]["volumeGroups"]["names"][0]),
                text(&record["metadata"]["annotations"]["storagefence.io/trigger"]),
            )
        })
        .collect())
}

/// State in sysfs of each disk of a LUN that is there.
fn disks(node: &Node, lun: usize) -> Result<Vec<String>> {
    let id = wwn(lun);
    let said = node.sh(&format!(
        "for d in /sys/block/sd*/device; do grep -qi {} $d/wwid 2>/dev/null && cat $d/state; done; true",
        id.trim_start_matches("0x")
    ))?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// The node fences that volume group by itself, as one that is gone for good.
fn fenced_as_gone(node: &Node, vg: &str, since: Instant, limit: Duration) -> Result {
    until(
        &format!("{vg} is fenced and let go of"),
        limit + FENCE_LIMIT,
        || {
            let targets = node.lv_targets(vg)?;
            let cut_off = targets.iter().all(|(_, kind)| kind == "error");
            Ok((cut_off && !targets.is_empty() && !holds(&node.wdmd()?, vg)).then_some(()))
        },
    )?;
    let seconds = since.elapsed().as_secs_f64();
    ensure(
        triggers(node)?.contains(&(vg.to_owned(), "PermanentDeviceLoss".to_owned())),
        format!("{vg}: fenced as gone for good, and released, after {seconds:.1} s"),
    )?;
    ensure(
        since.elapsed() < limit + Duration::from_secs(10),
        "and not because its lease ran out",
    )
}

fn volume(node: &Node, vg: &str) -> Result<Writer> {
    node.sh(&format!("lvcreate -qq -y -aey -Wn -Zn -L 64M -n lv {vg}"))?;
    Writer::start(node, vg, &format!("/dev/{vg}/lv"))
}

fn lun_denied(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", SAN)?;
    cluster.shared_vg("other", OTHER)?;
    let n1 = cluster.node("n1")?;
    send_programs(n1)?;
    let (san, other) = (volume(n1, "san")?, volume(n1, "other")?);
    let boot = n1.boot_id()?;
    agent(n1)?;

    say(
        "every path to san is cut for as long as it will take to know of a loss: they may return, and do",
    );
    cluster.san.cut_all("n1", Some(SAN))?;
    let n1 = cluster.node("n1")?;
    paths(n1, SAN, "FF")?;
    // Not much longer than this: the lease is lost 16 s after its last renewal.
    std::thread::sleep(Duration::from_secs(GONE + 5));
    ensure(
        triggers(n1)?.is_empty() && n1.lv_targets("san")?.iter().all(|(_, k)| k == "linear"),
        "nothing is fenced for that",
    )?;
    cluster.san.restore_all("n1", Some(SAN))?;
    let n1 = cluster.node("n1")?;
    paths(n1, SAN, "AA")?;
    std::thread::sleep(Duration::from_secs(8));
    ensure(!san.state(n1)?.ended, "and its writer goes on")?;

    say("the array unmaps san, and tells nobody");
    let unmapped = Instant::now();
    cluster.node_mut("n1")?.unmap(SAN)?;
    let n1 = cluster.node("n1")?;
    fenced_as_gone(n1, "san", unmapped, KNOWN)?;
    let log = n1.sh("dmesg | grep -A2 'FAILED Result' | tail -n 3")?;
    say(format!("    the kernel: {log}"));
    ensure(
        log.contains("Illegal Request") && log.contains("Logical unit not supported"),
        "the target denies the LUN",
    )?;
    ensure(
        disks(n1, SAN)? == ["running", "running"] && n1.path_states(SAN)? == "FF",
        "its disks are there and run, every path has failed",
    )?;
    let end = san.wait_for_end(n1, Duration::from_secs(20))?;
    // EREMOTEIO is what the kernel makes of that answer, EIO what comes of a path that has failed or of the error target.
    ensure(
        matches!(end.errno, Some(5 | 121)),
        format!("the writer got an error: {:?}", end.errno),
    )?;
    ensure(
        !other.state(n1)?.ended && n1.lv_targets("other")? == [("lv".into(), "linear".into())],
        "other, in the same target, goes on",
    )?;

    say("the disks of other are deleted, under its map");
    let deleted = Instant::now();
    let id = wwn(OTHER);
    n1.sh(&format!(
        "for d in /sys/block/sd*/device; do grep -qi {} $d/wwid 2>/dev/null && echo 1 >$d/delete; done; true",
        id.trim_start_matches("0x")
    ))?;
    ensure(disks(n1, OTHER)?.is_empty(), "the kernel has them no more")?;
    fenced_as_gone(n1, "other", deleted, KNOWN)?;
    all_error(n1, "other", 1)?;
    let end = other.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(end.errno == Some(5), "the writer got EIO")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}
