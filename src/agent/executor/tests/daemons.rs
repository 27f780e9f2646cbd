//! Fences in which a daemon, or the journal, does not do as it should.

use jiff::Timestamp;

use super::Bench;
use super::bench::{seconds, step};
use crate::agent::executor::run;
use crate::agent::journal::Journal;
use crate::agent::report::{AgentPart, Context, from_report, happened};
use crate::api::ConditionStatus;
use crate::fence::Monotonic;
use crate::fence::report::{FenceReport, LocksOutcome, Outcome, StepKind, StepResult};
use crate::fence::selection::RefusalReason;
use crate::host::simulated::{Daemon, Dropping, Group, InFlight, Layout, State};

fn bench() -> Bench {
    Bench::new(&Layout::default())
}

#[test]
fn queueing_that_comes_back_is_turned_off_again() {
    let bench = bench();
    bench.node.state(|s| s.multipathd = Daemon::Hangs);
    // Queueing comes back at once, and only then I/O is issued: without the guard it waits for ever.
    bench.node.state(|s| {
        s.later(seconds(0), |_| ());
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1003));
    });
    bench.node.at(seconds(1002), |s| {
        let map = s.device("mpath-vg1-0").expect("map");
        map.dm.targets[0].params = "1 queue_if_no_path 0 1 1 service-time 0 2 0 8:0 8:16".into();
    });
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.count("message mpath-vg1-0"), 2);
    let took = report.finished_after.expect("finished");
    assert!(took < seconds(10), "{took:?}");
}

#[test]
fn a_multipathd_that_hangs_holds_nothing_up() {
    let bench = bench();
    bench.node.state(|s| s.multipathd = Daemon::Hangs);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert!(
        report.finished_after.is_some_and(|t| t < seconds(4)),
        "{report:#?}"
    );
}

#[test]
fn an_lvmlockd_that_fails_leaves_the_devices_alone() {
    for how in [Daemon::Dead, Daemon::Hangs] {
        let bench = bench();
        let inventory = bench.node.inventory();
        bench.node.state(|s| s.lvmlockd = how);
        let (mut journal, _) = bench.journal();
        let report = run(
            &bench.node.host(),
            &mut journal,
            &bench.order,
            inventory,
            &|| false,
            &mut |_| (),
        );
        bench.check();
        assert_eq!(
            report.outcome,
            Outcome::Refused(RefusalReason::LvmlockdUnavailable),
            "{report:#?}"
        );
        assert_eq!(bench.node.log(), Vec::<String>::new());
        assert!(!bench.journal().1.expect("a record").unfinished());
    }
}

/// A fence that is called off from then on, and whatever `each` does whenever it is asked about that.
fn called_off_at(bench: &Bench, at: u64, each: impl Fn(&mut State)) -> FenceReport {
    let inventory = bench.node.inventory();
    let (mut journal, _) = bench.journal();
    let called_off = || {
        bench.node.state(|s| {
            each(s);
            s.now() >= Monotonic::from_secs(at)
        })
    };
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        inventory,
        &called_off,
        &mut |_| (),
    );
    bench.check();
    report
}

#[test]
fn while_lvmlockd_is_silent_a_fence_can_be_called_off() {
    // How it is silent, until when, and when the fence is called off.
    let cases = [
        (Daemon::Dead, 1010, 1005),
        (Daemon::Hangs, 1010, 1005),
        (Daemon::Hangs, 1002, 1001),
    ];
    for (how, until, at) in cases {
        let bench = bench();
        bench
            .node
            .at(seconds(until), |s| s.lvmlockd = Daemon::Alive);
        let begun = std::cell::Cell::new(false);
        let report = called_off_at(&bench, at, |s| {
            if !begun.replace(true) {
                s.lvmlockd = how;
            }
        });
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::CalledOff, LocksOutcome::Kept),
            "{how:?}: {report:#?}"
        );
        assert_eq!(bench.node.log(), Vec::<String>::new(), "{how:?}");
        let freeze = step(&report, StepKind::FreezeLocks, "vg1");
        assert_eq!(freeze.result, StepResult::Skipped, "{how:?}: {report:#?}");
        assert!(!bench.journal().1.expect("a record").unfinished());
    }
}

/// lvmlockd finds it in its socket, whoever has given up on the answer.
#[test]
fn what_may_have_been_frozen_is_not_called_off() {
    let bench = bench();
    let asked = std::cell::Cell::new(0);
    let report = called_off_at(&bench, 1001, |s| {
        asked.set(asked.get() + 1);
        if asked.get() == 2 {
            // Right before the locks are frozen.
            s.lvmlockd = Daemon::Hangs;
            s.later(seconds(10), |s| s.lvmlockd = Daemon::Alive);
        }
    });
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(asked.get(), 2);
}

/// Nor is it refused as if nothing could come of it: lvmlockd may work off what it was told when the order is long gone.
#[test]
fn a_refusal_says_what_may_be_frozen_yet() {
    for sent in [true, false] {
        let bench = bench();
        let asked = std::cell::Cell::new(0);
        let from = if sent { 2 } else { 1 };
        let report = called_off_at(&bench, 9999, |s| {
            asked.set(asked.get() + 1);
            if asked.get() == from {
                s.lvmlockd = Daemon::Hangs;
                s.later(seconds(25), |s| s.lvmlockd = Daemon::Alive);
            }
        });
        let refused = Outcome::Refused(RefusalReason::LvmlockdUnavailable);
        assert_eq!(report.outcome, refused, "{report:#?}");
        let host = bench.node.host();
        let until = host.system.monotonic() + seconds(10);
        host.system.wait(&crate::host::Bell::default(), 0, until);
        bench.check();
        let frozen = bench.node.state(|s| {
            let mut all = s.lockspaces.iter().map(|l| &l.lockspace);
            all.any(|l| l.vg_name == "vg1" && l.frozen)
        });
        assert_eq!(frozen, sent, "{:#?}", bench.node.log());
        let says = "kill_vg of vg1 was sent and not confirmed";
        assert_eq!(report.message.contains(says), sent, "{}", report.message);
        // It is told whatever becomes of the status: the next refusal has its own reason.
        let told = happened(None, &report);
        let event = told.iter().find(|h| h.reason == "FenceRefused");
        let note = &event.expect("an event").note;
        assert_eq!(note.contains("lvmlockctl --drop vg1"), sent, "{note}");
        assert!(note.chars().count() <= 1024, "it is cut: {note}");
    }
}

/// From one second after its start a daemon is silent, and long after the proof it answers again.
fn silent_until(bench: &Bench, end: u64, silence: fn(&mut State, Daemon)) {
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("device").in_flight = InFlight::Until(seconds(1003));
    });
    let at = |t, how| {
        bench
            .node
            .at(seconds(t), move |s: &mut State| silence(s, how));
    };
    at(1001, Daemon::Dead);
    at(end, Daemon::Alive);
}

#[test]
fn a_proof_is_had_anew_before_a_drop_that_comes_late() {
    let daemons: [fn(&mut State, Daemon); 2] =
        [|s, how| s.lvmlockd = how, |s, how| s.sanlock = how];
    for silence in daemons {
        let bench = bench();
        silent_until(&bench, 1020, silence);
        // The SAN is back, and somebody refreshes a volume that was closed already: nobody guards it yet.
        bench.node.at(seconds(1010), |s| {
            let below = s.device("mpath-vg1-0").expect("map").dm.dev;
            s.refresh("vg1-lv0", below);
        });
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released),
            "{report:#?}"
        );
        assert_eq!(bench.count("swap vg1-lv0"), 2, "{:#?}", bench.node.log());
        assert_eq!(bench.open("vg1"), Vec::<String>::new());
    }
}

/// What is known to be open is not called fenced, however long I/O of it takes to end.
#[test]
fn what_is_open_again_is_not_called_proven_before_it_is_closed() {
    let bench = bench();
    silent_until(&bench, 1020, |s, how| s.lvmlockd = how);
    bench.node.at(seconds(1010), |s| {
        let below = s.device("mpath-vg1-0").expect("map").dm.dev;
        s.refresh("vg1-lv0", below);
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Until(seconds(1050));
    });
    let node = bench.node.clone();
    let mut told = Vec::new();
    let report = run(
        &bench.node.host(),
        &mut bench.journal().0,
        &bench.order,
        bench.node.inventory(),
        &|| false,
        &mut |r| {
            let open = |s: &mut State| s.device("vg1-lv0").is_some_and(|d| !d.dm.is_error_only());
            let (at, open) = (node.now().as_secs(), node.state(open));
            told.push((at, r.outcome.clone(), open, r.message.clone()));
            let context = Context {
                generation: 1,
                current_generation: 1,
                started: Timestamp::UNIX_EPOCH,
                now: Timestamp::UNIX_EPOCH,
                before: &AgentPart::default(),
            };
            let part = from_report(r, context);
            let fenced = part.conditions.iter().find(|c| c.type_ == "Fenced");
            let is_true = fenced.is_some_and(|c| c.status == ConditionStatus::True);
            assert!(
                !is_true || r.outcome == Outcome::Proven || !open,
                "{at}: {fenced:?}"
            );
        },
    );
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    assert!(bench.node.now() >= seconds(1050));
    let said = |(_, outcome, open, message): &&(u64, Outcome, bool, String)| {
        *open && *outcome == Outcome::InProgress && message.contains("could reach the SAN again")
    };
    assert!(told.iter().filter(said).count() > 3, "{told:#?}");
    // Until it is looked at nobody knows.
    let known = told.iter().skip_while(|t| !said(t)).filter(|t| t.2);
    assert!(
        known.clone().all(|t| t.1 == Outcome::InProgress),
        "{told:#?}"
    );
}

#[test]
fn a_lock_manager_that_comes_back_late_releases_while_the_host_lives() {
    let bench = bench();
    // The proof is 3 s old by then, and the watchdog fires after 130 s from the last renewal.
    silent_until(&bench, 1090, |s, how| s.lvmlockd = how);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
}

#[test]
fn locks_that_cannot_be_seen_released_are_not_called_so() {
    type Fault = fn(&mut crate::host::simulated::State);
    let faults: [(&str, Fault); 3] = [
        ("the drop does nothing", |s| s.drop = Dropping::Ignored),
        ("sanlock dies after the freeze", |s| {
            s.later(seconds(1), |s| s.sanlock = Daemon::Dead);
        }),
        ("wdmd dies after the freeze", |s| {
            s.later(seconds(1), |s| s.wdmd = Daemon::Hangs);
        }),
    ];
    for (fault, set) in faults {
        let bench = bench();
        bench.node.state(set);
        bench.node.state(|s| {
            s.device("vg1-lv1").expect("device").in_flight = InFlight::Until(seconds(1003));
        });
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::NotConfirmed),
            "{fault}: {report:#?}"
        );
        assert_eq!(report.watchdog.disarmed_after, None, "{fault}");
        assert_eq!(
            step(&report, StepKind::ConfirmRelease, "vg1").result,
            StepResult::Failed,
            "{fault}"
        );
    }
}

#[test]
fn a_drop_that_never_answers_is_seen_in_sanlock() {
    let bench = bench();
    bench.node.state(|s| s.drop = Dropping::NeverAnswers);
    let report = bench.fence();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert!(
        report.finished_after.is_some_and(|t| t < seconds(4)),
        "{report:#?}"
    );
}

#[test]
fn a_drop_that_fails_is_sent_again_but_not_all_the_time() {
    let bench = bench();
    bench.node.state(|s| {
        s.drop = Dropping::Refused;
        s.later(seconds(12), |s| s.drop = Dropping::Works);
    });
    let report = bench.fence();
    assert_eq!(report.locks, LocksOutcome::Released, "{report:#?}");
    let sent = bench.count("drop_vg vg1");
    assert!((2..=4).contains(&sent), "sent {sent} times");
    assert!(
        report.notes.iter().any(|n| n.contains("drop_vg")),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_lockspace_that_was_joined_again_is_not_dropped() {
    for tells in [true, false] {
        let bench = bench();
        bench.node.state(|s| s.tells_generation = tells);
        bench.node.state(|s| {
            let d = s.device("vg1-lv1").expect("a device of that name");
            d.in_flight = InFlight::Until(seconds(1010));
        });
        bench.node.at(seconds(1005), |s| {
            s.rejoin(&crate::host::simulated::uuid_of("vg1"));
        });
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::NotConfirmed),
            "{report:#?}"
        );
        assert_eq!(bench.count("drop_vg vg1"), 0);
    }
}

#[test]
fn a_lockspace_that_was_joined_again_and_frozen_again_is_not_dropped() {
    let bench = bench();
    bench.node.state(|s| {
        let d = s.device("vg1-lv1").expect("a device of that name");
        d.in_flight = InFlight::Until(seconds(1010));
    });
    bench.node.at(seconds(1005), |s| {
        s.rejoin(&crate::host::simulated::uuid_of("vg1"));
        for l in &mut s.lockspaces {
            l.lockspace.frozen = true;
        }
    });
    let report = bench.fence();
    assert_eq!(report.locks, LocksOutcome::NotConfirmed, "{report:#?}");
    assert_eq!(bench.count("drop_vg vg1"), 0);
}

#[test]
fn a_journal_that_cannot_be_written_is_noted_and_holds_nothing_up() {
    let bench = bench();
    std::fs::create_dir(bench.directory.path().join("journal.new")).expect("mkdir");
    let (mut journal, _) = Journal::open(bench.directory.path(), "boot").expect("open");
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        bench.node.inventory(),
        &|| false,
        &mut |_| (),
    );
    bench.check();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released)
    );
    assert!(
        report.notes.iter().any(|n| n.contains("journal")),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_wdmd_that_hangs_does_not_make_the_proof_old() {
    let bench = bench();
    bench.node.state(|s| s.wdmd = Daemon::Hangs);
    let old = bench
        .node
        .state(|s| s.device("vg1-lv0").expect("device").dm.clone());
    bench.node.at(seconds(1002), move |s| {
        let d = s.device("vg1-lv0").expect("device");
        (d.dm.targets, d.dm.deps) = (old.targets, old.deps);
    });
    // The node keeps its own account: a drop while a table is back is a violation.
    bench.fence();
    assert_eq!(bench.count("drop_vg vg1"), 1);
}

#[test]
fn when_all_goes_well_the_proof_waits_for_no_clock() {
    let report = bench().fence();
    let verify = step(&report, StepKind::Verify, "vg1");
    let proven = verify.at.zip(verify.took).map(|(at, took)| at + took);
    assert_eq!(proven, Some(seconds(0)), "{report:#?}");
}

/// While it drops a lockspace lvmlockd tells of no other one: all of them are asked about before the first one is dropped.
#[test]
fn one_that_is_being_dropped_keeps_no_other_one_waiting() {
    let bench = Bench::new(&Layout {
        groups: vec![
            Group::target("vg0"),
            Group::target("vg1"),
            Group::target("vg2"),
        ],
    });
    let report = bench.fence();
    bench.check();
    let mut released = report.volume_groups.iter().map(|g| g.released_after);
    let first = released.next().flatten();
    assert!(first.is_some(), "{report:#?}");
    assert!(released.all(|at| at == first), "{report:#?}");
}
