//! What a hook that is killed leaves to the next one, and to the one that comes when the volume group was given back and is lost again.

use super::super::run::of_another_life;
use super::*;
use crate::fence::Lockspace;
use crate::fence::report::{StepKind, StepResult};
use crate::host::Bell;
use crate::host::simulated::State;

/// A hook is killed at each of its calls, one after the other; some time later the next one has fenced and released.
fn killed_at_each_call(later: Duration, mut then: impl FnMut(&Bench, &str)) {
    for at in 1.. {
        let bench = Bench::new();
        bench.node.kill_at_call(at);
        let killed = catch_unwind(AssertUnwindSafe(|| bench.hook())).is_err();
        if !bench.node.restart_agent() {
            assert!(!killed && at > 20, "killed {killed}, at call {at}");
            break;
        }
        let system = bench.node.host().system;
        let bell = Bell::default();
        system.wait(&bell, 0, system.monotonic() + later);
        let when = format!("at call {at}");
        bench.assert_released_by_a_hook(&when);
        then(&bench, &when);
    }
}

#[test]
fn killed_at_whatever_call_the_next_one_completes_it_before_and_after_the_lockspace_is_gone() {
    killed_at_each_call(Duration::ZERO, |_, _| ());
    killed_at_each_call(Duration::from_secs(9), |_, _| ());
}

/// People give the storage back by hand, and the volume group is in use again.
fn in_use_again(bench: &Bench) {
    let uuid = uuid_of("vg1");
    bench.node.state(|s| {
        s.lockspaces.retain(|l| l.lockspace.vg_uuid != uuid);
        s.join_now("vg1");
        s.allow(&uuid);
        let below = s.device("mpath-vg1-0").expect("a map").dm.dev;
        let prefix = format!("LVM-{uuid}");
        let own = s
            .devices
            .values()
            .filter(|d| d.dm.uuid.starts_with(&prefix));
        let names: Vec<_> = own.map(|d| d.dm.name.to_string()).collect();
        for name in names {
            s.refresh(&name, below);
        }
    });
}

/// The second hook has found the volume group cut off and released; the third one comes when it is in use again. Whether the first one's fence was
/// left in the journal until then.
fn second_outage(bench: &Bench, when: &str) -> bool {
    let left = bench.record().is_some_and(|r| r.unfinished());
    in_use_again(bench);
    assert!(bench.held());
    bench.assert_released_by_a_hook(when);
    left
}

/// What a hook has left in the journal is of another life then, and no reason to let this one's lease run out.
#[test]
fn a_second_outage_is_fenced_whatever_the_first_one_has_left() {
    let mut left = 0;
    killed_at_each_call(Duration::from_secs(9), |bench, when| {
        left += usize::from(second_outage(bench, when));
    });
    assert!(left > 0, "nothing was ever left");
}

/// By what lvmlockd tells: a lockspace that is frozen may be the one that the fence froze.
fn what_is_of_another_life(bench: &Bench) {
    let uuid = uuid_of("vg1");
    let record = bench.record().expect("a record");
    let with = |frozen| {
        [Lockspace {
            vg_uuid: uuid.clone(),
            frozen,
            ..Lockspace::default()
        }]
    };
    let granted = with(false);
    assert!(of_another_life(&record, &uuid, &granted));
    assert!(!of_another_life(&record, &uuid, &[]), "it has no lockspace");
    assert!(!of_another_life(&record, &uuid, &with(true)));
    assert!(!of_another_life(&record, &uuid_of("other"), &granted));
    // Released without a freeze; and one that was to keep the locks, whose release is none.
    let mut other = record.clone();
    let mut freezes = other.steps.iter_mut();
    let freeze = freezes.find(|s| s.kind == StepKind::FreezeLocks);
    freeze.expect("a step").result = StepResult::Failed;
    assert!(of_another_life(&other, &uuid, &granted));
    other.begun.order.release_locks = ReleaseLocks::Never;
    assert!(!of_another_life(&other, &uuid, &granted));
}

#[test]
fn nor_is_one_that_was_released_and_not_confirmed() {
    let bench = Bench::new();
    bench
        .node
        .at(Duration::from_secs(1001), |s| s.wdmd = Daemon::Hangs);
    bench.node.at(Duration::from_secs(1012), State::kill_now);
    let killed = catch_unwind(AssertUnwindSafe(|| bench.hook())).is_err();
    assert!(killed && bench.node.restart_agent() && !bench.held());
    bench.node.state(|s| s.wdmd = Daemon::Alive);
    what_is_of_another_life(&bench);
    bench.assert_released_by_a_hook("released");
    assert!(second_outage(&bench, "released"), "nothing was left");
}
