//! Building a node from a layout, and describing it as an inventory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;

use super::{SimulatedDevice, SimulatedLockspace, Simulation, Stack, State};
use crate::fence::{
    DevNo, DmDevice, Inventory, LockManager, Lockspace, Monotonic, MultipathMap, Path,
    PhysicalVolume, PvKind, Table, Target, VolumeGroup,
};

pub(super) const BOOT_ID: &str = "00000000-0000-0000-0000-000000000001";
/// When every simulation begins, seconds.
pub(super) const START: u64 = 1000;
const SECTORS: u64 = 2048;

/// What a volume group lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// A multipath map of two paths, of which so many work.
    Map {
        /// Paths that work.
        active: u32,
        /// Whether it queues while none does.
        queueing: bool,
    },
    /// A partition of such a map.
    Partition {
        /// Paths that work.
        active: u32,
        /// Whether it queues while none does.
        queueing: bool,
    },
    /// A disk; whether it works.
    Disk(bool),
}

/// A volume group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Whether it is to be fenced.
    pub target: bool,
    /// Whether it has a lockspace (and an `lvmlock` volume).
    pub shared: bool,
    /// Logical volumes directly on the physical volumes.
    pub linear: u32,
    /// Thin volumes on one pool, of three more layers.
    pub thin: u32,
    /// Whatever else is built above them.
    pub stacks: Vec<Stack>,
    /// Physical volumes. Linear volumes alternate between them.
    pub under: Vec<Under>,
    /// Seconds ago that the lease was renewed.
    pub renewed_ago: u64,
}

impl Group {
    /// A shared volume group to be fenced: three volumes on a map that queues without a path.
    #[must_use]
    pub fn target(name: &str) -> Self {
        Self {
            name: name.into(),
            target: true,
            shared: true,
            linear: 3,
            thin: 0,
            stacks: Vec::new(),
            under: vec![Under::Map {
                active: 0,
                queueing: true,
            }],
            renewed_ago: 20,
        }
    }

    /// One that must not be touched.
    #[must_use]
    pub fn bystander(name: &str, shared: bool) -> Self {
        Self {
            target: false,
            shared,
            under: vec![Under::Map {
                active: 0,
                queueing: true,
            }],
            ..Self::target(name)
        }
    }
}

/// A node's storage.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Volume groups.
    pub groups: Vec<Group>,
}

impl Default for Layout {
    /// One volume group to be fenced, between a shared and a local one that are none of its business.
    fn default() -> Self {
        Self {
            groups: vec![
                Group::bystander("other", true),
                Group::target("vg1"),
                Group::bystander("local", false),
            ],
        }
    }
}

/// UUID of a volume group of that name.
#[must_use]
pub fn uuid_of(name: &str) -> String {
    format!("{name:x<32.32}")
}

pub(super) fn lv_uuid(vg: &str, lv: &str, suffix: &str) -> String {
    format!("LVM-{}{lv:y<32.32}{suffix}", uuid_of(vg))
}

/// UUID of a device of a volume group that no layout has.
pub(super) fn foreign_uuid() -> String {
    lv_uuid("foreign", "lv0", "")
}

pub(super) fn status_line(active: u32) -> String {
    let state = |n: u32| if n < active { "A 0" } else { "F 1" };
    format!("2 0 0 0 1 1 E 0 2 0 8:0 {} 8:16 {}", state(0), state(1))
}

fn map_params(queueing: bool) -> &'static str {
    if queueing {
        "1 queue_if_no_path 0 1 1 service-time 0 2 0 8:0 8:16"
    } else {
        "0 0 1 1 service-time 0 2 0 8:0 8:16"
    }
}

pub(super) fn set_queueing(d: &mut SimulatedDevice, on: bool) {
    for t in &mut d.dm.targets {
        t.params = map_params(on).into();
    }
}

fn target(kind: &str, params: &str) -> Table {
    smallvec![Target {
        start: 0,
        length: SECTORS,
        kind: kind.into(),
        params: params.into(),
    }]
}

pub(super) struct Builder {
    devices: BTreeMap<DevNo, SimulatedDevice>,
    minor: u32,
    disk: u32,
    working_disks: BTreeSet<DevNo>,
}

impl Builder {
    pub(super) fn add(
        &mut self,
        name: String,
        uuid: String,
        kind: &str,
        deps: Vec<DevNo>,
    ) -> DevNo {
        self.minor += 1;
        let dev = DevNo {
            major: 253,
            minor: self.minor,
        };
        let params = deps
            .iter()
            .map(|d| format!("{d} 0"))
            .collect::<Vec<_>>()
            .join(" ");
        let dm = DmDevice {
            dev,
            name: name.into(),
            uuid: uuid.into(),
            sectors: SECTORS,
            open_count: 1,
            targets: target(kind, &params),
            deps: deps.into(),
            ..DmDevice::default()
        };
        self.devices.insert(
            dev,
            SimulatedDevice {
                dm,
                ..SimulatedDevice::default()
            },
        );
        dev
    }

    fn disk(&mut self) -> DevNo {
        self.disk += 16;
        DevNo {
            major: 8,
            minor: self.disk,
        }
    }

    fn group(&mut self, g: &Group) -> Vec<String> {
        let mut maps = Vec::new();
        let mut pvs = Vec::new();
        for (i, under) in g.under.iter().enumerate() {
            let paths = [self.disk(), self.disk()];
            match under {
                Under::Disk(works) => {
                    if *works {
                        self.working_disks.insert(paths[0]);
                    }
                    pvs.push(paths[0]);
                }
                Under::Map { active, queueing } | Under::Partition { active, queueing } => {
                    let name = format!("mpath-{}-{i}", g.name);
                    let dev = self.add(name.clone(), name.clone(), "multipath", paths.to_vec());
                    if let Some(d) = self.devices.get_mut(&dev) {
                        d.active_paths = *active;
                        set_queueing(d, *queueing);
                    }
                    pvs.push(match under {
                        Under::Partition { .. } => {
                            let part = (format!("{name}-part1"), format!("part1-{name}"));
                            self.add(part.0, part.1, "linear", vec![dev])
                        }
                        _ => dev,
                    });
                    maps.push(name);
                }
            }
        }
        let Some(first) = pvs.first().copied() else {
            return maps;
        };
        // Lower layers first: numbers say nothing about who is on top.
        if g.thin > 0 {
            let vg = &g.name;
            let meta = self.add(
                format!("{vg}-pool_tmeta"),
                lv_uuid(vg, "pool", "-tmeta"),
                "linear",
                vec![first],
            );
            let data = self.add(
                format!("{vg}-pool_tdata"),
                lv_uuid(vg, "pool", "-tdata"),
                "linear",
                pvs.clone(),
            );
            let pool = self.add(
                format!("{vg}-pool-tpool"),
                lv_uuid(vg, "pool", "-tpool"),
                "thin-pool",
                vec![meta, data],
            );
            for n in 0..g.thin {
                self.add(
                    format!("{vg}-thin{n}"),
                    lv_uuid(vg, &format!("thin{n}"), ""),
                    "thin",
                    vec![pool],
                );
            }
        }
        for (n, stack) in g.stacks.iter().enumerate() {
            stack.build(self, &g.name, n, &pvs);
        }
        for (n, pv) in (0..g.linear).zip(pvs.iter().cycle()) {
            self.add(
                format!("{}-lv{n}", g.name),
                lv_uuid(&g.name, &format!("lv{n}"), ""),
                "linear",
                vec![*pv],
            );
        }
        if g.shared {
            self.add(
                format!("{}-lvmlock", g.name),
                lv_uuid(&g.name, "lvmlock", ""),
                "linear",
                vec![first],
            );
        }
        maps
    }
}

pub(super) fn state(layout: &Layout) -> State {
    let mut builder = Builder {
        devices: BTreeMap::new(),
        minor: 0,
        disk: 0,
        working_disks: BTreeSet::new(),
    };
    let mut state = State {
        now: Duration::from_secs(START),
        fire_timeout: 60,
        tells_generation: true,
        tells_sequence: true,
        sanlock_version: Some(0x0501_0100),
        ..State::default()
    };
    for g in &layout.groups {
        let maps = builder.group(g);
        if g.target {
            state.targets.insert(uuid_of(&g.name));
            state.map_of_target.extend(maps);
        }
        if g.shared {
            let lockspace = Lockspace {
                name: format!("lvm_{}", g.name),
                vg_name: g.name.clone(),
                vg_uuid: uuid_of(&g.name),
                host_id: 7,
                generation: Some(3),
                io_timeout: 10,
                last_renewal: Some(Monotonic::from_secs(START - g.renewed_ago)),
                lv_locks: g.linear + g.thin,
                ..Lockspace::default()
            };
            if g.target {
                state
                    .may_drop
                    .insert((lockspace.name.clone(), lockspace.generation));
            }
            state.lockspaces.push(SimulatedLockspace {
                lockspace,
                armed: true,
                unadopted: false,
            });
        }
    }
    // Named like a device of the first target, but of a local volume group by its UUID: names decide nothing.
    if let Some(g) = layout.groups.iter().find(|g| g.target) {
        let disk = builder.disk();
        builder.add(
            format!("{}-impostor", g.name),
            lv_uuid("impostor", "lv0", ""),
            "linear",
            vec![disk],
        );
    }
    state.devices = builder.devices;
    state.working_disks = builder.working_disks;
    state
}

impl State {
    /// A new volume of a volume group appears, on the same physical volume as another one.
    pub fn add_volume(&mut self, vg: &str, lv: &str) {
        let uuid = lv_uuid(vg, lv, "");
        if self.devices.values().any(|d| d.dm.uuid == uuid) {
            // As in the kernel, there is one of a UUID.
            return;
        }
        let minor = self
            .devices
            .keys()
            .map(|d| d.minor)
            .max()
            .unwrap_or_default();
        let prefix = format!("LVM-{}", uuid_of(vg));
        let pv = self
            .devices
            .values()
            .filter(|d| d.dm.uuid.starts_with(&prefix) && !d.dm.deps.is_empty())
            .find(|d| {
                let own = |dep| {
                    self.devices
                        .get(dep)
                        .is_some_and(|b| b.dm.uuid.starts_with(&prefix))
                };
                !d.dm.deps.iter().any(own)
            });
        let deps = pv.map(|d| d.dm.deps.to_vec()).unwrap_or_default();
        let mut builder = Builder {
            devices: std::mem::take(&mut self.devices),
            minor,
            disk: 0,
            working_disks: BTreeSet::new(),
        };
        let late = builder.add(format!("{vg}-{lv}"), uuid, "linear", deps);
        self.devices = builder.devices;
        self.disturbed.insert(late);
    }
}

impl Simulation {
    /// What an agent would find now.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let state = self.lock();
        let mut groups: BTreeMap<String, VolumeGroup> = BTreeMap::new();
        let mut members: BTreeMap<String, Vec<Arc<DmDevice>>> = BTreeMap::new();
        for d in state.devices.values() {
            let Some(uuid) = d.dm.uuid.strip_prefix("LVM-").and_then(|u| u.get(..32)) else {
                continue;
            };
            let group = groups
                .entry(uuid.to_owned())
                .or_insert_with(|| VolumeGroup {
                    name: uuid.trim_end_matches('x').to_owned(),
                    uuid: uuid.to_owned(),
                    lockspace: state
                        .lockspaces
                        .iter()
                        .map(|l| &l.lockspace)
                        .find(|l| l.vg_uuid == uuid)
                        .cloned(),
                    ..VolumeGroup::default()
                });
            for dep in &d.dm.deps {
                let of_group = state
                    .devices
                    .get(dep)
                    .is_some_and(|b| b.dm.uuid.starts_with(&format!("LVM-{uuid}")));
                if !of_group && !group.pvs.iter().any(|pv| pv.dev == *dep) {
                    group.pvs.push(state.pv(*dep));
                }
            }
            if d.dm.name.ends_with("-lvmlock") {
                group.lvmlock = Some(d.describe());
            } else {
                let devices = members.entry(group.uuid.clone()).or_default();
                devices.push(Arc::new(d.describe()));
            }
        }
        for (uuid, group) in &mut groups {
            if let Some(l) = &group.lockspace {
                group.name.clone_from(&l.vg_name);
            }
            group.devices = members.remove(uuid).unwrap_or_default().into();
        }
        Inventory {
            taken_at: Monotonic(state.now),
            boot_id: BOOT_ID.into(),
            volume_groups: groups.into_values().collect(),
            lock_manager: LockManager::Running(
                state
                    .lockspaces
                    .iter()
                    .map(|l| l.lockspace.clone())
                    .collect(),
            ),
            watchdog: state.watchdog(),
        }
    }
}

impl State {
    fn pv(&self, dev: DevNo) -> PhysicalVolume {
        let path = |n: u32, active: bool| Path {
            dev: DevNo { major: 8, minor: n },
            name: format!("sd{n}"),
            active,
            device_state: if active {
                "running".into()
            } else {
                "offline".into()
            },
            io: None,
            denied: false,
        };
        let mut bottom = dev;
        while let Some(d) = self.devices.get(&bottom)
            && !d.dm.uuid.starts_with("mpath-")
            && let Some(below) = d.dm.deps.first()
        {
            bottom = *below;
        }
        let queues = |t: &Target| t.params.contains("queue_if_no_path");
        let kind = match self.devices.get(&bottom) {
            Some(d) => PvKind::Multipath(MultipathMap {
                dev: bottom,
                name: d.dm.name.to_string(),
                uuid: d.dm.uuid.to_string(),
                queueing: d.dm.targets.iter().any(queues),
                paths: (0..2).map(|n| path(n, n < d.active_paths)).collect(),
            }),
            None => PvKind::Disk(path(bottom.minor, self.working_disks.contains(&bottom))),
        };
        let uuid = self
            .devices
            .get(&dev)
            .map_or_else(String::new, |d| d.dm.uuid.to_string());
        PhysicalVolume { dev, uuid, kind }
    }
}
