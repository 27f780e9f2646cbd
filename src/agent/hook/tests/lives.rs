//! The hook of a volume group that was fenced before, and is in use anew since.

use super::super::run::of_another_life;
use super::*;
use crate::fence::report::{StepKind, StepResult};
use crate::fence::{Lockspace, VolumeGroup};
use crate::host::Bell;
use crate::host::simulated::State;

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

/// The first hook is dead, and so is its fence in whatever state that is: the second one finds the volume group cut off and released, the third one
/// comes when it is in use again. Whether the first one's was left in the journal until then.
fn second_outage(bench: &Bench, when: &str) -> bool {
    let system = bench.node.host().system;
    let later = system.monotonic() + Duration::from_secs(9);
    system.wait(&Bell::default(), 0, later);
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(!bench.held(), "{when}: {told:?}");
    let boot_id = system.boot_id().expect("boot ID");
    let record = Journal::open(bench.state.path(), &boot_id).expect("open").1;

    in_use_again(bench);
    assert!(bench.held());
    let (verdict, told) = bench.hook();
    assert!(
        matches!(verdict, Verdict::Proven(_)),
        "{when}: {verdict:?} {told:?}"
    );
    bench.assert_fenced(&verdict);
    assert!(!bench.held(), "{when}: {told:?}");
    record.is_some_and(|r| r.unfinished())
}

/// What a hook has left in the journal is of another life then, and no reason to let this one's lease run out.
#[test]
fn a_second_outage_is_fenced_whatever_the_first_one_has_left() {
    let mut left = 0;
    for at in 1.. {
        let bench = Bench::new();
        bench.node.kill_at_call(at);
        let killed = catch_unwind(AssertUnwindSafe(|| bench.hook())).is_err();
        if !bench.node.restart_agent() {
            assert!(!killed && at > 20, "killed {killed}, at call {at}");
            break;
        }
        left += usize::from(second_outage(&bench, &format!("at call {at}")));
    }
    assert!(left > 0, "nothing was ever left");
}

/// By the present look: a lockspace that is frozen may be the one that the fence froze.
fn what_is_of_another_life(bench: &Bench) {
    let boot_id = bench.node.host().system.boot_id().expect("boot ID");
    let record = Journal::open(bench.state.path(), &boot_id).expect("open").1;
    let record = record.expect("a record");
    let mut group = VolumeGroup {
        name: "new".into(),
        uuid: uuid_of("vg1"),
        ..VolumeGroup::default()
    };
    assert!(!of_another_life(&record, &group), "it has no lockspace");
    let with = |frozen| {
        Some(Lockspace {
            frozen,
            ..Lockspace::default()
        })
    };
    group.lockspace = with(true);
    assert!(!of_another_life(&record, &group));
    group.lockspace = with(false);
    assert!(of_another_life(&record, &group));
    // Released without a freeze; and one that was to keep the locks, whose release is none.
    let mut other = record.clone();
    let mut freezes = other.steps.iter_mut();
    let freeze = freezes.find(|s| s.kind == StepKind::FreezeLocks);
    freeze.expect("a step").result = StepResult::Failed;
    assert!(of_another_life(&other, &group));
    other.begun.order.release_locks = ReleaseLocks::Never;
    assert!(!of_another_life(&other, &group));
    group.uuid = uuid_of("other");
    assert!(!of_another_life(&record, &group));
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
    assert!(second_outage(&bench, "released"), "nothing was left");
}
