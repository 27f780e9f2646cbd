//! A black hole below every kind of stack: a swap there waits in the kernel for what no kill can end.

use std::time::Duration;

use super::built::{MODULES, build, partition};
use super::{A, devices, holds, open, ours, suspended, tables, vg_uuid};
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "stacks-in-a-black-hole",
        about: "a black hole below thin pools, snapshots, caches and RAID: a hook that is killed in its swaps, and the next one proves it when the I/O ends",
        shape: Shape::arrays,
        tell: in_a_black_hole,
    }]
}

const HOOK: &str = "/payload/bin/storage-fence kill-hook san-a";
/// What was in flight has SCSI time-outs to wait for.
const LIMIT: Duration = Duration::from_secs(100);

fn in_a_black_hole(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    let (devices, boot) = (devices(n1)?, n1.boot_id()?);
    n1.sh(MODULES)?;
    let partition = partition(n1, &devices[1])?;
    let pvs = [devices[0].as_str(), partition.as_str()];
    n1.sh_within(
        &format!("vgcreate --shared {A} {} {}", pvs[0], pvs[1]),
        Duration::from_secs(180),
    )?;
    let mut writers = Vec::new();
    build(n1, pvs, &mut |name, target| {
        writers.push(Writer::start(n1, name, target)?);
        Ok(())
    })?;
    let uuid = vg_uuid(n1)?;
    for lun in 0..2 {
        cluster.san.black_hole_all("n1", Some(lun))?;
    }
    let n1 = cluster.node("n1")?;
    std::thread::sleep(Duration::from_secs(2));
    let first = n1.start(HOOK, LIMIT)?;
    std::thread::sleep(Duration::from_secs(6));
    n1.sh("pkill -9 -x storage-fence")?;
    let second = n1.start(HOOK, LIMIT)?;
    std::thread::sleep(Duration::from_secs(4));
    let still = open(&tables(n1)?, &uuid);
    say(format!(
        "    {} of {} devices are open while nothing ends",
        still.len(),
        ours(&tables(n1)?, &uuid).len()
    ));
    ensure(
        !still.is_empty() && holds(&n1.wdmd()?, A),
        "while I/O is under way nothing is released",
    )?;
    ensure(
        second.poll(Duration::from_millis(100))?.is_none(),
        "the second hook waits, whatever is left of the first",
    )?;
    for lun in 0..2 {
        cluster.san.restore_all("n1", Some(lun))?;
    }
    let n1 = cluster.node("n1")?;
    let end = second.wait(LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    for (name, table) in open(&tables(n1)?, &uuid) {
        say(format!("    still open: {name}: {table}"));
    }
    ensure(end.code == 0, "when it ends, the second hook has proof")?;
    ensure(
        open(&tables(n1)?, &uuid).is_empty() && suspended(n1)?.is_empty(),
        "every device is one error target, and nothing is left suspended",
    )?;
    ensure(!holds(&n1.wdmd()?, A), "the watchdog lets go")?;
    ensure(
        first.wait(LIMIT)?.code != 0,
        "the first one did not say that it was done",
    )?;
    for writer in &writers {
        let ended = writer.wait_for_end(n1, Duration::from_secs(30))?;
        ensure(
            ended.errno == Some(5),
            format!("the writer on {} got EIO", writer.name),
        )?;
    }
    ensure(n1.boot_id()? == boot, "the node was not reset")
}
