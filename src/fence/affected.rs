//! Which pods have lost their storage: those that hold a device open that a fence has cut off, or one that lies on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inventory::{DevNo, DmDevice};
use super::topology::volume_group_uuid;
use super::unfence::Opener;

/// UID of a volume group.
type Group = String;

/// The devices by which a pod may hold something of fenced volume groups open, with the volume groups that each leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors(BTreeMap<DevNo, Door>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Door {
    name: String,
    /// Mostly one, and mostly the same as of thousands of others.
    groups: Vec<Arc<str>>,
}

impl Doors {
    /// Those of these volume groups, of all devices of the node. `lvmlock`: UUIDs of the volumes with the leases, which are nobody's.
    ///
    /// A device that is not on the error target is none: it is in use under new locks, or is being closed again.
    #[must_use]
    pub fn of(fenced: &BTreeSet<Group>, lvmlock: &BTreeSet<String>, all: &[DmDevice]) -> Self {
        let shared: BTreeMap<&str, Arc<str>> = fenced
            .iter()
            .map(|group| (group.as_str(), Arc::from(group.as_str())))
            .collect();
        let mut leads_to: BTreeMap<DevNo, Vec<Arc<str>>> = BTreeMap::new();
        let mut others = Vec::new();
        for device in all {
            match volume_group_uuid(&device.uuid).and_then(|g| shared.get(g)) {
                Some(group)
                    if device.is_error_only() && !lvmlock.contains(device.uuid.as_str()) =>
                {
                    leads_to.insert(device.dev, vec![Arc::clone(group)]);
                }
                Some(_) => {}
                None => others.push(device),
            }
        }
        // What lies on them, such as an encrypted disk: as many rounds as there are floors.
        let mut grows = true;
        while std::mem::take(&mut grows) {
            for device in &others {
                let below = device.deps.iter().filter_map(|dep| leads_to.get(dep));
                let below: Vec<Arc<str>> = below.flatten().cloned().collect();
                for group in below {
                    let known = leads_to.entry(device.dev).or_default();
                    if !known.contains(&group) {
                        known.push(group);
                        grows = true;
                    }
                }
            }
        }
        let open = all.iter().filter(|d| d.open_count > 0);
        let doors = open.filter_map(|device| {
            let door = Door {
                name: device.name.to_string(),
                groups: leads_to.remove(&device.dev)?,
            };
            Some((device.dev, door))
        });
        Self(doors.collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a device is one.
    #[must_use]
    pub fn has(&self, device: &DmDevice) -> bool {
        self.0.contains_key(&device.dev)
    }
}

/// Pods by volume group, each with the names of the devices that it holds open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected(BTreeMap<Group, BTreeMap<String, BTreeSet<String>>>);

impl Affected {
    /// One more that holds a device open. What belongs to no pod is nobody's to evict.
    pub fn found(&mut self, doors: &Doors, opener: &Opener) {
        let (Some(uid), Some(door)) = (&opener.pod_uid, doors.0.get(&opener.dev)) else {
            return;
        };
        for group in &door.groups {
            let pods = self.0.entry(group.to_string()).or_default();
            pods.entry(uid.clone())
                .or_default()
                .insert(door.name.clone());
        }
    }

    /// Those of some volume groups together, by UID.
    #[must_use]
    pub fn of(&self, groups: &BTreeSet<Group>) -> BTreeMap<String, BTreeSet<String>> {
        let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for group in groups {
            for (uid, volumes) in self.0.get(group).into_iter().flatten() {
                pods.entry(uid.clone())
                    .or_default()
                    .extend(volumes.iter().cloned());
            }
        }
        pods
    }

    /// What both have.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (group, pods) in &self.0 {
            let Some(others) = other.0.get(group) else {
                continue;
            };
            for (uid, volumes) in pods {
                let Some(others) = others.get(uid) else {
                    continue;
                };
                let volumes: BTreeSet<String> = volumes.intersection(others).cloned().collect();
                if !volumes.is_empty() {
                    let pods = both.0.entry(group.clone()).or_default();
                    pods.insert(uid.clone(), volumes);
                }
            }
        }
        both
    }

    /// With what was known before a search that did not come to its end: who was not met again may still be there, as long as the device is open.
    pub fn keep(&mut self, before: &Self, doors: &Doors) {
        let open: BTreeSet<&String> = doors.0.values().map(|door| &door.name).collect();
        for (group, pods) in &before.0 {
            for (uid, volumes) in pods {
                let still = volumes.iter().filter(|v| open.contains(v)).cloned();
                let still: BTreeSet<String> = still.collect();
                if !still.is_empty() {
                    let pods = self.0.entry(group.clone()).or_default();
                    pods.entry(uid.clone()).or_default().extend(still);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "affected_tests.rs"]
mod tests;
