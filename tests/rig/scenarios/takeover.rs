//! How long a healthy node needs to get at what a fenced one had locked: with a peer that declares it dead, and without.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::operator::{condition, request_yaml};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};

const VOLUMES: usize = 3;
/// A lease's own time with these time-outs: 8 times 2 s, and the watchdog's 60 s, from the last renewal, which may be 4 s before the cut.
const LEASE: Duration = Duration::from_secs(76);
const RENEWAL: Duration = Duration::from_secs(4);

/// Those that need nodes whose sanlock can do it.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "takeover",
        about: "n2 declares the fenced n1 dead and has its volume in seconds; without that it waits for the leases; n1 joins again afterwards",
        shape: || Shape::kubernetes().with_suite("forky"),
        tell: takeover,
    }]
}

fn takeover(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    cluster.node_mut("n2")?.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    let boot_id = n1.boot_id()?;
    let writers = volumes_in_use(n1, "san", VOLUMES)?;

    let expedited = round(cluster, "expedite", "lv0", true)?;
    let n1 = cluster.node("n1")?;
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(30))?;
        ensure(end.errno == Some(5), "a writer on n1 got EIO and ended")?;
    }
    say("n1 lives on past the time at which its watchdog would have reset it");
    std::thread::sleep((LEASE + RENEWAL).saturating_sub(expedited.cut.elapsed()));
    lives_on(cluster.node("n1")?, &boot_id)?;

    give_back(cluster, "expedite")?;
    let n1 = cluster.node("n1")?;
    let answer = n1.run("lvchange -aey san/lv0", Duration::from_secs(60))?;
    ensure(
        answer.code != 0,
        format!("n2 has lv0, so n1 does not get it: {}", answer.err.trim()),
    )?;
    cluster.node("n2")?.sh("lvchange -an san/lv0")?;

    n1.sh("lvchange -aey san/lv1")?;
    let waited = round(cluster, "wait", "lv1", false)?;
    lives_on(cluster.node("n1")?, &boot_id)?;
    cluster.node("n2")?.sh("lvchange -an san/lv1")?;

    say("in figures, from the cut until n2 had the volume");
    for (round, how) in [(&expedited, "Expedite"), (&waited, "Wait")] {
        say(format!(
            "    {:>6.1} s  takeover: {how}; of these {:.1} s from the request, {:.1} s from the released locks",
            round.from(round.cut),
            round.from(round.applied),
            round.from(round.released)
        ));
    }
    ensure(
        waited.had - waited.cut >= LEASE.saturating_sub(RENEWAL),
        "without a declaration n2 had to wait for the leases to run out",
    )?;
    ensure(
        expedited.had - expedited.cut < LEASE.saturating_sub(RENEWAL),
        "with one it had the volume before any lease could have run out",
    )
}

/// When what happened.
struct Round {
    cut: Instant,
    applied: Instant,
    released: Instant,
    had: Instant,
}

impl Round {
    fn from(&self, then: Instant) -> f64 {
        self.had.saturating_duration_since(then).as_secs_f64()
    }
}

/// Cuts n1, has it fenced, and has n2 take a volume of it over.
fn round(cluster: &mut Cluster, name: &str, volume: &str, expedite: bool) -> Result<Round> {
    let n2 = cluster.node("n2")?;
    let take = format!("lvchange -aey san/{volume}");
    let answer = n2.run(&take, Duration::from_secs(60))?;
    ensure(
        answer.code != 0,
        format!(
            "n2 does not get {volume} while n1 has it: {}",
            answer.err.trim()
        ),
    )?;
    say("every path of n1 to the SAN is cut");
    cluster.san.cut_all("n1", None)?;
    let cut = Instant::now();
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    until(
        "n1's kernel knows that both paths are gone, and so does the cluster",
        Duration::from_secs(60),
        || {
            let storage = control_plane.object("nodestorage", "n1")?;
            let known = storage.is_some_and(|s| s["status"]["paths"] == "0/2");
            Ok((known && n1.path_states(0)? == "FF").then_some(()))
        },
    )?;
    let spec: &[&str] = if expedite {
        &["takeover: Expedite"]
    } else {
        &[]
    };
    control_plane.apply(&request_yaml(name, "n1", spec))?;
    let applied = Instant::now();
    control_plane.wait_for_condition(name, "LocksReleased", "True", FENCE_LIMIT)?;
    let released = Instant::now();
    say(format!("n1 is fenced; n2 tries {take} until it succeeds"));
    let n2 = cluster.node("n2")?;
    let had = until("n2 has the volume", Duration::from_secs(180), || {
        let answer = n2.run(&take, Duration::from_secs(60))?;
        Ok((answer.code == 0).then(Instant::now))
    })
    .map_err(|error| told(cluster, name, &error.to_string()))?;
    let round = Round {
        cut,
        applied,
        released,
        had,
    };
    all_error(
        cluster.node("n1")?,
        "san",
        if expedite { VOLUMES } else { 1 },
    )?;
    let stamp = n2.sh(&format!(
        "dd if=/dev/san/{volume} iflag=direct bs=4096 count=1 2>/dev/null | head -n1"
    ))?;
    ensure(
        stamp.starts_with("owner=n1 "),
        format!("n2 reads what n1 wrote last to {volume}"),
    )?;
    if expedite {
        let request = control_plane
            .wait_for_condition(name, "TakenOver", "True", Duration::from_secs(30))
            .map_err(|error| told(cluster, name, &error.to_string()))?;
        let said = condition(&request, "TakenOver").context("no TakenOver")?;
        say(format!("    TakenOver: {}", said["message"]));
        until("the task is taken back", Duration::from_secs(30), || {
            let storage = control_plane.object("nodestorage", "n2")?;
            let tasks = storage.map(|s| s["spec"]["declareDead"].clone());
            Ok(tasks
                .is_some_and(|t| t.as_array().is_none_or(Vec::is_empty))
                .then_some(()))
        })?;
        let hosts = n2.sh("sanlock client host_status -s lvm_san -D")?;
        say(format!(
            "    sanlock on n2: {}",
            hosts.trim().replace('\n', "; ")
        ));
    }
    Ok(round)
}

/// The SAN returns to n1 and it joins its lockspace again.
fn give_back(cluster: &mut Cluster, name: &str) -> Result {
    say("the SAN returns to n1, and it is given its storage back");
    cluster.san.restore_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until("n1's paths are back", Duration::from_secs(120), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    let control_plane = cluster.control_plane()?;
    let unfenced = r#"{"spec":{"fenceState":"Unfenced","unfenceAfterSeconds":3}}"#;
    control_plane.kubectl(&["patch", "sfr", name, "--type=merge", "-p", unfenced])?;
    let request = control_plane
        .wait_for_phase(name, "Unfenced", Duration::from_secs(240))
        .map_err(|error| told(cluster, name, &error.to_string()))?;
    until(
        "nothing is said of a take-over any more",
        Duration::from_secs(30),
        || {
            let request = control_plane.request(name)?;
            Ok(condition(&request, "TakenOver").is_none().then_some(()))
        },
    )?;
    let before = generation(&request["status"]["node"]["volumeGroups"][0]);
    let after = generation(&request["status"]["node"]["unfence"]["volumeGroups"][0]);
    ensure(
        before.is_some() && after > before,
        format!("n1 has joined again: generation {after:?} after {before:?}"),
    )?;
    control_plane.kubectl(&["delete", "sfr", name, "--wait=true", "--timeout=60s"])?;
    Ok(())
}

fn generation(group: &Value) -> Option<i64> {
    group["generation"].as_i64()
}

fn told(cluster: &Cluster, name: &str, error: &str) -> Box<dyn std::error::Error + Send + Sync> {
    let control_plane = cluster.control_plane().ok();
    let say = |kind: &str, name: &str| {
        let object = control_plane.and_then(|c| c.object(kind, name).ok().flatten());
        object.unwrap_or_default().to_string()
    };
    format!(
        "{error}\n{}\n{}",
        say("sfr", name),
        say("nodestorage", "n2")
    )
    .into()
}
