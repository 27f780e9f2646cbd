//! Looks that follow one another against looks that know nothing: the same node, the same inventory.

use proptest::prelude::*;

use super::*;
use crate::fence::denials::{Logged, Says};
use crate::host::Error;
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
                let name = any(n).and_then(|dev| Some(s.devices.get(&dev)?.dm.name.to_string()));
                s.wipe(&name.unwrap_or_default());
            }
            Self::Removed(n) => {
                any(n).and_then(|dev| s.devices.remove(&dev));
            }
            Self::IsCalled(n, name) => with(s, any(n), |d| d.name = name.into()),
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

/// What was logged, look by look; None breaks it.
struct Log(Vec<Option<(bool, Vec<Logged>)>>);

impl ScsiLog for Log {
    fn read(&mut self, take: &mut dyn FnMut(&Logged)) -> Result<bool> {
        let Some((all, lines)) = self.0.remove(0) else {
            return Err(Error::Refused {
                what: "the log".into(),
                detail: "broken".into(),
            });
        };
        lines.iter().for_each(take);
        Ok(all)
    }
}

#[test]
fn a_path_that_its_target_denies_is_seen_so_until_something_speaks_against_it() {
    let node = Simulation::new(&Layout {
        groups: vec![Group::target("vg0")],
    });
    let host = node.host();
    let line = |disk: &str, says| Logged {
        disk: disk.into(),
        tag: 3,
        says,
    };
    let (illegal_request, no_such_unit) = (true, true);
    let says = [
        Says::Failed,
        Says::Key { illegal_request },
        Says::Sense { no_such_unit },
    ];
    let refusal: Vec<Logged> = ["sd0", "sd16"]
        .iter()
        .flat_map(|disk| says.map(|says| line(disk, says)))
        .collect();
    let nothing = || Some((true, vec![]));
    let mut kept = Kept {
        log: Some(Box::new(Log(vec![
            Some((true, refusal.clone())),
            nothing(),
            nothing(),
            // A path works meanwhile.
            nothing(),
            Some((true, refusal.clone())),
            Some((false, vec![])),
            Some((true, refusal)),
            None,
        ]))),
        ..Kept::default()
    };
    let mut look = |paths: u32| {
        node.state(|s| {
            s.devices.values_mut().for_each(|d| d.active_paths = paths);
        });
        let inventory = observe_again(&host, &mut kept, None).unwrap();
        let paths = inventory.volume_groups[0]
            .pvs
            .iter()
            .flat_map(PhysicalVolume::paths);
        paths.map(|p| p.denied).collect::<BTreeSet<bool>>()
    };
    let (denied, not) = (BTreeSet::from([true]), BTreeSet::from([false]));
    assert_eq!(look(2), not, "a path that works is not denied");
    assert_eq!(look(0), denied);
    assert_eq!(look(0), denied);
    assert_eq!(look(2), not);
    assert_eq!(look(0), denied, "denied anew");
    assert_eq!(look(0), not, "lines were lost");
    assert_eq!(look(0), denied);
    assert_eq!(look(0), not, "the log cannot be read");
    assert_eq!(look(0), not, "and is not asked any more");
    node.end();
}
