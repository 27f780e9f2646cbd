//! Kept stacks against new ones: whatever is there, and whatever a look sees of it.

use proptest::prelude::*;

use super::*;
use crate::fence::{LockManager, Monotonic, Target, Watchdog};

const SEVEN: std::ops::Range<u32> = 0..7;

fn dm(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

fn sd(minor: u32) -> DevNo {
    DevNo { major: 8, minor }
}

fn vg_uuid(vg: u32) -> String {
    format!("{vg:x>32}")
}

/// A device of one of three volume groups, a map, or somebody else's; on others and on disks, in any way, circles too.
fn device() -> impl Strategy<Value = DmDevice> {
    let owner = prop_oneof![
        4 => (0..3_u32, 0..9_u32, prop_oneof![3 => Just(""), 1 => Just("-real")])
            .prop_map(|(vg, lv, inner)| format!("LVM-{}{lv:032}{inner}", vg_uuid(vg))),
        2 => SEVEN.prop_map(|n| format!("mpath-{n}")),
        1 => Just("CRYPT-x".to_owned()),
        1 => Just(String::new()),
    ];
    let name = prop_oneof![
        Just("a-lv"),
        Just("b--c-lv"),
        Just("a-lvmlock"),
        Just("b-lvmlock"),
        Just("-x"),
        Just("lvmlock"),
        Just("a-lv-lvmlock")
    ];
    let kind = prop_oneof![
        3 => Just(Some("linear")),
        1 => Just(Some("error")),
        1 => Just(Some("multipath")),
        1 => Just(None)
    ];
    let deps = prop::collection::vec(prop_oneof![SEVEN.prop_map(dm), SEVEN.prop_map(sd)], 0..3);
    (SEVEN, owner, name, kind, deps, 0..2_u32).prop_map(
        |(minor, uuid, name, kind, deps, open_count)| DmDevice {
            dev: dm(minor),
            name: name.into(),
            uuid: uuid.into(),
            open_count,
            targets: kind.map(target).into_iter().collect(),
            deps: deps.into(),
            ..DmDevice::default()
        },
    )
}

fn target(kind: &str) -> Target {
    Target {
        kind: kind.into(),
        ..Target::default()
    }
}

fn look() -> impl Strategy<Value = Look> {
    let paths = prop::collection::vec((SEVEN.prop_map(sd), any::<bool>()), 0..3);
    let map = (any::<bool>(), paths).prop_map(|(queueing, paths)| MapState { queueing, paths });
    let disk = prop_oneof![Just("running"), Just("offline")].prop_map(|state| Disk {
        name: "sd".into(),
        state: state.into(),
        io: None,
    });
    let state = prop_oneof![
        Just(LockspaceState::Healthy),
        Just(LockspaceState::Removing)
    ];
    let name = prop_oneof![Just("a"), Just("b"), Just("b-c"), Just("")];
    let lockspace = (0..3_u32, name, state).prop_map(|(vg, name, state)| Lockspace {
        vg_name: name.into(),
        vg_uuid: vg_uuid(vg),
        state,
        ..Lockspace::default()
    });
    (
        prop::collection::btree_map(SEVEN.prop_map(dm), map, 0..5),
        prop::collection::btree_map(SEVEN.prop_map(sd), disk, 0..7),
        prop::collection::vec(lockspace, 0..4),
        0..9_u64,
    )
        .prop_map(|(maps, disks, lockspaces, at)| Look {
            taken_at: Monotonic::from_secs(at),
            boot_id: "boot".into(),
            maps,
            disks,
            lock_manager: LockManager::Running(lockspaces),
            watchdog: Watchdog::default(),
        })
}

proptest! {
    #[test]
    fn an_inventory_from_kept_stacks_is_the_one_from_new_ones(
        devices in prop::collection::vec(device().prop_map(Arc::new), 0..9),
        looks in prop::collection::vec(look(), 1..5),
    ) {
        let mut kept = Stacks::new(devices.clone());
        for look in looks {
            let new = Stacks::new(devices.clone()).inventory(look.clone());
            let disks = kept.disks(&look.maps);
            prop_assert_eq!(kept.inventory(look), new);
            // Whatever is below is looked for: a disk that is not looked for would be gone.
            for device in kept.devices() {
                for dep in device.deps.iter().filter(|d| d.major == 8) {
                    prop_assert!(disks.contains(dep));
                }
            }
        }
    }

    #[test]
    fn every_device_is_there_once(devices in prop::collection::vec(device().prop_map(Arc::new), 0..20)) {
        let stacks = Stacks::new(devices.clone());
        let numbers = |all: &[Arc<DmDevice>]| all.iter().map(|d| d.dev).collect::<Vec<_>>();
        let once: BTreeSet<DevNo> = numbers(&devices).into_iter().collect();
        prop_assert_eq!(numbers(stacks.devices()), once.into_iter().collect::<Vec<_>>());
        for device in stacks.devices() {
            // Of two of one number, the one that was read last.
            let last = devices.iter().rev().find(|d| d.dev == device.dev);
            prop_assert!(last.is_some_and(|last| Arc::ptr_eq(last, device)));
        }
        let maps = stacks.devices().iter().filter(|d| is_multipath(d)).count();
        prop_assert_eq!(stacks.maps().count(), maps);
    }
}
