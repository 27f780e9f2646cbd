//! The inventory as JSON, for people and scripts: `storage-fence inspect`.

mod layout;

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::thread::{self, Builder};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use self::layout::Layout;
use super::observe::observe;
use crate::fence::preflight::{Check, Facts, preflight};
use crate::fence::topology::swap_levels;
use crate::fence::unlocked::unlocked;
use crate::fence::{
    DevNo, DmDevice, Inventory, LockManager, Lockspace, Monotonic, Path, PhysicalVolume, PvKind,
    Target, VolumeGroup, Watchdog,
};
use crate::host::{Error, Host, Result};

/// Observes once and prints. What preflight has to know besides is gathered meanwhile: both wait for daemons.
///
/// # Errors
/// When device mapper or the boot ID cannot be read, or `out` not be written.
pub fn inspect(
    host: &Host,
    gather: &(dyn Fn() -> Facts + Sync),
    out: &mut dyn Write,
) -> Result<()> {
    let (inventory, facts) = thread::scope(|scope| {
        let gathering = Builder::new().name("preflight".into());
        let gathering = gathering.spawn_scoped(scope, gather);
        let inventory = observe(host);
        let facts = match gathering {
            // Of what died nothing could be told.
            Ok(gathering) => gathering.join().unwrap_or_default(),
            Err(_) => gather(),
        };
        (inventory, facts)
    });
    let inventory = inventory?;
    let all = Told {
        preflight: checks(&inventory, &facts),
        ..told(&inventory)
    };
    print(&all, out).map_err(|source| Error::Unavailable {
        what: "the output".to_owned(),
        source,
        hint: "Look at where it goes to",
    })
}

/// Standard output writes line by line by itself: a system call for each of hundreds of thousands of lines.
fn print(all: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    all.serialize(&mut serde_json::Serializer::with_formatter(
        &mut out,
        Layout::default(),
    ))?;
    writeln!(out)?;
    // Here and not at its end of life, which would tell nobody of a disk that is full.
    out.flush()
}

fn checks(inventory: &Inventory, facts: &Facts) -> Value {
    let checks = preflight(Ok(inventory), facts);
    let check = |c: &Check| json!({ "name": c.name, "result": format!("{:?}", c.verdict), "message": c.message });
    checks.iter().map(check).collect()
}

/// The inventory. Device numbers are `MAJOR:MINOR`, times seconds on `CLOCK_MONOTONIC`.
fn told(inventory: &Inventory) -> Told<'_> {
    Told {
        boot_id: &inventory.boot_id,
        lock_manager: lock_manager(&inventory.lock_manager),
        preflight: Value::Null,
        taken_at: seconds(inventory.taken_at),
        volume_groups: inventory.volume_groups.iter().map(volume_group).collect(),
        watchdog: watchdog(&inventory.watchdog),
        without_lock: unlocked(inventory)
            .iter()
            .map(|g| g.name.as_str())
            .collect(),
    }
}

// Types instead of values where there may be thousands of them: a value owns every key and every text.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    #[serde(rename = "bootID")]
    boot_id: &'a str,
    lock_manager: Value,
    preflight: Value,
    taken_at: f64,
    volume_groups: Vec<Group<'a>>,
    watchdog: Value,
    /// Names of those that reach the SAN although nobody holds their locks.
    without_lock: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Group<'a> {
    all_paths_gone: bool,
    devices: Each<'a, Arc<DmDevice>, Device<'a>>,
    lockspace: Option<Value>,
    lvmlock: Option<Device<'a>>,
    name: &'a str,
    paths: usize,
    paths_working: usize,
    physical_volumes: Vec<Value>,
    shared: bool,
    swap_levels: Vec<Vec<Text<DevNo>>>,
    uuid: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    clippy::struct_excessive_bools,
    reason = "what a device is asked, each by itself"
)]
struct Device<'a> {
    dev: Text<DevNo>,
    error_only: bool,
    inactive_table: bool,
    internally_suspended: bool,
    name: &'a str,
    open_count: u32,
    sectors: u64,
    suspended: bool,
    table: Each<'a, Target, Text<Line<'a>>>,
    uses: Each<'a, DevNo, Text<DevNo>>,
    uuid: &'a str,
}

/// Each of them as it is told, made when it is written.
struct Each<'a, T, U>(&'a [T], fn(&'a T) -> U);

impl<T, U: Serialize> Serialize for Each<'_, T, U> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(self.1))
    }
}

/// What is shown as text.
struct Text<T>(T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// A line of a table.
struct Line<'a>(&'a Target);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.0;
        write!(f, "{} {} {}", t.start, t.length, t.kind)?;
        match t.params.trim_end() {
            "" => Ok(()),
            params => write!(f, " {params}"),
        }
    }
}

fn seconds(time: Monotonic) -> f64 {
    time.0.as_secs_f64()
}

fn numbers(devices: &[DevNo]) -> Vec<Text<DevNo>> {
    devices.iter().copied().map(Text).collect()
}

fn volume_group(group: &VolumeGroup) -> Group<'_> {
    let (paths_working, paths) = group.paths();
    Group {
        all_paths_gone: group.all_paths_gone(),
        devices: Each(&group.devices, |d| device(d)),
        lockspace: group.lockspace.as_ref().map(lockspace),
        lvmlock: group.lvmlock.as_ref().map(device),
        name: &group.name,
        paths,
        paths_working,
        physical_volumes: group.pvs.iter().map(physical_volume).collect(),
        shared: group.shared(),
        swap_levels: swap_levels(group).iter().map(|l| numbers(l)).collect(),
        uuid: &group.uuid,
    }
}

fn device(device: &DmDevice) -> Device<'_> {
    Device {
        dev: Text(device.dev),
        error_only: device.is_error_only(),
        inactive_table: device.inactive_table,
        internally_suspended: device.internally_suspended,
        name: &device.name,
        open_count: device.open_count,
        sectors: device.sectors,
        suspended: device.suspended,
        table: Each(&device.targets, |t| Text(Line(t))),
        uses: Each(&device.deps, |d| Text(*d)),
        uuid: &device.uuid,
    }
}

fn physical_volume(pv: &PhysicalVolume) -> Value {
    let map = match &pv.kind {
        PvKind::Multipath(m) => json!({
            "dev": m.dev.to_string(),
            "name": m.name,
            "uuid": m.uuid,
            "queueing": m.queueing,
        }),
        PvKind::Disk(_) => Value::Null,
    };
    json!({
        "dev": pv.dev.to_string(),
        "multipath": map,
        "paths": pv.paths().iter().map(path).collect::<Vec<_>>(),
    })
}

fn path(path: &Path) -> Value {
    json!({
        "dev": path.dev.to_string(),
        "name": path.name,
        "active": path.active,
        "state": path.device_state,
    })
}

fn lockspace(lockspace: &Lockspace) -> Value {
    json!({
        "name": lockspace.name,
        "vgName": lockspace.vg_name,
        "vgUUID": lockspace.vg_uuid,
        "hostID": lockspace.host_id,
        "generation": lockspace.generation,
        "ioTimeout": lockspace.io_timeout,
        "lastRenewal": lockspace.last_renewal.map(seconds),
        "state": format!("{:?}", lockspace.state),
        "frozen": lockspace.frozen,
        "lvLocks": lockspace.lv_locks,
    })
}

fn lock_manager(manager: &LockManager) -> Value {
    let problem = match manager {
        LockManager::Running(_) => None,
        LockManager::LvmlockdUnavailable(p, _) | LockManager::SanlockUnavailable(p, _) => Some(p),
    };
    json!({
        "problem": problem,
        "lockspaces": manager.lockspaces().iter().map(lockspace).collect::<Vec<_>>(),
    })
}

fn watchdog(watchdog: &Watchdog) -> Value {
    let clients = watchdog.clients.iter();
    json!({
        "known": watchdog.known,
        "problem": watchdog.problem,
        "fireTimeout": watchdog.fire_timeout,
        "clients": clients.map(|(name, expire)| json!({ "name": name, "expires": seconds(*expire) })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::LockspaceState;
    use crate::host::simulated::{self, Simulation};

    #[test]
    fn what_matters_is_in_it() {
        let dev = DevNo {
            major: 253,
            minor: 4,
        };
        let inventory = Inventory {
            taken_at: Monotonic::from_secs(9),
            boot_id: "b".into(),
            volume_groups: vec![VolumeGroup {
                name: "san".into(),
                devices: [Arc::new(DmDevice {
                    dev,
                    ..DmDevice::default()
                })]
                .into(),
                lockspace: Some(Lockspace {
                    state: LockspaceState::Expired,
                    ..Lockspace::default()
                }),
                ..VolumeGroup::default()
            }],
            lock_manager: LockManager::LvmlockdUnavailable("gone".into(), None),
            watchdog: Watchdog {
                clients: vec![("sanlock_x:1".into(), Monotonic::from_secs(80))],
                ..Watchdog::default()
            },
        };
        let json = serde_json::to_value(told(&inventory)).unwrap();
        assert_eq!(json["volumeGroups"][0]["lockspace"]["state"], "Expired");
        assert_eq!(json["volumeGroups"][0]["swapLevels"], json!([["253:4"]]));
        assert_eq!(json["lockManager"]["problem"], "gone");
        assert_eq!(json["withoutLock"], json!([]));
        assert_eq!(json["watchdog"]["clients"][0]["expires"], 80.0);
    }

    #[test]
    fn a_table_is_told_line_by_line_as_the_kernel_has_it() {
        let target = |start, params: &str| Target {
            start,
            length: 8,
            kind: "linear".into(),
            params: params.into(),
        };
        let two = DmDevice {
            targets: vec![target(0, "8:0 2048"), target(8, "")].into(),
            deps: vec![DevNo { major: 8, minor: 0 }].into(),
            ..DmDevice::default()
        };
        let json = serde_json::to_value(device(&two)).unwrap();
        assert_eq!(json["table"], json!(["0 8 linear 8:0 2048", "8 8 linear"]));
        assert_eq!(json["uses"], json!(["8:0"]));
        assert_eq!(json["internallySuspended"], false);
    }

    #[test]
    fn all_of_it_is_json_and_preflight_is_what_was_gathered() {
        let node = Simulation::new(&simulated::Layout::default());
        let facts = || Facts {
            host_name: Some("its-name".into()),
            ..Facts::default()
        };
        let mut out = Vec::new();
        inspect(&node.host(), &facts, &mut out).unwrap();
        let read: Value = serde_json::from_slice(&out).unwrap();
        let inventory = observe(&node.host()).unwrap();
        assert_eq!(read["preflight"], checks(&inventory, &facts()));
        let groups = serde_json::to_value(told(&inventory)).unwrap();
        assert_eq!(read["volumeGroups"], groups["volumeGroups"]);
        let mut out = Vec::new();
        inspect(&node.host(), &|| panic!("gone"), &mut out).unwrap();
        let read: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(read["preflight"], checks(&inventory, &Facts::default()));
        node.end();
    }

    /// Counts what reaches it; a disk that is full where told so.
    struct Output {
        writes: usize,
        full: bool,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.writes += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            if self.full {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    #[test]
    fn what_is_printed_is_gathered_and_a_full_disk_is_told() {
        let node = Simulation::new(&simulated::Layout::default());
        let mut out = Output {
            writes: 0,
            full: false,
        };
        inspect(&node.host(), &Facts::default, &mut out).unwrap();
        assert_eq!(out.writes, 1);
        out.full = true;
        let error = inspect(&node.host(), &Facts::default, &mut out).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        node.end();
    }
}
