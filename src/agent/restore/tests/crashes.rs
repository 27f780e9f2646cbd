//! kill -9 at every call of an un-fence, and its successor (S4).

use super::Bench;
use crate::agent::restore::let_go;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport};
use crate::host::simulated::{Daemon, Group, Layout};

fn layout() -> Layout {
    Layout {
        groups: vec![
            Group::bystander("other", true),
            Group {
                linear: 2,
                ..Group::target("vg1")
            },
        ],
    }
}

/// As a new agent does it: with what the journal says, and attempts until it is done.
fn succeed(bench: &mut Bench) -> UnfenceReport {
    let left = bench.journal().0.lifts().left().expect("read");
    bench.last = left.map(|l| l.report);
    bench.until_done(300)
}

#[test]
fn an_un_fence_that_is_killed_anywhere_is_completed() {
    let mut at = 0;
    loop {
        at += 1;
        let mut bench = Bench::ready(&layout());
        bench.once();
        bench.wait(11);
        bench.node.kill_at_call(at);
        let whole = bench.try_once(&|| false);
        let killed = bench.node.restart_agent();
        bench.check();
        if let (Some(report), false) = (whole, killed) {
            bench.assert_done(&report, "not killed");
            break;
        }
        let report = succeed(&mut bench);
        bench.assert_done(&report, &format!("killed at call {at}"));
        assert_eq!(bench.log_of("lockstart").len(), 1, "killed at call {at}");
    }
    assert!(at > 30, "killed at {at} calls only");
}

#[test]
fn a_second_kill_of_an_un_fence_is_survived_too() {
    for at in (1..120).step_by(5) {
        let mut bench = Bench::ready(&layout());
        for _ in 0..3 {
            bench.once();
            bench.wait(11);
            bench.node.kill_at_call(at);
            let _ = bench.try_once(&|| false);
            bench.node.restart_agent();
        }
        let report = succeed(&mut bench);
        bench.check();
        assert_eq!(
            report.outcome,
            crate::fence::unfence::UnfenceOutcome::Done,
            "{report:#?}"
        );
    }
}

/// An attempt whose paths have been healthy for long enough is killed at that call, and the agent is started again. None: it made fewer.
fn killed_at_work(at: u64) -> Option<Bench> {
    let mut bench = Bench::ready(&layout());
    bench.once();
    bench.wait(11);
    bench.node.kill_at_call(at);
    let _ = bench.try_once(&|| false);
    bench.node.restart_agent().then_some(bench)
}

/// Until a complete look says otherwise the guard keeps what it watched: the next agent has a fence to carry out first, or cannot tell how things stand.
#[test]
fn what_a_killed_one_has_left_is_watched_over_before_the_next_look_has_ended() {
    let mut left = 0;
    for at in 1..40 {
        for unknown in [false, true] {
            let Some(mut bench) = killed_at_work(at) else {
                continue;
            };
            if unknown {
                bench.node.state(|s| s.lvmlockd = Daemon::Dead);
            }
            let report = bench.try_once(&|| !unknown).expect("not killed");
            assert_eq!(report.outcome, UnfenceOutcome::Waiting);
            let devices = bench.devices("vg1");
            left += usize::from(devices.len() == 1);
            assert_eq!(
                bench.guarded("vg1"),
                !devices.is_empty(),
                "{at}: {devices:?}"
            );
            bench.node.state(|s| s.lvmlockd = Daemon::Alive);
            let report = succeed(&mut bench);
            bench.assert_done(&report, &format!("killed at call {at}"));
            assert!(!bench.guarded("vg1"));
        }
    }
    assert!(left > 1, "half-way");
}

/// Its request is gone, and was to keep the storage fenced: what is left of the fence is as if nothing had been begun, and the rest is nobody's.
#[test]
fn what_is_let_go_of_half_way_is_watched_over_and_not_gone_on_with() {
    let mut left = 0;
    for at in 1..40 {
        let Some(bench) = killed_at_work(at) else {
            continue;
        };
        let (journal, _) = bench.journal();
        let half_way = journal.lifts().all().expect("read");
        let host = bench.node.host();
        assert!(let_go(&host, &journal, "another"));
        assert_eq!(
            journal.lifts().all().expect("read"),
            half_way,
            "not its own"
        );
        assert!(let_go(&host, &journal, "uid"));
        assert_eq!(journal.lifts().all().expect("read"), [], "{at}");
        let devices = bench.devices("vg1");
        left += usize::from(devices.len() == 1);
        assert_eq!(
            bench.guarded("vg1"),
            !devices.is_empty(),
            "{at}: {devices:?}"
        );
    }
    assert!(left > 1, "half-way");
}
