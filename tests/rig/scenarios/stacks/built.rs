//! What is built for the scenarios about stacks, and what has to be there of it.

use std::time::{Duration, Instant};

use crate::harness::node::Node;
use crate::harness::{Context, Result, ensure, say};

/// Kernel modules of all of it.
pub const MODULES: &str = "modprobe -a dm-thin-pool dm-snapshot dm-cache dm-cache-smq dm-writecache dm-raid raid1 raid456 dm-integrity dm-crypt";

/// What LVM builds on array A, each line by itself: the name of what it is, and how it is made. Everything that takes writes gets a writer.
pub const STACKS: &[(&str, &str, &str)] = &[
    (
        "linear",
        "lvcreate -y -aey -L 32M -n lin san-a $P0",
        "/dev/san-a/lin",
    ),
    (
        "striped over both PVs",
        "lvcreate -y -aey -i 2 -L 32M -n str san-a",
        "/dev/san-a/str",
    ),
    (
        "a thin pool and two thin volumes",
        "lvcreate -y -aey -L 64M -n pool --type thin-pool --poolmetadatasize 4M san-a $P0; \
         lvcreate -y -aey -V 32M -n thin --thinpool san-a/pool; lvcreate -y -aey -V 32M -n idle --thinpool san-a/pool",
        "/dev/san-a/thin",
    ),
    (
        "a thin snapshot",
        "lvcreate -y -s -n tsnap san-a/thin; lvchange -y -aey -K san-a/tsnap",
        "/dev/san-a/tsnap",
    ),
    (
        "a thin volume with an external origin",
        "lvcreate -y -aey -L 32M -n ext san-a $P1; lvchange -an san-a/ext; lvchange -pr san-a/ext; \
         lvcreate -y -aey -s -n extthin --thinpool san-a/pool san-a/ext; lvchange -aey -K san-a/extthin",
        "/dev/san-a/extthin",
    ),
    (
        "a classic snapshot",
        "lvcreate -y -aey -L 32M -n org san-a $P1; lvcreate -y -s -L 16M -n snap san-a/org",
        "/dev/san-a/org",
    ),
    (
        "a cache",
        "lvcreate -y -an -L 48M -n cached san-a $P0; lvcreate -y -an -L 32M -n fast san-a $P1; \
         lvconvert -y --type cache --cachevol fast --cachemode writeback san-a/cached; lvchange -aey san-a/cached",
        "/dev/san-a/cached",
    ),
    (
        "a cache in a pool of its own",
        "lvcreate -y -aey -L 48M -n pcached san-a $P0; lvcreate -y --type cache-pool -L 16M --poolmetadatasize 8M -n cpool san-a $P1; \
         lvconvert -y --type cache --cachepool san-a/cpool --cachemode writeback san-a/pcached",
        "/dev/san-a/pcached",
    ),
    (
        "a writecache",
        "lvcreate -y -an -L 48M -n wcached san-a $P0; lvcreate -y -an -L 32M -n wfast san-a $P1; \
         lvconvert -y --type writecache --cachevol wfast san-a/wcached; lvchange -aey san-a/wcached",
        "/dev/san-a/wcached",
    ),
    (
        "RAID 1 over both PVs",
        "lvcreate -y -aey --type raid1 -m 1 --nosync -L 32M -n mirror san-a",
        "/dev/san-a/mirror",
    ),
    (
        "RAID 1 with integrity of its images",
        "lvcreate -y -aey --type raid1 -m 1 --raidintegrity y -L 16M -n checked san-a",
        "/dev/san-a/checked",
    ),
    (
        "RAID 5, two of its three images on one PV",
        "lvcreate -y -aey --type raid5 -i 2 --nosync --alloc anywhere -L 16M -n five san-a $P0 $P1",
        "/dev/san-a/five",
    ),
    (
        "an encrypted volume",
        "lvcreate -y -aey -L 32M -n enc san-a $P0; \
         dmsetup create enc-open --uuid CRYPT-PLAIN-enc --table \"0 65536 crypt aes-xts-plain64 $(printf '%064d' 7) 0 /dev/san-a/enc 0\"",
        "/dev/mapper/enc-open",
    ),
    (
        "a LUKS disk in a volume",
        "lvcreate -y -aey -L 48M -n luks san-a $P0; printf stacks >/run/luks.key; \
         cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/luks.key /dev/san-a/luks; \
         cryptsetup open --key-file /run/luks.key /dev/san-a/luks luks-open",
        "/dev/mapper/luks-open",
    ),
    (
        "a partition in a volume",
        "lvcreate -y -aey -L 32M -n disk san-a $P0; \
         dmsetup create disk-part1 --uuid part1-disk --table '0 32768 linear /dev/san-a/disk 2048'",
        "/dev/mapper/disk-part1",
    ),
    (
        "a volume group in a volume",
        "lvcreate -y -aey -L 48M -n inner san-a $P1; pvcreate -qq $SCAN /dev/san-a/inner; vgcreate -qq $SCAN nested /dev/san-a/inner; \
         lvcreate -qq -y $SCAN -L 16M -n deep nested",
        "/dev/nested/deep",
    ),
];

/// Devices that somebody else left in the way, all of the volume group.
pub const LEFT_BEHIND: &str = "\
    lvcreate -y -aey -L 8M -n susp san-a $P0; lvcreate -y -aey -L 8M -n wait san-a $P0; \
    dmsetup suspend --noflush --nolockfs san--a-susp; \
    dmsetup reload san--a-wait --table \"$(dmsetup table san--a-wait)\"; \
    uuid=$(dmsetup info -c --noheadings -o uuid san--a-lin | cut -c1-36); \
    dmsetup create cut-off -u ${uuid}YYYYYYYYYYYYYYYYYYYYYYYYYYYYYYYY --table '0 8192 error'; \
    dmsetup reload cut-off --table \"$(dmsetup table san--a-wait | sed 's/^0 [0-9]*/0 8192/')\"; \
    dmsetup create --notable -u ${uuid}ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ half-made";

/// What an LVM command leaves that is killed between its suspending and its resuming: I/O of the volumes above waits there.
pub const HALF_WAY: &str =
    "for d in pool-tpool org-real; do dmsetup suspend --noflush --nolockfs san--a-$d; done";

/// Storage of the node itself: a volume group with thin volumes and a snapshot, and a LUKS disk.
pub const LOCAL: &[(&str, &str)] = &[
    (
        "vgcreate -qq local /dev/rig-local; lvcreate -y -qq -L 64M -n pool --type thin-pool local; \
         lvcreate -y -qq -V 32M -n thin --thinpool local/pool; lvcreate -y -qq -L 32M -n org local; lvcreate -y -qq -s -L 16M -n snap local/org",
        "/dev/local/thin",
    ),
    ("true", "/dev/local/org"),
    (
        "lvcreate -y -qq -L 32M -n enc local; printf local >/run/local.key; \
         cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/local.key /dev/local/enc; \
         cryptsetup open --key-file /run/local.key /dev/local/enc local-open",
        "/dev/mapper/local-open",
    ),
];

/// What a command is prefixed with that builds something of [`STACKS`] on these two physical volumes.
pub fn names(pvs: [&str; 2]) -> String {
    format!(
        "P0={}; P1={}; SCAN='--config devices/scan_lvs=1'; set -e; ",
        pvs[0], pvs[1]
    )
}

/// Builds all of [`STACKS`]; `done` is told of each by its name and what takes writes.
pub fn build(node: &Node, pvs: [&str; 2], done: &mut dyn FnMut(&str, &str) -> Result) -> Result {
    let names = names(pvs);
    for (what, how, target) in STACKS {
        let begin = Instant::now();
        let built = node.sh_within(&format!("{names}{how}"), Duration::from_secs(180));
        if let Err(e) = built {
            let why = format!("{what}: {e}");
            if !cannot_be_built(node, &why)? {
                return Err(why.into());
            }
            say(format!(
                "    NOT BUILT, since LVM cannot activate it here: {why}"
            ));
            continue;
        }
        let name = target.rsplit('/').next().context("a name")?;
        done(name, target)?;
        say(format!(
            "    {what}: built in {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
    }
    layers(node)
}

/// On forky LVM attaches a cachevol, and then cannot activate the volume: it misses a device of its own. No other failure, and
/// no other LVM, is passed over.
fn cannot_be_built(node: &Node, why: &str) -> Result<bool> {
    let suite = node.sh(". /etc/os-release; echo $VERSION_CODENAME")?;
    if suite != "forky" || !why.contains("Missing cache's data uuid") {
        return Ok(false);
    }
    node.sh("lvremove -qq -y san-a/cached")?;
    Ok(true)
}

/// A partition over the whole of a LUN, in a partition table as any tool writes it, and the map that multipath makes of it.
pub fn partition(node: &Node, map: &str) -> Result<String> {
    // One entry: Linux LVM, from sector 2048 on, 0x7ff800 sectors: 4 GiB less the first.
    node.sh(&format!(
        "set -e; printf '\\0\\0\\0\\0\\x8e\\0\\0\\0\\0\\x08\\0\\0\\0\\xf8\\x7f\\0' | dd of={map} bs=1 seek=446 status=none; \
         printf '\\x55\\xaa' | dd of={map} bs=1 seek=510 conv=fsync status=none; udevadm settle; kpartx -a -s -p -part {map}; udevadm settle"
    ))?;
    let part = map.replace("dm-uuid-mpath-", "dm-uuid-part1-mpath-");
    let uuid = node.sh(&format!(
        "dmsetup info -c --noheadings -o uuid $(readlink -f {part})"
    ))?;
    ensure(
        uuid.starts_with("part1-mpath-"),
        format!("the second physical volume is a partition of its map: {uuid}"),
    )?;
    Ok(part)
}

/// What the names of the layers end with that LVM has built, so that nothing is claimed of one that is not there.
const LAYERS: [&str; 14] = [
    "-pool-tpool",
    "-pool_tdata",
    "-pool_tmeta",
    "-ext-real",
    "-org-real",
    "-snap-cow",
    "_cdata",
    "_cmeta",
    "_cvol",
    "_corig",
    "-checked_rimage_0",
    "-checked_rimage_0_imeta",
    "-five_rimage_2",
    "-five_rmeta_2",
];

fn layers(node: &Node) -> Result {
    let names = node.sh("dmsetup info -c --noheadings -o name -S 'uuid=~^LVM-'")?;
    let there = |end: &&&str| names.lines().any(|name| name.ends_with(**end));
    let missing: Vec<&&str> = LAYERS.iter().filter(|end| !there(end)).collect();
    ensure(
        missing.is_empty(),
        format!("every layer that LVM knows is there {missing:?}"),
    )
    .map_err(|e| format!("{e}:\n{names}").into())
}
