//! Giving a node its storage back: what stands fenced, what speaks against lifting it, and the steps in their only legal order (S7).
//!
//! Pure, like the rest of this room. The order of the steps is what makes it safe: once the node has joined the lockspace again, its old leases
//! count as free for everybody, so by then nothing of before may have a volume open. A removed device has no opener.

mod blockers;
mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inventory::{DmDevice, Inventory, LockspaceState, VolumeGroup, present};
use super::order::Selection;
use super::plan::maps;
use super::remembered::{DiskMark, PvRecord};
use super::report::Outcome as FenceOutcome;
use super::topology::volume_group_uuid;

pub use blockers::{Blocker, BlockerReason, Health, Opener, Seen, blockers};
pub use report::{GroupReport, UnfenceOutcome, UnfenceReport, UnfenceStep, UnfenceStepKind, steps};

/// An order to give storage back: a request, freed of its wire format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfenceOrder {
    /// Name of the request.
    pub name: String,
    /// UID of the request.
    pub uid: String,
    /// Generation of the request.
    pub generation: i64,
    /// Which of the volume groups that stand fenced: all of them, unless they are named.
    pub volume_groups: Selection,
    /// How long the paths have to be healthy before.
    pub healthy_for: Duration,
}

/// A volume group that stands fenced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Name of its lockspace.
    pub lockspace: String,
    /// This host's id when the fence began.
    pub host_id: Option<u64>,
    /// Generation of that id then: the one to be had is another.
    pub generation: Option<u64>,
    /// UUID of the volume with the leases.
    pub lvmlock: Option<String>,
    /// Its multipath maps: UUID and name.
    pub maps: Vec<(String, String)>,
    /// UUIDs of the maps whose queueing the fence turned off.
    pub turned_off: Vec<String>,
    /// Its physical volumes.
    pub pvs: Vec<PvRecord>,
    /// UUIDs of its devices, upper ones first: once all tables are `error`, the kernel no longer knows who was stacked on whom.
    pub order: Vec<String>,
}

impl Standing {
    /// A volume group as it is found, with no record of its fence.
    fn found(group: &VolumeGroup) -> Self {
        let found = maps(group);
        Self {
            name: group.name.clone(),
            uuid: group.uuid.clone(),
            lockspace: lockspace_name(&group.name),
            lvmlock: group.lvmlock.as_ref().map(|d| d.uuid.to_string()),
            maps: found
                .iter()
                .map(|m| (m.uuid.clone(), m.name.clone()))
                .collect(),
            // Not known, and giving back what was not taken changes nothing.
            turned_off: found.iter().map(|m| m.uuid.clone()).collect(),
            // Of plain disks their numbers of just now: an inventory tells no more.
            pvs: PvRecord::all(&group.pvs, &|_| DiskMark::default()),
            ..Self::default()
        }
    }

    /// Whether a device is one of the volume group's, the leases' volume included.
    #[must_use]
    pub fn owns(&self, device: &DmDevice) -> bool {
        volume_group_uuid(&device.uuid) == Some(self.uuid.as_str())
    }

    /// Whether it is the volume with the leases. Only sanlock writes there, so the fence leaves it alone.
    #[must_use]
    pub fn is_lvmlock(&self, device: &DmDevice) -> bool {
        match &self.lvmlock {
            Some(uuid) => device.uuid == *uuid,
            None => self.owns(device) && device.name.ends_with("-lvmlock"),
        }
    }

    /// Its devices on the error target, in the order in which they may be removed. The leases' volume is among them when it is on `error` as
    /// well: the lockspace cannot be started on it, and LVM would take it for active.
    #[must_use]
    pub fn error_devices<'a>(&self, devices: &'a [DmDevice]) -> Vec<&'a DmDevice> {
        let mut all: Vec<&DmDevice> = devices
            .iter()
            .filter(|d| self.owns(d) && d.is_error_only())
            .collect();
        let rank = |d: &DmDevice| {
            self.order
                .iter()
                .position(|uuid| *uuid == d.uuid)
                .unwrap_or(usize::MAX)
        };
        all.sort_by_key(|d| (self.is_lvmlock(d), rank(d), d.uuid.clone()));
        all
    }
}

/// `lvm_` and the name, cut at 48 bytes (lvm2's `daemons/lvmlockd`).
fn lockspace_name(vg: &str) -> String {
    let mut name = format!("lvm_{vg}");
    while name.len() > 48 {
        name.pop();
    }
    name
}

/// The volume groups that an order means: those that a record tells of, and those that are found on the error target.
///
/// A record that ended without touching anything tells of none.
#[must_use]
pub fn standing(
    inventory: &Inventory,
    recorded: Vec<Standing>,
    order: &UnfenceOrder,
) -> Vec<Standing> {
    let wanted = |name: &String| match &order.volume_groups {
        Selection::Affected | Selection::AllShared => true,
        Selection::Named(names) => names.contains(name),
    };
    let mut all = recorded;
    for group in &inventory.volume_groups {
        let cut_off = group.devices.iter().any(|d| d.is_error_only());
        match all.iter_mut().find(|s| s.uuid == group.uuid) {
            Some(known) if known.lvmlock.is_none() => {
                known.lvmlock = group.lvmlock.as_ref().map(|d| d.uuid.to_string());
            }
            None if cut_off => {
                let found = Standing::found(group);
                // LVM makes error devices itself: in place of a disk that a mirror has lost, say, of a local volume group or of one in use.
                let joined = matches!(lock_state(&found, inventory), LockState::Joined { .. });
                if !joined && (group.on_san() || group.fenced()) {
                    all.push(found);
                }
            }
            Some(_) | None => {}
        }
    }
    all.retain(|s| wanted(&s.name));
    all
}

/// Whether a fence with that outcome left anything to be lifted.
#[must_use]
pub fn left_standing(outcome: &FenceOutcome) -> bool {
    match outcome {
        FenceOutcome::InProgress | FenceOutcome::Proven | FenceOutcome::NotProven => true,
        FenceOutcome::Refused(_) | FenceOutcome::DryRun | FenceOutcome::CalledOff => false,
    }
}

/// Where the former lockspace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockState {
    /// Nowhere: it can be joined.
    Absent,
    /// Still there as the fence froze it: it has to be dropped first.
    Frozen {
        /// What lvmlockd calls the volume group: by that name it is dropped.
        vg: String,
    },
    /// Frozen, but not known to be the fence's.
    FrozenByOthers {
        /// What lvmlockd calls the volume group.
        vg: String,
    },
    /// On its way out.
    Removing,
    /// On its way in.
    Joining,
    /// Joined anew.
    Joined {
        /// What the volume group is called by now, if another host has renamed it since: it has another lockspace, whose generations count anew.
        renamed: Option<String>,
        /// This host's id.
        host_id: u64,
        /// Its generation, when told.
        generation: Option<u64>,
    },
    /// sanlock has it, lvmlockd does not: what a dead lvmlockd leaves.
    Orphaned,
}

/// Where the lockspace of a volume group is.
#[must_use]
pub fn lock_state(group: &Standing, inventory: &Inventory) -> LockState {
    let lockspaces = inventory.lock_manager.lockspaces();
    match present(lockspaces, &group.uuid, &group.lockspace) {
        None => LockState::Absent,
        Some(l) => match l.state {
            LockspaceState::Removing => LockState::Removing,
            _ if l.vg_uuid.is_empty() => LockState::Orphaned,
            _ if l.frozen => {
                let differs =
                    matches!((group.generation, l.generation), (Some(a), Some(b)) if a != b);
                if l.name == group.lockspace && group.host_id == Some(l.host_id) && !differs {
                    LockState::Frozen {
                        vg: l.vg_name.clone(),
                    }
                } else {
                    LockState::FrozenByOthers {
                        vg: l.vg_name.clone(),
                    }
                }
            }
            LockspaceState::Adding => LockState::Joining,
            _ => LockState::Joined {
                renamed: (l.name != group.lockspace).then(|| l.vg_name.clone()),
                host_id: l.host_id,
                generation: l.generation,
            },
        },
    }
}
