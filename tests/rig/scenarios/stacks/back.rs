//! Every kind of stack is fenced by a request and given back by its deletion; then LVM builds it again and finds its data.

use std::time::Duration;

use serde_json::Value;

use super::built::{LOCAL, MODULES, STACKS, build, partition};
use super::{A, cut_array_a, open, others, ours, tables, vg_uuid};
use crate::harness::node::Node;
use crate::harness::operator::request_yaml;
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};
use crate::scenarios::fence::{FENCE_LIMIT, lives_on};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "stacks-given-back",
        about: "every kind of stack is fenced, who holds a volume from above is named, and when they have let go LVM builds all of it again with its data",
        shape: || Shape::kubernetes().with_luns(2),
        tell: given_back,
    }]
}

const UNFENCE_LIMIT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(180);
const SPAN: Duration = Duration::from_secs(8);

/// What stands on a volume and is not the volume group's: it keeps the volume from being given back, and its owner closes it.
const UPPER: [(&str, &str); 4] = [
    ("enc-open", "dmsetup remove enc-open"),
    ("luks-open", "cryptsetup close luks-open"),
    ("disk-part1", "dmsetup remove disk-part1"),
    // Its volume group cannot be read any more, so vgchange does not find it.
    ("nested-deep", "dmsetup remove nested-deep"),
];

/// Active again, in any order that a user may choose: LVM brings what is below.
const ACTIVATE: &str = "set -e; for lv in lin str pool thin idle org cached pcached wcached mirror checked five enc luks disk inner; do lvchange -aey san-a/$lv; done; \
     for lv in tsnap extthin; do lvchange -aey -K san-a/$lv; done; \
     cryptsetup open --key-file /run/luks.key /dev/san-a/luks luks-open; \
     dmsetup create enc-open --uuid CRYPT-PLAIN-enc --table \"0 65536 crypt aes-xts-plain64 $(printf '%064d' 7) 0 /dev/san-a/enc 0\"; \
     dmsetup create disk-part1 --uuid part1-disk --table '0 32768 linear /dev/san-a/disk 2048'; \
     vgchange -qq -ay --config devices/scan_lvs=1 nested; udevadm settle";

/// Data that is the volume's own.
fn write(node: &Node, name: &str, target: &str) -> Result {
    node.sh(&format!(
        "mkdir -p /run/data; dd if=/dev/urandom of=/run/data/{name} bs=64k count=8 status=none; \
         dd if=/run/data/{name} of={target} bs=64k oflag=direct conv=fsync status=none"
    ))?;
    Ok(())
}

/// Whether it is there.
fn reads(node: &Node, name: &str, target: &str) -> Result<bool> {
    let same = format!(
        "dd if={target} bs=64k count=8 iflag=direct status=none | cmp -s - /run/data/{name}"
    );
    Ok(node.run(&same, LIMIT)?.code == 0)
}

fn blockers(cluster: &Cluster) -> Result<Vec<Value>> {
    let request = cluster.control_plane()?.request("all")?;
    let all = request["status"]["node"]["unfence"]["blockers"].as_array();
    Ok(all.cloned().unwrap_or_default())
}

fn given_back(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    let n1 = cluster.node("n1")?;
    let boot_id = n1.boot_id()?;
    n1.sh(MODULES)?;
    let partition = partition(n1, &n1.device(1)?)?;
    let first = n1.device(0)?;
    n1.sh_within(&format!("vgcreate --shared {A} {first} {partition}"), LIMIT)?;
    build(n1, [&first, &partition], &mut |name, target| {
        write(n1, name, target)
    })?;
    let mut bystanders = Vec::new();
    for (how, target) in LOCAL {
        n1.sh_within(&format!("set -e; {how}"), LIMIT)?;
        let name = format!("local-{}", target.rsplit('/').next().context("a name")?);
        bystanders.push(Writer::start(n1, &name, target)?);
    }
    let uuid = vg_uuid(n1)?;
    let before = others(&tables(n1)?, &uuid);
    let count = ours(&tables(n1)?, &uuid).len();
    let mut bystanders = Bystanders::undisturbed(n1, bystanders, SPAN)?;

    say(format!(
        "every path of n1 is cut, and a request is made: {count} devices"
    ));
    cut_array_a(cluster)?;
    let n1 = cluster.node("n1")?;
    bystanders.disturbed(n1)?;
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml("all", "n1", &["unfenceAfterSeconds: 5"]))?;
    control_plane.wait_for_condition("all", "LocksReleased", "True", FENCE_LIMIT)?;
    let after = tables(n1)?;
    ensure(
        open(&after, &uuid).is_empty() && ours(&after, &uuid).len() == count,
        "every device of the volume group is one error target",
    )?;
    ensure(
        others(&after, &uuid) == before,
        "no other table has changed",
    )?;
    lives_on(n1, &boot_id)?;
    bystanders.never_noticed(n1)?;

    say("the SAN returns, and the request is deleted");
    cluster.san.restore_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    for lun in 0..2 {
        until("its paths are back", Duration::from_secs(60), || {
            Ok((n1.path_states(lun)? == "AA").then_some(()))
        })?;
    }
    let control_plane = cluster.control_plane()?;
    control_plane.kubectl(&["delete", "sfr", "all", "--wait=false"])?;
    until("who stands on a volume is named", UNFENCE_LIMIT, || {
        let blockers = blockers(cluster)?;
        let named = |name: &str| {
            blockers.iter().any(|b| {
                b["reason"] == "DeviceOpen"
                    && b["holder"].as_str().is_some_and(|h| h.contains(name))
            })
        };
        Ok(UPPER.iter().all(|(name, _)| named(name)).then_some(()))
    })
    .map_err(|e| format!("{e}: {:?}", blockers(cluster)))?;
    let fenced = tables(n1)?;
    ensure(
        ours(&fenced, &uuid).len() == count && others(&fenced, &uuid) == before,
        "until they have let go nothing is removed",
    )?;
    for (_, close) in UPPER {
        n1.sh(close)?;
    }
    until("the request goes by itself", UNFENCE_LIMIT, || {
        let request = control_plane.object("sfr", "all")?;
        Ok(request.is_none().then_some(()))
    })
    .map_err(|e| format!("{e}: {:?}", blockers(cluster)))?;
    ensure(
        ours(&tables(n1)?, &uuid).is_empty(),
        "no device of the fence is left",
    )?;

    say("its users activate all of it again");
    n1.sh_within(ACTIVATE, Duration::from_secs(300))?;
    let mut lost = Vec::new();
    for (what, _, target) in STACKS {
        let name = target.rsplit('/').next().context("a name")?;
        if !reads(n1, name, target)? {
            lost.push(*what);
        }
    }
    ensure(
        lost.is_empty(),
        format!(
            "each of {} holds what was written to it {lost:?}",
            STACKS.len()
        ),
    )?;
    let again = ours(&tables(n1)?, &uuid);
    ensure(
        again.len() == count && again.iter().all(|(_, table)| !table.ends_with("error")),
        format!("{} devices, as before", again.len()),
    )?;
    let end = others(&tables(n1)?, &uuid);
    let local = |all: &std::collections::BTreeMap<(String, String), String>| {
        let ours = |name: &str| name.starts_with("local");
        let all = all.iter().filter(|((_, name), _)| ours(name));
        all.map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    ensure(
        local(&end) == local(&before),
        "the node's own volumes have the tables that they had",
    )?;
    bystanders.went_on(n1)?;
    ensure(
        n1.watchdog_armed()? && n1.reset().is_none() && n1.boot_id()? == boot_id,
        "the watchdog counts on the lockspace again, and n1 was never reset",
    )
}
