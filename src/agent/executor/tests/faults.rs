//! Fences in which something goes wrong.

use super::Bench;
use super::bench::{seconds, step};
use crate::agent::executor::run;
use crate::fence::report::{
    DeviceOutcome, DeviceReport, LocksOutcome, Outcome, StepKind, StepResult,
};
use crate::fence::{DevNo, Monotonic, Target};
use crate::host::simulated::{Daemon, Group, InFlight, Layout, Under};

fn bench() -> Bench {
    Bench::new(&Layout::default())
}

fn set(
    bench: &Bench,
    device: &'static str,
    change: impl FnOnce(&mut crate::host::simulated::SimulatedDevice),
) {
    bench
        .node
        .state(|s| change(s.device(device).expect("a device of that name")));
}

#[test]
fn io_that_never_ends_keeps_the_locks() {
    let bench = bench();
    set(&bench, "vg1-lv1", |d| d.in_flight = InFlight::Forever);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert!(report.message.contains("vg1-lv1"), "{}", report.message);
    assert_eq!(bench.count("drop_vg vg1"), 0);
    assert!(bench.held("vg1"));
    let outcomes: Vec<_> = report.volume_groups[0]
        .devices
        .iter()
        .map(|d| (d.name.as_str(), d.outcome))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("vg1-lv0", DeviceOutcome::Error),
            ("vg1-lv1", DeviceOutcome::NotProven),
            ("vg1-lv2", DeviceOutcome::Error)
        ]
    );
    assert_eq!(
        step(&report, StepKind::Swap, "vg1").result,
        StepResult::Failed
    );
    // It goes on until the watchdog must have fired: 140 s after the renewal, 20 s ago.
    assert_eq!(report.finished_after.map(|d| d.as_secs()), Some(120));
}

#[test]
fn one_device_that_falls_short_keeps_the_locks_of_all() {
    let layout = Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    };
    let bench = Bench::new(&layout);
    set(&bench, "vg2-lv0", |d| d.in_flight = InFlight::Forever);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert!(bench.held("vg1") && bench.held("vg2"));
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
}

#[test]
fn io_that_ends_late_completes_the_fence() {
    for (ends, not_proven_first) in [(1030, false), (1085, true)] {
        let bench = bench();
        set(&bench, "vg1-lv1", |d| {
            d.in_flight = InFlight::Until(seconds(ends));
        });
        let (mut journal, _) = bench.journal();
        let mut told = Vec::new();
        let mut tell = |r: &crate::fence::FenceReport| told.push(r.outcome.clone());
        let report = run(
            &bench.node.host(),
            &mut journal,
            &bench.order,
            bench.node.inventory(),
            &|| false,
            &mut tell,
        );
        bench.check();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released),
            "{report:#?}"
        );
        assert_eq!(told.contains(&Outcome::NotProven), not_proven_first);
        let took = report.volume_groups[0].devices[1]
            .swap_took
            .expect("swapped");
        assert!(took >= seconds(ends - 1001), "{took:?}");
    }
}

/// As where a volume group has lost one physical volume, and its leases lie on another: nothing resets the host.
#[test]
fn a_fence_is_tried_on_for_as_long_as_the_leases_are_renewed() {
    let bench = bench();
    set(&bench, "vg1-lv1", |d| {
        d.in_flight = InFlight::Until(seconds(1500));
    });
    for at in (1010..1600).step_by(20) {
        bench.node.at(seconds(at), move |s| {
            for l in &mut s.lockspaces {
                l.lockspace.last_renewal = Some(Monotonic::from_secs(at));
            }
        });
    }
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
}

#[test]
fn without_a_watchdog_the_drain_timeout_is_the_end() {
    let bench = bench();
    set(&bench, "vg1-lv1", |d| d.in_flight = InFlight::Forever);
    bench.node.state(|s| s.wdmd = Daemon::Dead);
    let mut inventory = bench.node.inventory();
    inventory.watchdog = crate::fence::Watchdog::default();
    let report = bench.fence_as_seen(inventory);
    assert_eq!(report.outcome, Outcome::NotProven);
    assert_eq!(report.finished_after.map(|d| d.as_secs()), Some(60));
    let note = "Whether the watchdog is armed is not known";
    assert!(report.notes.iter().any(|n| n.starts_with(note)));
}

#[test]
fn interrupted_and_busy_swaps_are_tried_again() {
    let bench = bench();
    set(&bench, "vg1-lv0", |d| d.interrupts = 3);
    set(&bench, "vg1-lv1", |d| d.busy = 5);
    set(&bench, "mpath-vg1-0", |d| d.busy = 2);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.count("swap vg1-lv0"), 4);
}

#[test]
fn what_the_kernel_has_no_memory_for_is_tried_again() {
    let bench = bench();
    for (device, times) in [("vg1-lv0", 3), ("vg1-lv1", 3), ("mpath-vg1-0", 1)] {
        set(&bench, device, move |d| d.no_memory = times);
    }
    bench.node.state(|s| s.no_thread = Some(("swap".into(), 2)));
    let report = bench.fence();
    let left = bench.node.state(|s| {
        let short = s.devices.values().map(|d| d.no_memory).sum::<u32>();
        (short, s.no_thread.clone())
    });
    assert_eq!(left, (0, Some(("swap".into(), 0))));
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
}

#[test]
fn without_memory_for_it_nothing_is_proven_or_released() {
    for (thread, told) in [
        (false, "Cannot allocate memory"),
        (true, "no thread for it"),
    ] {
        let bench = bench();
        if thread {
            let none = Some(("swap".into(), u32::MAX));
            bench.node.state(|s| s.no_thread = none);
        } else {
            set(&bench, "vg1-lv1", |d| d.no_memory = u32::MAX);
        }
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::NotProven, LocksOutcome::Kept)
        );
        assert!(report.message.contains("vg1-lv1"), "{}", report.message);
        let devices = &report.volume_groups[0].devices;
        let said = |d: &DeviceReport| d.message.as_ref().is_some_and(|m| m.contains(told));
        assert!(devices.iter().any(said), "{told}: {devices:?}");
        assert_eq!(bench.count("drop_vg vg1"), 0);
        assert!(bench.held("vg1"));
    }
}

#[test]
fn devices_that_go_away_need_no_swap() {
    let bench = bench();
    let dev = bench
        .node
        .state(|s| s.device("vg1-lv1").map(|d| d.dm.dev))
        .expect("device");
    set(&bench, "vg1-lv1", |d| d.in_flight = InFlight::Forever);
    bench.node.at(seconds(1004), move |s| {
        s.devices.remove(&dev);
    });
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(
        report.volume_groups[0].devices[1].outcome,
        DeviceOutcome::Gone
    );
}

#[test]
fn a_number_that_another_device_has_now_is_not_touched() {
    let bench = bench();
    let inventory = bench.node.inventory();
    // Between the look and the deed, a volume went and its number passed to a local one.
    set(&bench, "vg1-lv1", |d| {
        d.dm.uuid = "LVM-localxxxxxxxxxxxxxxxxxxxxxxxxxxxreused".into();
    });
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert_eq!(bench.count("load vg1-lv1") + bench.count("swap vg1-lv1"), 0);
    // It stands on a physical volume of the volume group now, so there is no proof.
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
}

#[test]
fn a_stranger_on_a_physical_volume_is_named_and_left_alone() {
    let bench = bench();
    bench.node.state(|s| {
        let pv = s.device("mpath-vg1-0").expect("map").dm.dev;
        let d = s.device("vg1-impostor").expect("impostor");
        d.dm.deps = vec![pv].into();
    });
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert!(
        report.message.contains("vg1-impostor"),
        "{}",
        report.message
    );
    assert!(bench.held("vg1"));
}

#[test]
fn devices_that_appear_are_swapped_too() {
    let bench = bench();
    set(&bench, "vg1-lv1", |d| {
        d.in_flight = InFlight::Until(seconds(1010));
    });
    bench
        .node
        .at(seconds(1005), |s| s.add_volume("vg1", "late"));
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(report.volume_groups[0].devices.len(), 4);
    assert_eq!(bench.count("swap vg1-late"), 1);
}

#[test]
fn a_table_that_comes_back_before_the_proof_is_swapped_again() {
    let bench = bench();
    set(&bench, "vg1-lv1", |d| {
        d.in_flight = InFlight::Until(seconds(1010));
    });
    bench.node.at(seconds(1005), |s| {
        let d = s.device("vg1-lv0").expect("device");
        d.dm.targets = vec![Target {
            length: 2048,
            kind: "linear".into(),
            ..Target::default()
        }]
        .into();
        d.dm.deps = vec![DevNo {
            major: 8,
            minor: 99,
        }]
        .into();
    });
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.count("swap vg1-lv0"), 2);
}

#[test]
fn a_table_that_waits_or_a_suspension_is_no_proof() {
    type Change = fn(&mut crate::host::simulated::SimulatedDevice);
    let changes: [Change; 2] = [
        |d| d.inactive = Some(d.dm.targets.clone()),
        |d| d.dm.suspended = true,
    ];
    for change in changes {
        let bench = bench();
        set(&bench, "vg1-lv1", |d| {
            d.in_flight = InFlight::Until(seconds(1010));
        });
        bench.node.at(seconds(1005), move |s| {
            change(s.device("vg1-lv0").expect("device"));
        });
        let report = bench.fence();
        assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
        assert_eq!(bench.count("swap vg1-lv0"), 2);
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
    }
}

/// An LVM command was killed half-way: the pool is suspended, and its volumes with it (dm-thin.c), so that their swaps wait for it, and it for them.
#[test]
fn a_pool_that_somebody_left_suspended_is_resumed_before_its_volumes_are_waited_for() {
    let bench = Bench::new(&Layout {
        groups: vec![Group {
            // More than there are threads at first.
            thin: 100,
            ..Group::target("vg1")
        }],
    });
    bench.node.state(|s| {
        let dev = s.device("vg1-pool-tpool").expect("device").dm.dev;
        s.leave_suspended(dev);
    });
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    let log = bench.node.log();
    let at = |what: &str| log.iter().position(|l| l == what).expect("done");
    // Only resumed at first: its table is the last of the stack to go.
    assert!(at("load vg1-thin0") < at("swap vg1-pool-tpool"), "{log:#?}");
    assert!(
        at("swap vg1-pool-tpool") < at("load vg1-pool-tpool"),
        "{log:#?}"
    );
    assert_eq!(bench.count("swap vg1-pool-tpool"), 2, "{log:#?}");
    let noted = |n: &String| n.contains("vg1-pool-tpool had been left suspended");
    assert!(report.notes.iter().any(noted), "{:?}", report.notes);
    // It waits until the first ones hang, and for none of the others.
    let swapped = step(&report, StepKind::Swap, "vg1");
    assert!(swapped.took.is_some_and(|t| t < seconds(1)), "{swapped:?}");
}

#[test]
fn a_list_that_cannot_be_read_is_no_proof() {
    let bench = bench();
    let inventory = bench.node.inventory();
    bench.node.state(|s| s.listing_fails = true);
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert!(bench.held("vg1"));
    let outcomes = report.volume_groups[0].devices.iter().map(|d| d.outcome);
    assert!(outcomes.into_iter().all(|o| o == DeviceOutcome::NotProven));
}

#[test]
fn what_was_swapped_is_not_called_proven_before_it_is_read_back() {
    let bench = bench();
    bench.node.state(|s| {
        for n in 0..3 {
            let d = s.device(&format!("vg1-lv{n}")).expect("device");
            d.in_flight = InFlight::Until(seconds(1006));
        }
    });
    bench.node.at(seconds(1005), |s| s.listing_fails = true);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Kept)
    );
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    assert_eq!(report.volume_groups[0].devices_proven(), 0, "{report:#?}");
}

#[test]
fn a_number_that_changes_hands_at_the_load_is_nobodys_loss() {
    let bench = bench();
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("device").passes_on_at_load = true;
    });
    let report = bench.fence();
    assert_eq!(bench.count("load vg1-lv1") + bench.count("swap vg1-lv1"), 0);
    let left = bench
        .node
        .state(|s| s.device("vg1-lv1").expect("device").inactive.clone());
    assert_eq!(left, None);
    assert_eq!(
        report.volume_groups[0].devices[1].outcome,
        DeviceOutcome::Gone
    );
    assert_eq!(report.locks, LocksOutcome::Released);
}

#[test]
fn a_stuck_stack_does_not_hold_up_the_others() {
    let layout = Layout {
        groups: vec![Group {
            thin: 1,
            linear: 60,
            under: vec![Under::Disk(false)],
            ..Group::target("vg1")
        }],
    };
    let bench = Bench::new(&layout);
    bench.node.state(|s| {
        for n in 0..40 {
            s.device(&format!("vg1-lv{n}")).expect("device").in_flight = InFlight::Forever;
        }
        s.device("vg1-thin0").expect("device").in_flight = InFlight::Forever;
    });
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::NotProven);
    let group = &report.volume_groups[0];
    assert_eq!(group.devices_proven(), 20);
    let pool = group
        .devices
        .iter()
        .find(|d| d.name == "vg1-pool-tpool")
        .expect("the pool");
    assert!(
        pool.message
            .as_ref()
            .is_some_and(|m| m.contains("waits for vg1-thin0")),
        "{pool:?}"
    );
    assert_eq!(bench.count("load vg1-pool-tpool"), 0);
}
