//! What is told of a volume group that stands fenced: its own devices lead nowhere, and those with the leases to one physical volume only.

use jiff::Timestamp;

use super::*;
use crate::agent::journal::Journal;
use crate::agent::node_conditions::{conditions, reason};
use crate::agent::node_storage::{Moment, Reporter, status};
use crate::agent::{executor, hook};
use crate::api::{ConditionStatus, NodeStorageStatus};
use crate::fence::outage::Outages;
use crate::fence::report::Outcome;
use crate::host::Bell;
use crate::host::simulated::{Group, Layout, Simulation, Under, uuid_of};

/// Two physical volumes, each on a map of two paths; the leases lie on the first. It stands fenced and released.
fn fenced() -> (Simulation, tempfile::TempDir, Standings) {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    let node = Simulation::new(&Layout {
        groups: vec![Group {
            linear: 2,
            under: vec![map, map],
            ..Group::target("vg1")
        }],
    });
    let state = tempfile::tempdir().expect("a directory");
    let host = node.host();
    let boot_id = host.system.boot_id().expect("a boot ID");
    let mut journal = Journal::open(state.path(), &boot_id).expect("a journal").0;
    let order = hook::order("vg1", 1);
    let inventory = node.inventory();
    let never = || false;
    let report = executor::run(&host, &mut journal, &order, inventory, &never, &mut |_| ());
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    // Until sanlock has forgotten the lockspace.
    let later = host.system.monotonic() + Duration::from_secs(9);
    host.system.wait(&Bell::default(), 0, later);
    (node, state, journal.standings())
}

#[test]
fn all_physical_volumes_of_what_stands_fenced_are_told_and_nothing_else_is_decided_by_them() {
    use ConditionStatus::{False, True};
    let (node, _state, standings) = fenced();
    let host = node.host();
    let lost = reason::PHYSICAL_VOLUME_LOST;
    for (leases_volume, paths, is, why) in [
        (true, [0, 0], False, reason::ALL_PATHS_DOWN),
        (true, [2, 0], True, lost),
        // Those with the leases: nothing is given back without them.
        (true, [0, 2], False, reason::ALL_PATHS_DOWN),
        (true, [2, 1], True, reason::SOME_PATHS_LOST),
        (true, [2, 2], True, reason::PATHS_WORK),
        // Nothing leads to the storage any more.
        (false, [0, 0], False, reason::ALL_PATHS_DOWN),
        (false, [2, 0], True, lost),
        (false, [0, 2], True, lost),
        (false, [2, 2], True, reason::PATHS_WORK),
    ] {
        node.state(|s| {
            if !leases_volume && s.device("vg1-lvmlock").is_some() {
                s.deactivate("vg1-lvmlock");
            }
            for (n, active) in paths.into_iter().enumerate() {
                let map = s.device(&format!("mpath-vg1-{n}")).expect("a map");
                map.active_paths = active;
            }
        });
        let mut kept = Kept::listening(&host, Some(standings.clone()));
        let inventory = observe_again(&host, &mut kept, None).expect("a look");
        let mut outages = Outages::default();
        outages.see(&inventory);
        let text = format!("{leases_volume} {paths:?}");
        let [said, _] = conditions(Ok(&inventory), &outages);
        assert_eq!((said.status, said.reason), (is, why), "{text}: {said:?}");
        if why == lost {
            assert!(said.message.contains("it stands fenced"), "{said:?}");
        }
        if let Some(missing) = paths.iter().position(|active| *active == 0)
            && paths != [0, 0]
        {
            let missing = format!("to map mpath-vg1-{missing}");
            assert!(said.message.contains(&missing), "{said:?}");
        }
        let now = Moment {
            wall: Timestamp::UNIX_EPOCH,
            monotonic: inventory.taken_at,
        };
        let before = NodeStorageStatus::default();
        let told = status(Ok(&inventory), &Reporter::default(), &before, now);
        assert_eq!(told.paths, format!("{}/4", paths[0] + paths[1]), "{text}");
        let uuid = uuid_of("vg1");
        let mut groups = told.volume_groups.iter();
        let volumes = groups.find(|g| g.uuid == uuid).map(|g| &g.physical_volumes);
        let volumes = volumes.expect("the volume group");
        let mut devices: Vec<&str> = volumes.iter().map(|v| v.device.as_str()).collect();
        devices.sort_unstable();
        assert_eq!(devices, ["mpath-vg1-0", "mpath-vg1-1"], "{text}");
        // Whoever decides sees what he saw without a record.
        let plain = observe(&host).expect("a look");
        let mut decided = inventory.clone();
        for group in &mut decided.volume_groups {
            group.recorded_pvs.clear();
        }
        assert_eq!(decided.volume_groups, plain.volume_groups, "{text}");
        let mut groups = plain.volume_groups.iter();
        let found = groups.find(|g| g.uuid == uuid).map(|g| g.pvs.len());
        assert_eq!(found, Some(usize::from(leases_volume)));
    }
    node.end();
}

/// Its record is of before: what is in use leads to its physical volumes itself.
#[test]
fn nothing_is_added_to_what_is_open_again() {
    let (node, _state, standings) = fenced();
    node.state(|s| {
        let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
        s.refresh("vg1-lv0", below);
    });
    let host = node.host();
    let mut kept = Kept::listening(&host, Some(standings));
    let inventory = observe_again(&host, &mut kept, None).expect("a look");
    assert_eq!(
        inventory.volume_groups,
        observe(&host).expect("a look").volume_groups
    );
    node.end();
}
