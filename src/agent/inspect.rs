//! The inventory as JSON, for people and scripts: `storage-fence inspect`.

use std::io::Write;

use serde_json::{Value, json};

use super::observe::observe;
use crate::fence::preflight::{Check, Facts, preflight};
use crate::fence::topology::swap_levels;
use crate::fence::{
    DmDevice, Inventory, LockManager, Lockspace, Monotonic, Path, PhysicalVolume, PvKind,
    VolumeGroup, Watchdog,
};
use crate::host::{Error, Host, Result};

/// Observes once and prints.
///
/// # Errors
/// When device mapper or the boot ID cannot be read, or `out` not be written.
pub fn inspect(host: &Host, facts: &Facts, out: &mut dyn Write) -> Result<()> {
    let inventory = observe(host)?;
    let mut all = json(&inventory);
    all["preflight"] = checks(&inventory, facts);
    writeln!(out, "{all:#}").map_err(|source| Error::Unavailable {
        what: "the output".to_owned(),
        source,
        hint: "Look at where it goes to",
    })
}

fn checks(inventory: &Inventory, facts: &Facts) -> Value {
    let checks = preflight(Ok(inventory), facts);
    let check = |c: &Check| json!({ "name": c.name, "result": format!("{:?}", c.verdict), "message": c.message });
    checks.iter().map(check).collect()
}

/// The inventory. Device numbers are `MAJOR:MINOR`, times seconds on `CLOCK_MONOTONIC`.
#[must_use]
pub fn json(inventory: &Inventory) -> Value {
    json!({
        "takenAt": seconds(inventory.taken_at),
        "bootID": inventory.boot_id,
        "volumeGroups": inventory.volume_groups.iter().map(volume_group).collect::<Vec<_>>(),
        "lockManager": lock_manager(&inventory.lock_manager),
        "watchdog": watchdog(&inventory.watchdog),
    })
}

fn seconds(time: Monotonic) -> f64 {
    time.0.as_secs_f64()
}

fn volume_group(group: &VolumeGroup) -> Value {
    let (up, all) = group.paths();
    let levels = swap_levels(group);
    let levels: Vec<Vec<String>> = levels
        .iter()
        .map(|l| l.iter().map(ToString::to_string).collect())
        .collect();
    json!({
        "name": group.name,
        "uuid": group.uuid,
        "shared": group.shared(),
        "pathsWorking": up,
        "paths": all,
        "allPathsGone": group.all_paths_gone(),
        "devices": group.devices.iter().map(|d| device(d)).collect::<Vec<_>>(),
        "lvmlock": group.lvmlock.as_ref().map(device),
        "swapLevels": levels,
        "physicalVolumes": group.pvs.iter().map(physical_volume).collect::<Vec<_>>(),
        "lockspace": group.lockspace.as_ref().map(lockspace),
    })
}

fn device(device: &DmDevice) -> Value {
    let table = device
        .targets
        .iter()
        .map(|t| format!("{} {} {} {}", t.start, t.length, t.kind, t.params));
    json!({
        "dev": device.dev.to_string(),
        "name": device.name,
        "uuid": device.uuid,
        "sectors": device.sectors,
        "openCount": device.open_count,
        "suspended": device.suspended,
        "internallySuspended": device.internally_suspended,
        "inactiveTable": device.inactive_table,
        "errorOnly": device.is_error_only(),
        "table": table.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>(),
        "uses": device.deps.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
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
        LockManager::LvmlockdUnavailable(p) | LockManager::SanlockUnavailable(p, _) => Some(p),
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
    use crate::fence::{DevNo, LockspaceState};

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
                devices: vec![
                    DmDevice {
                        dev,
                        ..DmDevice::default()
                    }
                    .into(),
                ],
                lockspace: Some(Lockspace {
                    state: LockspaceState::Expired,
                    ..Lockspace::default()
                }),
                ..VolumeGroup::default()
            }],
            lock_manager: LockManager::LvmlockdUnavailable("gone".into()),
            watchdog: Watchdog {
                clients: vec![("sanlock_x:1".into(), Monotonic::from_secs(80))],
                ..Watchdog::default()
            },
        };
        let json = json(&inventory);
        assert_eq!(json["volumeGroups"][0]["lockspace"]["state"], "Expired");
        assert_eq!(json["volumeGroups"][0]["swapLevels"], json!([["253:4"]]));
        assert_eq!(json["lockManager"]["problem"], "gone");
        assert_eq!(json["watchdog"]["clients"][0]["expires"], 80.0);
    }
}
