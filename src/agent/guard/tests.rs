//! The guard on the simulated node: fences that stand, and what opens them.

mod idle;
mod joined;
mod passed_on;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::agent::executor;
use crate::agent::hook::order;
use crate::agent::journal::Journal;
use crate::fence::DevNo;
use crate::fence::report::Outcome;
use crate::host::simulated::{Daemon, Group, InFlight, Layout, Simulation, State, uuid_of};

struct Bench {
    node: Simulation,
    state: tempfile::TempDir,
    news: Arc<Mutex<Vec<News>>>,
}

const PV: DevNo = DevNo { major: 8, minor: 9 };

impl Bench {
    /// vg1 stands fenced and released.
    fn new() -> Self {
        Self::of(&["vg1"])
    }

    /// These do.
    fn of(vgs: &[&str]) -> Self {
        let me = Self::in_use(vgs);
        for vg in vgs {
            me.fence(vg);
        }
        me
    }

    /// None of these does.
    fn in_use(vgs: &[&str]) -> Self {
        let targets = vgs.iter().map(|vg| Group::target(vg));
        let other = Group::bystander("other", true);
        let layout = Layout {
            groups: std::iter::once(other).chain(targets).collect(),
        };
        Self {
            node: Simulation::new(&layout),
            state: tempfile::tempdir().expect("a directory"),
            news: Arc::default(),
        }
    }

    /// As a kill hook does it, in a process of its own.
    fn fence(&self, vg: &str) {
        let report = executor::run(
            &self.node.host(),
            &mut self.journal(),
            &order(vg, 1),
            self.node.inventory(),
            &|| false,
            &mut |_| (),
        );
        assert_eq!(report.outcome, Outcome::Proven);
    }

    fn journal(&self) -> Journal {
        let boot_id = self.node.host().system.boot_id().expect("boot ID");
        Journal::open(self.state.path(), &boot_id).expect("open").0
    }

    fn standing(&self) -> Standing {
        let standing = self.journal().standings().of(&uuid_of("vg1"));
        standing.expect("read").expect("it stands")
    }

    fn guard(&self) -> Guard {
        let news = Arc::clone(&self.news);
        let tell = move |one: Option<News>, _: &[Standing]| {
            news.lock().expect("lock").extend(one);
        };
        Guard::new(self.node.host(), self.journal().standings(), Box::new(tell))
    }

    fn reasons(&self) -> Vec<&'static str> {
        let news = self.news.lock().expect("lock");
        news.iter().map(|n| n.reason).collect()
    }

    /// Looks for so long, as the guard's own loop does.
    fn watch(&self, guard: &mut Guard, span: Duration) {
        let host = self.node.host();
        let until = host.system.monotonic() + span;
        while host.system.monotonic() < until {
            let wait = guard.round().min(LOOK_CLOSELY);
            let at = host.system.monotonic() + wait;
            host.system.wait(&Bell::default(), 0, at);
        }
    }

    fn open(&self) -> Vec<String> {
        self.node.state(|s| s.not_fenced(&uuid_of("vg1")))
    }

    /// The map of that volume group queues again, as after `multipathd restorequeueing map`.
    fn queue_again(&self, vg: &str) {
        let multipathd = self.node.host().multipathd;
        let map = format!("mpath-{vg}-0");
        multipathd.restore_queueing(&map).expect("restore");
        self.node.state(State::requeue_now);
    }

    fn queues(&self, vg: &str) -> bool {
        self.node.state(|s| {
            let map = s.device(&format!("mpath-{vg}-0")).expect("map");
            map.dm.targets[0].params.contains("queue_if_no_path")
        })
    }

    fn refresh(&self) {
        self.node.state(|s| s.refresh("vg1-lv0", PV));
        assert_eq!(self.open(), ["vg1-lv0"]);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        assert_eq!(self.node.violations(), Vec::<String>::new());
        self.node.end();
    }
}

const SPAN: Duration = Duration::from_secs(10);

#[test]
fn a_refresh_is_fenced_again_and_told_with_its_time() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.reasons(), ["FencedByKillHook"]);
    let locks = |log: Vec<String>| log.iter().filter(|l| l.contains("_vg")).count();
    let before = locks(bench.node.log());
    let opened = bench.node.now();
    bench.node.state(|s| {
        // I/O that went out while it was open takes three seconds.
        let until = InFlight::Until(opened + Duration::from_secs(3));
        s.device("vg1-lv0").expect("device").in_flight = until;
    });
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), Vec::<String>::new());
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "FenceOpened", "FenceClosedAgain"]
    );
    let standing = bench.standing();
    assert_eq!(standing.openings, 1);
    let opening = standing.last_opening.expect("an opening");
    assert_eq!(opening.devices, ["vg1-lv0"]);
    let open = opening.open_at_most.expect("closed");
    // Never less than it was, and not much more.
    assert!(
        open >= Duration::from_secs(3) && open < Duration::from_secs(5),
        "{open:?}"
    );
    assert_eq!(locks(bench.node.log()), before, "no lock is touched");
}

#[test]
fn each_opening_is_told_in_words_of_its_own() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    for _ in 0..3 {
        bench.refresh();
        bench.watch(&mut guard, SPAN);
        assert_eq!(bench.open(), Vec::<String>::new());
    }
    assert_eq!(bench.standing().openings, 3);
    for reason in ["FenceOpened", "FenceClosedAgain"] {
        let news = bench.news.lock().expect("lock");
        let notes = news.iter().filter(|n| n.reason == reason).map(|n| &n.note);
        let notes: std::collections::BTreeSet<_> = notes.collect();
        // An event that says what one before said is taken for the same one, and lost.
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(
            notes
                .iter()
                .any(|n| n.contains("opening 2 of the fence by"))
        );
    }
}

#[test]
fn the_kernel_rings_so_that_it_does_not_stay_open_for_a_second() {
    let bench = Bench::new();
    let guard = bench.guard();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let host = bench.node.host();
    let work = move || guard.run(|| stopped.load(Ordering::Relaxed));
    host.system.spawn("guard", Box::new(work)).expect("thread");
    let begin = bench.node.now() + Duration::from_millis(5300);
    bench.node.at(begin, |s| s.refresh("vg1-lv0", PV));
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    bench.node.at(begin + Duration::from_millis(250), move |s| {
        seen.store(s.not_fenced(&uuid_of("vg1")).is_empty(), Ordering::Relaxed);
    });
    let until = host.system.monotonic() + SPAN;
    host.system.wait(&Bell::default(), 0, until);
    stop.store(true, Ordering::Relaxed);
    assert!(closed.load(Ordering::Relaxed), "{:?}", bench.reasons());
    let standing = bench.standing();
    assert_eq!(standing.openings, 1);
    let open = standing.last_opening.and_then(|o| o.open_at_most);
    assert!(
        open.is_some_and(|o| o < Duration::from_millis(400)),
        "{open:?}"
    );
}

#[test]
fn a_new_device_of_a_fenced_volume_group_is_closed_and_told() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    let dev = DevNo {
        major: 253,
        minor: 99,
    };
    let uuid = format!("LVM-{}{}", uuid_of("vg1"), "n".repeat(32));
    bench.node.state(|s| s.activate(dev, "vg1-new", &uuid, PV));
    assert_eq!(bench.open(), ["vg1-new"]);
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), Vec::<String>::new());
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "FenceOpened", "FenceClosedAgain"]
    );
    let opening = bench.standing().last_opening.expect("an opening");
    assert_eq!(opening.devices, ["vg1-new"]);
    // It counts as what the fence left behind from now on.
    assert_eq!(bench.standing().newest, Some(1));
}

#[test]
fn a_stranger_on_a_physical_volume_is_told_and_keeps_no_closing_from_its_end() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    let pv = bench.standing().group.pvs[0].dev;
    let dev = DevNo {
        major: 253,
        minor: 99,
    };
    bench.node.state(|s| s.activate(dev, "x", "", pv));
    bench.watch(&mut guard, SPAN);
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "StrangerOnFencedGroup"]
    );
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), Vec::<String>::new());
    assert_eq!(
        bench.reasons()[2..],
        ["FenceOpened", "FenceClosedAgain"],
        "it is told for the devices that are the volume group's"
    );
    assert!(guard.closing.is_empty());
    // A second one is noticed as well.
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!((bench.standing().openings, bench.open()), (2, vec![]));
}

#[test]
fn a_fence_that_is_lifted_is_not_guarded() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    assert!(
        bench
            .journal()
            .standings()
            .lift(&uuid_of("vg1"))
            .expect("lift")
    );
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0"]);
    assert_eq!(bench.reasons(), ["FencedByKillHook"]);
}

#[test]
fn a_closing_that_goes_on_ends_when_the_fence_is_lifted() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.refresh();
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
    });
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0"]);
    assert_eq!(
        bench.standing().last_opening.expect("open").open_at_most,
        None
    );
    assert!(
        bench
            .journal()
            .standings()
            .lift(&uuid_of("vg1"))
            .expect("lift")
    );
    bench.watch(&mut guard, SPAN);
    assert!(guard.closing.is_empty());
    // Its I/O ends, and it gets its table back: nobody is there any more who would take it away.
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("device").in_flight = InFlight::None;
    });
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), ["vg1-lv0"]);
}

#[test]
fn a_lock_manager_that_does_not_answer_lifts_nothing() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench
        .node
        .state(|s| (s.lvmlockd, s.sanlock) = (Daemon::Dead, Daemon::Dead));
    bench.refresh();
    bench.watch(&mut guard, SPAN);
    assert_eq!(bench.open(), Vec::<String>::new());
    assert_eq!(bench.standing().openings, 1);
}

#[test]
fn the_next_agent_goes_on_with_what_an_earlier_one_noticed() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.refresh();
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("device").in_flight = InFlight::Forever;
    });
    guard.round();
    drop(guard);
    let opening = bench.standing().last_opening.expect("noticed");
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("device").in_flight = InFlight::None;
    });
    bench.watch(&mut bench.guard(), SPAN);
    let standing = bench.standing();
    assert_eq!((standing.openings, bench.open()), (1, vec![]));
    let closed = standing.last_opening.expect("noticed");
    assert_eq!(closed.closed_before, opening.closed_before);
    assert!(closed.open_at_most.is_some());
    assert_eq!(
        bench.reasons(),
        ["FencedByKillHook", "FenceOpened", "FenceClosedAgain"]
    );
}

#[test]
fn queueing_stays_off_while_a_fence_stands() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.queue_again("vg1");
    bench.watch(&mut guard, SPAN * 2);
    assert!(
        bench.reasons().contains(&"QueueingCameBack"),
        "{:?}",
        bench.reasons()
    );
    assert!(!bench.queues("vg1"));
}

#[test]
fn a_look_that_took_long_is_rested_from_before_the_next() {
    let at = |ms| Monotonic(Duration::from_millis(ms));
    for (took, next) in [(1, 20), (15, 30), (300, 600), (5000, 6000)] {
        assert_eq!(soonest(at(0), at(took)), at(next), "{took} ms");
    }
}

#[test]
fn a_kernel_that_hangs_for_long_has_no_more_threads_left_at_it_than_one_that_hangs_for_short() {
    let bench = Bench::new();
    let mut guard = bench.guard();
    bench.watch(&mut guard, SPAN);
    bench.node.state(|s| s.listing_hangs = true);
    bench.watch(&mut guard, 6 * SPAN);
    let soon = bench.node.threads();
    bench.watch(&mut guard, 60 * SPAN);
    let later = bench.node.threads();
    assert!(later <= soon && soon <= 6, "{soon} threads, then {later}");
}
