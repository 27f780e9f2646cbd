//! When the threads of a swap call the one that leads it: each call costs a switch of threads, and a thousand devices would make a thousand.

use std::sync::Arc;
use std::time::Duration;

use super::Bench;
use crate::agent::executor::track::Book;
use crate::agent::executor::worker::{Attempt, Crew, Job, Letter};
use crate::fence::{DevNo, DmDevice, Monotonic};
use crate::host::simulated::Layout;

fn device(minor: u32, below: &[u32]) -> Arc<DmDevice> {
    let number = |minor| DevNo { major: 253, minor };
    Arc::new(DmDevice {
        dev: number(minor),
        uuid: format!("LVM-{minor}"),
        sectors: 8,
        deps: below.iter().copied().map(number).collect(),
        ..DmDevice::default()
    })
}

fn swapped() -> Attempt {
    Attempt::Swapped(Duration::ZERO)
}

#[test]
fn of_a_stack_all_but_the_lowest_free_another() {
    let mut book = Book::default();
    let now = Monotonic::default();
    // A volume on a pool on its data, on a physical volume; and one on the physical volume alone.
    let devices = [
        device(3, &[2]),
        device(2, &[1]),
        device(1, &[0]),
        device(4, &[0]),
    ];
    book.plan(0, &devices, now);
    let first: Vec<_> = book.start(now).iter().map(|j| (j.at, j.frees)).collect();
    assert_eq!(first, [(0, true), (3, false)]);
    for expected in [(1, true), (2, false)] {
        let at = expected.0 - 1;
        book.told(Letter::Ended(at, swapped()), now);
        let next: Vec<_> = book.start(now).iter().map(|j| (j.at, j.frees)).collect();
        assert_eq!(next, [expected]);
    }
}

#[test]
fn they_call_for_what_somebody_waits_for_and_when_none_is_at_it_any_more() {
    let bench = Bench::new(&Layout::default());
    let host = bench.node.host();
    let crew = Crew::new(&host);
    let job = |at, frees| Job {
        at,
        uuid: format!("LVM-{at}"),
        sectors: 8,
        frees,
    };
    crew.add(vec![
        job(0, false),
        job(1, false),
        job(2, true),
        job(3, false),
        job(4, false),
    ]);
    let take = || crew.next(&host, None).expect("a job");
    let mut at_it: Vec<Job> = (0..5).map(|_| take()).collect();
    let mut called = |at: usize, attempt: Attempt| {
        let before = crew.bell.rings();
        let job = at_it.iter().position(|j| j.at == at).expect("at it");
        assert_eq!(crew.next(&host, Some((at_it.remove(job), attempt))), None);
        crew.bell.rings() > before
    };
    assert!(
        !called(1, swapped()),
        "others are at it, and nobody waits for this"
    );
    assert!(called(2, swapped()), "what is below may go on");
    assert!(
        called(3, Attempt::Failed("busy".into())),
        "it has to be tried again"
    );
    assert!(!called(4, Attempt::Gone));
    assert!(called(0, swapped()), "it was the last");
    assert_eq!(crew.letters().len(), 10);
}
