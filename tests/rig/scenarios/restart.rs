//! A node that is restarted while a fence stands, or because one could not be proven: nothing of it is left, and nothing begins again.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::operator::{condition, request_yaml};
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::deaths::pids;
use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};
use super::policy::{QUIET, node_condition, wait_for_paths, with_policy};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "restart-ends-a-fence",
            about: "a fenced node is reset from outside, its paths back: its request says NodeRestarted and fences nothing again, volumes come into use, \
                    and it goes at once",
            shape: Shape::kubernetes,
            tell: restart_ends_a_fence,
        },
        Scenario {
            name: "policy-black-hole-reset",
            about: "a black hole that lasts, under a policy: its own fence is not proven, nothing is released, the watchdog resets the node; one record \
                    tells it",
            shape: Shape::kubernetes,
            tell: black_hole_reset,
        },
    ]
}

/// What would cut the node off once more, whatever its paths: only that it was restarted speaks against it.
const SPEC: [&str; 2] = [
    "volumeGroups: {mode: Named, names: [san]}",
    "whenPathsRemain: Fence",
];
/// Volumes in use before, `lv0` and up.
const VOLUMES: usize = 2;

fn restart_ends_a_fence(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    volumes_in_use(n1, "san", VOLUMES)?;
    let boot_id = n1.boot_id()?;
    let n2_boot = cluster.node("n2")?.boot_id()?;
    cluster.san.cut_all("n1", None)?;
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml("standing", "n1", &SPEC))?;
    control_plane.wait_for_condition("standing", "LocksReleased", "True", FENCE_LIMIT)?;
    let before = control_plane.wait_for_phase("standing", "Fenced", FENCE_LIMIT)?;
    let n1 = cluster.node("n1")?;
    all_error(n1, "san", VOLUMES)?;
    lives_on(n1, &boot_id)?;
    condition_of_the_fence(cluster, ("True", "Fenced"))?;

    say("n1 is reset from outside, and its paths are back");
    cluster.node_mut("n1")?.press_reset()?;
    let reset = cluster.node("n1")?.reset().context("no reset is told")?;
    ensure(!reset.by_watchdog, "it was no watchdog")?;
    cluster.reboot("n1")?;
    begins_anew(cluster, "standing", &before)?;
    ensure(
        cluster.node("n2")?.boot_id()? == n2_boot,
        "n2 was not reset",
    )
}

fn black_hole_reset(cluster: &mut Cluster) -> Result {
    // With io_timeout 2 the earliest reset is 66 s after the last renewal: 16 s after it, this many are left.
    with_policy(
        cluster,
        10,
        "    watchdogBudgetBelow: {seconds: 50}\n    renewalsFailing: {forSeconds: 30}\n",
    )?;
    cluster.node_mut("n1")?.mark_dirty();
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", VOLUMES)?;
    let boot_id = n1.boot_id()?;
    say("the SAN of n1 becomes a black hole, and stays one");
    cluster.san.black_hole_all("n1", None)?;
    let hole = Instant::now();
    let n1 = cluster.node("n1")?;
    let record = until("n1 fences itself", Duration::from_secs(60), || {
        let all = requests(cluster)?;
        let begun = all.first().filter(|r| r["status"]["phase"] == "Fencing");
        Ok(begun.cloned())
    })?;
    let name = text(&record["metadata"]["name"]);
    let annotations = &record["metadata"]["annotations"];
    say(format!(
        "    {name} after {:.1} s: {}",
        hole.elapsed().as_secs_f64(),
        record["spec"]["reason"]
    ));
    ensure(
        name.starts_with("auto-n1-")
            && annotations["storagefence.io/trigger"] == "WatchdogBudgetBelow"
            && annotations["storagefence.io/boot-id"] == boot_id.as_str(),
        "its record says that little was left of the watchdog's budget, and in which boot",
    )?;

    let (left, at) = told_reset(cluster)?;
    ensure(
        (10..=60).contains(&left),
        format!("what is left until the reset is told while the fence goes on: {left} s"),
    )?;

    // Ten seconds before the earliest reset.
    let control_plane = cluster.control_plane()?;
    let before = control_plane.wait_for_phase(&name, "Failed", Duration::from_secs(75))?;
    let devices = before["status"]["node"]["volumeGroups"][0]["devices"].clone();
    let short = |d: &Value| d["outcome"] == "NotProven" && text(&d["name"]).starts_with("san-lv");
    ensure(
        says(&before, "Fenced") == ("False", "NotProven")
            && says(&before, "LocksReleased") == ("False", "LocksKept")
            && devices.as_array().is_some_and(|d| d.iter().any(short)),
        format!(
            "{:.1} s after it began: not proven, and the device is named: {}",
            hole.elapsed().as_secs_f64(),
            before["status"]["message"]
        ),
    )?;
    let targets = n1.lv_targets("san")?;
    ensure(
        targets.len() == VOLUMES
            && targets.iter().all(|(_, kind)| kind != "error")
            && n1.watchdog_armed()?
            && n1.lockspaces()?.iter().any(|l| !l.contains(" REM")),
        "nothing is swapped and nothing released: the watchdog still waits for the lease",
    )?;
    for writer in &writers {
        ensure(
            !writer.state(n1)?.ended,
            format!("{} gets no answer", writer.name),
        )?;
    }

    // 66 to 76 s after the last renewal; emulation is slower than its clock.
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    ensure(
        reset.by_watchdog,
        format!(
            "the watchdog resets n1, {:.1} s after the black hole began",
            reset.at.duration_since(hole).as_secs_f64()
        ),
    )?;
    ensure(
        reset.at + Duration::from_secs(3) >= at,
        "not before it was told to",
    )?;
    cluster.reboot("n1")?;
    let last_word = cluster.control_plane()?.request(&name)?;
    begins_anew(cluster, &name, &last_word)?;
    let told = events(cluster, "FenceNotProven", &name)?;
    ensure(
        told == 1 && requests(cluster)?.is_empty(),
        format!("{told} event told that it was not proven, and there is no other record"),
    )?;
    ensure(
        cluster.node("n2")?.reset().is_none(),
        "n2, which the policy governs too, was not touched",
    )?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "san"])?;
    Ok(())
}

/// Seconds until the watchdog resets n1 at the earliest, as its NodeStorage tells, and when that is.
fn told_reset(cluster: &Cluster) -> Result<(i64, Instant)> {
    let path = "jsonpath={.status.watchdog.resetAt}";
    let told = until("it is told when n1 is reset", FENCE_LIMIT, || {
        let control_plane = cluster.control_plane()?;
        let told = control_plane.kubectl(&["get", "nst", "n1", "-o", path])?;
        Ok((!told.is_empty()).then_some(told))
    })?;
    let left = format!("echo $(($(date -d '{}' +%s) - $(date +%s)))", told.trim());
    let left: i64 = cluster.node("n1")?.sh(&left)?.parse().context("seconds")?;
    let at = Instant::now() + Duration::from_secs(left.try_into().unwrap_or_default());
    Ok((left, at))
}

/// n1 is up again: the fence of the earlier boot has ended, what was proven then stays readable, and the volume group comes into use and stays so,
/// though the request is still there. Then the request goes at once.
fn begins_anew(cluster: &Cluster, name: &str, before: &Value) -> Result {
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    cluster.wait_for_agent_on("n1")?;
    let boot_id = n1.boot_id()?;
    let restarted = ("False", "NodeRestarted");
    let after = until(
        "the request says that the node was restarted",
        Duration::from_secs(60),
        || {
            let request = control_plane.request(name)?;
            let both = says(&request, "Fenced") == restarted
                && says(&request, "LocksReleased") == restarted
                && request["status"]["phase"] == "Unfenced";
            Ok(both.then_some(request))
        },
    )
    .map_err(|error| {
        let status = control_plane.request(name).map(|r| r["status"].clone());
        format!("{error}\n{}", status.unwrap_or_default())
    })?;
    let evidence = &after["status"]["node"];
    ensure(
        evidence == &before["status"]["node"] && evidence["bootId"] != boot_id.as_str(),
        format!(
            "what is proven, and what not, still stands there, and of which boot: {}",
            after["status"]["message"]
        ),
    )?;
    condition_of_the_fence(cluster, ("False", "NotFenced"))?;

    say("the lockspace is joined, the volumes are activated, and another agent comes");
    cluster.join("san")?;
    let mut writers = Vec::new();
    for lv in 0..VOLUMES {
        n1.sh(&format!("lvchange -aey san/lv{lv}"))?;
        let device = format!("/dev/san/lv{lv}");
        let stamp = n1.sh(&format!(
            "dd if={device} iflag=direct bs=4096 count=1 2>/dev/null | head -n1"
        ))?;
        ensure(
            stamp.starts_with("owner=n1 "),
            format!("lv{lv} is active and holds what n1 wrote before"),
        )?;
        writers.push(Writer::start(n1, &format!("anew{lv}"), &device)?);
    }
    let agent = n1.sh(&pids("agent"))?;
    n1.sh(&format!("kill -9 {agent}"))?;
    until("n1 has another agent", Duration::from_secs(60), || {
        let pid = n1.sh(&pids("agent"))?;
        Ok((!pid.is_empty() && pid != agent).then_some(()))
    })?;
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;
    std::thread::sleep(QUIET);
    let targets = n1.lv_targets("san")?;
    let begun = n1.sh("cat /run/storage-fence/journal 2>/dev/null | grep -c Begun || true")?;
    ensure(
        targets.len() == VOLUMES
            && targets.iter().all(|(_, kind)| kind == "linear")
            && begun == "0",
        "nothing is fenced again: the tables are linear, and no fence was begun in this boot",
    )?;
    for writer in &writers {
        ensure(!writer.state(n1)?.ended, format!("{} goes on", writer.name))?;
    }
    ensure(
        n1.watchdog_armed()? && n1.reset().is_none(),
        "the watchdog counts on the new lockspace",
    )?;
    let storage = control_plane
        .object("nodestorage", "n1")?
        .context("no NodeStorage")?;
    ensure(
        storage["status"]["fences"].is_null() && storage["status"]["fencedVolumeGroups"] == "",
        "NodeStorage tells of no fence",
    )?;
    condition_of_the_fence(cluster, ("False", "NotFenced"))?;
    let all = requests(cluster)?;
    ensure(
        all.len() == 1 && all[0]["status"]["node"] == *evidence,
        "the request is the only one, and nothing was added to it",
    )?;

    let begin = Instant::now();
    control_plane.kubectl(&["delete", "sfr", name, "--timeout=15s"])?;
    ensure(
        control_plane.object("sfr", name)?.is_none(),
        format!(
            "deleted, it is gone after {:.1} s",
            begin.elapsed().as_secs_f64()
        ),
    )?;
    for writer in &writers {
        ensure(
            !writer.state(n1)?.ended,
            format!("{} still goes on", writer.name),
        )?;
        writer.stop(n1)?;
    }
    n1.sh("vgchange -qq -an san")?;
    Ok(())
}

fn condition_of_the_fence(cluster: &Cluster, wanted: (&str, &str)) -> Result {
    let type_ = "storagefence.io/StorageFenced";
    until(
        &format!("{type_} of n1 is {} ({})", wanted.0, wanted.1),
        Duration::from_secs(60),
        || {
            let (status, reason) = node_condition(cluster, "n1", type_)?;
            Ok((status == wanted.0 && reason == wanted.1).then_some(()))
        },
    )
}

/// Every request that there is.
fn requests(cluster: &Cluster) -> Result<Vec<Value>> {
    let said = cluster
        .control_plane()?
        .kubectl(&["get", "sfr", "-o", "json"])?;
    let all: Value = serde_json::from_str(&said)?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

/// How many events of that reason there are on a request.
fn events(cluster: &Cluster, reason: &str, request: &str) -> Result<usize> {
    let said = cluster
        .control_plane()?
        .kubectl(&["get", "events", "-A", "-o", "json"])?;
    let all: Value = serde_json::from_str(&said)?;
    let of_it = |e: &&Value| {
        let about = &e["involvedObject"];
        e["reason"] == reason && about["kind"] == "StorageFenceRequest" && about["name"] == request
    };
    Ok(all["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(of_it)
        .count())
}

/// Status and reason of a condition of a request.
fn says<'a>(request: &'a Value, type_: &str) -> (&'a str, &'a str) {
    let word = |name: &str| condition(request, type_).and_then(|c| c[name].as_str());
    (
        word("status").unwrap_or_default(),
        word("reason").unwrap_or_default(),
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
