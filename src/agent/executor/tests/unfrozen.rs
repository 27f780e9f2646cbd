//! Fences that could not freeze the locks of a volume group: it may come into use until nobody holds them any more.

use std::time::Duration;

use super::Bench;
use super::bench::{seconds, step};
use super::renamed::{killed_after_the_first_freeze, two};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::host::simulated::{Daemon, InFlight, State, uuid_of};

/// lvmlockd is dead when the locks of the second volume group are to be frozen, and becomes so half a minute later; then something happens.
fn fence(becomes: Daemon, then: impl FnOnce(&mut State) + Send + 'static) -> (Bench, FenceReport) {
    let bench = killed_after_the_first_freeze();
    never_frozen(&bench);
    bench.node.at(seconds(1030), move |s| s.lvmlockd = becomes);
    bench.node.at(seconds(1040), then);
    let report = bench.fence();
    let freeze = step(&report, StepKind::FreezeLocks, "vg1");
    assert_ne!(freeze.result, StepResult::Done, "{report:#?}");
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    (bench, report)
}

/// lvmlockd does not answer, and when it does, it is not known whether the lockspace is the one of before: too late to freeze it.
fn never_frozen(bench: &Bench) {
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        s.tells_generation = false;
    });
    bench.node.at(seconds(1010), renew);
}

/// sanlock renews the lease of the second volume group.
fn renew(s: &mut State) {
    let now = s.now();
    let all = s.lockspaces.iter_mut().map(|l| &mut l.lockspace);
    for l in all.filter(|l| l.vg_uuid == uuid_of("vg1")) {
        l.last_renewal = Some(now);
    }
}

/// sanlock lets go of it.
fn let_go(s: &mut State) {
    s.lockspaces
        .retain(|l| l.lockspace.vg_uuid != uuid_of("vg1"));
}

#[test]
fn what_came_into_use_before_sanlock_let_go_is_closed_before_it_is_called_released() {
    for opened in [false, true] {
        let (bench, report) = fence(Daemon::Alive, move |s| {
            if opened {
                let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
                s.refresh("vg1-lv0", below);
            }
            let_go(s);
        });
        assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
        let noted = report
            .notes
            .iter()
            .any(|n| n.contains("nobody held its locks any more"));
        assert_eq!(noted, opened, "{:?}", report.notes);
        let swaps = if opened { 2 } else { 1 };
        assert_eq!(bench.count("swap vg1-lv0"), swaps, "{report:#?}");
    }
}

/// It is not one that nobody held from the beginning: lvmlockd has to tell.
#[test]
fn one_that_was_in_use_waits_for_lvmlockd() {
    let (bench, report) = fence(Daemon::Dead, |s| s.lockspaces.clear());
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    assert_eq!(report.volume_groups[1].released_after, None, "{report:#?}");
    assert!(
        report.locks_message.contains("volume group vg1: "),
        "{report:#?}"
    );
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
}

/// A kernel that does not list any more: what is not known is said, and not called released.
#[test]
fn without_a_look_it_is_said_that_there_was_none() {
    let (_, report) = fence(Daemon::Alive, |s| {
        let_go(s);
        s.listing_fails = true;
    });
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    assert_eq!(report.volume_groups[1].released_after, None, "{report:#?}");
    let says = "vg1: nobody holds its locks any more, and its devices could not be listed since";
    assert!(report.locks_message.contains(says), "{report:#?}");
}

/// A look that cannot be had is had as soon as it can be.
#[test]
fn it_is_not_called_released_without_a_look() {
    let (_, report) = fence(Daemon::Alive, |s| {
        let_go(s);
        s.listing_fails = true;
        s.later(seconds(7), |s| s.listing_fails = false);
    });
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    let released = report.volume_groups[1].released_after;
    assert!(released >= Some(seconds(47)), "{report:#?}");
}

/// It is renamed and joined by its new name, and then another lvmlockd comes, which knows of nothing.
#[test]
fn what_a_new_lvmlockd_does_not_know_may_be_the_same_by_another_name() {
    let bench = killed_after_the_first_freeze();
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        s.rename(&uuid_of("vg1"), "new");
        let all = s.lockspaces.iter_mut();
        for l in all.filter(|l| l.lockspace.vg_name == "new") {
            l.unadopted = true;
        }
    });
    bench.node.at(seconds(1030), |s| s.lvmlockd = Daemon::Alive);
    let report = bench.fence();
    assert!(bench.held("vg1"));
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    assert_eq!(report.volume_groups[1].released_after, None, "{report:#?}");
    assert!(
        report.locks_message.contains("lockspace lvm_new"),
        "{report:#?}"
    );
}

/// Nobody holds its locks, and no watchdog stands behind it: that is what is said, and it is tried for as long as it takes.
#[test]
fn what_is_open_without_locks_and_cannot_be_closed_is_not_left_to_the_watchdog() {
    let bench = killed_after_the_first_freeze();
    never_frozen(&bench);
    bench.node.at(seconds(1030), |s| s.lvmlockd = Daemon::Alive);
    bench.node.at(seconds(1040), |s| {
        let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
        s.refresh("vg1-lv0", below);
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1900));
        let_go(s);
    });
    let mut told = Vec::new();
    let report = bench.fence_telling(&mut |r: &FenceReport| {
        if r.outcome == Outcome::NotProven {
            told.push((r.message.clone(), r.locks, r.locks_message.clone()));
        }
    });
    let (message, locks, locks_message) = told.first().expect("it was given up");
    let says = "The locks of vg0, vg1 had been released before, so another host may use its volumes: reset this host now";
    assert!(message.contains(says), "{message}");
    assert_eq!(*locks, LocksOutcome::Kept, "{locks_message}");
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    assert_eq!(bench.open("vg1"), Vec::<String>::new());
    assert!(report.finished_after > Some(seconds(890)), "{report:#?}");
}

/// lvmlockd is dead when the locks of the second volume group are to be frozen, something happens half a minute after the proof, and then it answers.
fn late(tells: bool, happens: impl FnOnce(&mut State) + Send + 'static) -> (Bench, FenceReport) {
    late_and_killed(tells, happens, false)
}

/// The same; the agent may be killed in between, in its release.
fn late_and_killed(
    tells: bool,
    happens: impl FnOnce(&mut State) + Send + 'static,
    killed: bool,
) -> (Bench, FenceReport) {
    let bench = killed_after_the_first_freeze();
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        s.tells_generation = tells;
    });
    bench.node.at(seconds(1040), happens);
    if killed {
        bench.node.at(seconds(1045), State::kill_now);
        assert!(bench.try_fence().is_none() && bench.node.restart_agent());
        bench.node.state(|s| s.lvmlockd = Daemon::Alive);
    } else {
        bench.node.at(seconds(1050), |s| s.lvmlockd = Daemon::Alive);
    }
    let report = bench.fence();
    assert_eq!(report.outcome, Outcome::Proven, "{report:#?}");
    (bench, report)
}

/// A successor takes the same care, whether or not its predecessor had told how far it got.
#[test]
fn nor_is_it_by_the_successor_of_an_agent_that_was_killed_in_the_release() {
    let rejoin: fn(&mut State) = |s| {
        s.rejoin(&uuid_of("vg1"));
        renew(s);
    };
    for (tells, happens) in [(false, rejoin), (false, renew), (true, rejoin)] {
        let (bench, report) = late_and_killed(tells, happens, true);
        assert!(bench.held("vg1") && !bench.held("vg0"), "{report:#?}");
        assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
        let log = bench.node.log();
        let touched = bench.count("kill_vg vg1") + bench.count("drop_vg vg1");
        assert_eq!(touched, 0, "{log:#?}");
    }
    // One that surely is the same is released by the successor too.
    let (bench, report) = late_and_killed(false, |_| (), true);
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    assert!(!bench.held("vg1") && bench.count("drop_vg vg1") == 1);
}

/// What was sent to it and not answered may be carried out at any time: until then a volume could come into use, also after the proof.
#[test]
fn what_turns_out_to_be_frozen_is_looked_at_before_it_is_dropped() {
    // By when it does, a late freeze or the proof is had anyway.
    let mut turned_out = 0;
    for (half_seconds, opened) in (0..72).flat_map(|n| [(n, false), (n, true)]) {
        let bench = killed_after_the_first_freeze();
        bench.node.state(|s| s.lvmlockd = Daemon::Dead);
        let at = Duration::from_millis(1_004_000 + 500 * half_seconds);
        bench.node.at(at, move |s| {
            s.lvmlockd = Daemon::Alive;
            if opened {
                let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
                s.refresh("vg1-lv0", below);
            }
            let all = s.lockspaces.iter_mut().map(|l| &mut l.lockspace);
            for l in all.filter(|l| l.vg_uuid == uuid_of("vg1")) {
                l.frozen = true;
            }
        });
        let report = bench.fence();
        assert_eq!(report.locks, LocksOutcome::Released, "{at:?} {report:#?}");
        let freeze = step(&report, StepKind::FreezeLocks, "vg1");
        assert_eq!(freeze.result, StepResult::Done, "{at:?} {report:#?}");
        let says = freeze.message.as_deref().unwrap_or_default();
        turned_out += usize::from(says.contains("frozen by now"));
        let log = bench.node.log();
        let at = |what: &str| log.iter().rposition(|l| l == what).expect("done");
        assert!(at("swap vg1-lv0") < at("drop_vg vg1"), "{log:#?}");
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
    }
    assert!(turned_out > 0, "it never did");
}

/// Its lockspace is frozen again and again, and lvmlockd does not do it: the others are released all the same.
#[test]
fn one_that_cannot_be_frozen_keeps_no_other_one() {
    let (bench, inventory) = two();
    bench.node.state(|s| s.lockspaces[0].unadopted = true);
    // Once the other one is frozen.
    bench.node.at(seconds(1001), |s| {
        s.lockspaces[0].unadopted = false;
        s.kill_hangs = true;
    });
    let report = bench.fence_as_seen(inventory);
    let released = |vg: &str| {
        let mut all = report.volume_groups.iter();
        all.find(|g| g.name == vg).and_then(|g| g.released_after)
    };
    assert!(
        released("vg1").is_some_and(|at| at < seconds(10)),
        "{report:#?}"
    );
    assert_eq!(released("vg0"), None, "{report:#?}");
}

/// An lvmlockd that came anew while the fence froze has nothing to be frozen, until it adopts what it had.
#[test]
fn what_is_adopted_after_the_freeze_is_frozen_proven_again_and_dropped() {
    fn adopt(s: &mut State) {
        s.lockspaces.iter_mut().for_each(|l| l.unadopted = false);
    }
    for (killed, rejoined) in [(false, false), (true, false), (false, true), (true, true)] {
        let bench = killed_after_the_first_freeze();
        bench.node.state(|s| {
            let all = s.lockspaces.iter_mut();
            for l in all.filter(|l| l.lockspace.vg_uuid == uuid_of("vg1")) {
                l.unadopted = true;
            }
        });
        bench.node.at(seconds(1040), move |s| {
            if rejoined {
                s.rejoin(&uuid_of("vg1"));
                renew(s);
            }
        });
        if killed {
            bench.node.at(seconds(1045), State::kill_now);
            assert!(bench.try_fence().is_none() && bench.node.restart_agent());
            bench.node.state(adopt);
        } else {
            bench.node.at(seconds(1050), adopt);
        }
        let report = bench.fence();
        let log = bench.node.log();
        let told = bench.count("kill_vg vg1") + bench.count("drop_vg vg1");
        if rejoined {
            assert_eq!(told, 0, "{log:#?}");
            assert!(bench.held("vg1") && !bench.held("vg0"), "{report:#?}");
            continue;
        }
        assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
        assert!(!bench.held("vg1"), "{report:#?}");
        let at = |what: &str| log.iter().rposition(|l| l == what).expect("done");
        assert!(at("kill_vg vg1") < at("drop_vg vg1"), "{log:#?}");
        assert_eq!(told, 2, "{log:#?}");
    }
}

#[test]
fn when_lvmlockd_answers_late_it_is_frozen_proven_again_and_dropped() {
    for (tells, opened) in [(true, false), (true, true), (false, false), (false, true)] {
        let (bench, report) = late(tells, move |s| {
            if opened {
                // It was not frozen: nothing kept it from that.
                let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
                s.refresh("vg1-lv0", below);
            }
        });
        assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
        assert!(!bench.held("vg0") && !bench.held("vg1"), "{report:#?}");
        for kind in [
            StepKind::FreezeLocks,
            StepKind::Release,
            StepKind::ConfirmRelease,
        ] {
            assert_eq!(step(&report, kind, "vg1").result, StepResult::Done);
        }
        let log = bench.node.log();
        let at = |what: &str| log.iter().rposition(|l| l == what).expect("done");
        assert_eq!(at("kill_vg vg1") < at("swap vg1-lv0"), opened, "{log:#?}");
        assert!(at("kill_vg vg1") < at("drop_vg vg1"), "{log:#?}");
        assert!(at("swap vg1-lv0") < at("drop_vg vg1"), "{log:#?}");
        assert_eq!(bench.count("kill_vg vg1"), 1, "{log:#?}");
    }
}

/// Its volumes may be in use under the locks that it has now.
#[test]
fn one_that_was_joined_anew_or_may_have_been_is_neither_frozen_nor_dropped() {
    let rejoin: fn(&mut State) = |s| {
        s.rejoin(&uuid_of("vg1"));
        renew(s);
    };
    // Proven once more for the sake of another volume group, it is tried to be frozen once more.
    let opened: fn(&mut State) = |s| {
        s.rejoin(&uuid_of("vg1"));
        renew(s);
        let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
        s.refresh("vg1-lv0", below);
    };
    let told = "joined again";
    let not_told = "may have been joined again since";
    for (tells, happens, says) in [
        (true, rejoin, told),
        (true, opened, told),
        (false, rejoin, not_told),
        (false, opened, not_told),
        (false, renew, not_told),
    ] {
        let (bench, report) = late(tells, happens);
        assert!(bench.held("vg1") && !bench.held("vg0"), "{report:#?}");
        assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
        assert_eq!(bench.count("kill_vg vg1") + bench.count("drop_vg vg1"), 0);
        // The reason of now, and not that of before.
        let release = step(&report, StepKind::Release, "vg1");
        let why = release.message.as_deref().unwrap_or_default();
        assert!(
            release.result == StepResult::Failed && why.contains(says),
            "{why}"
        );
    }
}

#[test]
fn one_that_was_renewed_meanwhile_is_frozen_and_dropped_where_its_generation_is_told() {
    let (bench, report) = late(true, renew);
    assert!(!bench.held("vg1"), "{report:#?}");
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
}
