//! Volume groups that get another name, or that of a fenced one, between a look at the node and the steps of a fence.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Bench;
use super::bench::{seconds, step};
use crate::fence::order::Selection;
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::{Inventory, Lockspace};
use crate::host::Bell;
use crate::host::simulated::{Daemon, Group, InFlight, Layout, uuid_of};

/// An administrator gives it another name, and uses it.
fn renamed(bench: &Bench, to: &str) {
    bench.node.state(|s| s.rename(&uuid_of("vg1"), to));
}

/// An order for two, and what was seen before the second of them got another name.
pub(super) fn two() -> (Bench, Inventory) {
    let bench = Bench::new(&Layout {
        groups: vec![
            Group::target("vg0"),
            Group::target("vg1"),
            Group::bystander("other", true),
        ],
    });
    let inventory = bench.node.inventory();
    (bench, inventory)
}

fn released_as_new(bench: &Bench, report: &FenceReport, when: &str) {
    bench.check();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{when}: {report:#?}"
    );
    assert!(
        !bench.held("vg1") && !bench.held("vg0"),
        "{when}: {report:#?}"
    );
    let told = &report.volume_groups[1];
    let attested = (
        told.name.as_str(),
        told.lockspace.as_deref(),
        told.generation,
    );
    assert_eq!(attested, ("vg1", Some("lvm_new"), Some(1)), "{when}");
    assert!(told.released_after.is_some(), "{when}: {report:#?}");
    let notes = report.notes.join(" ");
    assert!(notes.contains("vg1 was renamed to new"), "{when}: {notes}");
    // Who gives it back finds it by what was asked for, and the lockspace that it had.
    let standings = bench.journal().0.standings();
    let one = standings
        .of(&uuid_of("vg1"))
        .expect("read")
        .expect("it stands");
    assert_eq!(
        (one.group.name.as_str(), one.lockspace.as_deref()),
        ("vg1", Some("lvm_new")),
        "{when}"
    );
}

#[test]
fn a_volume_group_that_was_renamed_since_it_was_looked_at_is_left_alone() {
    let bench = Bench::new(&Layout::default());
    let inventory = bench.node.inventory();
    renamed(&bench, "new");
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert!(
        matches!(report.outcome, Outcome::Refused(_))
            && report.message.contains("called new by now"),
        "{report:#?}"
    );
    assert_eq!(bench.node.log(), Vec::<String>::new());
    assert!(bench.held("vg1") && report.locks == LocksOutcome::Kept);
}

/// The first volume group of the order is frozen by then, so that the fence goes through.
#[test]
fn one_that_was_renamed_after_the_first_freeze_is_released_by_its_new_name() {
    let (bench, inventory) = two();
    renamed(&bench, "new");
    // Another one has its name by now.
    bench.node.state(|s| s.rename(&uuid_of("other"), "vg1"));
    let report = bench.fence_as_seen(inventory);
    released_as_new(&bench, &report, "seen before");
    for done in ["kill_vg new", "drop_vg new"] {
        assert_eq!(bench.count(done), 1, "{:#?}", bench.node.log());
    }
    assert!(bench.held("other"));
}

#[test]
fn killed_anywhere_a_renamed_one_is_released_by_its_new_name_or_kept() {
    let mut completed = 0;
    for at in 1.. {
        let (bench, inventory) = two();
        renamed(&bench, "new");
        bench.node.kill_at_call(at);
        let whole = catch_unwind(AssertUnwindSafe(|| bench.fence_as_seen(inventory)));
        let when = format!("killed at {at}");
        if !bench.node.restart_agent() {
            released_as_new(&bench, &whole.expect("not killed"), "never killed");
            break;
        }
        let frozen = bench.count("kill_vg new") > 0;
        let report = bench.fence();
        if report.outcome == Outcome::Proven {
            released_as_new(&bench, &report, &when);
            completed += 1;
        } else {
            // It was not written down yet by which name it goes on.
            assert!(!frozen && bench.held("vg1"), "{when}: {report:#?}");
            assert_eq!(report.locks, LocksOutcome::Kept, "{when}");
            let named = report.message.contains("vg1 is called new by now")
                || report.message.contains("known are");
            assert!(named, "{when}: {report:#?}");
        }
    }
    assert!(completed > 20, "{completed}");
}

/// An agent that has frozen the first volume group of two, and no more, is killed.
pub(super) fn killed_after_the_first_freeze() -> Bench {
    for at in 1.. {
        let (bench, inventory) = two();
        bench.node.kill_at_call(at);
        let whole = catch_unwind(AssertUnwindSafe(|| bench.fence_as_seen(inventory)));
        assert!(bench.node.restart_agent() && whole.is_err(), "at {at}");
        if bench.node.log() == ["kill_vg vg0"] {
            return bench;
        }
    }
    unreachable!("it freezes");
}

#[test]
fn what_lvmlockd_does_not_tell_is_not_called_released() {
    let bench = killed_after_the_first_freeze();
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    renamed(&bench, "new");
    let report = bench.fence();
    // sanlock has no lockspace of its former name, which says nothing.
    assert!(bench.held("vg1") && bench.open("vg1").is_empty());
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::NotConfirmed),
        "{report:#?}"
    );
    assert_eq!(report.volume_groups[1].released_after, None, "{report:#?}");
    assert_eq!(
        step(&report, StepKind::ConfirmRelease, "vg1").result,
        StepResult::Failed
    );
    let says = "vg1: its locks could not be frozen, and lvmlockd does not tell whether they are held under another name";
    assert!(report.locks_message.contains(says), "{report:#?}");
}

#[test]
fn when_lvmlockd_tells_late_it_is_frozen_proven_again_and_released() {
    for opened in [false, true] {
        let bench = killed_after_the_first_freeze();
        bench.node.state(|s| s.lvmlockd = Daemon::Dead);
        renamed(&bench, "new");
        bench.node.at(seconds(1040), move |s| {
            s.lvmlockd = Daemon::Alive;
            if opened {
                // Nothing kept it from that until now.
                let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
                s.refresh("vg1-lv0", below);
            }
        });
        let report = bench.fence();
        released_as_new(&bench, &report, "late");
        let log = bench.node.log();
        let at = |what: &str| log.iter().rposition(|l| l == what).expect("done");
        assert!(at("kill_vg new") < at("drop_vg new"), "{log:#?}");
        assert_eq!(at("kill_vg new") < at("swap vg1-lv0"), opened, "{log:#?}");
        assert!(at("swap vg1-lv0") < at("drop_vg new"), "{log:#?}");
    }
}

/// It is being renamed just as it is to be frozen: there is no lockspace, and then there is one again.
#[test]
fn locks_that_are_held_under_another_name_are_not_called_released() {
    let (bench, inventory) = two();
    bench.node.state(|s| {
        s.lockspaces.retain(|l| l.lockspace.vg_name != "vg1");
        s.device("vg0-lv0").expect("device").in_flight = InFlight::Until(seconds(1003));
    });
    bench.node.at(seconds(1001), |s| {
        s.join(Lockspace {
            name: "lvm_new".into(),
            vg_name: "new".into(),
            vg_uuid: uuid_of("vg1"),
            host_id: 7,
            generation: Some(1),
            ..Lockspace::default()
        });
    });
    let report = bench.fence_as_seen(inventory);
    bench.check();
    assert!(bench.held("vg1") && !bench.held("vg0"), "{report:#?}");
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    let says = "vg1: its locks are held under the name new that it has by now";
    assert!(report.locks_message.contains(says), "{report:#?}");
}

/// The name is another volume group's by now: its lockspace is neither the fence's to freeze nor to drop.
#[test]
fn a_lockspace_that_has_the_name_of_the_fenced_one_by_now_is_not_dropped() {
    for resumed in [false, true] {
        let bench = if resumed {
            killed_after_the_first_freeze()
        } else {
            two().0
        };
        let inventory = bench.node.inventory();
        renamed(&bench, "new");
        bench.node.state(|s| s.rename(&uuid_of("other"), "vg1"));
        let report = if resumed {
            bench.fence()
        } else {
            bench.fence_as_seen(inventory)
        };
        bench.check();
        assert_eq!(bench.count("kill_vg vg1") + bench.count("drop_vg vg1"), 0);
        assert!(bench.held("other"), "{report:#?}");
    }
}

/// One stands fenced and was renamed elsewhere, and another one that has its name loses its storage: each is the one that it is.
#[test]
fn a_volume_group_that_has_the_name_of_one_that_stands_is_fenced_itself() {
    let named = || Selection::Named(vec!["vg1".into()]);
    for (selection, tells) in [
        (named(), true),
        (Selection::AllShared, true),
        (named(), false),
        (Selection::AllShared, false),
    ] {
        let mut bench = Bench::new(&Layout {
            groups: vec![Group::target("vg1"), Group::target("vg2")],
        });
        bench.node.state(|s| s.tells_generation = tells);
        bench.order.volume_groups = Selection::Named(vec!["vg1".into()]);
        bench.fence();
        let host = bench.node.host();
        let later = host.system.monotonic() + seconds(9);
        host.system.wait(&Bell::default(), 0, later);
        bench.node.state(|s| s.rename(&uuid_of("vg2"), "vg1"));
        bench.order.uid = "another".into();
        let both = selection == Selection::AllShared;
        bench.order.volume_groups = selection;
        let report = bench.fence();
        assert!(
            !bench.held("vg2") && bench.open("vg2").is_empty(),
            "{report:#?}"
        );
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released)
        );
        assert_eq!(bench.count("kill_vg vg1"), 2, "{:#?}", bench.node.log());
        let meant = if both { 2 } else { 1 };
        assert_eq!(report.volume_groups.len(), meant);
        let mut steps = report.steps.iter();
        assert!(
            steps.all(|s| s.result != StepResult::Planned),
            "{report:#?}"
        );
    }
}
