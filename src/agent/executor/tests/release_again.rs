//! A release that the lock manager keeps waiting, and another fence that goes first.

use std::sync::Arc;

use super::Bench;
use super::bench::{seconds, step};
use super::giveway::{Process, assert_released, bench as two_groups};
use super::prolonged::renewed_until;
use super::renamed::killed_after_the_first_freeze;
use crate::agent::executor::resume;
use crate::agent::journal::{Journal, Record, Waits, Wanted};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::host::simulated::{Daemon, InFlight, uuid_of};

/// Leases go on being renewed. lvmlockd dies once `a` is frozen, before it is proven.
fn bench() -> Bench {
    let bench = two_groups(Some(1003));
    renewed_until(&bench, 3000);
    bench.node.at(seconds(1001), |s| s.lvmlockd = Daemon::Dead);
    bench
}

fn lvmlockd_is_back(bench: &Bench) {
    bench.node.state(|s| s.lvmlockd = Daemon::Alive);
}

/// `a` is proven, and gives its turn away a minute later.
fn gave_way(process: &mut Process<'_>, bench: &Bench) -> Record {
    let (report, record) = process.fence("a", Waits::First);
    assert_waits(&report);
    assert_eq!(bench.node.now().as_secs(), 1063);
    assert!(bench.held("a") && bench.count("drop_vg a") == 0);
    record.expect("it gave way")
}

fn assert_waits(report: &FenceReport) {
    assert_eq!(
        (&report.outcome, report.locks, report.finished_after),
        (&Outcome::Proven, LocksOutcome::NotConfirmed, None),
        "{report:#?}"
    );
    let told = &report.locks_message;
    assert!(told.contains("has its turn now"), "{told}");
}

#[test]
fn a_release_that_another_fence_went_before_is_tried_again() {
    let bench = bench();
    let mut process = Process::new(&bench);
    let record = gave_way(&mut process, &bench);
    lvmlockd_is_back(&bench);
    let (report, none) = process.fence("b", Waits::Another);
    assert!(none.is_none());
    assert_released(&bench, "b", &report);
    let set_aside = process.journal.set_aside().expect("read");
    assert!(set_aside.len() == 1 && set_aside[0].unfinished());
    process.told.clear();
    let (report, none) = process.resume(record, Waits::Another);
    assert!(none.is_none() && process.journal.set_aside().expect("read").is_empty());
    assert_released(&bench, "a", &report);
    assert_eq!(bench.count("drop_vg a"), 1);
    // It was proven all along.
    assert!(process.told.iter().all(|r| r.outcome == Outcome::Proven));
    for kind in [StepKind::Release, StepKind::ConfirmRelease] {
        assert_eq!(step(&report, kind, "a").result, StepResult::Done);
    }
    let standing = process.journal.standings().of(&uuid_of("a"));
    let standing = standing.expect("read").expect("it stands");
    assert_eq!(standing.locks, LocksOutcome::Released);
}

/// One that has waited for its whole first turn does not keep the next from going first for that long again.
#[test]
fn its_next_turns_are_short_while_others_wait_and_as_long_as_it_takes_otherwise() {
    let bench = bench();
    let mut process = Process::new(&bench);
    let mut record = gave_way(&mut process, &bench);
    for (waits, most) in [(Waits::First, 8), (Waits::Another, 22)] {
        let began = bench.node.now();
        let (report, again) = process.resume(record, waits);
        assert_waits(&report);
        assert_eq!(report.locks_message.matches("has its turn now").count(), 1);
        let took = bench.node.now().saturating_sub(began);
        assert!(took <= seconds(most), "{waits:?}: {took:?}");
        record = again.expect("it gave way");
    }
    bench.node.at(seconds(2000), |s| s.lvmlockd = Daemon::Alive);
    let (report, none) = process.resume(record, Waits::Nobody);
    assert!(none.is_none());
    assert_released(&bench, "a", &report);
    assert_eq!(bench.count("drop_vg a"), 1);
}

#[test]
fn a_lockspace_that_was_joined_anew_meanwhile_is_neither_dropped_nor_cut_off() {
    for tells in [true, false] {
        let bench = bench();
        bench.node.state(|s| s.tells_generation = tells);
        let mut process = Process::new(&bench);
        let record = gave_way(&mut process, &bench);
        lvmlockd_is_back(&bench);
        bench.node.state(|s| {
            s.rejoin(&uuid_of("a"));
            s.device("mpath-a-0").expect("a map").active_paths = 2;
            s.add_volume_on("a", "new", "mpath-a-0");
        });
        let (report, none) = process.resume(record, Waits::Nobody);
        assert!(none.is_none() && report.finished_after.is_some());
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::NotConfirmed),
            "{report:#?}"
        );
        let told = &report.locks_message;
        assert!(told.contains("joined to its lockspace again"), "{told}");
        assert!(bench.held("a") && bench.count("drop_vg a") == 0);
        assert_eq!(bench.open("a"), ["a-new"], "{:#?}", bench.node.log());
        let left = bench.journal().1.expect("a record");
        assert!(!left.unfinished(), "nor by the next agent");
    }
}

#[test]
fn what_was_opened_meanwhile_is_closed_before_the_drop() {
    let bench = bench();
    let mut process = Process::new(&bench);
    let record = gave_way(&mut process, &bench);
    lvmlockd_is_back(&bench);
    bench.node.state(|s| {
        let below = s.device("mpath-a-0").expect("a map").dm.dev;
        s.refresh("a-lv0", below);
        s.device("a-lv0").expect("a device").in_flight = InFlight::Until(seconds(1200));
    });
    process.told.clear();
    let (report, _) = process.resume(record, Waits::Nobody);
    assert_released(&bench, "a", &report);
    assert!(bench.node.now() >= seconds(1200));
    // What is seen to be open is not called proven.
    let open = |r: &FenceReport| r.message.contains("could reach the SAN again");
    let known: Vec<_> = process.told.iter().filter(|r| open(r)).collect();
    assert!(known.len() > 3, "{:#?}", process.told);
    assert!(known.iter().all(|r| r.outcome == Outcome::InProgress));
    assert_eq!(bench.count("drop_vg a"), 1);
}

#[test]
fn the_next_agent_tries_it_again_too() {
    let bench = bench();
    {
        let mut process = Process::new(&bench);
        gave_way(&mut process, &bench);
    }
    lvmlockd_is_back(&bench);
    let report = bench.fence();
    assert_released(&bench, "a", &report);
    assert_eq!(bench.count("drop_vg a"), 1);
}

/// It may have less time than the lease of the one that waits for the lock manager: from the reset that was known first on, nobody waits for that.
#[test]
fn one_that_was_prolonged_gives_way_as_soon_as_another_waits() {
    let bench = bench();
    let wanted = Arc::new(Wanted::default());
    let of_another = Arc::clone(&wanted);
    bench
        .node
        .at(seconds(1130), move |_| of_another.tell(Waits::First));
    let mut process = Process::new(&bench);
    process.journal.ask(wanted);
    let (report, record) = process.fence_now("a");
    assert_waits(&report);
    assert!(record.is_some() && bench.held("a"));
    let ended = bench.node.now();
    assert!(ended >= seconds(1130) && ended < seconds(1135), "{ended:?}");
}

/// Whoever asked for it wants the storage back: giving it back drops the lockspace too.
#[test]
fn one_that_is_not_wanted_any_more_ends_in_its_next_turn() {
    let bench = bench();
    let mut process = Process::new(&bench);
    let record = gave_way(&mut process, &bench);
    let host = bench.node.host();
    let journal = &mut process.journal;
    let report = crate::agent::executor::resume(&host, journal, record, &|| true, &mut |_| ());
    assert_eq!(report.locks, LocksOutcome::NotConfirmed);
    assert!(report.finished_after.is_some() && journal.gave_way().is_none());
    assert!(bench.node.now() < seconds(1140), "{:?}", bench.node.now());
}

/// The successor of one that was killed goes on with it while another waits for the turn.
fn waits_while_another_does(bench: &Bench) -> (Journal, Arc<Wanted>) {
    let (mut journal, left) = bench.journal();
    let wanted = Arc::new(Wanted::default());
    wanted.tell(Waits::First);
    journal.ask(Arc::clone(&wanted));
    let (host, record) = (bench.node.host(), left.expect("a record"));
    let report = resume(&host, &mut journal, record, &|| false, &mut |_| ());
    assert_waits(&report);
    (journal, wanted)
}

/// One of two could not be frozen in time, and is in use by another name when the release is tried again: it keeps the other from nothing, and nothing
/// is done to it.
#[test]
fn one_that_is_in_use_by_another_name_is_neither_frozen_nor_dropped_and_waited_for_by_nobody() {
    let bench = killed_after_the_first_freeze();
    renewed_until(&bench, 3000);
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    let host = bench.node.host();
    let (mut journal, wanted) = waits_while_another_does(&bench);
    let record = journal.gave_way().expect("it gave way");
    lvmlockd_is_back(&bench);
    bench.node.state(|s| s.rename(&uuid_of("vg1"), "new"));
    wanted.tell(Waits::Nobody);
    let began = bench.node.now();
    let report = resume(&host, &mut journal, record, &|| false, &mut |_| ());
    bench.check();
    assert!(bench.held("vg1") && !bench.held("vg0"), "{report:#?}");
    let log = bench.node.log();
    let touched = ["kill_vg new", "drop_vg new", "kill_vg vg1", "drop_vg vg1"];
    assert!(
        touched.iter().all(|what| bench.count(what) == 0),
        "{log:#?}"
    );
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    let took = bench.node.now().saturating_sub(began);
    assert!(took < seconds(30), "{took:?}");
}

/// Tried again and again, a late freeze takes its time each time: the other is let go first all the same.
#[test]
fn a_late_freeze_that_is_not_answered_lets_another_go_first() {
    let bench = killed_after_the_first_freeze();
    renewed_until(&bench, 3000);
    bench.node.state(|s| s.kill_hangs = true);
    let (mut journal, _) = waits_while_another_does(&bench);
    assert!(journal.gave_way().is_some() && !bench.held("vg0") && bench.held("vg1"));
    // A minute after the proof, and the try that was under way by then.
    assert!(bench.node.now() < seconds(1085), "{:?}", bench.node.now());
}
