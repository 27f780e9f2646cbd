//! Asks the whole node and puts the answers together.
//!
//! What does not answer becomes a state of the inventory, never a guess (S5); only device mapper and the boot ID are indispensable. Nothing
//! here reads or writes the SAN. The daemons are asked side by side, so that all of them silent cost no more than one.

mod daemons;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use daemons::lock_manager;

use super::journal::Standings;
use super::restore;
use crate::fence::denials::Denials;
use crate::fence::remembered::Same;
use crate::fence::stacks::Stacks;
use crate::fence::topology::{Disk, GONE, Look, MapState};
use crate::fence::unfence::Standing;
use crate::fence::unlocked;
use crate::fence::{
    DevNo, DmDevice, Inventory, LockManager, Monotonic, MultipathMap, Path, PhysicalVolume, PvKind,
    PvRecord, VolumeGroup, Watchdog,
};
use crate::host::{DeviceMapper, Host, Result, ScsiLog, System, multipath};

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
const OLDEST: Duration = Duration::from_mins(5);

/// The devices as they were read last, and what follows from them, for looks that follow one another.
#[derive(Default)]
pub struct Kept {
    stacks: Stacks,
    at: Option<Monotonic>,
    took: Duration,
    heard: u64,
    log: Option<Box<dyn ScsiLog>>,
    denials: Denials,
    standings: Option<Standings>,
}

impl Kept {
    /// For looks that also take in what the kernel logs from now on, and what is recorded of fences that stand.
    #[must_use]
    pub fn listening(host: &Host, standings: Option<Standings>) -> Self {
        Self {
            log: host.system.scsi_log(),
            standings,
            ..Self::default()
        }
    }

    /// What is recorded of fences that stand: mostly nothing.
    fn recorded(&self) -> Vec<Standing> {
        let all = self.standings.as_ref().and_then(|all| all.all().ok());
        let all = all.unwrap_or_default();
        restore::recorded(&[], &all)
    }

    /// Takes in what was logged of disks since the last look.
    fn read_log(&mut self, now: Monotonic) {
        let Some(log) = &mut self.log else { return };
        let denials = &mut self.denials;
        match log.read(&mut |line| denials.note(line, now)) {
            Ok(true) => {}
            Ok(false) => denials.forget(),
            Err(error) => {
                tracing::warn!(%error, "what becomes of LUNs is not told any more");
                denials.forget();
                self.log = None;
            }
        }
    }

    /// The devices: those of before while nothing was heard of a change, but for the maps, which are read each time. To read thousands of devices
    /// takes a while, and hardly any of them ever changes.
    fn stacks(&mut self, host: &Host, heard: Option<u64>) -> Result<&mut Stacks> {
        let now = host.system.monotonic();
        let oldest = OLDEST.min(self.took * SHARE);
        let good = self.at.is_some_and(|at| now.since(at) <= oldest);
        if !(good && heard == Some(self.heard) && self.read_maps(host).is_ok()) {
            self.read_all(host)?;
            (self.at, self.took) = (Some(now), host.system.monotonic().since(now));
            self.heard = heard.unwrap_or_default();
        }
        Ok(&mut self.stacks)
    }

    /// Reads every device, one by one. What is as it was stays what it is: two copies of ten thousand devices at a time would take twice the
    /// memory, and all of it is locked.
    fn read_all(&mut self, host: &Host) -> Result<()> {
        let mut before = self.stacks.devices().iter().peekable();
        let mut devices = Vec::with_capacity(before.len());
        let mut changed = false;
        host.device_mapper.each(&mut |device| {
            while before.next_if(|old| old.dev < device.dev).is_some() {
                changed = true;
            }
            let old = before.next_if(|old| ***old == device);
            changed |= old.is_none();
            devices.push(old.map_or_else(|| Arc::new(device), Arc::clone));
        })?;
        if changed || before.next().is_some() {
            self.stacks = Stacks::new(devices);
        }
        Ok(())
    }

    fn read_maps(&mut self, host: &Host) -> Result<()> {
        let mut changed: BTreeMap<DevNo, Arc<DmDevice>> = BTreeMap::new();
        for old in self.stacks.maps() {
            let read = host.device_mapper.device(&old.uuid)?;
            if read != **old {
                changed.insert(old.dev, Arc::new(read));
            }
        }
        if !changed.is_empty() {
            let devices = self.stacks.devices().iter();
            let now = |d: &Arc<DmDevice>| Arc::clone(changed.get(&d.dev).unwrap_or(d));
            self.stacks = Stacks::new(devices.map(now).collect());
        }
        Ok(())
    }
}

/// The same, for who looks again and again. `heard` counts the changes that the kernel told of so far; None reads everything anew.
///
/// # Errors
/// When device mapper or the boot ID cannot be read.
pub fn observe_again(host: &Host, kept: &mut Kept, heard: Option<u64>) -> Result<Inventory> {
    look(host, kept, heard, None)
}

/// One look. `daemons`: what they have said already.
fn look(
    host: &Host,
    kept: &mut Kept,
    heard: Option<u64>,
    daemons: Option<(LockManager, Watchdog)>,
) -> Result<Inventory> {
    let taken_at = host.system.monotonic();
    let boot_id = host.system.boot_id()?;
    // Before the paths: one that works by then has the last word.
    kept.read_log(taken_at);
    let recorded = kept.recorded();
    let stacks = kept.stacks(host, heard)?;
    let maps = maps(host.device_mapper.as_ref(), stacks);
    let disks = disks(host.system.as_ref(), stacks, &maps);
    let volumes = |group: &Standing| recorded_volumes(host, stacks, &maps, &disks, group);
    let recorded: Vec<_> = recorded.iter().map(|g| (&g.uuid, volumes(g))).collect();
    let (lock_manager, watchdog) = daemons.unwrap_or_else(|| daemons::daemons(host));
    let mut inventory = stacks.inventory(Look {
        taken_at,
        boot_id,
        maps,
        disks,
        lock_manager,
        watchdog,
    });
    kept.denials.mark(&mut inventory);
    for (uuid, volumes) in recorded {
        let mut groups = inventory.volume_groups.iter_mut();
        // What is open again leads to them itself, and of what has its locks the controller decides by what it is told.
        let stands = |g: &&mut VolumeGroup| g.uuid == *uuid && g.fenced() && !g.shared();
        if let Some(group) = groups.find(stands) {
            group.recorded_pvs = with_those_recorded(&group.pvs, volumes);
        }
    }
    Ok(inventory)
}

/// The node as it is now, for a fence. Where a volume group is open though nobody holds its locks it takes two looks, since one may tell that of a
/// volume group that is being stopped as it should be: its devices are gone when the lock manager says so. That is not asked again, since a daemon that
/// hangs would take all the time that a fence has.
///
/// # Errors
/// When device mapper or the boot ID cannot be read.
pub fn observe_to_fence(host: &Host) -> Result<Inventory> {
    let mut found = BTreeSet::new();
    let mut inventory = observe(host)?;
    unlocked::mark(&mut inventory, &mut found);
    if !found.is_empty() {
        let said = (inventory.lock_manager, inventory.watchdog);
        inventory = look(host, &mut Kept::default(), None, Some(said))?;
        unlocked::mark(&mut inventory, &mut found);
    }
    Ok(inventory)
}

/// The physical volumes of a volume group whose own devices no longer lead to them, by what they are: its maps and whatever else has a UUID by that,
/// plain disks by their WWID, whatever their numbers are by now.
///
/// What is not there (any more) is a physical volume without a path. So is a disk that has the number of one and is proven to be another: a fence is
/// lifted on the health of the volume group's own paths (S7). Where only the number is known it decides; LVM looks for the volume group's UUID on
/// the disk itself before it joins.
///
/// # Errors
/// When device mapper cannot be read.
pub fn physical_volumes(host: &Host, group: &Standing) -> Result<Vec<PhysicalVolume>> {
    let all = physical_volumes_of(host, std::iter::once(group))?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// The same of several, by one look.
///
/// # Errors
/// As [`physical_volumes`].
pub fn physical_volumes_of<'a>(
    host: &Host,
    groups: impl Iterator<Item = &'a Standing>,
) -> Result<Vec<Vec<PhysicalVolume>>> {
    let mut kept = Kept::default();
    kept.read_all(host)?;
    let stacks = kept.stacks;
    let maps = maps(host.device_mapper.as_ref(), &stacks);
    let disks = disks(host.system.as_ref(), &stacks, &maps);
    let of = |group| recorded_volumes(host, &stacks, &maps, &disks, group);
    Ok(groups.map(of).collect())
}

/// The same, in what a look has seen.
fn recorded_volumes(
    host: &Host,
    stacks: &Stacks,
    maps: &BTreeMap<DevNo, MapState>,
    disks: &BTreeMap<DevNo, Disk>,
    group: &Standing,
) -> Vec<PhysicalVolume> {
    let devices = stacks.devices();
    let mut found = Vec::new();
    let mut tops = Vec::new();
    for (uuid, name) in &group.maps {
        match devices.iter().find(|d| d.uuid == *uuid) {
            Some(map) => tops.push(map.dev),
            None => found.push(PhysicalVolume {
                dev: DevNo::default(),
                uuid: uuid.clone(),
                kind: PvKind::Multipath(MultipathMap {
                    uuid: uuid.clone(),
                    name: name.clone(),
                    ..MultipathMap::default()
                }),
            }),
        }
    }
    let own_major = devices.first().map(|d| d.dev.major);
    // What device mapper has made of its maps is as healthy as they are, and they are listed.
    let of_maps = |pv: &PvRecord| {
        let made = !pv.uuid.is_empty() || Some(pv.dev.major) == own_major;
        made && !group.maps.is_empty()
    };
    for pv in group.pvs.iter().filter(|pv| !of_maps(pv)) {
        match where_it_is(host, devices, pv) {
            Some(numbers) => tops.extend(numbers),
            None => found.push(gone(host, pv)),
        }
    }
    let mut disks = disks.clone();
    for dev in &tops {
        if let Some(disk) = host.system.disk(*dev) {
            disks.entry(*dev).or_insert(Disk {
                name: disk.name,
                state: disk.state,
                io: disk.io,
            });
        }
    }
    found.extend(stacks.bottoms(&tops, maps, &disks));
    found
}

/// The numbers of a physical volume now, several where a LUN is several disks; None: it is not there.
fn where_it_is(host: &Host, devices: &[Arc<DmDevice>], pv: &PvRecord) -> Option<Vec<DevNo>> {
    // By its UUID, or as the map that multipathd has made of the disk that came back.
    if let Some(device) = devices.iter().find(|d| pv.is(d)) {
        return Some(vec![device.dev]);
    }
    if !pv.uuid.is_empty() {
        return None;
    }
    match (pv.has_mark(&host.system.mark(pv.dev)), &pv.disk.wwid) {
        (Same::Surely, _) | (Same::Perhaps, None) => Some(vec![pv.dev]),
        (Same::No | Same::Perhaps, _) => {
            let elsewhere = host.system.disks_of(&pv.disk);
            (!elsewhere.is_empty()).then_some(elsewhere)
        }
    }
}

fn gone(host: &Host, pv: &PvRecord) -> PhysicalVolume {
    let number = pv.dev.to_string();
    let what = Some(&pv.uuid).filter(|uuid| !uuid.is_empty());
    // Another disk may have the number.
    let name = match what.or(pv.disk.wwid.as_ref()) {
        Some(what) if host.system.disk(pv.dev).is_some() => format!("{what}, which was {number},"),
        _ => number,
    };
    PhysicalVolume {
        dev: pv.dev,
        uuid: pv.uuid.clone(),
        kind: PvKind::Disk(Path {
            dev: pv.dev,
            name,
            device_state: GONE.to_owned(),
            ..Path::default()
        }),
    }
}

/// What active devices (that with the leases, mostly) still lead to, with what is recorded besides.
fn with_those_recorded(
    found: &[PhysicalVolume],
    recorded: Vec<PhysicalVolume>,
) -> Vec<PhysicalVolume> {
    let same = |a: &PhysicalVolume, b: &PhysicalVolume| match (&a.kind, &b.kind) {
        (PvKind::Multipath(a), PvKind::Multipath(b)) => a.uuid == b.uuid,
        (PvKind::Disk(a), PvKind::Disk(b)) => a.dev == b.dev,
        _ => false,
    };
    let mut all = found.to_vec();
    for pv in recorded {
        if !all.iter().any(|known| same(known, &pv)) {
            all.push(pv);
        }
    }
    all
}

/// The multipath maps that can be read.
fn maps(device_mapper: &dyn DeviceMapper, stacks: &Stacks) -> BTreeMap<DevNo, MapState> {
    let read = |device: &Arc<DmDevice>| match map(device_mapper, device) {
        Ok(state) => Some((device.dev, state)),
        Err(problem) => {
            tracing::debug!(
                map = %device.name,
                problem,
                "a multipath map cannot be read; its paths count as working"
            );
            None
        }
    };
    stacks.maps().filter_map(read).collect()
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
    stacks: &Stacks,
    maps: &BTreeMap<DevNo, MapState>,
) -> BTreeMap<DevNo, Disk> {
    let found = |dev: DevNo| {
        let disk = system.disk(dev)?;
        let disk = Disk {
            name: disk.name,
            state: disk.state,
            io: disk.io,
        };
        Some((dev, disk))
    };
    stacks.disks(maps).into_iter().filter_map(found).collect()
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "observe_kept_tests.rs"]
mod kept_tests;

#[cfg(test)]
#[path = "observe_standing_tests.rs"]
mod standing_tests;
