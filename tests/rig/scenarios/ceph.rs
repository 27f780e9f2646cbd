//! Ceph on the same node: the kernel's own client, as a file system and as the PV of a volume group; and a volume group that lies on both.

use std::time::Duration;

use crate::harness::node::COMMAND_LIMIT;
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say};

use super::stacks::{cut_array_a, holds};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "ceph",
        about: "RBD mapped on a node that is fenced: its file system and its volume group never notice; a volume group on SAN and Ceph is fenced whole",
        shape: Shape::arrays_and_ceph,
        tell: ceph,
    }]
}

/// How long the largest pause of the bystanders is measured without a fence, and with one.
const SPAN: Duration = Duration::from_secs(10);

fn ceph(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.shared_vg("san", 0)?;
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    n1.sh("/payload/node/ceph-map 1 files volumes shared")?;
    n1.sh("mkfs.ext4 -q -F /dev/rbd0 && mkdir -p /files && mount /dev/rbd0 /files")?;
    n1.sh_within(
        "set -e; vgcreate -qq own /dev/rbd1; lvcreate -qq -y -Wn -Zn -L 32M -n lv own",
        Duration::from_secs(120),
    )?;
    let mixed = n1.device(1)?;
    n1.sh_within(
        &format!(
            "set -e; vgcreate --shared mixed {mixed} /dev/rbd2; \
             lvcreate -y -aey -Wn -Zn -L 16M -n onsan mixed {mixed}; lvcreate -y -aey -Wn -Zn -L 16M -n onceph mixed /dev/rbd2"
        ),
        Duration::from_secs(120),
    )?;
    n1.sh("lvcreate -y -aey -Wn -Zn -L 32M -n lv san")?;
    let start = |name: &str, target: &str| Writer::start(n1, name, target);
    let bystanders = vec![start("files", "/files/data")?, start("own", "/dev/own/lv")?];
    let gone = [
        start("san", "/dev/san/lv")?,
        start("onsan", "/dev/mixed/onsan")?,
        start("onceph", "/dev/mixed/onceph")?,
    ];
    let own = n1.lv_table("own", "lv")?;
    let mut bystanders = Bystanders::undisturbed(n1, bystanders, SPAN)?;

    say("    every path of both shared volume groups is cut, and they are fenced");
    // Not the third LUN, which no volume group is on: its map would go on queueing, and every LVM command hang when it looks there.
    let n1 = cut_array_a(cluster)?;
    bystanders.disturbed(n1)?;
    for vg in ["san", "mixed"] {
        let fence = n1.run(
            &format!("/payload/bin/storage-fence kill-hook {vg}"),
            Duration::from_secs(100),
        )?;
        say(format!("    {} ms: {}", fence.ms, fence.err.trim()));
        ensure(fence.code == 0, format!("the hook has proof of {vg}"))?;
        ensure(
            !holds(&n1.wdmd()?, vg),
            format!("the watchdog no longer waits for {vg}"),
        )?;
    }
    for writer in &gone {
        let end = writer.wait_for_end(n1, Duration::from_secs(30))?;
        ensure(
            end.errno == Some(5),
            format!("the writer on {} got EIO", writer.name),
        )?;
    }
    for (vg, count) in [("san", 1), ("mixed", 2)] {
        let targets = n1.lv_targets(vg)?;
        ensure(
            targets.len() == count && targets.iter().all(|(_, kind)| kind == "error"),
            format!("{vg} is cut off whole, wherever its volumes lie: {targets:?}"),
        )?;
    }
    bystanders.never_noticed(n1)?;
    ensure(n1.lv_table("own", "lv")? == own, "its table is the same")?;
    // It is of use all the same: new volumes, new files.
    n1.sh("lvcreate -qq -y -Wn -Zn -L 4M -n more own && date >/files/new && sync -f /files/new")?;
    let maps = n1.run("cat /sys/block/rbd1/size", COMMAND_LIMIT)?;
    ensure(maps.code == 0, "the images are still mapped")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}
