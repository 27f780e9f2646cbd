//! What a fence needs of the heap: so much a device, and no more the longer it waits. A program of its own, since it counts all that the program
//! allocates.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use peak_alloc::PeakAlloc;
use storage_fence::agent::executor::run;
use storage_fence::agent::journal::Journal;
use storage_fence::fence::Order;
use storage_fence::fence::order::Selection;
use storage_fence::fence::report::{FenceReport, LocksOutcome, Outcome};
use storage_fence::host::simulated::{Group, InFlight, Layout, Simulation, State};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Of each device: its report, its place in the swap, its line in two lists of the kernel's, and what the simulated node notes of it; without what was
/// known of it before, which is let go of.
const A_DEVICE: usize = 640;
/// Whatever the number of devices: threads, steps, files.
const ANYWAY: usize = 64 << 10;

/// One at a time: they count the same heap.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node that has lost all paths to a volume group, the journal's folder, and what is asked.
struct Bench {
    node: Simulation,
    directory: tempfile::TempDir,
    order: Order,
}

impl Bench {
    fn of(volumes: u32) -> Result<Self> {
        let group = Group {
            linear: volumes,
            ..Group::target("vg1")
        };
        Ok(Self {
            node: Simulation::new(&Layout {
                groups: vec![group],
            }),
            directory: tempfile::tempdir()?,
            order: Order {
                name: "request".into(),
                uid: "uid".into(),
                generation: 1,
                volume_groups: Selection::Named(vec!["vg1".into()]),
                drain_timeout: Duration::from_mins(1),
                ..Order::default()
            },
        })
    }

    /// Fences. What it needed at once, beside what was there before: the node, and the inventory that it goes by.
    fn fence(&self) -> Result<(FenceReport, usize)> {
        let host = self.node.host();
        let boot_id = host.system.boot_id()?;
        let (mut journal, _) = Journal::open(self.directory.path(), &boot_id)?;
        let inventory = self.node.inventory();
        // Whoever is told may be busy, and have taken in none of it by the end.
        let mut told = Vec::new();
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let report = run(
            &host,
            &mut journal,
            &self.order,
            inventory,
            &|| false,
            &mut |report| told.push(report.clone()),
        );
        let most = HEAP.peak_usage().saturating_sub(before);
        assert_eq!(self.node.violations(), Vec::<String>::new());
        Ok((report, most))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.end();
    }
}

#[test]
fn a_fence_needs_so_much_of_the_heap_a_device_and_no_more() -> Result<()> {
    let _alone = alone();
    let needed = |volumes: u32| -> Result<usize> {
        let bench = Bench::of(volumes)?;
        let (report, most) = bench.fence()?;
        assert_eq!(report.outcome, Outcome::Proven, "{}", report.message);
        let each = most / volumes as usize;
        println!("{volumes} volumes: {most} bytes, {each} each");
        Ok(most)
    };
    let (few, many) = (needed(200)?, needed(2000)?);
    assert!(few <= 200 * A_DEVICE + ANYWAY, "{few} bytes for 200");
    assert!(many <= 2000 * A_DEVICE + ANYWAY, "{many} bytes for 2000");
    // Ten times as many devices need no more than ten times as much.
    assert!(many <= 10 * few, "{few} bytes for 200, {many} for 2000");
    Ok(())
}

/// How often the heap is looked at while a fence hangs, and how often that is done.
const EVERY: Duration = Duration::from_secs(30);
const LOOKS: usize = 60;
/// In half an hour: what a line of a report may take that changes with the time.
const GROWTH: usize = 1024;

static LOOKED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Everybody waits while the clock moves on: so this is what is held, and nothing that is just being worked on.
fn look(state: &mut State) {
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    looked.push(HEAP.current_usage());
    // The lease is renewed all the while: the host lives on.
    let now = state.now();
    for l in &mut state.lockspaces {
        l.lockspace.last_renewal = Some(now);
    }
    if looked.len() < LOOKS {
        state.later(EVERY, look);
    } else if let Some(d) = state.device("vg1-lv0") {
        d.in_flight = InFlight::None;
    }
}

#[test]
fn a_fence_that_hangs_for_half_an_hour_needs_no_more_than_at_its_beginning() -> Result<()> {
    let _alone = alone();
    let bench = Bench::of(200)?;
    LOOKED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .reserve(LOOKS);
    bench.node.state(|s| {
        let device = s.device("vg1-lv0").expect("there are 200");
        device.in_flight = InFlight::Forever;
        s.later(EVERY, look);
    });
    let host = bench.node.host();
    let began = host.system.monotonic();
    let (report, _) = bench.fence()?;
    assert_eq!(
        (report.outcome, report.locks),
        (Outcome::Proven, LocksOutcome::Released),
        "it ends when its I/O does: {}",
        report.message
    );
    let hung = host.system.monotonic().since(began);
    assert!(hung >= EVERY * 60, "{hung:?}");
    let looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(looked.len(), LOOKS);
    // Once before its deadline, once after it was reported as not proven: from then on nothing is new.
    let (reported, last) = (looked[3], looked[LOOKS - 1]);
    println!("held: {looked:?}");
    assert!(
        last <= reported + GROWTH,
        "held after two minutes: {reported} bytes, after half an hour: {last}: {looked:?}"
    );
    Ok(())
}
