//! Looks that follow one another against looks that know nothing: the same node, the same inventory.

use proptest::prelude::*;

use super::*;
use crate::host::simulated::{Group, Layout, Simulation, State, Under};

/// What happens to a node between two looks.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    // Read at each look.
    Queues(bool),
    Paths(u32),
    Disk(bool),
    LockspaceGoes,
    LockspaceIsCalled(&'static str),
    // What the kernel tells of, or what has everything read anew.
    Opened(usize),
    Suspended(usize),
    Wiped(usize),
    Removed(usize),
    IsCalled(usize, &'static str),
    Appears(u32),
}

fn change() -> impl Strategy<Value = Change> {
    let name = prop_oneof![
        Just("vg0-lvmlock"),
        Just("new-lvmlock"),
        Just("new-lv"),
        Just("")
    ];
    prop_oneof![
        Just(Change::Nothing),
        any::<bool>().prop_map(Change::Queues),
        (0..3_u32).prop_map(Change::Paths),
        any::<bool>().prop_map(Change::Disk),
        Just(Change::LockspaceGoes),
        prop_oneof![Just("vg0"), Just("new"), Just("")].prop_map(Change::LockspaceIsCalled),
        any::<usize>().prop_map(Change::Opened),
        any::<usize>().prop_map(Change::Suspended),
        any::<usize>().prop_map(Change::Wiped),
        any::<usize>().prop_map(Change::Removed),
        (any::<usize>(), name).prop_map(|(d, name)| Change::IsCalled(d, name)),
        (0..4_u32).prop_map(Change::Appears),
    ]
}

impl Change {
    /// Whether devices have to be read anew for it.
    fn is_heard(self) -> bool {
        !matches!(
            self,
            Self::Nothing
                | Self::Queues(_)
                | Self::Paths(_)
                | Self::Disk(_)
                | Self::LockspaceGoes
                | Self::LockspaceIsCalled(_)
        )
    }

    fn happens(self, s: &mut State) {
        let any = |n: usize| s.devices.keys().nth(n % s.devices.len().max(1)).copied();
        match self {
            Self::Nothing => {}
            Self::Queues(queues) => {
                if queues {
                    s.requeue_now();
                }
            }
            Self::Paths(n) => s.devices.values_mut().for_each(|d| d.active_paths = n),
            Self::Disk(dies) => {
                let disk = DevNo { major: 8, minor: 0 };
                s.dead_disks = dies.then_some(disk).into_iter().collect();
            }
            Self::LockspaceGoes => {
                s.lockspaces.pop();
            }
            Self::LockspaceIsCalled(name) => {
                if let Some(l) = s.lockspaces.first_mut() {
                    name.clone_into(&mut l.lockspace.vg_name);
                }
            }
            Self::Opened(n) => with(s, any(n), |d| d.open_count += 1),
            Self::Suspended(n) => with(s, any(n), |d| d.suspended = !d.suspended),
            Self::Wiped(n) => {
                let name = any(n).and_then(|dev| Some(s.devices.get(&dev)?.dm.name.clone()));
                s.wipe(&name.unwrap_or_default());
            }
            Self::Removed(n) => {
                any(n).and_then(|dev| s.devices.remove(&dev));
            }
            Self::IsCalled(n, name) => with(s, any(n), |d| name.clone_into(&mut d.name)),
            Self::Appears(n) => s.add_volume("vg0", &format!("late{n}")),
        }
    }
}

fn with(s: &mut State, dev: Option<DevNo>, change: impl FnOnce(&mut DmDevice)) {
    if let Some(device) = dev.and_then(|dev| s.devices.get_mut(&dev)) {
        change(&mut device.dm);
    }
}

fn group(at: usize) -> impl Strategy<Value = Group> {
    let under = prop_oneof![
        (0..3_u32, any::<bool>()).prop_map(|(active, queueing)| Under::Map { active, queueing }),
        any::<bool>().prop_map(Under::Disk),
    ];
    let under = prop::collection::vec(under, 1..3);
    (any::<bool>(), 0..5_u32, 0..3_u32, under).prop_map(move |(shared, linear, thin, under)| {
        Group {
            linear,
            thin,
            under,
            ..Group::bystander(&format!("vg{at}"), shared)
        }
    })
}

proptest! {
    #[test]
    fn a_look_that_follows_another_sees_what_one_that_knows_nothing_sees(
        groups in (group(0), group(1)).prop_map(|(a, b)| vec![a, b]),
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let node = Simulation::new(&Layout { groups });
        let (host, mut kept, mut heard) = (node.host(), Kept::default(), 0);
        for change in changes {
            node.state(|s| change.happens(s));
            heard += u64::from(change.is_heard());
            let seen = observe_again(&host, &mut kept, Some(heard)).unwrap();
            prop_assert_eq!(seen, observe(&host).unwrap(), "{:?}", change);
        }
        node.end();
    }
}

/// The addresses of a volume group's devices.
fn addresses(inventory: &Inventory) -> Vec<*const DmDevice> {
    let devices = inventory.volume_groups[0].devices.iter();
    devices.map(Arc::as_ptr).collect()
}

#[test]
fn what_is_read_again_and_is_the_same_is_not_kept_twice() {
    let node = Simulation::new(&Layout {
        groups: vec![Group::target("vg0")],
    });
    let (host, mut kept) = (node.host(), Kept::default());
    let first = observe_again(&host, &mut kept, Some(0)).unwrap();
    let second = observe_again(&host, &mut kept, Some(1)).unwrap();
    let of = |i: &Inventory| Arc::clone(&i.volume_groups[0].devices);
    assert!(Arc::ptr_eq(&of(&first), &of(&second)), "nor is the list");
    node.state(|s| s.device("vg0-lv1").unwrap().dm.open_count += 1);
    let third = observe_again(&host, &mut kept, Some(2)).unwrap();
    let kept = addresses(&second)
        .into_iter()
        .zip(addresses(&third))
        .map(|(before, now)| before == now);
    assert_eq!(kept.collect::<Vec<_>>(), [true, false, true]);
    node.end();
}

#[test]
fn a_list_that_breaks_off_is_no_look() {
    let node = Simulation::new(&Layout::default());
    let (host, mut kept) = (node.host(), Kept::default());
    let before = observe_again(&host, &mut kept, Some(0)).unwrap();
    node.state(|s| s.listing_fails = true);
    assert!(observe_again(&host, &mut kept, Some(1)).is_err());
    node.state(|s| s.listing_fails = false);
    let again = observe_again(&host, &mut kept, Some(1)).unwrap();
    assert_eq!(again, before);
    node.end();
}
