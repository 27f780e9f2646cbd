//! How often it looks, by the wall's clock.

use std::cell::Cell;
use std::time::Instant;

use super::*;
use crate::fence::{DevNo, Monotonic};
use crate::host::simulated::{Group, Layout, Simulation};
use crate::host::{DiskInfo, Result, System};

/// A node that takes its time to answer.
struct Slow(Arc<dyn System>);

impl System for Slow {
    fn boot_id(&self) -> Result<String> {
        std::thread::sleep(Duration::from_millis(20));
        self.0.boot_id()
    }
    fn monotonic(&self) -> Monotonic {
        self.0.monotonic()
    }
    fn disk(&self, dev: DevNo) -> Option<DiskInfo> {
        self.0.disk(dev)
    }
    fn rcu_expedited(&self) -> Result<u32> {
        unreachable!("a look swaps nothing")
    }
    fn set_rcu_expedited(&self, _: u32) -> Result<()> {
        unreachable!("a look changes nothing")
    }
}

#[test]
fn it_rests_for_as_long_as_it_has_looked_however_often_somebody_rings() {
    let groups = vec![Group::target("vg1")];
    let mut host = Simulation::in_real_time(&Layout { groups }).host();
    host.system = Arc::new(Slow(host.system));
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&lengths);
    let began = Instant::now();
    let took = move |length| tell.lock().expect("lock").push(length);
    let observer = Observer::start(host, None, Duration::from_mins(1), took).expect("a thread");
    while lengths.lock().expect("lock").len() < 8 {
        observer.look();
        std::thread::sleep(Duration::from_millis(1));
    }
    let elapsed = began.elapsed();
    let lengths = lengths.lock().expect("lock").clone();
    let looked: Duration = lengths.iter().sum();
    let last = lengths.last().copied().unwrap_or_default();
    assert!(
        elapsed + last >= looked * 2,
        "{lengths:?} within {elapsed:?}"
    );
}

#[test]
fn a_pause_that_is_longer_than_a_look_may_take_is_no_look_that_hangs() {
    let host = Simulation::in_real_time(&Layout { groups: vec![] }).host();
    let observer = Observer::start(host, None, Duration::from_mins(5), |_| ()).expect("a thread");
    while observer.latest().borrow().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // It rests.
    assert_eq!(*observer.looks.lock().expect("lock"), None);
    assert!(!observer.hangs());
    for (seconds, hangs) in [(0, false), (25, false), (31, true)] {
        let began = Instant::now().checked_sub(Duration::from_secs(seconds));
        observer.looks_since(Some(began.expect("it runs for longer")));
        assert_eq!(observer.hangs(), hangs, "{seconds}");
    }
}

#[test]
fn it_gives_way_to_a_fence_that_gets_on_and_not_for_ever() {
    let waited = |all: &[u64], length: u64| {
        let (at, slept) = (Cell::new(0), Cell::new(0));
        let swapped = || {
            let now = all.get(at.get()).or(all.last()).copied();
            at.set(at.get() + 1);
            now.unwrap_or_default()
        };
        let length = Duration::from_millis(length);
        give_way(swapped, 7, length, |time| {
            slept.set(slept.get() + time.as_millis());
        });
        slept.get()
    };
    assert_eq!(waited(&[7], 500), 0, "nothing is swapped");
    assert_eq!(waited(&[9, 9], 500), 100, "it has ended");
    assert_eq!(waited(&[9, 10, 11, 11], 500), 300, "it gets on");
    let endless: Vec<u64> = (8..10_000).collect();
    for (length, most) in [(0, 0), (5, 20), (300, 1200), (1000, 4000), (9000, 4000)] {
        assert_eq!(waited(&endless, length), most);
    }
}
