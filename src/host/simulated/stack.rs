//! What LVM and others build above physical volumes, besides plain and thin volumes.

use super::build::{Builder, lv_uuid};
use crate::fence::DevNo;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// An origin with so many classic snapshots.
    Snapshots(u32),
    /// The same while one more of them is merged back into it.
    Merging(u32),
    /// A thin volume with an external origin that is not active itself: only its layer is there.
    ExternalOrigin,
    /// A volume cached in a pool of two others.
    CachePool,
    /// A volume cached in one other, with data and metadata in parts of it.
    CacheVolume,
    /// Images on the physical volumes in turn; with integrity, each on a layer of two more.
    Raid {
        /// How many.
        images: u32,
        /// Whether they are checked.
        integrity: bool,
    },
    /// Somebody's encrypted disk in a volume: an opener, none of the volume group's.
    Encrypted,
    /// Somebody's partition in a volume.
    Partitioned,
    /// Another volume group in a volume.
    Nested,
}

impl Stack {
    /// One of each, to choose from.
    pub const KINDS: [Self; 11] = [
        Self::Snapshots(1),
        Self::Snapshots(3),
        Self::Merging(2),
        Self::ExternalOrigin,
        Self::CachePool,
        Self::CacheVolume,
        Self::Raid {
            images: 2,
            integrity: true,
        },
        Self::Raid {
            images: 3,
            integrity: false,
        },
        Self::Encrypted,
        Self::Partitioned,
        Self::Nested,
    ];

    /// Builds it as the `n`-th of its volume group. Lower layers first: numbers say nothing about who is on top.
    pub(super) fn build(self, node: &mut Builder, vg: &str, n: usize, pvs: &[DevNo]) {
        let mut turn = pvs.iter().cycle().skip(n).copied();
        let mut pv = || vec![turn.next().unwrap_or_default()];
        let name = format!("s{n}");
        let mut own = |lv: &str, suffix: &str, kind: &str, deps: Vec<DevNo>| {
            node.add(
                format!("{vg}-{lv}{suffix}"),
                lv_uuid(vg, lv, suffix),
                kind,
                deps,
            )
        };
        match self {
            Self::Snapshots(count) | Self::Merging(count) => {
                let real = own(&name, "-real", "linear", pv());
                for snapshot in 0..count {
                    let snapshot = format!("{name}snap{snapshot}");
                    let cow = own(&snapshot, "-cow", "linear", pv());
                    own(&snapshot, "", "snapshot", vec![real, cow]);
                }
                if matches!(self, Self::Merging(_)) {
                    let cow = own(&format!("{name}old"), "-cow", "linear", pv());
                    own(&name, "", "snapshot-merge", vec![real, cow]);
                } else {
                    own(&name, "", "snapshot-origin", vec![real]);
                }
            }
            Self::ExternalOrigin => {
                let real = own(&format!("{name}ext"), "-real", "linear", pv());
                let meta = own(&format!("{name}pool"), "-tmeta", "linear", pv());
                let data = own(&format!("{name}pool"), "-tdata", "linear", pvs.to_vec());
                let pool = own(
                    &format!("{name}pool"),
                    "-tpool",
                    "thin-pool",
                    vec![meta, data],
                );
                own(&name, "", "thin", vec![pool, real]);
            }
            Self::CachePool => {
                let data = own(&format!("{name}cd"), "-cdata", "linear", pv());
                let meta = own(&format!("{name}cm"), "-cmeta", "linear", pv());
                let origin = own(&name, "-real", "linear", pv());
                own(&name, "", "cache", vec![meta, data, origin]);
            }
            Self::CacheVolume => {
                let volume = own(&format!("{name}cv"), "-cvol", "linear", pv());
                let data = own(&format!("{name}cv"), "-cdata", "linear", vec![volume]);
                let meta = own(&format!("{name}cv"), "-cmeta", "linear", vec![volume]);
                let origin = own(&name, "-real", "linear", pv());
                own(&name, "", "cache", vec![meta, data, origin]);
            }
            Self::Raid { images, integrity } => {
                let mut layers = Vec::new();
                for image in 0..images {
                    let image = format!("{name}r{image}");
                    let on = pv();
                    layers.push(own(&format!("{image}m"), "", "linear", on.clone()));
                    if integrity {
                        let origin = own(&format!("{image}o"), "", "linear", on.clone());
                        let meta = own(&format!("{image}i"), "-imeta", "linear", on);
                        layers.push(own(&image, "", "integrity", vec![origin, meta]));
                    } else {
                        layers.push(own(&image, "", "linear", on));
                    }
                }
                own(&name, "", "raid", layers);
            }
            Self::Encrypted | Self::Partitioned | Self::Nested => {
                let volume = own(&name, "", "linear", pv());
                let (uuid, kind) = match self {
                    Self::Encrypted => (format!("CRYPT-LUKS2-{vg}-{name}"), "crypt"),
                    Self::Partitioned => (format!("part1-{vg}-{name}"), "linear"),
                    _ => (lv_uuid(&format!("inner{n}-{vg}"), "lv", ""), "linear"),
                };
                node.add(format!("{vg}-{name}-upper"), uuid, kind, vec![volume]);
            }
        }
    }
}
