//! How long a release goes on that the lock manager keeps waiting.

use std::sync::Arc;

use super::Bench;
use super::bench::seconds;
use crate::agent::executor::run;
use crate::agent::hook;
use crate::agent::journal::{Waits, Wanted};
use crate::fence::report::{LocksOutcome, Outcome};
use crate::host::simulated::{Daemon, InFlight, Layout};

fn bench() -> Bench {
    Bench::new(&Layout::default())
}

/// sanlock renews the leases until then: the storage that they lie on lives.
pub(super) fn renewed_until(bench: &Bench, end: u64) {
    for at in (1000..=end).step_by(20) {
        bench.node.at(seconds(at), |s| {
            let now = s.now();
            for l in &mut s.lockspaces {
                l.lockspace.last_renewal = Some(now);
            }
        });
    }
}

/// Nothing resets the host then, and nobody else would have the locks let go.
#[test]
fn while_leases_are_renewed_a_lock_manager_may_come_back_as_late_as_it_likes() {
    for how in [Daemon::Dead, Daemon::Hangs] {
        let bench = bench();
        renewed_until(&bench, 2000);
        bench.node.at(seconds(1001), move |s| s.lvmlockd = how);
        bench.node.at(seconds(1700), |s| s.lvmlockd = Daemon::Alive);
        bench.node.state(|s| {
            s.device("vg1-lv1").expect("device").in_flight = InFlight::Until(seconds(1003));
        });
        let report = bench.fence();
        assert_eq!(
            (&report.outcome, report.locks),
            (&Outcome::Proven, LocksOutcome::Released),
            "{how:?}: {report:#?}"
        );
    }
}

/// A fence of which the lock manager does not answer after the freeze, until it ends by itself: when it did.
fn given_up(bench: &Bench, waits: Waits, unwanted: bool) -> u64 {
    bench.node.at(seconds(1001), |s| s.lvmlockd = Daemon::Dead);
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("device").in_flight = InFlight::Until(seconds(1003));
    });
    let (mut journal, _) = bench.journal();
    let wanted = Wanted::default();
    wanted.tell(waits);
    journal.ask(Arc::new(wanted));
    let node = bench.node.clone();
    let frozen = move || unwanted && !node.log().is_empty();
    let report = run(
        &bench.node.host(),
        &mut journal,
        &bench.order,
        bench.node.inventory(),
        &frozen,
        &mut |_| (),
    );
    bench.check();
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::NotConfirmed),
        "{report:#?}"
    );
    bench.node.now().as_secs()
}

#[test]
fn a_release_ends_when_the_host_does_by_what_is_known() {
    let bench = bench();
    renewed_until(&bench, 1300);
    // 140 s after the last renewal.
    assert_eq!(given_up(&bench, Waits::Nobody, false), 1440);
}

/// Its turn, or the node's storage under new locks, is not kept from others for the sake of a lock manager that may be gone for good.
#[test]
fn a_release_goes_on_beyond_the_reset_that_was_known_only_while_nobody_minds() {
    for (waits, unwanted, renewed, at) in [
        // A minute after the proof, since the host lives longer than was known by then.
        (Waits::First, false, 2000, 1063),
        (Waits::Another, false, 2000, 1063),
        (Waits::First, false, 0, 1120),
        (Waits::Nobody, true, 2000, 1120),
    ] {
        let bench = bench();
        renewed_until(&bench, renewed);
        assert_eq!(given_up(&bench, waits, unwanted), at, "{waits:?}");
    }
    // lvmlockctl has the locks let go itself, once its hook has ended.
    let mut of_hook = bench();
    of_hook.order = hook::order("vg1", 1);
    renewed_until(&of_hook, 2000);
    assert_eq!(given_up(&of_hook, Waits::Nobody, false), 1120);
    let bench = bench();
    renewed_until(&bench, 2000);
    // Those that are renewed now are not the fence's.
    bench.node.at(seconds(1005), |s| {
        s.rejoin(&crate::host::simulated::uuid_of("vg1"));
    });
    assert_eq!(given_up(&bench, Waits::Nobody, false), 1120);
}
