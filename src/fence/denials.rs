//! Targets that say that they have no such LUN: what tells a LUN that was unmapped at the array from paths that may return, while its disks are
//! still there.
//!
//! All that is known is what the kernel logged of commands that failed. A disk counts as denied while the last of them was answered so, and
//! nothing speaks against it: each doubt is decided for "may return", which only waits longer.
//!
//! | speaks against it | |
//! | --- | --- |
//! | a command that failed for another reason, or for none that was logged | what is broken is the way there, whatever was said before |
//! | a path that works again | it was mapped again, or the array was only not ready |
//! | lines of the log that were lost | they may have said something else |
//! | a disk that is not there any more | its name may be another disk's |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::inventory::{Inventory, Path, PhysicalVolume};
use super::time::Monotonic;
use super::topology::lets_commands_through;

/// How long a path may still count as working after its target has denied the LUN: multipath does not fail a path for that, so its checker has
/// to find out, every 20 s by default.
pub const LINGER: Duration = Duration::from_secs(30);

/// A line of the kernel's log about a command to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Kernel name of the disk.
    pub disk: String,
    /// Which of the disk's commands: what is logged of one command has the same tag.
    pub tag: u32,
    /// What it says.
    pub says: Says,
}

/// What is logged of a command that failed, in this order. Without sense data there is only the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// It failed.
    Failed,
    /// The sense key: whether it is ILLEGAL REQUEST, of this very command.
    Key {
        /// It is.
        illegal_request: bool,
    },
    /// The additional sense: whether it is LOGICAL UNIT NOT SUPPORTED.
    Sense {
        /// It is.
        no_such_unit: bool,
    },
}

/// What is known of one disk.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// Commands that failed, and nothing more was read of them yet: since the last look.
    open: BTreeSet<u32>,
    /// The same since the look before.
    late: BTreeSet<u32>,
    /// Of these, those with that sense key.
    illegal: BTreeSet<u32>,
    /// When the target denied the LUN last, if nothing has spoken against it since.
    denied: Option<Monotonic>,
    /// Whether its path did not work at the last look.
    down: bool,
}

impl Disk {
    fn note(&mut self, tag: u32, says: Says, now: Monotonic) {
        match says {
            Says::Failed => {
                self.open.insert(tag);
                self.illegal.remove(&tag);
            }
            Says::Key { illegal_request } => {
                self.illegal.remove(&tag);
                if illegal_request {
                    self.illegal.insert(tag);
                }
            }
            Says::Sense { no_such_unit } => {
                let illegal = self.illegal.remove(&tag);
                let failed = self.open.remove(&tag) | self.late.remove(&tag);
                // Of a command that did not fail, the kernel logs it when somebody debugs.
                if failed {
                    self.denied = (illegal && no_such_unit).then_some(now);
                }
            }
        }
    }

    /// A look sees its path.
    fn see(&mut self, works: bool, now: Monotonic) {
        // A whole look later nothing more comes of these: they had no sense data.
        if !self.late.is_empty() {
            self.denied = None;
        }
        self.late = std::mem::take(&mut self.open);
        let late = &self.late;
        self.illegal.retain(|tag| late.contains(tag));
        let old = |denied: &Monotonic| now.since(*denied) > LINGER;
        if works && (self.down || self.denied.as_ref().is_some_and(old)) {
            self.denied = None;
        }
        self.down = !works;
    }
}

/// What is remembered from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Denials {
    disks: BTreeMap<String, Disk>,
}

impl Denials {
    /// Takes in a line of the log, read at `now`.
    pub fn note(&mut self, line: &Logged, now: Monotonic) {
        if !self.disks.contains_key(&line.disk) {
            self.disks.insert(line.disk.clone(), Disk::default());
        }
        if let Some(disk) = self.disks.get_mut(&line.disk) {
            disk.note(line.tag, line.says, now);
        }
    }

    /// Lines were lost.
    pub fn forget(&mut self) {
        self.disks.values_mut().for_each(|d| {
            *d = Disk {
                down: d.down,
                ..Disk::default()
            }
        });
    }

    /// Marks the paths of a look that are denied. What was logged before that look has been taken in.
    pub fn mark(&mut self, inventory: &mut Inventory) {
        let now = inventory.taken_at;
        let mut there: BTreeMap<String, bool> = BTreeMap::new();
        for path in paths(inventory) {
            // A path of two maps works if one of them says so.
            *there.entry(path.name.clone()).or_default() |= path.active;
        }
        self.disks.retain(|name, _| there.contains_key(name));
        for (name, works) in there {
            match self.disks.get_mut(&name) {
                Some(disk) => disk.see(works, now),
                None if works => {}
                None => {
                    let down = Disk {
                        down: true,
                        ..Disk::default()
                    };
                    self.disks.insert(name, down);
                }
            }
        }
        for path in paths(inventory) {
            let denied = self
                .disks
                .get(&path.name)
                .is_some_and(|d| d.denied.is_some() && d.down && d.late.is_empty());
            // In any other state commands do not get as far as to the target.
            path.denied = denied && lets_commands_through(&path.device_state);
        }
    }
}

fn paths(inventory: &mut Inventory) -> impl Iterator<Item = &mut Path> {
    inventory
        .volume_groups
        .iter_mut()
        .flat_map(|g| &mut g.pvs)
        .flat_map(PhysicalVolume::paths_mut)
}

#[cfg(test)]
#[path = "denials_tests.rs"]
mod tests;
