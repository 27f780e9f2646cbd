//! Fences that go as planned.

use super::Bench;
use super::bench::{seconds, step};
use crate::agent::executor::run;
use crate::fence::order::{ReleaseLocks, Selection, WhenPathsRemain};
use crate::fence::report::{DeviceOutcome, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::selection::RefusalReason;
use crate::host::Bell;
use crate::host::simulated::{Dropping, Group, InFlight, Layout, State, Under};

fn only(group: Group) -> Layout {
    Layout {
        groups: vec![
            Group::bystander("other", true),
            group,
            Group::bystander("local", false),
        ],
    }
}

#[test]
fn every_device_is_cut_off_and_the_locks_released() {
    let bench = Bench::new(&Layout::default());
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    assert!(!bench.held("vg1") && bench.held("other"));
    assert!(
        !bench.open("other").is_empty()
            && !bench.open("local").is_empty()
            && !bench.open("impostor").is_empty()
    );
    let group = &report.volume_groups[0];
    assert_eq!((group.devices.len(), group.devices_proven()), (3, 3));
    assert!(
        group
            .devices
            .iter()
            .all(|d| d.outcome == DeviceOutcome::Error && d.swap_took.is_some())
    );
    assert!(
        report
            .steps
            .iter()
            .all(|s| s.result == StepResult::Done && s.at.is_some() && s.took.is_some()),
        "{report:#?}"
    );
    // The simulated lock manager takes one second to let go.
    let disarmed = report.watchdog.disarmed_after.expect("disarmed");
    assert!(
        disarmed >= seconds(1) && disarmed < seconds(3),
        "{disarmed:?}"
    );
    assert!(report.watchdog.armed);
    // 20 s ago renewed, reset after 130 s at the earliest.
    assert_eq!(report.watchdog.budget, Some(seconds(110)));
}

#[test]
fn without_multipath_it_goes_straight_to_the_swap() {
    let bench = Bench::new(&only(Group {
        under: vec![Under::Disk(false), Under::Disk(false)],
        ..Group::target("vg1")
    }));
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert_eq!(
        step(&report, StepKind::Quiesce, "vg1").result,
        StepResult::Skipped
    );
    assert!(!bench.node.log().iter().any(|l| l.starts_with("message")));
}

#[test]
fn several_volume_groups_and_maps_at_once() {
    let map = Under::Map {
        active: 0,
        queueing: true,
    };
    let layout = Layout {
        groups: vec![
            Group {
                under: vec![map, map],
                linear: 50,
                ..Group::target("vg1")
            },
            Group {
                linear: 0,
                ..Group::target("vg2")
            },
            Group::bystander("other", true),
        ],
    };
    let bench = Bench::new(&layout);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert!(!bench.held("vg1") && !bench.held("vg2"));
    assert_eq!(
        report
            .steps
            .iter()
            .filter(|s| s.kind == StepKind::Quiesce)
            .count(),
        3
    );
}

#[test]
fn stacks_are_swapped_from_top_to_bottom() {
    let bench = Bench::new(&only(Group {
        thin: 2,
        ..Group::target("vg1")
    }));
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::Proven);
    let log = bench.node.log();
    let at = |what: &str| {
        log.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("no {what} in {log:?}"))
    };
    for thin in ["swap vg1-thin0", "swap vg1-thin1"] {
        assert!(at(thin) < at("load vg1-pool-tpool"), "{log:?}");
    }
    for below in ["load vg1-pool_tdata", "load vg1-pool_tmeta"] {
        assert!(at("swap vg1-pool-tpool") < at(below), "{log:?}");
    }
}

#[test]
fn working_paths_are_left_alone_when_the_order_says_fence() {
    let layout = only(Group {
        under: vec![Under::Map {
            active: 1,
            queueing: true,
        }],
        ..Group::target("vg1")
    });
    let report = Bench::new(&layout).fence();
    assert_eq!(report.outcome, Outcome::Refused(RefusalReason::PathsRemain));
    assert!(
        report.message.contains("1 of 2 paths"),
        "{}",
        report.message
    );
    let bench = Bench::whatever_paths(&layout);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert_eq!(
        step(&report, StepKind::Quiesce, "vg1").result,
        StepResult::Skipped
    );
    assert!(
        !bench
            .node
            .log()
            .iter()
            .any(|l| l.starts_with("message") || l.starts_with("disable"))
    );
}

#[test]
fn paths_that_fail_during_the_fence_are_seen_by_the_guard() {
    let bench = Bench::whatever_paths(&only(Group {
        under: vec![Under::Map {
            active: 1,
            queueing: true,
        }],
        ..Group::target("vg1")
    }));
    bench
        .node
        .state(|s| s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1010)));
    bench.node.at(seconds(1005), |s| {
        s.device("mpath-vg1-0").expect("map").active_paths = 0;
    });
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    assert_eq!(bench.count("message mpath-vg1-0"), 1);
}

#[test]
fn a_dry_run_touches_nothing_and_lists_what_the_real_run_does() {
    for layout in [
        Layout::default(),
        only(Group {
            thin: 2,
            ..Group::target("vg1")
        }),
        only(Group {
            under: vec![Under::Disk(false)],
            ..Group::target("vg1")
        }),
    ] {
        let mut bench = Bench::new(&layout);
        bench.order.dry_run = true;
        let plan = bench.fence();
        assert_eq!(plan.outcome, Outcome::DryRun);
        assert_eq!(bench.node.log(), Vec::<String>::new());
        assert_eq!(bench.journal().1, None);
        bench.order.dry_run = false;
        let real = bench.fence();
        let steps = |r: &crate::fence::FenceReport| {
            let one = |s: &crate::fence::report::StepReport| {
                (
                    s.kind,
                    s.volume_group.clone(),
                    s.map.clone(),
                    s.result == StepResult::Skipped,
                )
            };
            r.steps.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(steps(&plan), steps(&real));
        assert!(
            plan.steps
                .iter()
                .all(|s| matches!(s.result, StepResult::Planned | StepResult::Skipped))
        );
        let devices = |r: &crate::fence::FenceReport| {
            r.volume_groups[0]
                .devices
                .iter()
                .map(|d| d.uuid.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(devices(&plan), devices(&real));
        let mut swapped: Vec<String> = bench
            .node
            .log()
            .iter()
            .filter_map(|l| l.strip_prefix("swap "))
            .map(str::to_owned)
            .collect();
        let mut planned: Vec<String> = plan.volume_groups[0]
            .devices
            .iter()
            .map(|d| d.name.to_string())
            .collect();
        swapped.sort();
        planned.sort();
        assert_eq!(planned, swapped);
    }
}

#[test]
fn locks_are_kept_when_the_order_says_so() {
    let mut bench = Bench::new(&Layout::default());
    bench.order.release_locks = ReleaseLocks::Never;
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Kept)
    );
    assert!(bench.held("vg1"));
    assert_eq!(bench.count("drop_vg vg1"), 0);
}

#[test]
fn it_can_be_called_off_until_the_locks_are_frozen() {
    let bench = Bench::new(&Layout::default());
    let (mut journal, _) = bench.journal();
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        bench.node.inventory(),
        &|| true,
        &mut |_| (),
    );
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::CalledOff, LocksOutcome::Kept)
    );
    assert_eq!(bench.node.log(), Vec::<String>::new());
    assert!(!bench.journal().1.expect("a record").unfinished());

    // Afterwards it goes through, whatever is wished.
    let node = bench.node.clone();
    let frozen = move || node.log().iter().any(|l| l.starts_with("kill_vg"));
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        bench.node.inventory(),
        &frozen,
        &mut |_| (),
    );
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
}

#[test]
fn progress_is_told_as_each_step_ends() {
    let bench = Bench::new(&Layout::default());
    let (mut journal, _) = bench.journal();
    let mut seen = Vec::new();
    let mut note = |r: &crate::fence::FenceReport| {
        seen.push(
            r.steps
                .iter()
                .filter(|s| s.result == StepResult::Done)
                .count(),
        );
    };
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        bench.node.inventory(),
        &|| false,
        &mut note,
    );
    assert!(seen.is_sorted(), "{seen:?}");
    for done in 0..=report.steps.len() {
        assert!(
            seen.contains(&done),
            "never told that {done} steps were done: {seen:?}"
        );
    }
}

#[test]
fn a_second_fence_of_what_is_fenced_finds_it_so() {
    let bench = Bench::whatever_paths(&Layout::default());
    bench.node.state(|s| s.drop = Dropping::Ignored);
    assert_eq!(bench.fence().locks, LocksOutcome::NotConfirmed);
    bench.node.state(|s| s.drop = Dropping::Works);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.count("swap vg1-lv0"), 1);
}

#[test]
fn affected_means_those_without_paths() {
    let layout = Layout {
        groups: vec![
            Group::target("vg1"),
            Group {
                under: vec![Under::Map {
                    active: 2,
                    queueing: true,
                }],
                ..Group::bystander("other", true)
            },
            Group::bystander("local", false),
        ],
    };
    let mut bench = Bench::new(&layout);
    bench.order.volume_groups = Selection::Affected;
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert_eq!(report.volume_groups.len(), 1);
}

#[test]
fn what_stands_fenced_already_is_read_back_and_told_again() {
    let mut bench = Bench::new(&Layout::default());
    bench.fence();
    let first = bench.journal().0.standings().all().expect("standings");
    let count = |bench: &Bench| bench.count("drop_vg vg1");
    assert_eq!(count(&bench), 1);
    assert_eq!(first[0].proven_anew, None);
    let mut last = None;
    // Somebody else asks, or the same with another spec: paths that are back change nothing about what stands.
    bench.order.when_paths_remain = WhenPathsRemain::Refuse;
    for uid in ["another", "a third"] {
        let system = bench.node.host().system;
        system.wait(&Bell::default(), 0, system.monotonic() + seconds(1));
        bench.order.uid = uid.into();
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released),
            "{report:#?}"
        );
        let group = &report.volume_groups[0];
        assert_eq!((group.devices.len(), group.devices_proven()), (3, 3));
        assert_eq!(group.generation, first[0].generation);
        let now = bench.journal().0.standings().all().expect("standings");
        assert_eq!(now.len(), 1);
        assert_eq!(
            (&now[0].group, now[0].proven),
            (&first[0].group, first[0].proven)
        );
        assert_eq!(now[0].uid, bench.order.uid, "it is this one's from now on");
        let anew = now[0].proven_anew;
        assert!(anew > last && anew > Some(first[0].proven), "{anew:?}");
        last = anew;
    }
    assert_eq!(count(&bench), 1, "nothing is dropped twice");
    assert!(bench.held("other"));
}

/// Nothing is denied of it for that, nor waited for.
#[test]
fn what_stands_fenced_is_told_again_though_lvmlockd_has_not_adopted_it() {
    for adopted in [false, true] {
        let mut bench = Bench::new(&Layout::default());
        bench.node.state(|s| s.drop = Dropping::Refused);
        assert_eq!(bench.fence().locks, LocksOutcome::NotConfirmed);
        bench.node.state(|s| {
            s.drop = Dropping::Works;
            for l in &mut s.lockspaces {
                (l.unadopted, l.lockspace.frozen) = (true, false);
            }
        });
        if adopted {
            let adopt = |s: &mut State| s.lockspaces.iter_mut().for_each(|l| l.unadopted = false);
            let at = bench.node.host().system.monotonic() + seconds(10);
            bench.node.at(at.0, adopt);
        }
        bench.order.uid = "another".into();
        let report = bench.fence();
        assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
        let swap = step(&report, StepKind::Verify, "vg1").at;
        assert!(swap < Some(seconds(2)), "{report:#?}");
        let locks = [LocksOutcome::NotConfirmed, LocksOutcome::Released];
        assert_eq!(report.locks, locks[usize::from(adopted)], "{report:#?}");
        assert_eq!(bench.held("vg1"), !adopted);
    }
}

#[test]
fn of_two_one_that_stands_the_other_is_fenced() {
    let mut bench = Bench::whatever_paths(&Layout {
        groups: vec![Group::target("vg1"), Group::target("vg2")],
    });
    bench.order.volume_groups = Selection::Named(vec!["vg1".into()]);
    bench.fence();
    assert!(bench.held("vg2"));
    bench.order.volume_groups = Selection::Named(vec!["vg1".into(), "vg2".into()]);
    bench.order.generation += 1;
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    // The watchdog that is told of is the second one's.
    assert!(report.watchdog.armed && report.watchdog.budget.is_some());
    assert!(!bench.held("vg2"));
    let standing = bench.journal().0.standings().all().expect("standings");
    assert_eq!(standing.len(), 2);
}

#[test]
fn one_that_stands_and_is_open_again_is_told_with_its_locks_released() {
    let mut bench = Bench::new(&Layout::default());
    bench.fence();
    bench.node.state(|s| {
        let below = s.device("mpath-vg1-0").expect("map").dm.dev;
        s.refresh("vg1-lv0", below);
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
    });
    bench.order.uid = "another".into();
    bench.order.when_paths_remain = WhenPathsRemain::Refuse;
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::NotProven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert!(
        report.message.contains("reset this host now"),
        "{report:#?}"
    );
}
