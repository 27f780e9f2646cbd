//! A volume group of which one physical volume is lost while another lives: what goes on, what waits, who fences it and when.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::holds;
use crate::harness::node::{COMMAND_LIMIT, Node};
use crate::harness::operator::{condition, request_yaml};
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};
use crate::scenarios::fence::{FENCE_LIMIT, all_error, lives_on};
use crate::scenarios::policy::{no_requests, wait_for_paths};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "one-pv-lost",
            about: "one of a volume group's two LUNs is lost: nothing is fenced while the lease lives, what is asked for is; and with the leases' LUN all of it",
            shape: || Shape::kubernetes().with_luns(2),
            tell: one_pv_lost,
        },
        Scenario {
            name: "lease-on-lost-pv",
            about: "the leases' LUN is lost and another lives, no agent: the hook fences the whole volume group; without a hook the watchdog resets the node",
            shape: Shape::arrays,
            tell: lease_on_lost_pv,
        },
    ]
}

/// Longer than from the last renewal to the latest reset: 76 s, on a clock that emulation slows down.
pub const PAST_RESET: Duration = Duration::from_secs(95);
const UNFENCE_LIMIT: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(100);

/// On the LUN that is lost first, on the one with the leases, and over both.
const VOLUMES: [&str; 3] = ["low", "high", "both"];

fn policy(triggers: &str) -> String {
    format!(
        "apiVersion: storagefence.io/v1alpha1\nkind: StorageFencePolicy\nmetadata:\n  name: half\nspec:\n  response: Fence\n  \
         volumeGroups: {{names: [half]}}\n  triggers: {{{triggers}}}\n"
    )
}

/// Has it in force on n1.
fn apply_policy(cluster: &Cluster, triggers: &str, kept: &str) -> Result {
    cluster.control_plane()?.apply(&policy(triggers))?;
    let n1 = cluster.node("n1")?;
    until("n1 keeps the policy", Duration::from_secs(60), || {
        let file = n1.sh("cat /run/storage-fence/policies.json 2>/dev/null || true")?;
        Ok(file.contains(kept).then_some(()))
    })
}

fn cut(cluster: &mut Cluster, lun: usize) -> Result<&Node> {
    cluster.san.cut_all("n1", Some(lun))?;
    let n1 = cluster.node("n1")?;
    until(
        "both its paths have failed",
        Duration::from_secs(40),
        || Ok((n1.path_states(lun)? == "FF").then_some(())),
    )?;
    Ok(n1)
}

fn restore(cluster: &mut Cluster, lun: usize) -> Result<&Node> {
    cluster.san.restore_all("n1", Some(lun))?;
    let n1 = cluster.node("n1")?;
    until("both its paths are back", Duration::from_secs(60), || {
        Ok((n1.path_states(lun)? == "AA").then_some(()))
    })?;
    Ok(n1)
}

fn writers(node: &Node, round: &str) -> Result<Vec<Writer>> {
    VOLUMES
        .iter()
        .map(|lv| Writer::start(node, &format!("{lv}{round}"), &format!("/dev/half/{lv}")))
        .collect()
}

fn get_eio(node: &Node, writers: &[Writer]) -> Result {
    for writer in writers {
        let end = writer.wait_for_end(node, Duration::from_secs(30))?;
        ensure(
            end.errno == Some(5),
            format!("the writer on {} got EIO", writer.name),
        )?;
    }
    Ok(())
}

/// When sanlock renewed the lease last, on the node's monotonic clock.
pub fn renewed(node: &Node, vg: &str) -> Result<u64> {
    let status = node.sanlock()?;
    let of_it = status
        .split(&format!("s lvm_{vg}:"))
        .nth(1)
        .context("no such lockspace")?;
    let line = of_it
        .lines()
        .find_map(|l| l.trim().strip_prefix("renewal_last_success="))
        .context("no renewal")?;
    line.trim().parse().context(line.to_owned())
}

/// Blocks of a volume that say who wrote them.
fn stamped(node: &Node, lv: &str, owner: &str) -> Result<usize> {
    let count = node.sh(&format!(
        "dd if=/dev/half/{lv} iflag=direct bs=64k count=16 2>/dev/null | tr '\\0' '\\n' | grep -c '^owner={owner} ' || true"
    ))?;
    count.trim().parse().context("a number")
}

fn one_pv_lost(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    let n1 = cluster.node("n1")?;
    let boot_id = n1.boot_id()?;
    let luns = [n1.device(0)?, n1.device(1)?];
    // The leases' volume is made on the first physical volume: LUN 1.
    n1.sh_within(
        &format!(
            "vgcreate --shared half {1} && vgextend -qq half {0}",
            luns[0], luns[1]
        ),
        LIMIT,
    )?;
    cluster.join("half")?;
    let n1 = cluster.node("n1")?;
    n1.sh(&format!(
        "set -e; lvcreate -qq -y -aey -Wn -Zn -L 16M -n low half {0}; lvcreate -qq -y -aey -Wn -Zn -L 16M -n high half {1}; \
         lvcreate -qq -y -aey -Wn -Zn -i 2 -L 16M -n both half",
        luns[0], luns[1]
    ))?;
    let n2 = cluster.node("n2")?;
    n2.sh("lvcreate -qq -y -aey -Wn -Zn -L 16M -n peers half")?;
    let peers = Writer::start(n2, "peers", "/dev/half/peers")?;
    apply_policy(cluster, "allPathsDown: {forSeconds: 1}", "\"allPathsDown\"")?;
    let n1 = cluster.node("n1")?;
    let all = writers(n1, "")?;

    nobody_fences(cluster, &all)?;
    let n1 = restore(cluster, 0)?;
    for writer in &all {
        let before = writer.state(n1)?.writes;
        until("it goes on writing", Duration::from_secs(60), || {
            Ok((writer.state(n1)?.writes > before).then_some(()))
        })?;
        ensure(
            !writer.state(n1)?.ended,
            format!("{} goes on, and never saw an error", writer.name),
        )?;
    }
    wait_for_paths(cluster, "n1", ("True", "PathsWork"))?;

    fenced_on_request(cluster, &all, &boot_id)?;
    given_back(cluster)?;
    with_the_leases(cluster, &boot_id)?;
    let n2 = cluster.node("n2")?;
    let state = peers.state(n2)?;
    ensure(
        !state.ended && holds(&n2.wdmd()?, "half"),
        format!(
            "n2, with a volume of the same volume group, never lost it ({} writes, largest pause {} ms, ended: {})",
            state.writes, state.longest_pause_ms, state.ended
        ),
    )?;
    cluster
        .control_plane()?
        .kubectl(&["delete", "sfp", "half"])?;
    Ok(())
}

/// LUN 0 is lost, the leases live on LUN 1: for longer than a watchdog would wait, nobody does anything, and it is told what is lost.
fn nobody_fences(cluster: &mut Cluster, all: &[Writer]) -> Result {
    say("n1 loses LUN 0; the leases lie on LUN 1");
    let [low, high, both] = all else {
        return Err("three writers".into());
    };
    let n1 = cut(cluster, 0)?;
    let lost_at = Instant::now();
    high.forget_pauses(n1)?;
    std::thread::sleep(Duration::from_secs(1));
    let waiting = [low.state(n1)?.writes, both.state(n1)?.writes];
    wait_for_paths(cluster, "n1", ("True", "PhysicalVolumeLost"))?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    let node = control_plane.object("node", "n1")?.context("no node n1")?;
    let says = condition(&node, "storagefence.io/SANPathsAvailable")
        .map(|c| c["message"].clone())
        .unwrap_or_default();
    ensure(
        says.as_str()
            .is_some_and(|m| m.contains("half: no path works to map ")),
        format!("the Node's condition names what is lost: {says}"),
    )?;
    let storage = control_plane
        .object("nodestorage", "n1")?
        .context("no NodeStorage")?;
    ensure(
        storage["status"]["paths"] == "2/4",
        format!("two of four paths work: {}", storage["status"]["paths"]),
    )?;
    control_plane.apply(&request_yaml("plain", "n1", &[]))?;
    let plain = control_plane.wait_for_phase("plain", "Rejected", FENCE_LIMIT)?;
    let message = plain["status"]["message"].as_str().unwrap_or_default();
    ensure(
        condition(&plain, "Fenced").is_some_and(|c| c["reason"] == "NothingAffected")
            && message.contains("half: 2 of 4 paths work, none of them to map "),
        format!("a request that names nothing is refused: {message}"),
    )?;
    control_plane.kubectl(&["delete", "sfr", "plain"])?;
    let first = renewed(n1, "half")?;
    while lost_at.elapsed() < PAST_RESET {
        std::thread::sleep(Duration::from_secs(5));
        ensure_alive(n1, high)?;
    }
    ensure(
        renewed(n1, "half")? > first + 60 && holds(&n1.wdmd()?, "half"),
        "the lease goes on being renewed, and the watchdog waits for it",
    )?;
    no_requests(cluster)?;
    let n1 = cluster.node("n1")?;
    let targets = n1.lv_targets("half")?;
    ensure(
        targets.len() == 3 && targets.iter().all(|(_, kind)| kind != "error"),
        format!("no table was touched, by no policy either: {targets:?}"),
    )?;
    let state = high.state(n1)?;
    ensure(
        !state.ended && state.longest_pause_ms < 5000,
        format!(
            "the volume on LUN 1 goes on (largest pause {} ms)",
            state.longest_pause_ms
        ),
    )?;
    let (low, both) = (low.state(n1)?, both.state(n1)?);
    ensure(
        !low.ended && !both.ended && [low.writes, both.writes] == waiting,
        "those with an extent on LUN 0 wait: no write ends, well or not",
    )?;
    let n2 = cluster.node("n2")?;
    for lv in VOLUMES {
        let refused = n2.run(&format!("lvchange -aey half/{lv}"), COMMAND_LIMIT)?;
        ensure(
            refused.code != 0 && refused.err.contains("locked by other host"),
            format!("n2 cannot have {lv}"),
        )?;
    }
    Ok(())
}

fn ensure_alive(node: &Node, writer: &Writer) -> Result {
    if node.reset().is_some() || writer.state(node)?.ended {
        return Err(format!("{} was reset, or {} ended", node.name(), writer.name).into());
    }
    Ok(())
}

/// The same again, and somebody says that all of it is to be fenced.
fn fenced_on_request(cluster: &mut Cluster, all: &[Writer], boot_id: &str) -> Result {
    say("n1 loses LUN 0 again, and a request says whenPathsRemain: Fence");
    cut(cluster, 0)?;
    let control_plane = cluster.control_plane()?;
    let spec = [
        "volumeGroups: {mode: Named, names: [half]}",
        "whenPathsRemain: Fence",
        "unfenceAfterSeconds: 5",
    ];
    control_plane.apply(&request_yaml("meant", "n1", &spec))?;
    let meant = control_plane.wait_for_condition("meant", "LocksReleased", "True", FENCE_LIMIT)?;
    let steps = meant["status"]["node"]["steps"].as_array().cloned();
    let mut quiesce: Vec<String> = steps
        .unwrap_or_default()
        .iter()
        .filter(|s| s["step"] == "Quiesce")
        .map(|s| s["result"].as_str().unwrap_or_default().to_owned())
        .collect();
    quiesce.sort_unstable();
    ensure(
        quiesce == ["Done", "Skipped"],
        format!("queueing was turned off where no path works, and only there: {quiesce:?}"),
    )?;
    let n1 = cluster.node("n1")?;
    all_error(n1, "half", 3)?;
    ensure(n1.queues(1)?, "the living LUN's map is as it was")?;
    get_eio(n1, all)?;
    lives_on(n1, boot_id)?;

    // The leases' volume can be written: the locks are not merely left to run out, they are given back.
    let n2 = cluster.node("n2")?;
    let began = Instant::now();
    n2.sh("lvchange -aey half/low && lvchange -aey half/high")?;
    let waited = began.elapsed();
    ensure(
        waited < Duration::from_secs(40),
        format!(
            "n2 has the volumes {:.1} s after that, before any lease has run out",
            waited.as_secs_f64()
        ),
    )?;
    ensure(
        stamped(n2, "low", "n1")? > 0 && stamped(n2, "high", "n1")? > 0,
        "n2 reads what n1 wrote",
    )?;
    let taken = Writer::start(n2, "taken", "/dev/half/low")?;
    until(
        "n2 has written all over it",
        Duration::from_secs(60),
        || Ok((taken.state(n2)?.writes > 300).then_some(())),
    )?;
    // What n1 had on its way is no more: nothing comes late.
    restore(cluster, 0)?;
    std::thread::sleep(Duration::from_secs(10));
    let n2 = cluster.node("n2")?;
    taken.stop(n2)?;
    ensure(
        stamped(n2, "low", "n1")? == 0 && stamped(n2, "low", "n2")? == 256,
        "n1's paths are back, and every block is n2's",
    )
}

fn given_back(cluster: &Cluster) -> Result {
    let control_plane = cluster.control_plane()?;
    control_plane.kubectl(&["delete", "sfr", "meant", "--wait=false"])?;
    until("n1 is given it back", UNFENCE_LIMIT, || {
        let request = control_plane.object("sfr", "meant")?;
        Ok(request.is_none().then_some(()))
    })?;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    let refused = n1.run("lvchange -aey half/low", COMMAND_LIMIT)?;
    ensure(
        refused.code != 0 && refused.err.contains("locked by other host"),
        "what has moved to n2 is n2's",
    )?;
    n2.sh("lvchange -an half/low half/high")?;
    n1.sh("lvchange -aey half/low && lvchange -aey half/high && lvchange -aey half/both")?;
    ensure(
        stamped(n1, "low", "n2")? == 256 && stamped(n1, "both", "n1")? > 0,
        "n1 has them again, with what was written last",
    )
}

/// The LUN with the leases is lost, and the other lives: the lease cannot be renewed, so the host is about to be reset, and the whole is fenced.
fn with_the_leases(cluster: &mut Cluster, boot_id: &str) -> Result {
    say("n1 loses LUN 1, where the leases lie; LUN 0 lives");
    apply_policy(
        cluster,
        // n2, of which nothing is lost, has the policy too: it is not to miss two renewals, which come every 4 s.
        "allPathsDown: {forSeconds: 1}, renewalsFailing: {forSeconds: 10}",
        "\"renewalsFailing\"",
    )?;
    let n1 = cluster.node("n1")?;
    let all = writers(n1, "again")?;
    let n1 = cut(cluster, 1)?;
    let lost_at = n1.uptime()?;
    let last = renewed(n1, "half")?;
    until("the locks are let go of", Duration::from_secs(60), || {
        Ok((!holds(&n1.wdmd()?, "half")).then_some(()))
    })?;
    all_error(n1, "half", 3)?;
    get_eio(n1, &all)?;
    let ended = all[0].state(n1)?.ended_at.context("it ended")?;
    ensure(
        ended > lost_at && ended < f64::from(u32::try_from(last)?) + 66.0,
        format!(
            "the volume on LUN 0 went on for {:.1} s, and was cut off {:.1} s after the last renewal, before any reset",
            ended - lost_at,
            ended - f64::from(u32::try_from(last)?)
        ),
    )?;
    let record = until("it is recorded", FENCE_LIMIT, || {
        let text = cluster
            .control_plane()?
            .kubectl(&["get", "sfr", "-o", "json"])?;
        let all: Value = serde_json::from_str(&text)?;
        let released =
            |r: &&Value| condition(r, "LocksReleased").is_some_and(|c| c["status"] == "True");
        Ok(all["items"]
            .as_array()
            .and_then(|items| items.iter().find(released))
            .cloned())
    })?;
    ensure(
        record["metadata"]["annotations"]["storagefence.io/trigger"] == "RenewalsFailing",
        "by the policy, because the lease was not renewed",
    )?;
    std::thread::sleep(PAST_RESET);
    lives_on(cluster.node("n1")?, boot_id)
}

/// The leases' LUN is 0, the volume lies on LUN 1.
fn on_the_living_lun(cluster: &Cluster, make: bool) -> Result<Writer> {
    let n1 = cluster.node("n1")?;
    if make {
        let luns = [n1.device(0)?, n1.device(1)?];
        n1.sh_within(
            &format!(
                "vgcreate --shared half {0} && vgextend -qq half {1} && lvcreate -qq -y -aey -Wn -Zn -L 16M -n high half {1}",
                luns[0], luns[1]
            ),
            LIMIT,
        )?;
    } else {
        cluster.join("half")?;
        n1.sh("lvchange -aey half/high")?;
    }
    Writer::start(n1, "high", "/dev/half/high")
}

fn lease_on_lost_pv(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let writer = on_the_living_lun(cluster, true)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    n1.sh("/payload/bin/storage-fence install-hook")?;
    let n1 = cut(cluster, 0)?;
    let cut_at = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    ensure(
        !writer.state(n1)?.ended,
        "the volume on the living LUN goes on while the lease holds",
    )?;
    until("the watchdog lets go", Duration::from_secs(60), || {
        Ok((!holds(&n1.wdmd()?, "half")).then_some(()))
    })?;
    say(format!(
        "    {:.1} s after the cut",
        cut_at.elapsed().as_secs_f64()
    ));
    all_error(n1, "half", 1)?;
    get_eio(n1, std::slice::from_ref(&writer))?;
    std::thread::sleep(PAST_RESET);
    ensure(
        n1.reset().is_none() && n1.boot_id()? == boot,
        "fenced as a whole by the hook, though a LUN lives: the node was not reset",
    )?;

    say("the same without a hook");
    cluster.san.restore_all("n1", None)?;
    cluster.reboot("n1")?;
    on_the_living_lun(cluster, false)?;
    let n1 = cut(cluster, 0)?;
    let cut_at = Instant::now();
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    ensure(
        reset.by_watchdog,
        format!(
            "the watchdog resets the node {:.1} s after the cut, though a LUN lives",
            reset.at.duration_since(cut_at).as_secs_f64()
        ),
    )
}
