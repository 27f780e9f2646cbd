//! When the threads of a swap call the one that leads it: each call costs a switch of threads, and a thousand devices would make a thousand.

use super::*;
use crate::agent::executor::track::Book;
use crate::agent::journal::{Journal, Turn};
use crate::fence::DmDevice;
use crate::host::simulated::{Layout, Simulation};

const fn number(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

fn device(minor: u32, below: &[u32]) -> Arc<DmDevice> {
    Arc::new(DmDevice {
        dev: number(minor),
        uuid: format!("LVM-{minor}").into(),
        sectors: 8,
        deps: below.iter().copied().map(number).collect(),
        ..DmDevice::default()
    })
}

fn swapped() -> Attempt {
    Attempt::Swapped(Duration::ZERO)
}

#[test]
fn who_waits_for_a_device_is_known_and_no_physical_volume_does() {
    let mut book = Book::default();
    let now = Monotonic::default();
    // A volume on a pool on its data, on a physical volume; and one on the physical volume alone.
    let devices = [(3, 2), (2, 1), (1, 0), (4, 0)].map(|(minor, below)| device(minor, &[below]));
    book.plan(0, &devices, now);
    let mut started = |ended: Option<usize>| -> Vec<(usize, Vec<DevNo>)> {
        if let Some(at) = ended {
            book.told(Letter::Ended(at, swapped()), now);
        }
        let jobs = book.start(now);
        jobs.iter().map(|j| (j.at, j.below.to_vec())).collect()
    };
    assert_eq!(started(None), [(0, vec![number(2)]), (3, vec![])]);
    assert_eq!(started(Some(0)), [(1, vec![number(1)])]);
    assert_eq!(started(Some(1)), [(2, vec![])]);
}

#[test]
fn they_call_for_what_somebody_waits_for_and_when_none_is_at_it_any_more() {
    let host = Simulation::new(&Layout::default()).host();
    let directory = tempfile::tempdir().expect("a directory");
    let boot_id = host.system.boot_id().expect("boot ID");
    let (mut journal, _) = Journal::open(directory.path(), &boot_id).expect("a journal");
    let turn = Turn::take(directory.path(), "agent", Duration::ZERO);
    journal.hold(turn.expect("the turn"));
    let crew = Crew::new(&host, journal.signs());
    let job = |(at, below): (usize, &[u32])| Job {
        at,
        uuid: format!("LVM-{at}").into(),
        work: Work::Swap(8),
        below: below.iter().copied().map(number).collect(),
    };
    // Two stand on one pool.
    let jobs: [(usize, &[u32]); 6] = [(0, &[]), (1, &[]), (2, &[9]), (3, &[]), (4, &[9]), (5, &[])];
    crew.add(jobs.map(job).into());
    crew.table().threads = jobs.len();
    let mut at_it: Vec<Job> = jobs
        .iter()
        .map(|_| crew.next(&host, None).expect("a job"))
        .collect();
    let mut called = |at: usize, attempt: Attempt| {
        let before = crew.bell.rings();
        let place = at_it.iter().position(|j| j.at == at).expect("at it");
        let job = at_it.remove(place);
        assert_eq!(crew.next(&host, Some((job, attempt))), None);
        crew.bell.rings() > before
    };
    assert!(!called(1, swapped()), "others are at it");
    assert!(!called(2, swapped()), "another stands on the pool");
    assert!(called(4, swapped()), "the pool may go on");
    let busy = Attempt::Failed("busy".into());
    assert!(called(3, busy), "it has to be tried again");
    assert!(!called(5, Attempt::Gone));
    assert!(called(0, swapped()), "it was the last");
    assert_eq!(crew.letters().len(), 2 * jobs.len());
    // What is to be tried again is no sign that anything gets done.
    assert_eq!(crew.signs.given(), 5);
    assert!(crew.table().held.is_empty());
}
