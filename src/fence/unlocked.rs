//! Volume groups that reach the SAN although nobody holds their locks any more: another host may be given them, and the watchdog does not stand
//! behind it.
//!
//! sanlock itself lets go like that of a lockspace whose lease has run out when lvmlockd dies then (`release_token_async`: `space_dead` counts
//! before `PERSISTENT`), whatever is still open.

use std::collections::BTreeSet;

use super::inventory::{Inventory, LockManager, Lockspace, LockspaceState, VolumeGroup, Watchdog};

/// Bytes of a lockspace's name (sanlock's `SANLK_NAME_LEN`).
const NAME_LEN: usize = 48;

/// The shared volume groups that have a device that leads to the SAN, and nothing that stands behind it. What is not known is not told (S5).
///
/// That a volume group is shared is known by the volume with its leases, which is active from the joining of its lockspace on.
#[must_use]
pub fn unlocked(inventory: &Inventory) -> Vec<&VolumeGroup> {
    let open = |g: &&VolumeGroup| {
        let held = g.lockspace.as_ref().is_some_and(holds);
        g.lvmlock.is_some() && !held && g.devices.iter().any(|d| !d.is_error_only())
    };
    let groups = inventory.volume_groups.iter().filter(open);
    let nobody = |g: &&VolumeGroup| {
        let lockspace = lockspace_of(&g.name);
        let told = match &inventory.lock_manager {
            // One that an lvmlockd before left in sanlock, which the present one does not know, holds the locks too.
            LockManager::Running(all) => {
                !all.iter().any(|l| holds(l) && l.is_of(&g.uuid, &lockspace))
            }
            LockManager::LvmlockdUnavailable(_, Some(held)) => {
                inventory.watchdog.known && !held.contains(&lockspace)
            }
            // Whatever lvmlockd says, a sanlock that is silent may have one.
            LockManager::LvmlockdUnavailable(_, None) | LockManager::SanlockUnavailable(..) => {
                false
            }
        };
        told && !watched(&inventory.watchdog, &lockspace)
    };
    groups.filter(nobody).collect()
}

/// One that is on its way out holds nothing any more.
fn holds(lockspace: &Lockspace) -> bool {
    lockspace.state != LockspaceState::Removing
}

/// What lvmlockd calls the lockspace of a volume group begins with this (`LVM_LS_PREFIX`).
const PREFIX: &str = "lvm_";

/// lvmlockd makes the name of the prefix and the volume group's, in which LVM allows ASCII only.
pub(super) fn lockspace_of(vg: &str) -> String {
    PREFIX.chars().chain(vg.chars()).take(NAME_LEN).collect()
}

/// A lockspace of a volume group that sanlock has, or a client of the watchdog's, and that is none of those that are known.
///
/// While there is none, the locks of a volume group are held under no other name either, as which they would be if it was renamed.
pub fn stranger<'a>(
    known: impl Fn(&str) -> bool,
    held: impl IntoIterator<Item = &'a str>,
    watchdog: &'a Watchdog,
) -> Option<&'a str> {
    let clients = watchdog.clients.iter();
    let watched = clients.filter_map(|(client, _)| lockspace_of_client(client));
    let mut all = held.into_iter().chain(watched);
    all.find(|name| name.starts_with(PREFIX) && !known(name))
}

/// Marks those that are so for the second look in a row: the lock manager is asked a moment after the devices were read, and a volume group may have
/// been stopped as it should be in between. `before` are those of the look before, by UUID, and becomes those of this one.
pub fn mark(inventory: &mut Inventory, before: &mut BTreeSet<String>) {
    let found: BTreeSet<String> = unlocked(inventory)
        .into_iter()
        .map(|g| g.uuid.clone())
        .collect();
    for group in &mut inventory.volume_groups {
        group.unlocked = found.contains(&group.uuid) && before.contains(&group.uuid);
    }
    *before = found;
}

/// Whether the watchdog has a client for that lockspace, as far as is known.
fn watched(watchdog: &Watchdog, lockspace: &str) -> bool {
    let mut clients = watchdog.clients.iter();
    clients.any(|(client, _)| is_client_of(client, lockspace))
}

/// Whether a client of wdmd's is sanlock's for that lockspace, by whatever host id.
#[must_use]
pub fn is_client_of(client: &str, lockspace: &str) -> bool {
    lockspace_of_client(client) == Some(lockspace)
}

/// The lockspace that sanlock has a client of wdmd's for.
fn lockspace_of_client(client: &str) -> Option<&str> {
    let (name, _host_id) = client.strip_prefix("sanlock_")?.rsplit_once(':')?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fence::{DmDevice, Monotonic, Target};

    fn device(kind: &str) -> Arc<DmDevice> {
        let target = Target {
            length: 8,
            kind: kind.into(),
            ..Target::default()
        };
        Arc::new(DmDevice {
            sectors: 8,
            targets: vec![target].into(),
            ..DmDevice::default()
        })
    }

    /// A shared volume group without its lockspace, one device open and one cut off.
    fn group(name: &str) -> VolumeGroup {
        VolumeGroup {
            name: name.into(),
            devices: [device("linear"), device("error")].into(),
            lvmlock: Some(DmDevice::default()),
            ..VolumeGroup::default()
        }
    }

    fn node(group: VolumeGroup, lock_manager: LockManager, clients: &[&str]) -> Inventory {
        let client = |name: &&str| ((*name).to_owned(), Monotonic::default());
        Inventory {
            taken_at: Monotonic::default(),
            boot_id: String::new(),
            volume_groups: vec![group],
            lock_manager,
            watchdog: Watchdog {
                known: true,
                clients: clients.iter().map(client).collect(),
                ..Watchdog::default()
            },
        }
    }

    fn told(inventory: &Inventory) -> usize {
        unlocked(inventory).len()
    }

    #[test]
    fn one_that_reaches_the_san_without_a_lockspace_is_told_and_no_other() {
        let running = || LockManager::Running(Vec::new());
        assert_eq!(told(&node(group("san"), running(), &[])), 1);
        let local = VolumeGroup {
            lvmlock: None,
            ..group("local")
        };
        assert_eq!(told(&node(local, running(), &[])), 0);
        let joined = VolumeGroup {
            lockspace: Some(Lockspace::default()),
            ..group("san")
        };
        assert_eq!(told(&node(joined, running(), &[])), 0);
        let dropped = VolumeGroup {
            lockspace: Some(Lockspace {
                state: LockspaceState::Removing,
                ..Lockspace::default()
            }),
            ..group("san")
        };
        assert_eq!(told(&node(dropped, running(), &[])), 1);
        let fenced = VolumeGroup {
            devices: [device("error")].into(),
            ..group("san")
        };
        assert_eq!(told(&node(fenced, running(), &[])), 0);
    }

    #[test]
    fn what_an_lvmlockd_before_left_in_sanlock_holds_the_locks() {
        let left = Lockspace {
            name: "lvm_san".into(),
            ..Lockspace::default()
        };
        let with = |all: Vec<Lockspace>| LockManager::Running(all);
        assert_eq!(told(&node(group("san"), with(vec![left.clone()]), &[])), 0);
        assert_eq!(told(&node(group("sand"), with(vec![left]), &[])), 1);
        let watched = ["sanlock_lvm_san:1"];
        assert_eq!(told(&node(group("san"), with(Vec::new()), &watched)), 0);
    }

    #[test]
    fn another_one_is_seen_by_sanlock_or_by_the_watchdog_alone() {
        let found = |held: &[&'static str], clients: &[&str]| {
            let node = node(group("san"), LockManager::Running(Vec::new()), clients);
            let stranger = stranger(|l| l == "lvm_san", held.iter().copied(), &node.watchdog);
            stranger.map(str::to_owned)
        };
        assert_eq!(found(&[], &[]), None);
        let known = ["sanlock_lvm_san:1", "sanlock_somebodys:1", "another"];
        assert_eq!(found(&["lvm_san", "somebodys"], &known), None);
        let new = || Some("lvm_new".to_owned());
        assert_eq!(found(&["lvm_san", "lvm_new"], &[]), new());
        assert_eq!(
            found(&[], &["sanlock_lvm_san:1", "sanlock_lvm_new:1"]),
            new()
        );
    }

    #[test]
    fn it_is_marked_at_the_second_look_in_a_row() {
        let without = || node(group("san"), LockManager::Running(Vec::new()), &[]);
        let joined = || {
            let lockspace = Some(Lockspace::default());
            let group = VolumeGroup {
                lockspace,
                ..group("san")
            };
            node(group, LockManager::Running(Vec::new()), &[])
        };
        let mut before = BTreeSet::new();
        let looks = [without(), joined(), without(), without(), joined()];
        let marked = looks.map(|mut look| {
            mark(&mut look, &mut before);
            look.volume_groups[0].unlocked
        });
        assert_eq!(marked, [false, false, false, true, false]);
    }

    #[test]
    fn without_lvmlockd_sanlock_and_the_watchdog_tell_and_what_is_not_known_is_not_told() {
        let gone = |held: Option<&[&str]>| {
            let held = held.map(|all| all.iter().map(|l| (*l).to_owned()).collect());
            LockManager::LvmlockdUnavailable("gone".into(), held)
        };
        let one = |vg: &str, clients: &[&str]| told(&node(group(vg), gone(Some(&[])), clients));
        assert_eq!(one("san", &[]), 1);
        assert_eq!(one("san", &["sanlock_lvm_san:1"]), 0);
        assert_eq!(one("san2", &["sanlock_lvm_san:1", "another"]), 1);
        let long = "v".repeat(60);
        let cut = format!("sanlock_lvm_{}:12", "v".repeat(44));
        assert_eq!(one(&long, &[&cut]), 0);
        // A sanlock that needs no watchdog, or does not tell.
        let held = |all| told(&node(group("san"), gone(all), &[]));
        assert_eq!(held(Some(&["lvm_san"])), 0);
        assert_eq!(held(Some(&["lvm_san2"])), 1);
        assert_eq!(held(None), 0);
        let mut blind = node(group("san"), gone(Some(&[])), &[]);
        blind.watchdog.known = false;
        assert_eq!(told(&blind), 0);
        let silent = LockManager::SanlockUnavailable("silent".into(), Vec::new());
        assert_eq!(told(&node(group("san"), silent, &[])), 0);
    }
}
