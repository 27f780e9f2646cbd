//! Ceph on the same node: the kernel's own client, as a file system and as the PV of a volume group; and a volume group that lies on both.

use std::time::Duration;

use crate::harness::node::{COMMAND_LIMIT, Node};
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

use super::stacks::lost::{PAST_RESET, renewed};
use super::stacks::{cut_array_a, holds};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "ceph",
        about: "RBD mapped on a node that is fenced: its file system and its volume group never notice; a volume group on SAN and Ceph is fenced whole, \
                and only when that is asked for where its leases lie on Ceph",
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
    n1.sh("/payload/node/ceph-map 1 files volumes shared leases")?;
    n1.sh("mkfs.ext4 -q -F /dev/rbd0 && mkdir -p /files && mount /dev/rbd0 /files")?;
    n1.sh_within(
        "set -e; vgcreate -qq own /dev/rbd1; lvcreate -qq -y -Wn -Zn -L 32M -n lv own",
        Duration::from_secs(120),
    )?;
    let (mixed, leased) = (n1.device(1)?, n1.device(2)?);
    n1.sh_within(
        &format!(
            "set -e; vgcreate --shared mixed {mixed} /dev/rbd2; \
             lvcreate -y -aey -Wn -Zn -L 16M -n onsan mixed {mixed}; lvcreate -y -aey -Wn -Zn -L 16M -n onceph mixed /dev/rbd2"
        ),
        Duration::from_secs(120),
    )?;
    // Its leases go to the first physical volume.
    n1.sh_within(
        &format!(
            "set -e; vgcreate --shared leased /dev/rbd3 && vgextend -qq leased {leased}; \
             lvcreate -y -aey -Wn -Zn -L 16M -n waits leased {leased}; lvcreate -y -aey -Wn -Zn -L 16M -n lives leased /dev/rbd3"
        ),
        Duration::from_secs(120),
    )?;
    n1.sh("lvcreate -y -aey -Wn -Zn -L 32M -n lv san")?;
    let start = |name: &str, target: &str| Writer::start(n1, name, target);
    let bystanders = vec![start("files", "/files/data")?, start("own", "/dev/own/lv")?];
    let leased = [
        start("waits", "/dev/leased/waits")?,
        start("lives", "/dev/leased/lives")?,
    ];
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
        fence(n1, vg)?;
    }
    cut_off(n1, &gone, &[("san", 1), ("mixed", 2)])?;
    bystanders.never_noticed(n1)?;
    leases_on_ceph(cluster, &leased, &mut bystanders)?;
    let n1 = cluster.node("n1")?;
    ensure(n1.lv_table("own", "lv")? == own, "its table is the same")?;
    // It is of use all the same: new volumes, new files.
    n1.sh("lvcreate -qq -y -Wn -Zn -L 4M -n more own && date >/files/new && sync -f /files/new")?;
    let maps = n1.run("cat /sys/block/rbd1/size", COMMAND_LIMIT)?;
    ensure(maps.code == 0, "the images are still mapped")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// As lvmlockctl would have it done.
fn fence(node: &Node, vg: &str) -> Result {
    let fence = node.run(
        &format!("/payload/bin/storage-fence kill-hook {vg}"),
        Duration::from_secs(100),
    )?;
    say(format!("    {} ms: {}", fence.ms, fence.err.trim()));
    ensure(fence.code == 0, format!("the hook has proof of {vg}"))?;
    ensure(
        !holds(&node.wdmd()?, vg),
        format!("the watchdog no longer waits for {vg}"),
    )
}

/// The writers have an error, and of each volume group so many volumes.
fn cut_off(node: &Node, writers: &[Writer], groups: &[(&str, usize)]) -> Result {
    for writer in writers {
        let end = writer.wait_for_end(node, Duration::from_secs(30))?;
        ensure(
            end.errno == Some(5),
            format!("the writer on {} got EIO", writer.name),
        )?;
    }
    for (vg, count) in groups {
        let targets = node.lv_targets(vg)?;
        ensure(
            targets.len() == *count && targets.iter().all(|(_, kind)| kind == "error"),
            format!("{vg} is cut off whole, wherever its volumes lie: {targets:?}"),
        )?;
    }
    Ok(())
}

/// A volume group on SAN and Ceph whose leases lie on Ceph: without its SAN it is renewed and goes on, but for what lies there; nobody is reset.
fn leases_on_ceph(
    cluster: &mut Cluster,
    writers: &[Writer; 2],
    bystanders: &mut Bystanders,
) -> Result {
    say("    the SAN below a volume group is cut whose leases lie on Ceph");
    cluster.san.cut_all("n1", Some(2))?;
    let n1 = cluster.node("n1")?;
    until("its paths have failed", Duration::from_secs(40), || {
        Ok((n1.path_states(2)? == "FF").then_some(()))
    })?;
    let [waits, lives] = writers;
    lives.forget_pauses(n1)?;
    std::thread::sleep(Duration::from_secs(1));
    let (before, stuck) = (renewed(n1, "leased")?, waits.state(n1)?.writes);
    let moving = lives.state(n1)?.writes;
    std::thread::sleep(PAST_RESET);
    let (now, still) = (lives.state(n1)?, waits.state(n1)?);
    ensure(
        renewed(n1, "leased")? > before + 60 && holds(&n1.wdmd()?, "leased"),
        "for longer than a watchdog waits, its lease is renewed on Ceph and the node is not reset",
    )?;
    ensure(
        !now.ended && now.writes > moving && !still.ended && still.writes == stuck,
        format!(
            "what lies on Ceph goes on (largest pause {} ms), what lies on the SAN waits",
            now.longest_pause_ms
        ),
    )?;
    bystanders.disturbed(n1)?;
    fence(n1, "leased")?;
    cut_off(n1, writers, &[("leased", 2)])?;
    bystanders.never_noticed(n1)
}
