//! What the product reads from the kernel alone, compared with what LVM and others say of the same node: lvs, vgs, pvs and lsblk, which it never runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::hook::agent;
use super::stacks::{devices, holds};
use crate::guest::stepper::Steps;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "oracles",
        about: "names that look alike, that are stale, that are another volume group's: told as LVM tells them, and only the volumes of the one are fenced",
        shape: Shape::arrays,
        tell: oracles,
    }]
}

const LIMIT: Duration = Duration::from_secs(120);
/// LVM looks into logical volumes for volume groups, too.
const LVM: &str = "--config devices/scan_lvs=1 --reportformat json";

/// One volume group.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    name: String,
    shared: bool,
    /// Active volumes by the UUID that LVM gave them: every device that is made of one has that, and more behind it.
    volumes: BTreeSet<String>,
    /// Devices that are volumes as such, by UUID: `MAJOR:MINOR`, and whether somebody has them open.
    devices: BTreeMap<String, (String, bool)>,
    /// `MAJOR:MINOR` of what it stands on.
    pvs: BTreeSet<String>,
}

type Groups = BTreeMap<String, Group>;

/// `LVM-`, and twice 32 characters; behind that comes what layer of a volume it is.
const UUID: usize = 68;

/// Whether both say the same of every volume group that is in use on the node. LVM shows one whose volumes are all inactive as well, and the kernel
/// knows none of them; and of a volume group in use a physical volume on which nothing is active.
pub fn agree(node: &Node) -> Result {
    // udev opens devices for a moment.
    let mut last = String::new();
    let agreed = until("LVM says the same", Duration::from_secs(30), || {
        let (ours, theirs) = (inspected(node)?, reported(node, &inspected(node)?)?);
        last = different(&ours, &theirs);
        Ok((ours == theirs).then_some(ours))
    });
    let groups = agreed.map_err(|e| {
        let devices = node.sh("dmsetup info -c --noheadings -o name,uuid");
        format!("{e}: {last}; {}", devices.unwrap_or_default())
    })?;
    let volumes: usize = groups.values().map(|g| g.volumes.len()).sum();
    let open = groups.values().flat_map(|g| g.devices.values());
    let open = open.filter(|(_, open)| *open).count();
    let names: Vec<&str> = groups.values().map(|g| g.name.as_str()).collect();
    ensure(
        volumes > 0,
        format!(
            "lvs, vgs and pvs tell of {} ({volumes} volumes, {open} of them open) what the kernel tells",
            names.join(", ")
        ),
    )?;
    stacked(node)
}

/// The lines of either that the other does not have.
fn different(ours: &Groups, theirs: &Groups) -> String {
    let (ours, theirs) = (format!("{ours:#?}"), format!("{theirs:#?}"));
    let only = |a: &str, b: &str| -> Vec<String> {
        let b: BTreeSet<&str> = b.lines().collect();
        let lines = a.lines().filter(|line| !b.contains(line));
        lines.map(|line| line.trim().to_owned()).collect()
    };
    format!(
        "only ours: {:?}; only theirs: {:?}",
        only(&ours, &theirs),
        only(&theirs, &ours)
    )
}

fn json(node: &Node, command: &str) -> Result<Value> {
    Ok(serde_json::from_str(&node.sh_within(command, LIMIT)?)?)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn inspected(node: &Node) -> Result<Groups> {
    let seen = json(node, "/payload/bin/storage-fence inspect")?;
    let group = |g: &Value| {
        let mut group = Group {
            name: text(&g["name"]),
            shared: g["shared"] == true,
            pvs: list(&g["physicalVolumes"])
                .map(|pv| text(&pv["dev"]))
                .collect(),
            ..Group::default()
        };
        let lvmlock = Some(&g["lvmlock"]).filter(|l| !l.is_null());
        for device in list(&g["devices"]).chain(lvmlock) {
            let uuid = text(&device["uuid"]);
            if uuid.len() == UUID {
                let open = device["openCount"] != 0;
                group
                    .devices
                    .insert(uuid.clone(), (text(&device["dev"]), open));
            }
            group.volumes.insert(uuid[..UUID].to_owned());
        }
        (text(&g["uuid"]), group)
    };
    Ok(list(&seen["volumeGroups"]).map(group).collect())
}

/// The same by LVM, of those that the kernel can know of.
fn reported(node: &Node, ours: &Groups) -> Result<Groups> {
    let plain = |value: &Value| text(value).replace('-', "");
    let report = |what: &str, fields: &str| -> Result<Vec<Value>> {
        let all = json(node, &format!("{what}s {LVM} -o {fields}"))?;
        Ok(list(&all["report"][0][what]).cloned().collect())
    };
    let mut groups = Groups::new();
    for vg in report("vg", "vg_uuid,vg_name,vg_lock_type")? {
        let group = Group {
            name: text(&vg["vg_name"]),
            shared: vg["vg_lock_type"] == "sanlock",
            ..Group::default()
        };
        groups.insert(plain(&vg["vg_uuid"]), group);
    }
    for lv in report(
        "lv",
        "vg_uuid,lv_uuid,lv_active,lv_role,lv_kernel_major,lv_kernel_minor,lv_device_open -a",
    )? {
        let vg = plain(&lv["vg_uuid"]);
        let uuid = format!("LVM-{vg}{}", plain(&lv["lv_uuid"]));
        let group = groups.get_mut(&vg).context("a volume of no volume group")?;
        // To LVM an external origin is inactive while its inner layer is in use: the one thing that it is not asked for.
        let beneath = text(&lv["lv_role"]).contains("extthinorigin");
        let known = ours.get(&vg).is_some_and(|g| g.volumes.contains(&uuid));
        if lv["lv_active"] == "active" || beneath && known {
            group.volumes.insert(uuid.clone());
        }
        // Of a thin pool and the like LVM tells of a layer.
        if ours.get(&vg).is_some_and(|g| g.devices.contains_key(&uuid)) {
            let dev = format!(
                "{}:{}",
                text(&lv["lv_kernel_major"]),
                text(&lv["lv_kernel_minor"])
            );
            group
                .devices
                .insert(uuid, (dev, lv["lv_device_open"] == "open"));
        }
    }
    for pv in report("pv", "vg_uuid,pv_major,pv_minor")? {
        if let Some(group) = groups.get_mut(&plain(&pv["vg_uuid"])) {
            let dev = format!("{}:{}", text(&pv["pv_major"]), text(&pv["pv_minor"]));
            group.pvs.insert(dev);
        }
    }
    groups.retain(|_, g| !g.volumes.is_empty());
    Ok(groups)
}

/// What a device stands on, as lsblk finds it in sysfs.
fn stacked(node: &Node) -> Result {
    let tree = json(node, "lsblk -a -J -o NAME,MAJ:MIN")?;
    let mut all = BTreeMap::new();
    for top in list(&tree["blockdevices"]) {
        parents(top, "", &mut all);
    }
    let seen = json(node, "/payload/bin/storage-fence inspect")?;
    let mut wrong = Vec::new();
    let mut compared = 0;
    for device in list(&seen["volumeGroups"]).flat_map(|g| list(&g["devices"])) {
        let uses: BTreeSet<String> = list(&device["uses"]).map(text).collect();
        let below = all.get(&text(&device["dev"])).cloned().unwrap_or_default();
        compared += 1;
        if uses != below {
            wrong.push(format!("{}: {uses:?} {below:?}", device["name"]));
        }
    }
    ensure(
        wrong.is_empty() && compared > 0,
        format!("lsblk puts each of {compared} devices on what the kernel says {wrong:?}"),
    )
}

fn parents(of: &Value, below: &str, all: &mut BTreeMap<String, BTreeSet<String>>) {
    let dev = text(&of["maj:min"]).trim().to_owned();
    let on = all.entry(dev.clone()).or_default();
    if !below.is_empty() {
        on.insert(below.to_owned());
    }
    for child in list(&of["children"]) {
        parents(child, &dev, all);
    }
}

/// Pairs whose devices have names that differ in where a hyphen is doubled.
const GROUPS: [&str; 3] = ["or", "or-a", "or-a-b"];

fn oracles(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let n1 = cluster.node("n1")?;
    let boot = n1.boot_id()?;
    for (vg, device) in GROUPS.iter().zip(devices(n1)?) {
        n1.sh_within(&format!("vgcreate --shared {vg} {device}"), LIMIT)?;
    }
    n1.sh_within(
        "for lv in or/a-b-c or/a or-a/b-c or-a/b or-a-b/c; do lvcreate -qq -y -aey -Zn -Wn -L 16M -n ${lv#*/} ${lv%/*} || exit 1; done; \
         vgcreate -qq lo-cal /dev/rig-local; for lv in c d-e; do lvcreate -qq -y -Zn -Wn -L 16M -n $lv lo-cal || exit 1; done; \
         setsid sleep 1000 </dev/mapper/or-a >/dev/null 2>&1 & setsid sleep 1000 </dev/lo-cal/c >/dev/null 2>&1 &",
        LIMIT,
    )?;
    agree(n1)?;

    say("a volume group is renamed while its volumes are in use");
    n1.sh_within("vgrename lo-cal re-named", LIMIT)?;
    agree(n1)?;
    let refused = n1.run("vgrename or-a-b other", LIMIT)?;
    ensure(
        n1.run("vgs or-a-b", LIMIT)?.code == 0,
        format!(
            "LVM does not rename a shared one then: {}",
            refused.err.trim()
        ),
    )?;

    say("devices have the names that others would have");
    n1.sh(
        "dmsetup rename --noudevsync or-a--b--c or--a-x; dmsetup rename --noudevsync or--a-b tmp; dmsetup rename --noudevsync or-a or--a-b; \
         dmsetup rename --noudevsync tmp or-a; dmsetup rename --noudevsync re--named-d--e or-d",
    )?;
    agree(n1)?;
    renamed_between_looks(n1)?;
    let targets = |node: &Node| -> Result<BTreeMap<String, String>> {
        // The UUIDs' order is that of neither.
        let all = node.sh("for u in $(dmsetup info -c --noheadings -o uuid -S 'uuid=~^LVM-'); do echo $u $(dmsetup table -u $u); done")?;
        let pair = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            Some(((*words.first()?).to_owned(), (*words.get(3)?).to_owned()))
        };
        Ok(all.lines().filter_map(pair).collect())
    };
    let before = targets(n1)?;
    let uuid = n1.sh("vgs --noheadings -o vg_uuid or | tr -d ' -'")?;
    let fence = n1.run("/payload/bin/storage-fence kill-hook or", LIMIT)?;
    say(format!("    {} ms: {}", fence.ms, fence.err.trim()));
    ensure(fence.code == 0, "the hook of or has proof")?;
    let lvmlock = n1.sh("dmsetup info -c --noheadings -o uuid or-lvmlock")?;
    let mut wrong = Vec::new();
    for (device, kind) in targets(n1)? {
        let fenced = device.starts_with(&format!("LVM-{uuid}")) && device != lvmlock;
        let expected = if fenced {
            Some("error")
        } else {
            before.get(&device).map(String::as_str)
        };
        if expected != Some(kind.as_str()) {
            wrong.push(format!("{device}: {kind}"));
        }
    }
    ensure(
        wrong.is_empty() && before.len() > 8,
        format!(
            "of {} devices the two of or are fenced, whatever they are called, and no other {wrong:?}",
            before.len()
        ),
    )?;
    let wdmd = n1.wdmd()?;
    ensure(
        !holds(&wdmd, "or") && holds(&wdmd, "or-a") && !holds(&wdmd, "or-a-b"),
        "the watchdog waits for the two others' leases only",
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// A shared volume group gets another name while nothing of it is active, and comes into use under it, between two looks of an agent: it is known
/// by its UUID.
fn renamed_between_looks(node: &Node) -> Result {
    say(
        "a shared volume group of which nothing is active is renamed, and comes into use under its new name",
    );
    let hook = |vg: &str| node.run(&format!("/payload/bin/storage-fence kill-hook {vg}"), LIMIT);
    agent(node)?;
    node.sh_within("lvchange -an or-a-b/c", LIMIT)?;
    // vgrename takes the leases' volume down right after sanlock has closed it, which is when udev looks at what may have been written to it; LVM
    // then goes on under the old name, and cannot write the leases of the new one.
    node.sh_within(
        "mkdir -p /run/udev/rules.d; echo 'ENV{DM_NAME}==\"*-lvmlock\", OPTIONS=\"nowatch\"' >/run/udev/rules.d/99-rig-nowatch.rules; \
         udevadm control --reload; udevadm trigger --settle --action=change /dev/mapper/or--a--b-lvmlock",
        LIMIT,
    )?;
    let uuid = node.sh("vgs --noheadings -o vg_uuid or-a-b | tr -d ' -'")?;
    // A fence under its former name has looked at it, and is held before its first step.
    node.write_file(
        "/run/rename",
        "{ vgrename or-a-b new-name && { lvmlockctl --info | grep -q 'VG new-name ' || vgchange --lockstart new-name; } && \
         for i in $(seq 30); do lvchange -aey new-name/c && break; sleep 1; done; dmsetup table new--name-c; } >/run/renamed 2>&1; echo \"ended with $?\" >>/run/renamed",
    )?;
    let held = node.run(
        "/payload/bin/rig guest-stepper before kill_vg 'bash /run/rename' /payload/bin/storage-fence kill-hook --state-directory /run/sf/renamed or-a-b",
        LIMIT,
    )?;
    let told: Steps = serde_json::from_str(held.out.lines().last().unwrap_or_default())
        .context(format!("{}{}", held.out, held.err))?;
    let renamed = node.sh("cat /run/renamed")?;
    ensure(
        renamed.contains("ended with 0") && told.done == 1 && told.code != 0,
        format!(
            "it does not fence what has another name by now: {}: {renamed}",
            held.err
        ),
    )?;
    ensure(
        node.lv_table("new-name", "c")?.contains(" linear ")
            && !told.calls.iter().any(|c| c.starts_with("dm ")),
        format!(
            "the volume is in use, and nothing was touched: {:?}",
            told.calls
        ),
    )?;
    let new = hook("new-name")?;
    ensure(
        new.code == 0 && !new.err.contains("fencing without it"),
        format!("by its new name the agent fences it: {}", new.err.trim()),
    )?;
    let device = node.sh("dmsetup info -c --noheadings -o uuid new--name-c")?;
    ensure(
        device.starts_with(&format!("LVM-{uuid}"))
            && node.lv_table("new-name", "c")?.contains(" error"),
        "it is the same volume group, and it is cut off",
    )?;
    let wdmd = node.wdmd()?;
    ensure(
        !holds(&wdmd, "new-name")
            && !holds(&wdmd, "or-a-b")
            && holds(&wdmd, "or")
            && holds(&wdmd, "or-a"),
        "its locks are let go of, and no others",
    )?;
    node.sh("kill $(cat /run/agent.pid)")?;
    Ok(())
}
