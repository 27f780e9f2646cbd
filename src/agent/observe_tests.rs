//! A whole node from simulated parts: what each failure becomes.

use std::sync::Arc;
use std::time::Duration;

use super::daemons::{ANSWER, merge};
use super::*;
use crate::fence::topology::is_multipath;
use crate::fence::{Lockspace, LockspaceState, Monotonic, PvKind, Target};
use crate::host::simulated::{Daemon, Layout, Simulation};
use crate::host::{
    Death, Device, DiskInfo, Error, LockspaceHost, Lvmlockd, Multipathd, Sanlock, SanlockLockspace,
    SanlockStatus, Wdmd,
};

const UUID: &str = "Vk7Qw21mVd0gXy9KqZbC3dE4fGh5iJ6k";
const MAP: DevNo = DevNo {
    major: 253,
    minor: 0,
};
const SDA: DevNo = DevNo { major: 8, minor: 0 };
const SDB: DevNo = DevNo {
    major: 8,
    minor: 16,
};

/// A node; a part that is None does not answer.
#[derive(Clone)]
struct Node {
    device_mapper: bool,
    status: &'static str,
    lvmlockd: Option<Vec<Lockspace>>,
    sanlock: Option<Vec<SanlockLockspace>>,
}

fn silent(what: &str) -> Error {
    Error::TimedOut {
        what: what.into(),
        limit: Duration::from_secs(1),
        hint: "Look at it",
    }
}

impl DeviceMapper for Node {
    fn version(&self) -> Result<(u32, u32, u32)> {
        Ok((4, 48, 0))
    }
    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        if !self.device_mapper {
            return Err(silent("device mapper"));
        }
        let target = |kind: &str, params: &str| Target {
            start: 0,
            length: 8,
            kind: kind.into(),
            params: params.into(),
        };
        let map = DmDevice {
            dev: MAP,
            name: "mpatha".into(),
            uuid: "mpath-36001405".into(),
            targets: vec![target(
                "multipath",
                "1 queue_if_no_path 0 1 1 service-time 0 2 1 8:0 1 8:16 1",
            )]
            .into(),
            deps: vec![SDA, SDB].into(),
            ..DmDevice::default()
        };
        let volume = DmDevice {
            dev: DevNo {
                major: 253,
                minor: 1,
            },
            name: "san-vm1".into(),
            uuid: format!("LVM-{UUID}{}", "1".repeat(32)).into(),
            targets: vec![target("linear", "253:0 2048")].into(),
            deps: vec![MAP].into(),
            ..DmDevice::default()
        };
        [map, volume].into_iter().for_each(take);
        Ok(())
    }
    fn device(&self, _: &str) -> Result<DmDevice> {
        unreachable!("not asked")
    }
    fn status(&self, dev: Device) -> Result<Vec<(String, String)>> {
        assert_eq!(dev, MAP);
        Ok(vec![("multipath".into(), self.status.into())])
    }
    fn remove(&self, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
    fn load_error(&self, _: &str, _: u64) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
    fn swap(&self, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
    fn events(&self) -> Result<Box<dyn crate::host::DeviceEvents>> {
        unreachable!("an observation waits for nothing")
    }
    fn message(&self, _: &str, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
}

impl System for Node {
    fn boot_id(&self) -> Result<String> {
        Ok("boot".into())
    }
    fn monotonic(&self) -> Monotonic {
        Monotonic::from_secs(1234)
    }
    fn disk(&self, dev: DevNo) -> Option<DiskInfo> {
        (dev == SDA).then(|| DiskInfo {
            name: "sda".into(),
            state: "running".into(),
            io: None,
        })
    }
    fn rcu_expedited(&self) -> Result<u32> {
        unreachable!("an observation swaps nothing")
    }
    fn set_rcu_expedited(&self, _: u32) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
}

impl Multipathd for Node {
    fn disable_queueing(&self, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
    fn restore_queueing(&self, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
}

impl Lvmlockd for Node {
    fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        self.lvmlockd.clone().ok_or_else(|| silent("lvmlockd"))
    }
    fn kill_vg(&self, _: &str) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
    fn drop_vg(&self, _: &str, _: Duration) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
}

impl Sanlock for Node {
    fn status(&self) -> Result<SanlockStatus> {
        let lockspaces = self.sanlock.clone().ok_or_else(|| silent("sanlock"))?;
        Ok(SanlockStatus {
            lockspaces,
            ..SanlockStatus::default()
        })
    }
    fn host(&self, _: &str, _: u64) -> Result<LockspaceHost> {
        unreachable!("an observation asks for no other host")
    }
    fn declare_dead(&self, _: &Death, _: Duration) -> Result<()> {
        unreachable!("an observation changes nothing")
    }
}

impl Wdmd for Node {
    fn status(&self) -> Watchdog {
        Watchdog {
            known: true,
            fire_timeout: 60,
            ..Watchdog::default()
        }
    }
}

fn lockspace(name: &str) -> Lockspace {
    Lockspace {
        name: format!("lvm_{name}"),
        vg_name: name.into(),
        vg_uuid: if name == "san" {
            UUID.into()
        } else {
            String::new()
        },
        host_id: 7,
        ..Lockspace::default()
    }
}

fn in_sanlock(name: &str, state: LockspaceState) -> SanlockLockspace {
    SanlockLockspace {
        name: name.into(),
        host_id: 7,
        generation: Some(4),
        io_timeout: 10,
        last_renewal: Some(Monotonic::from_secs(1200)),
        last_result: 1,
        state,
    }
}

fn node() -> Node {
    Node {
        device_mapper: true,
        status: "2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1 8:16 A 0 0 1",
        lvmlockd: Some(vec![lockspace("san")]),
        sanlock: Some(vec![in_sanlock("lvm_san", LockspaceState::Healthy)]),
    }
}

fn observed(node: &Node) -> Result<Inventory> {
    let node = Arc::new(node.clone());
    observe(&Host {
        device_mapper: node.clone(),
        system: node.clone(),
        multipathd: node.clone(),
        lvmlockd: node.clone(),
        sanlock: node.clone(),
        wdmd: node,
        ..Simulation::new(&Layout { groups: Vec::new() }).host()
    })
}

#[test]
fn a_healthy_node() {
    let inventory = observed(&node()).unwrap();
    assert_eq!(
        (inventory.taken_at, inventory.boot_id.as_str()),
        (Monotonic::from_secs(1234), "boot")
    );
    let [vg] = inventory.volume_groups.as_slice() else {
        panic!("{inventory:?}")
    };
    let l = vg.lockspace.as_ref().unwrap();
    assert_eq!(
        (l.generation, l.io_timeout, l.last_renewal),
        (Some(4), 10, Some(Monotonic::from_secs(1200)))
    );
    // The map holds both paths for active, but one disk is gone from sysfs.
    assert_eq!(vg.paths(), (1, 2));
    assert!(matches!(&vg.pvs[0].kind, PvKind::Multipath(m) if m.queueing && m.name == "mpatha"));
    assert_eq!(inventory.watchdog.fire_timeout, 60);
}

#[test]
fn a_failed_path_is_seen() {
    let failed = Node {
        status: "2 0 0 0 1 1 E 0 2 2 8:0 F 1 0 1 8:16 F 1 0 1",
        ..node()
    };
    assert!(observed(&failed).unwrap().volume_groups[0].all_paths_gone());
}

#[test]
fn an_unreadable_map_is_not_called_gone() {
    let vg = &observed(&Node {
        status: "nonsense",
        ..node()
    })
    .unwrap()
    .volume_groups[0];
    assert_eq!(vg.paths(), (1, 2));
    assert!(!vg.all_paths_gone());
}

#[test]
fn no_device_mapper_is_an_error() {
    assert!(
        observed(&Node {
            device_mapper: false,
            ..node()
        })
        .is_err()
    );
}

#[test]
fn a_silent_daemon_is_a_state() {
    let inventory = observed(&Node {
        lvmlockd: None,
        ..node()
    })
    .unwrap();
    assert!(
        matches!(&inventory.lock_manager, LockManager::LvmlockdUnavailable(p, _) if p.contains("lvmlockd did not answer"))
    );
    let inventory = observed(&Node {
        sanlock: None,
        ..node()
    })
    .unwrap();
    assert!(
        matches!(&inventory.lock_manager, LockManager::SanlockUnavailable(p, l) if p.contains("sanlock") && l.len() == 1)
    );
    // The volume group is still known to be shared.
    assert!(inventory.volume_groups[0].shared());
}

fn states(
    lvmlockd: Vec<Lockspace>,
    sanlock: Vec<SanlockLockspace>,
) -> Vec<(String, LockspaceState)> {
    let status = SanlockStatus {
        lockspaces: sanlock,
        ..SanlockStatus::default()
    };
    merge(lvmlockd, &status)
        .into_iter()
        .map(|l| (l.name, l.state))
        .collect()
}

#[test]
fn what_sanlock_does_not_have_does_not_hold_the_watchdog() {
    use LockspaceState::{Adding, Removing};
    let starting = Lockspace {
        state: Adding,
        ..lockspace("new")
    };
    let told = states(vec![lockspace("san"), starting], vec![]);
    assert_eq!(
        told,
        [
            ("lvm_san".to_owned(), Removing),
            ("lvm_new".to_owned(), Adding)
        ]
    );
}

#[test]
fn what_only_sanlock_has_is_not_forgotten() {
    use LockspaceState::{Healthy, Removing};
    let told = states(
        vec![],
        vec![
            in_sanlock("lvm_san", Removing),
            in_sanlock("ovirt", Healthy),
        ],
    );
    // Other programs' lockspaces are none of ours.
    assert_eq!(told, [("lvm_san".to_owned(), Removing)]);
}

#[test]
fn the_remains_of_an_earlier_lockspace_stay_remains() {
    use LockspaceState::{Healthy, Removing};
    let old = Lockspace {
        state: Removing,
        ..lockspace("san")
    };
    let told = states(
        vec![old.clone(), lockspace("san")],
        vec![in_sanlock("lvm_san", Healthy)],
    );
    assert_eq!(
        told,
        [
            ("lvm_san".to_owned(), Removing),
            ("lvm_san".to_owned(), Healthy)
        ]
    );
    // While sanlock still has it, and nothing has taken its place, sanlock's word counts.
    let told = states(
        vec![old],
        vec![in_sanlock("lvm_san", LockspaceState::Expired)],
    );
    assert_eq!(told, [("lvm_san".to_owned(), LockspaceState::Expired)]);
}

#[test]
fn what_was_read_is_good_until_a_change_is_heard_of() {
    let node = Simulation::new(&Layout {
        groups: vec![crate::host::simulated::Group::target("vg1")],
    });
    let host = node.host();
    let mut kept = Kept::default();
    let mut look = |heard| {
        let inventory = observe_again(&host, &mut kept, heard).unwrap();
        let group = &inventory.volume_groups[0];
        let PvKind::Multipath(map) = &group.pvs[0].kind else {
            panic!("a map");
        };
        (group.devices[0].open_count, map.queueing)
    };
    let set = |open_count, queues: bool| {
        node.state(|s| {
            s.device("vg1-lv0").unwrap().dm.open_count = open_count;
            let map = s.devices.values_mut().find(|d| is_multipath(&d.dm));
            let params = &mut map.unwrap().dm.targets[0].params;
            let queue = ["0 ", "1 queue_if_no_path "];
            *params = params
                .replacen(queue[usize::from(!queues)], queue[usize::from(queues)], 1)
                .into();
        });
    };
    set(1, true);
    assert_eq!(look(Some(7)), (1, true));
    // The maps are read each time, the rest is what it was.
    set(2, false);
    assert_eq!(look(Some(7)), (1, false));
    assert_eq!(look(Some(8)), (2, false));
    set(3, false);
    assert_eq!(look(None), (3, false), "who cannot hear reads everything");
    set(4, false);
    let later = host.system.monotonic() + OLDEST + Duration::from_secs(1);
    host.system.wait(&crate::host::Bell::default(), 0, later);
    assert_eq!(look(Some(0)), (4, false), "nor is it good for ever");
}

#[test]
fn daemons_that_all_hang_cost_no_more_than_one() {
    let node = Simulation::new(&Layout {
        groups: vec![crate::host::simulated::Group::target("vg1")],
    });
    node.state(|s| {
        s.lvmlockd = Daemon::Hangs;
        s.sanlock = Daemon::Hangs;
        s.wdmd = Daemon::Hangs;
    });
    let began = node.now();
    let inventory = observe(&node.host()).unwrap();
    assert_eq!(node.now(), began + ANSWER);
    assert!(matches!(
        inventory.lock_manager,
        LockManager::LvmlockdUnavailable(..)
    ));
    assert!(
        inventory.watchdog.problem.is_some(),
        "and not: it is not armed"
    );
    assert_eq!(node.violations(), Vec::<String>::new());
    node.end();
}

/// lvmlockd is silent while it drops one, and sanlock still has it when both are asked.
#[test]
fn what_is_being_dropped_is_not_taken_for_one_that_lvmlockd_does_not_know() {
    let node = Simulation::new(&Layout::default());
    node.state(|s| {
        s.lvmlockd = Daemon::Hangs;
        s.later(Duration::from_secs(2), |s| {
            s.lockspaces.clear();
            s.lvmlockd = Daemon::Alive;
        });
    });
    let manager = lock_manager(&node.host());
    assert!(matches!(manager, LockManager::Running(_)), "{manager:?}");
    assert_eq!(manager.lockspaces(), []);
}
