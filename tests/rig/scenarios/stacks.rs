//! The engine on what LVM really builds: every kind of stack at once, under direct I/O, on one array of two; beside storage that must not notice.

mod back;
mod built;
mod held;
pub mod lost;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::oracles::agree;
use crate::harness::node::{COMMAND_LIMIT, Node};
use crate::harness::writer::{Bystanders, Writer};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};
use built::{HALF_WAY, LEFT_BEHIND, LOCAL, MODULES, build, names, partition};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "stacks",
        about: "thin, snapshots, caches, writecache, RAID, integrity, LUKS, partitions, two PVs: all fenced; another array and local disks never notice",
        shape: Shape::arrays,
        tell: stacks,
    }]
}

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    let mut long = lost::long();
    long.extend(back::long());
    long.extend(held::long());
    long
}

/// The volume group on array A, with hyphens; and one on array B whose name begins with the other's.
pub const A: &str = "san-a";
const B: &str = "san-a-b";
/// How long the largest pause of the bystanders is measured without a fence, and with one at least.
const SPAN: Duration = Duration::from_secs(10);
/// Between two renewals of a lease, told in whole seconds, when sanlock was late: with io_timeout 2 it renews every 4 s.
const LATE_RENEWAL: f64 = 7.0;

fn stacks(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    let (devices, boot) = (devices(n1)?, n1.boot_id()?);
    n1.sh(MODULES)?;
    let partition = partition(n1, &devices[1])?;
    let pvs = [devices[0].as_str(), partition.as_str()];
    n1.sh_within(
        &format!(
            "vgcreate --shared {A} {} {} && vgcreate --shared {B} {}",
            pvs[0], pvs[1], devices[2]
        ),
        Duration::from_secs(180),
    )?;
    let mut writers = Vec::new();
    build(n1, pvs, &mut |name, target| {
        writers.push(Writer::start(n1, name, target)?);
        Ok(())
    })?;
    n1.sh(&format!("lvcreate -y -aey -L 32M -n other {B}"))?;
    let mut bystanders = vec![Writer::start(n1, "other", &format!("/dev/{B}/other"))?];
    for (how, target) in LOCAL {
        n1.sh_within(&format!("set -e; {how}"), Duration::from_secs(120))?;
        let name = format!("local-{}", target.rsplit('/').next().context("a name")?);
        bystanders.push(Writer::start(n1, &name, target)?);
    }
    agree(n1)?;
    n1.sh_within(&format!("{}{LEFT_BEHIND}", names(pvs)), COMMAND_LIMIT)?;
    ensure(
        suspended(n1)? == "san--a-susp",
        "somebody has left a suspended device, one with a table that waits, and one without any",
    )?;
    let uuid = vg_uuid(n1)?;
    let before = others(&tables(n1)?, &uuid);
    ensure(
        n1.watchdog_armed()?,
        format!(
            "{} devices of {A}, all under I/O",
            ours(&tables(n1)?, &uuid).len()
        ),
    )?;
    uses_are_told(n1)?;
    ensure(
        (0..3).all(|lun| n1.queues(lun).is_ok_and(|q| q)),
        "every map queues",
    )?;
    let mut bystanders = Bystanders::undisturbed(n1, bystanders, SPAN)?;

    say("    an LVM command dies half-way, and then every path of array A is cut");
    n1.sh(HALF_WAY)?;
    let n1 = cut_array_a(cluster)?;
    ensure(
        suspended(n1)?
            .lines()
            .eq(["san--a-org-real", "san--a-pool-tpool", "san--a-susp"]),
        "a thin pool and a snapshot's origin are suspended below volumes that are written to",
    )?;
    bystanders.disturbed(n1)?;
    let began = n1.uptime()?;
    let fence = n1.run(
        &format!("/payload/bin/storage-fence kill-hook {A}"),
        Duration::from_secs(100),
    )?;
    say(format!("    {} ms: {}", fence.ms, fence.err.trim()));
    let after = tables(n1)?;
    for (name, table) in open(&after, &uuid) {
        say(format!("    still open: {name}: {table}"));
    }
    ensure(fence.code == 0, "the hook has proof")?;
    ensure(
        open(&after, &uuid).is_empty(),
        "every device of the volume group is one error target: pools, snapshots, images, layers, and what others left",
    )?;
    ensure(suspended(n1)?.is_empty(), "nothing is left suspended")?;
    let waiting = n1.sh(
        "dmsetup info -c --noheadings --separator ' ' -o name,attr | awk '$2 ~ /I/ { print $1 }'",
    )?;
    ensure(
        !waiting.lines().any(|name| {
            !name.starts_with("san--a--b-") && (name.starts_with("san--a-") || name == "cut-off")
        }),
        format!("no table waits for the next resume of one of them: {waiting:?}"),
    )?;
    ensure(
        others(&after, &uuid) == before,
        "no other table has changed",
    )?;
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(30))?;
        ensure(
            end.errno == Some(5),
            format!("the writer on {} got EIO", writer.name),
        )?;
    }
    let wdmd = n1.wdmd()?;
    ensure(
        !holds(&wdmd, A) && holds(&wdmd, B),
        "the watchdog waits for array B's lease only",
    )?;
    ensure(
        !n1.queues(0)? && !n1.queues(1)? && n1.queues(2)?,
        "the maps of array A let go of their I/O, that of array B would still hold on to its own",
    )?;
    bystanders.never_noticed(n1)?;
    renewed_all_along(n1, B, began)?;
    ensure(n1.boot_id()? == boot, "the node was not reset")?;
    Ok(())
}

/// What a device uses is told as the kernel tells it, though of plain volumes it is read from their tables.
fn uses_are_told(node: &Node) -> Result {
    let seen: Value = serde_json::from_str(&node.sh("/payload/bin/storage-fence inspect")?)?;
    let groups = seen["volumeGroups"].as_array().context("volume groups")?;
    let devices = groups.iter().flat_map(|g| {
        let members = g["devices"].as_array().into_iter().flatten();
        members.chain(Some(&g["lvmlock"]).filter(|l| !l.is_null()))
    });
    let deps = node.sh("dmsetup deps -o devno")?;
    let (mut compared, mut wrong) = (0, Vec::new());
    for device in devices {
        let name = device["name"].as_str().context("a name")?;
        let line = deps
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        let mut numbers: Vec<String> = line
            .context(name)?
            .split('(')
            .skip(1)
            .map(|n| n.trim().trim_end_matches(')').replace(", ", ":"))
            .collect();
        let uses = device["uses"].as_array().into_iter().flatten();
        let mut uses: Vec<&str> = uses.filter_map(Value::as_str).collect();
        numbers.sort();
        uses.sort_unstable();
        compared += 1;
        if uses != numbers {
            wrong.push(format!("{name}: {uses:?} {numbers:?}"));
        }
    }
    ensure(
        wrong.is_empty() && compared > 30,
        format!("what each of {compared} devices uses is what the kernel says {wrong:?}"),
    )
}

/// The node's devices of the LUNs.
pub fn devices(node: &Node) -> Result<Vec<String>> {
    (0..3).map(|lun| node.device(lun)).collect()
}

fn suspended(node: &Node) -> Result<String> {
    node.sh("dmsetup info -c --noheadings --separator ' ' -o name,suspended | awk '$2 == \"Suspended\" { print $1 }'")
}

fn vg_uuid(node: &Node) -> Result<String> {
    node.sh("dmsetup info -c --noheadings -o uuid san--a-lin | cut -c5-36")
}

/// Device-mapper UUID and name of every device, with its table.
fn tables(node: &Node) -> Result<BTreeMap<(String, String), String>> {
    // Two processes, not two a device: there are seventy.
    let names = node.sh("dmsetup info -c --noheadings --separator '|' -o name,uuid")?;
    let lines = node.sh("dmsetup table")?;
    let mut tables = BTreeMap::new();
    for (name, uuid) in names.lines().filter_map(|line| line.split_once('|')) {
        let of_it = lines.lines().filter_map(|line| {
            let (of, table) = line.split_once(':')?;
            (of == name).then(|| table.trim())
        });
        let table: Vec<&str> = of_it.filter(|table| !table.is_empty()).collect();
        tables.insert((uuid.to_owned(), name.to_owned()), table.join(";"));
    }
    Ok(tables)
}

fn is_ours(uuid: &str, vg: &str) -> bool {
    uuid.starts_with(&format!("LVM-{vg}"))
}

fn ours(tables: &BTreeMap<(String, String), String>, vg: &str) -> Vec<(String, String)> {
    tables
        .iter()
        .filter(|((uuid, name), _)| is_ours(uuid, vg) && !name.ends_with("-lvmlock"))
        .map(|((_, name), table)| (name.clone(), table.clone()))
        .collect()
}

/// Those that are not one error target.
fn open(tables: &BTreeMap<(String, String), String>, vg: &str) -> Vec<(String, String)> {
    let is_error = |table: &str| {
        let words: Vec<&str> = table.trim_end_matches([';', ' ']).split(' ').collect();
        matches!(words.as_slice(), ["0", _, "error"])
    };
    ours(tables, vg)
        .into_iter()
        .filter(|(_, table)| !is_error(table))
        .collect()
}

/// Everything else. A multipath map's table changes with its paths; that of array A's maps is what the fence is about.
fn others(
    tables: &BTreeMap<(String, String), String>,
    vg: &str,
) -> BTreeMap<(String, String), String> {
    tables
        .iter()
        .filter(|((uuid, _), _)| !is_ours(uuid, vg) && !uuid.starts_with("mpath-"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Whether wdmd counts on the volume group's lockspace. Its client may still be listed for a moment when it no longer expires.
pub fn holds(wdmd: &str, vg: &str) -> bool {
    wdmd.lines()
        .filter(|line| line.contains(&format!("sanlock_lvm_{vg}:")))
        .filter_map(|line| line.split_once("expire ")?.1.split_whitespace().next())
        .any(|expire| expire != "0")
}

/// A lease was renewed in time, by sanlock's own account, from that moment until now (seconds since boot).
pub fn renewed_all_along(node: &Node, vg: &str, from: f64) -> Result {
    let lockspace = node
        .lockspaces()?
        .iter()
        .find_map(|l| {
            let name = l.split(' ').nth(1)?;
            name.starts_with(&format!("lvm_{vg}:"))
                .then(|| name.to_owned())
        })
        .context(format!("no lockspace of {vg}"))?;
    // One a line, in any order; what failed after one of them, and before the next, stands with it.
    let history = node.sh(&format!("sanlock client renewal -s {lockspace}"))?;
    let now = node.uptime()?;
    let field = |line: &str, name: &str| -> Option<f64> {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let mut times: Vec<f64> = history
        .lines()
        .filter_map(|l| field(l, "timestamp"))
        .collect();
    times.sort_by(f64::total_cmp);
    let before = times.iter().rposition(|t| *t <= from).unwrap_or_default();
    let mut during = times.split_off(before);
    during.push(now);
    let gaps = during.windows(2).map(|w| w[1] - w[0]);
    let longest = gaps.fold(0.0, f64::max);
    let failed = history.lines().any(|l| {
        field(l, "timestamp").is_some_and(|t| t >= during[0])
            && (field(l, "next_timeouts") > Some(0.0) || field(l, "next_errors") > Some(0.0))
    });
    ensure(
        during.len() > 2 && during[0] <= from && longest < LATE_RENEWAL && !failed,
        format!("{vg}'s lease was renewed all along: {longest:.1} s between two renewals at most"),
    )
    .map_err(|e| format!("{e}: since {from}:\n{history}").into())
}

/// Cuts every path of n1 to both LUNs of array A, and waits until its kernel knows.
pub fn cut_array_a(cluster: &mut Cluster) -> Result<&Node> {
    for lun in 0..2 {
        cluster.san.cut_all("n1", Some(lun))?;
    }
    let n1 = cluster.node("n1")?;
    for lun in 0..2 {
        until("its paths have failed", Duration::from_secs(40), || {
            Ok((n1.path_states(lun)? == "FF").then_some(()))
        })?;
    }
    Ok(n1)
}
