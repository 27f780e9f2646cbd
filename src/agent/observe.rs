//! Asks the whole node and puts the answers together.
//!
//! What does not answer becomes a state of the inventory, never a guess (S5); only device mapper and the boot ID are indispensable. Nothing
//! here reads or writes the SAN. The daemons are asked side by side, so that all of them silent cost no more than one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::executor::limited::Pending;
use crate::fence::topology::{self, Disk, MapState, Observed, is_multipath};
use crate::fence::unfence::Standing;
use crate::fence::{
    DevNo, DmDevice, Inventory, LockManager, Lockspace, LockspaceState, Monotonic, MultipathMap,
    PhysicalVolume, PvKind, Watchdog,
};
use crate::host::{Bell, DeviceMapper, Host, Result, SanlockStatus, System, multipath};

/// How long a daemon is waited for. Their sockets have limits of their own, shorter than this.
const ANSWER: Duration = Duration::from_secs(10);

/// Takes the inventory of the node. Blocks for some seconds at most: made for a thread that may.
///
/// # Errors
/// When device mapper or the boot ID cannot be read.
pub fn observe(host: &Host) -> Result<Inventory> {
    observe_again(host, &mut Kept::default(), None)
}

/// Of the time between two readings of all devices, so much goes to the reading at most: one part of this many.
const SHARE: u32 = 200;
/// What nothing tells of (openers, tables that wait in the inactive slot) is not older than that.
const OLDEST: Duration = Duration::from_mins(1);

/// The devices as they were read last, for looks that follow one another.
#[derive(Default)]
pub struct Kept {
    devices: Vec<Arc<DmDevice>>,
    at: Option<Monotonic>,
    took: Duration,
    heard: u64,
}

impl Kept {
    /// The devices: those of before while nothing was heard of a change, but for the maps, which are read each time. To read thousands of devices
    /// takes a while, and hardly any of them ever changes.
    fn devices(&mut self, host: &Host, heard: Option<u64>) -> Result<&[Arc<DmDevice>]> {
        let now = host.system.monotonic();
        let oldest = OLDEST.min(self.took * SHARE);
        let good = self.at.is_some_and(|at| now.since(at) <= oldest);
        if !(good && heard == Some(self.heard) && self.read_maps(host).is_ok()) {
            let read = host.device_mapper.devices()?;
            self.devices = read.into_iter().map(Arc::new).collect();
            (self.at, self.took) = (Some(now), host.system.monotonic().since(now));
            self.heard = heard.unwrap_or_default();
        }
        Ok(&self.devices)
    }

    fn read_maps(&mut self, host: &Host) -> Result<()> {
        for device in self.devices.iter_mut().filter(|d| is_multipath(d)) {
            *device = Arc::new(host.device_mapper.device(&device.uuid)?);
        }
        Ok(())
    }
}

/// The same, for who looks again and again. `heard` counts the changes that the kernel told of so far; None reads everything anew.
///
/// # Errors
/// When device mapper or the boot ID cannot be read.
pub fn observe_again(host: &Host, kept: &mut Kept, heard: Option<u64>) -> Result<Inventory> {
    let taken_at = host.system.monotonic();
    let boot_id = host.system.boot_id()?;
    let devices = kept.devices(host, heard)?.to_vec();
    let maps = maps(host.device_mapper.as_ref(), &devices);
    let disks = disks(host.system.as_ref(), &devices, &maps);
    let (lock_manager, watchdog) = daemons(host);
    Ok(topology::build(Observed {
        taken_at,
        boot_id,
        devices,
        maps,
        disks,
        lock_manager,
        watchdog,
    }))
}

/// The physical volumes of a volume group whose own devices no longer lead to them: its maps, looked up by UUID, and its disks by number.
///
/// A map that is not there (any more) is a physical volume without a path. Numbers of device mapper's own are not looked up where there are
/// maps: a map that was made anew may have another one.
///
/// # Errors
/// When device mapper cannot be read.
pub fn physical_volumes(host: &Host, group: &Standing) -> Result<Vec<PhysicalVolume>> {
    let devices = host.device_mapper.devices()?;
    let devices: Vec<Arc<DmDevice>> = devices.into_iter().map(Arc::new).collect();
    let mut missing = Vec::new();
    let mut tops = Vec::new();
    for (uuid, name) in &group.maps {
        match devices.iter().find(|d| d.uuid == *uuid) {
            Some(map) => tops.push(map.dev),
            None => missing.push(PhysicalVolume {
                dev: DevNo::default(),
                kind: PvKind::Multipath(MultipathMap {
                    uuid: uuid.clone(),
                    name: name.clone(),
                    ..MultipathMap::default()
                }),
            }),
        }
    }
    let own_major = devices.first().map(|d| d.dev.major);
    let by_number = |dev: &&DevNo| group.maps.is_empty() || Some(dev.major) != own_major;
    tops.extend(group.pvs.iter().filter(by_number));
    let maps = maps(host.device_mapper.as_ref(), &devices);
    let mut disks = disks(host.system.as_ref(), &devices, &maps);
    for dev in &tops {
        if let Some(disk) = host.system.disk(*dev) {
            disks.entry(*dev).or_insert(Disk {
                name: disk.name,
                state: disk.state,
                io: disk.io,
            });
        }
    }
    missing.extend(topology::bottoms(&tops, &devices, &maps, &disks));
    Ok(missing)
}

/// The multipath maps that can be read.
fn maps(device_mapper: &dyn DeviceMapper, devices: &[Arc<DmDevice>]) -> BTreeMap<DevNo, MapState> {
    let maps = devices.iter().filter(|d| is_multipath(d));
    maps.filter_map(|device| match map(device_mapper, device) {
        Ok(state) => Some((device.dev, state)),
        Err(problem) => {
            tracing::debug!(
                map = device.name,
                problem,
                "a multipath map cannot be read; its paths count as working"
            );
            None
        }
    })
    .collect()
}

fn map(
    device_mapper: &dyn DeviceMapper,
    device: &DmDevice,
) -> std::result::Result<MapState, String> {
    const KIND: &str = "multipath";
    let Some(target) = device.targets.iter().find(|t| t.kind == KIND) else {
        // Wiped, or not set up yet: nothing gets through it, and nothing waits in it.
        return Ok(MapState::default());
    };
    let table = multipath::parse_table(&target.params).map_err(|e| e.to_string())?;
    let lines = device_mapper
        .status(device.dev)
        .map_err(|e| e.to_string())?;
    let status = lines
        .iter()
        .find(|(kind, _)| kind == KIND)
        .ok_or("its table changed meanwhile")?;
    let paths = multipath::parse_status(&status.1).map_err(|e| e.to_string())?;
    Ok(MapState {
        queueing: table.queueing,
        paths,
    })
}

/// The disks below everything that device mapper knows.
fn disks(
    system: &dyn System,
    devices: &[Arc<DmDevice>],
    maps: &BTreeMap<DevNo, MapState>,
) -> BTreeMap<DevNo, Disk> {
    let known: BTreeSet<DevNo> = devices.iter().map(|d| d.dev).collect();
    let below = devices.iter().flat_map(|d| &d.deps);
    let paths = maps
        .values()
        .flat_map(|m| m.paths.iter().map(|(dev, _)| dev));
    let wanted: BTreeSet<DevNo> = below
        .chain(paths)
        .copied()
        .filter(|d| !known.contains(d))
        .collect();
    let found = wanted
        .into_iter()
        .filter_map(|dev| Some((dev, system.disk(dev)?)));
    found
        .map(|(dev, disk)| {
            (
                dev,
                Disk {
                    name: disk.name,
                    state: disk.state,
                    io: disk.io,
                },
            )
        })
        .collect()
}

/// Only the lock manager: lvmlockd's lockspaces with what sanlock knows of each.
#[must_use]
pub fn lock_manager(host: &Host) -> LockManager {
    daemons(host).0
}

/// Asks lvmlockd, sanlock and wdmd at the same time.
fn daemons(host: &Host) -> (LockManager, Watchdog) {
    let bell = Bell::default();
    let lvmlockd = Pending::start(host, &bell, "asking lvmlockd", |h| h.lvmlockd.lockspaces());
    let sanlock = Pending::start(host, &bell, "asking sanlock", |h| h.sanlock.status());
    let wdmd = Pending::start(host, &bell, "asking wdmd", |h| Ok(h.wdmd.status()));
    let lvmlockd = lvmlockd.wait(host, &bell, ANSWER);
    let sanlock = sanlock.wait(host, &bell, ANSWER);
    let watchdog = wdmd.wait(host, &bell, ANSWER).unwrap_or_else(|e| Watchdog {
        problem: Some(e.to_string()),
        ..Watchdog::default()
    });
    let lock_manager = match (lvmlockd, sanlock) {
        (Ok(l), Ok(s)) => LockManager::Running(merge(l, &s)),
        (Ok(l), Err(problem)) => LockManager::SanlockUnavailable(problem.to_string(), l),
        (Err(problem), _) => LockManager::LvmlockdUnavailable(problem.to_string()),
    };
    (lock_manager, watchdog)
}

/// lvmlockd's lockspaces with what sanlock knows of each; and those of LVM that only sanlock has (a drop leaves one there while it is being
/// removed, a dead lvmlockd for good).
fn merge(lvmlockd: Vec<Lockspace>, sanlock: &SanlockStatus) -> Vec<Lockspace> {
    const PREFIX: &str = "lvm_";
    let alive: BTreeSet<String> = lvmlockd
        .iter()
        .filter(|l| l.state != LockspaceState::Removing)
        .map(|l| l.name.clone())
        .collect();
    let mut merged: Vec<Lockspace> = lvmlockd
        .into_iter()
        .map(|l| {
            // The remains of an earlier life: what sanlock says is about the present one.
            let superseded = l.state == LockspaceState::Removing && alive.contains(&l.name);
            let same = sanlock
                .lockspaces
                .iter()
                .filter(|s| !superseded && s.name == l.name);
            match same.min_by_key(|s| s.state == LockspaceState::Removing) {
                Some(s) => Lockspace {
                    host_id: s.host_id,
                    generation: s.generation.or(l.generation),
                    io_timeout: s.io_timeout,
                    last_renewal: s.last_renewal,
                    state: s.state,
                    ..l
                },
                // Not begun yet, or over: in either case it does not hold the watchdog.
                None if l.state == LockspaceState::Adding => l,
                None => Lockspace {
                    state: LockspaceState::Removing,
                    ..l
                },
            }
        })
        .collect();
    let known: BTreeSet<String> = merged.iter().map(|l| l.name.clone()).collect();
    let only_sanlock = sanlock
        .lockspaces
        .iter()
        .filter(|s| !known.contains(&s.name));
    merged.extend(only_sanlock.filter_map(|s| {
        Some(Lockspace {
            name: s.name.clone(),
            vg_name: s.name.strip_prefix(PREFIX)?.to_owned(),
            host_id: s.host_id,
            generation: s.generation,
            io_timeout: s.io_timeout,
            last_renewal: s.last_renewal,
            state: s.state,
            ..Lockspace::default()
        })
    }));
    merged
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
