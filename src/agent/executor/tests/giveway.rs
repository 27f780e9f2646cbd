//! A fence that hangs, and another one that waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Bench;
use super::bench::{seconds, step};
use crate::agent::executor::{resume, run};
use crate::agent::journal::{Journal, Record, Waits, Wanted};
use crate::fence::order::Selection;
use crate::fence::report::{
    DeviceOutcome, FenceReport, LocksOutcome, Outcome, StepKind, StepResult,
};
use crate::fence::{Monotonic, Order};
use crate::host::simulated::{Group, InFlight, Layout, uuid_of};
use crate::host::{Bell, Host};

/// Two volume groups on maps of their own. What one volume of `a` has in flight ends then, or never.
pub(super) fn bench(ends: Option<u64>) -> Bench {
    let group = |name: &str| Group {
        linear: 2,
        ..Group::target(name)
    };
    let bench = Bench::new(&Layout {
        groups: vec![group("a"), group("b"), Group::bystander("other", true)],
    });
    let in_flight = ends.map_or(InFlight::Forever, |at| InFlight::Until(seconds(at)));
    bench
        .node
        .state(|s| s.device("a-lv0").expect("a device").in_flight = in_flight);
    bench
}

fn order(vg: &str) -> Order {
    Order {
        name: format!("request-{vg}"),
        uid: format!("uid-{vg}"),
        generation: 1,
        volume_groups: Selection::Named(vec![vg.into()]),
        drain_timeout: seconds(20),
        ..Order::default()
    }
}

fn wanted(journal: &mut Journal, waits: Waits) {
    let wanted = Wanted::default();
    wanted.tell(waits);
    journal.ask(Arc::new(wanted));
}

/// Fences a volume group while somebody waits, as one process does it all along.
pub(super) struct Process<'a> {
    bench: &'a Bench,
    host: Host,
    pub(super) journal: Journal,
    pub(super) told: Vec<FenceReport>,
}

impl<'a> Process<'a> {
    pub(super) fn new(bench: &'a Bench) -> Self {
        Self {
            bench,
            host: bench.node.host(),
            journal: bench.journal().0,
            told: Vec::new(),
        }
    }

    pub(super) fn fence(&mut self, vg: &str, waits: Waits) -> (FenceReport, Option<Record>) {
        wanted(&mut self.journal, waits);
        self.fence_now(vg)
    }

    /// Whoever waits.
    pub(super) fn fence_now(&mut self, vg: &str) -> (FenceReport, Option<Record>) {
        let (order, told) = (order(vg), &mut self.told);
        let inventory = self.bench.node.inventory();
        let report = run(
            &self.host,
            &mut self.journal,
            &order,
            inventory,
            &|| false,
            &mut |r| told.push(r.clone()),
        );
        self.bench.check();
        self.bench.given_back();
        (report, self.journal.gave_way())
    }

    pub(super) fn resume(&mut self, record: Record, waits: Waits) -> (FenceReport, Option<Record>) {
        wanted(&mut self.journal, waits);
        let told = &mut self.told;
        let report = resume(&self.host, &mut self.journal, record, &|| false, &mut |r| {
            told.push(r.clone());
        });
        self.bench.check();
        self.bench.given_back();
        (report, self.journal.gave_way())
    }
}

pub(super) fn assert_released(bench: &Bench, vg: &str, report: &FenceReport) {
    assert_eq!(
        (&report.outcome, report.locks),
        (&Outcome::Proven, LocksOutcome::Released),
        "{report:#?}"
    );
    assert_eq!(bench.open(vg), Vec::<String>::new());
    assert!(!bench.held(vg));
}

#[test]
fn a_fence_that_hangs_lets_another_go_first_and_is_proven_when_its_io_ends() {
    let bench = bench(Some(1060));
    let mut process = Process::new(&bench);
    let (report, record) = process.fence("a", Waits::First);
    // Not before its deadline.
    assert_eq!(bench.node.now().as_secs(), 1020);
    assert_eq!(
        (&report.outcome, report.locks, report.finished_after),
        (&Outcome::NotProven, LocksOutcome::Kept, None)
    );
    let devices = |report: &FenceReport| {
        let all = report.volume_groups[0].devices.iter();
        all.map(|d| (d.name.to_string(), d.outcome))
            .collect::<Vec<_>>()
    };
    let fell_short = vec![
        ("a-lv0".to_owned(), DeviceOutcome::NotProven),
        ("a-lv1".to_owned(), DeviceOutcome::Error),
    ];
    assert_eq!(devices(&report), fell_short);
    assert!(report.message.contains("tried on"), "{}", report.message);
    assert!(bench.held("a") && bench.count("drop_vg a") == 0);
    // Nor was it silent until then.
    let waits = |r: &FenceReport| {
        let (swap, device) = (step(r, StepKind::Swap, "a"), &r.volume_groups[0].devices[0]);
        let running = swap.result == StepResult::Running;
        running.then(|| (swap.message.clone(), device.message.clone()))
    };
    let waited: Vec<_> = process.told.iter().filter_map(waits).collect();
    let told = |seconds: u64| {
        let device = format!(
            "its I/O that was already issued has not ended for {seconds} s: the kernel cannot swap its table before"
        );
        (Some("not proven yet: a-lv0".to_owned()), Some(device))
    };
    for seconds in [5, 10, 15] {
        assert!(waited.contains(&told(seconds)), "{waited:?}");
    }

    let (report, none) = process.fence("b", Waits::Another);
    assert!(none.is_none());
    assert_released(&bench, "b", &report);
    assert!(bench.node.now() < seconds(1030), "{:?}", bench.node.now());
    assert!(bench.held("a") && bench.open("a") == ["a-lv0"]);
    let set_aside = process.journal.set_aside().expect("read");
    assert_eq!(set_aside.len(), 1);
    assert!(set_aside[0].unfinished() && set_aside[0].given_up());

    process.told.clear();
    let record = record.expect("it gave way");
    let (report, none) = process.resume(record, Waits::Nobody);
    assert!(none.is_none() && process.journal.set_aside().expect("read").is_empty());
    assert_released(&bench, "a", &report);
    let now = bench.node.now();
    assert!(now >= seconds(1060) && now < seconds(1066), "{now:?}");
    // Until it was proven it went on to be not proven, with what fell short.
    let (last, before) = process.told.split_last().expect("reports");
    assert_eq!(last, &report);
    let not_yet: Vec<_> = before
        .iter()
        .take_while(|r| devices(r) == fell_short)
        .collect();
    assert!(!not_yet.is_empty());
    for report in not_yet {
        assert_eq!(report.outcome, Outcome::NotProven);
        assert!(report.message.contains("a-lv0"), "{}", report.message);
    }
    assert!(before.iter().all(|r| r.outcome != Outcome::InProgress));
    // One thread is at the volume for as long as it hangs. It may come back in the moment in which the next one looks: error over error.
    assert!(bench.count("swap a-lv0") <= 2);
}

#[test]
fn a_list_that_does_not_come_is_told() {
    let bench = bench(Some(1002));
    bench.node.at(seconds(1001), |s| s.listing_hangs = true);
    let mut process = Process::new(&bench);
    let (report, _) = process.fence("a", Waits::First);
    assert_eq!(report.outcome, Outcome::NotProven);
    let told = |r: &FenceReport| {
        let swap = step(r, StepKind::Swap, "a");
        let why = "not proven yet: the devices could not be listed";
        swap.result == StepResult::Running && swap.message.as_deref() == Some(why)
    };
    assert!(process.told.iter().any(told), "{:#?}", process.told);
}

#[test]
fn two_that_hang_take_turns_no_faster_than_their_deadlines_and_with_no_more_threads() {
    let bench = bench(None);
    bench
        .node
        .state(|s| s.device("b-lv1").expect("a device").in_flight = InFlight::Forever);
    let mut process = Process::new(&bench);
    let (_, a) = process.fence("a", Waits::First);
    assert_eq!(bench.node.now().as_secs(), 1020);
    let (_, b) = process.fence("b", Waits::Another);
    assert_eq!(bench.node.now().as_secs(), 1040);
    let (mut next, mut other) = (a.expect("it gave way"), b.expect("it gave way"));
    for turn in 1..=3 {
        let (report, record) = process.resume(next, Waits::Another);
        assert_eq!(report.outcome, Outcome::NotProven);
        assert_eq!(bench.node.now().as_secs(), 1040 + turn * 20);
        (next, other) = (other, record.expect("it gave way"));
        let set_aside = process.journal.set_aside().expect("read");
        assert_eq!(set_aside.len(), 2, "both are known, whoever is killed now");
    }
    // An order that has not had its turn does not wait for a deadline that was told before.
    let began = bench.node.now();
    let (_, record) = process.resume(next, Waits::First);
    assert!(record.is_some() && bench.node.now() < began + seconds(2));
    for device in ["a-lv0", "b-lv1"] {
        assert_eq!(bench.count(&format!("swap {device}")), 1);
    }
    assert_eq!(
        bench
            .node
            .log()
            .iter()
            .filter(|l| l.starts_with("drop"))
            .count(),
        0
    );
}

#[test]
fn it_gives_way_for_as_long_as_the_host_lives_and_ends_after_that() {
    let bench = bench(None);
    let mut process = Process::new(&bench);
    let (_, mut record) = process.fence("a", Waits::First);
    let mut turns = 0;
    while let Some(next) = record.take() {
        let (report, gave_way) = process.resume(next, Waits::Another);
        assert_eq!(report.outcome, Outcome::NotProven);
        (turns, record) = (turns + 1, gave_way);
        if record.is_none() {
            assert!(report.finished_after.is_some());
            assert!(!report.message.contains("tried on"), "{}", report.message);
        }
    }
    // 120 s are left at most, of which the first 20 are its own.
    assert!((5..=8).contains(&turns), "{turns}");
    assert!(bench.node.now() <= seconds(1130), "{:?}", bench.node.now());
    let left = bench.journal().1.expect("a record");
    assert!(left.unfinished(), "the next agent tries it too");
    assert!(bench.held("a"));
}

#[test]
fn a_record_that_cannot_be_put_aside_is_not_overwritten() {
    let bench = bench(Some(1060));
    // A folder in the way fails for root too.
    std::fs::create_dir(bench.directory.path().join("set-aside")).expect("mkdir");
    let mut process = Process::new(&bench);
    let (report, record) = process.fence("a", Waits::First);
    assert!(record.is_some());
    assert!(
        report.notes.iter().any(|n| n.contains("set-aside")),
        "{:?}",
        report.notes
    );
    let (report, _) = process.fence("b", Waits::Another);
    assert_released(&bench, "b", &report);
    let left = bench.journal().1.expect("a record");
    assert!(left.unfinished() && left.begun.order.uid == "uid-a");
    let (report, _) = process.resume(record.expect("it gave way"), Waits::Nobody);
    assert_released(&bench, "a", &report);
}

/// What an agent does with its life: what was begun is completed, `a` is fenced, then `b`, and who hangs gives way.
fn live(bench: &Bench) {
    let order = |vg: &str| Order {
        drain_timeout: seconds(4),
        ..order(vg)
    };
    let host = bench.node.host();
    let (mut journal, left) = bench.journal();
    let is = |vg: &str, r: &Record| r.begun.order.uid == format!("uid-{vg}");
    let mut queue: Vec<Record> = left.into_iter().filter(Record::unfinished).collect();
    for record in journal.set_aside().expect("read") {
        if !queue
            .iter()
            .any(|r| r.begun.order.uid == record.begun.order.uid)
        {
            queue.push(record);
        }
    }
    let stands = journal.standings().all().expect("read");
    let due = |vg: &str, queue: &[Record]| {
        let stands = stands.iter().any(|s| s.group.name == vg);
        !stands && !queue.iter().any(|r| is(vg, r))
    };
    let mut new: Vec<&str> = ["a", "b"]
        .into_iter()
        .filter(|vg| due(vg, &queue))
        .collect();
    loop {
        queue.sort_by_key(Record::given_up);
        let killed_first = queue.first().is_some_and(|r| !r.given_up());
        let vg = (!killed_first && !new.is_empty()).then(|| new.remove(0));
        let record = (vg.is_none() && !queue.is_empty()).then(|| queue.remove(0));
        wanted(
            &mut journal,
            match (new.is_empty(), queue.is_empty()) {
                (false, _) => Waits::First,
                (true, false) => Waits::Another,
                (true, true) => Waits::Nobody,
            },
        );
        if let Some(vg) = vg {
            let inventory = bench.node.inventory();
            run(
                &host,
                &mut journal,
                &order(vg),
                inventory,
                &|| false,
                &mut |_| (),
            );
        } else if let Some(record) = record {
            resume(&host, &mut journal, record, &|| false, &mut |_| ());
        } else {
            return;
        }
        queue.extend(journal.gave_way());
    }
}

#[test]
fn killed_at_any_step_of_it_neither_fence_is_lost() {
    let try_live = |bench: &Bench| {
        let lived = catch_unwind(AssertUnwindSafe(|| live(bench)));
        bench.check();
        lived.is_ok()
    };
    let whole = bench(Some(1012));
    assert!(try_live(&whole));
    let calls = whole.node.calls();
    assert!(calls > 100, "{calls}");
    let mut killed = 0;
    for at in (1..calls + 20).step_by(2) {
        let bench = bench(Some(1012));
        bench.node.kill_at_call(at);
        try_live(&bench);
        killed += u32::from(bench.node.restart_agent());
        assert!(try_live(&bench), "killed at call {at}");
        for vg in ["a", "b"] {
            assert_eq!(bench.open(vg), Vec::<String>::new(), "killed at call {at}");
            assert!(!bench.held(vg), "killed at call {at}");
        }
        bench.given_back();
        let stands = bench.journal().0.standings().all().expect("read");
        let mut names: Vec<_> = stands.iter().map(|s| s.group.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"], "killed at call {at}");
        assert!(bench.journal().0.set_aside().expect("read").is_empty());
        assert!(bench.node.state(|s| s.held(&uuid_of("other"))));
    }
    assert!(killed > 30, "{killed}");
}

#[test]
fn one_whose_io_ended_meanwhile_looks_before_it_gives_way_again() {
    let bench = bench(Some(1040));
    let mut process = Process::new(&bench);
    let (_, record) = process.fence("a", Waits::First);
    let (report, _) = process.fence("b", Waits::Another);
    assert_released(&bench, "b", &report);
    process
        .host
        .system
        .wait(&Bell::default(), 0, Monotonic(seconds(1050)));
    let record = record.expect("it gave way");
    // Somebody else waits already; it has to be looked at first, and then there is nothing left to be waited for.
    let (report, gave_way) = process.resume(record, Waits::First);
    assert!(gave_way.is_none());
    assert_released(&bench, "a", &report);
}
