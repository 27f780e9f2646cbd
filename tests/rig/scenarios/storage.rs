//! The ground that the others stand on, without the operator: what a shared VG does, what an outage does to a host that nobody fences.

use std::time::Duration;

use crate::harness::node::COMMAND_LIMIT;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "shared-vg",
            about: "an LV of a shared VG is one host's at a time, over two paths of which one may fail",
            shape: Shape::storage,
            tell: shared_vg,
        },
        Scenario {
            name: "black-hole",
            about: "a SAN that answers nothing: no I/O completes, and the paths stay active",
            shape: Shape::storage,
            tell: black_hole,
        },
        Scenario {
            name: "control-experiment",
            about: "all paths of a host are cut and nobody fences it: the watchdog resets it",
            shape: Shape::storage,
            tell: control_experiment,
        },
    ]
}

fn shared_vg(cluster: &mut Cluster) -> Result {
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    let n2 = cluster.node("n2")?;
    n1.sh("lvcreate -y -aey -L 64M -n base san")?;
    let refused = n2.run("lvchange -aey san/base", COMMAND_LIMIT)?;
    ensure(
        refused.code != 0 && refused.err.contains("locked by other host"),
        "n2 may not activate what n1 holds",
    )?;
    ensure(
        n1.watchdog_armed()?,
        "n1's watchdog counts on the lockspace",
    )?;
    ensure(n1.path_states(0)? == "AA", "n1 has two active paths")?;

    let writer = Writer::start(n1, "base", "/dev/san/base")?;
    cluster.san.cut("n1", 0, 0)?;
    let n1 = cluster.node("n1")?;
    until(
        "n1's kernel knows of the failed path",
        Duration::from_secs(30),
        || Ok(n1.path_states(0)?.contains('F').then_some(())),
    )?;
    let before = writer.state(n1)?;
    std::thread::sleep(Duration::from_secs(2));
    let after = writer.state(n1)?;
    ensure(
        after.writes > before.writes && !after.ended,
        "the writer goes on over the other path",
    )?;
    cluster.san.restore("n1", 0, 0)?;
    let n1 = cluster.node("n1")?;
    until("the path is active again", Duration::from_secs(60), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    writer.stop(n1)?;
    n1.sh("lvchange -an san/base")?;
    let n2 = cluster.node("n2")?;
    n2.sh("lvchange -aey san/base")?;
    let stamp = n2.sh("dd if=/dev/san/base iflag=direct bs=4096 count=1 2>/dev/null | head -n1")?;
    ensure(
        stamp.starts_with("owner=n1 "),
        "n2 takes the LV over and reads what n1 wrote",
    )?;
    n2.sh("lvremove -y san/base")?;
    Ok(())
}

fn black_hole(cluster: &mut Cluster) -> Result {
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node_mut("n1")?;
    n1.mark_dirty();
    n1.sh("lvcreate -y -aey -L 64M -n hole san")?;
    let writer = Writer::start(n1, "hole", "/dev/san/hole")?;
    cluster.san.black_hole_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    std::thread::sleep(Duration::from_secs(2));
    let before = writer.state(n1)?;
    std::thread::sleep(Duration::from_secs(5));
    let after = writer.state(n1)?;
    ensure(
        before.writes == after.writes && !after.ended,
        "no write completed, none failed",
    )?;
    ensure(
        n1.path_states(0)? == "AA",
        "both paths count as active all the same",
    )?;
    cluster.san.restore_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until("the writer goes on", Duration::from_secs(60), || {
        Ok((writer.state(n1)?.writes > after.writes).then_some(()))
    })?;
    // The volume is not removed by n1: requests that were lost in the hole end by their SCSI time-out, and the lease may be lost before that.
    writer.stop(n1)
}

fn control_experiment(cluster: &mut Cluster) -> Result {
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    n1.sh("lvcreate -y -aey -L 64M -n victim san")?;
    let writer = Writer::start(n1, "victim", "/dev/san/victim")?;
    n1.sh("mkfs.ext4 -q -F /dev/rig-local && mount /dev/rig-local /local")?;
    let local = Writer::start(n1, "local", "/local/data")?;
    let n2_boot = cluster.node("n2")?.boot_id()?;

    say("    every path of n1 is cut, and nobody does anything");
    let cut = std::time::Instant::now();
    cluster.san.cut_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    until(
        "n1's kernel knows that both paths are gone",
        Duration::from_secs(30),
        || Ok((n1.path_states(0)? == "FF").then_some(())),
    )?;
    ensure(n1.queues(0)?, "n1 queues I/O for ever")?;
    ensure(
        !writer.state(n1)?.ended,
        "the writer hangs, it gets no error",
    )?;
    let going = local.state(n1)?.writes;
    until(
        "what has nothing to do with the SAN goes on",
        Duration::from_secs(20),
        || Ok((local.state(n1)?.writes > going).then_some(())),
    )?;

    // 66 to 76 s after the last renewal (io_timeout 2, fire time-out 60), which was up to 4 s before the cut; emulation is slower than its clock.
    let reset = n1.wait_for_reset(Duration::from_secs(120))?;
    let seconds = reset.at.duration_since(cut).as_secs_f64();
    ensure(
        reset.by_watchdog,
        format!("the watchdog resets n1, {seconds:.1} s after the cut, local disks and all"),
    )?;
    let n2 = cluster.node("n2")?;
    until("n2 takes the LV over", Duration::from_secs(120), || {
        Ok((n2.run("lvchange -aey san/victim", COMMAND_LIMIT)?.code == 0).then_some(()))
    })?;
    say(format!(
        "    ok: n2 has the LV {:.1} s after the cut",
        cut.elapsed().as_secs_f64()
    ));
    ensure(n2.boot_id()? == n2_boot, "n2 was not reset")?;
    let stamp =
        n2.sh("dd if=/dev/san/victim iflag=direct bs=4096 count=1 2>/dev/null | head -n1")?;
    ensure(stamp.starts_with("owner=n1 "), "n2 reads what n1 wrote")?;
    n2.sh("lvremove -y san/victim")?;
    Ok(())
}
