//! The desk on a simulated node, on the wall's clock: a fence that hangs, and others.

use std::sync::atomic::Ordering;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;
use crate::agent::executor;
use crate::agent::journal::Journal;
use crate::agent::sentry::store::Store;
use crate::api::ConditionStatus;
use crate::api::condition::find;
use crate::api::policy::StorageFencePolicy;
use crate::api::request::condition_type;
use crate::fence::report::{DeviceOutcome, FenceReport, LocksOutcome};
use crate::host::simulated::{
    Daemon, Group, InFlight, Layout, Simulation, Starting, State, Under, uuid_of,
};

mod changed;
mod late_record;
mod lifting;
mod waking;

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    node: Simulation,
    state: tempfile::TempDir,
}

/// A node with an agent, until it is dropped.
struct Agent<'a> {
    bench: &'a Bench,
    desk: Desk,
    said: mpsc::UnboundedReceiver<Said>,
    to_make: mpsc::UnboundedReceiver<StorageFenceRequest>,
    /// All that was told of the fence of `a`, each once.
    told: Vec<Outcome>,
}

impl Bench {
    /// `a` has lost its paths, and what one of its volumes has in flight does not end; `b` works.
    fn new() -> Self {
        let group = |name: &str, active| Group {
            linear: 2,
            under: vec![Under::Map {
                active,
                queueing: true,
            }],
            ..Group::target(name)
        };
        let groups = vec![group("a", 0), group("b", 1), group("c", 1)];
        let node = Simulation::in_real_time(&Layout { groups });
        node.state(|s| s.device("a-lv0").expect("a device").in_flight = InFlight::Forever);
        Self {
            node,
            state: tempfile::tempdir().expect("a directory"),
        }
    }

    fn agent(&self) -> Agent<'_> {
        let host = self.node.host();
        let boot_id = host.system.boot_id().expect("boot ID");
        let (journal, left) = Journal::open(self.state.path(), &boot_id).expect("open");
        let (actor, said) = Actor::new(host.clone(), journal);
        let pause = Duration::from_millis(200);
        let observer = Observer::start(host.clone(), None, pause, |_| ()).expect("a thread");
        let store = Store::new(self.state.path(), &boot_id);
        let (sentry, to_make) = Sentry::new("n1", store, host.system.monotonic());
        let tools = Tools {
            node_name: "n1".into(),
            boot_id,
            host,
            actor,
            observer,
            sentry,
            news: mpsc::unbounded_channel().1,
            pause,
            board: Board::default(),
            metrics: Metrics::default(),
            listed: Arc::default(),
        };
        Agent {
            bench: self,
            desk: Desk::new(tools, left).expect("a thread"),
            said,
            to_make,
            told: Vec::new(),
        }
    }

    fn held(&self, vg: &str) -> bool {
        self.node.state(|s| s.held(&uuid_of(vg)))
    }

    fn cut(&self, vg: &str) {
        let map = format!("mpath-{vg}-0");
        self.node
            .state(|s| s.device(&map).expect("a map").active_paths = 0);
    }

    fn io_ends(&self) {
        self.node
            .state(|s| s.device("a-lv0").expect("a device").in_flight = InFlight::None);
    }

    fn count(&self, what: &str) -> usize {
        self.node.log().iter().filter(|l| *l == what).count()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        assert_eq!(self.node.violations(), Vec::<String>::new());
        self.node.end();
    }
}

impl Agent<'_> {
    /// Works until that is so.
    fn until(&mut self, what: &str, so: impl Fn(&Desk) -> bool) {
        let began = Instant::now();
        loop {
            while let Ok(said) = self.said.try_recv() {
                self.desk.hear(said).expect("nobody dies");
                let outcome = report(&self.desk, "a").map(|r| r.outcome.clone());
                self.told.extend(outcome);
                self.told.dedup();
            }
            self.desk.settle(true);
            if so(&self.desk) {
                return;
            }
            let all: Vec<_> = self.desk.known.values().map(|k| &k.report).collect();
            assert!(began.elapsed() < LIMIT, "{what}: {all:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn requests(&mut self, requests: impl IntoIterator<Item = StorageFenceRequest>) {
        self.desk.see(Seen::Listing);
        for request in requests {
            self.desk.see(Seen::Is(Box::new(request), true));
        }
        self.desk.see(Seen::Listed);
    }

    fn policies(&mut self, names: &[&str]) {
        self.policies_but(names, &json!({}));
    }

    /// The same, but for that.
    fn policies_but(&mut self, names: &[&str], but: &Value) {
        let policy = |name: &&str| {
            let mut spec = json!({
                "response": "Fence",
                "triggers": { "allPathsDown": { "forSeconds": 1 } },
                "volumeGroups": { "names": [name] },
                "request": { "drainTimeoutSeconds": 2 },
            });
            for (key, value) in but.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            StorageFencePolicy::new(name, serde_json::from_value(spec).expect("a policy"))
        };
        let sentry = &mut self.desk.tools.sentry;
        sentry.hear(
            Learned::Policies(names.iter().map(policy).collect()),
            Monotonic::default(),
        );
        sentry.hear(Learned::Node(BTreeMap::new(), vec![]), Monotonic::default());
    }

    fn call(&mut self, vg: &str) -> oneshot::Receiver<Result<(), String>> {
        let (answer, answered) = oneshot::channel();
        self.desk.called(Call {
            vg: vg.into(),
            answer,
        });
        answered
    }

    /// What the status of a request says: whether it is fenced, and why.
    fn says(&self, uid: &str) -> (ConditionStatus, String, String) {
        let part = self.desk.tools.board.wanted(uid).expect("a status");
        let fenced = find(&part.conditions, condition_type::FENCED).expect("a condition");
        (fenced.status, fenced.reason.clone(), fenced.message.clone())
    }

    fn fencing(&self) -> bool {
        self.counts("fencing 1")
    }

    /// Whether a metric of the agent's has that value.
    fn counts(&self, what: &str) -> bool {
        let mut registry = prometheus_client::registry::Registry::default();
        self.desk.tools.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        text.contains(&format!("\nstorage_fence_agent_{what}\n"))
    }

    /// Kill -9.
    fn kill(self) {
        let node = self.bench.node.clone();
        drop(self);
        node.state(State::kill_now);
        assert!(node.restart_agent());
    }
}

fn request(name: &str, created: i64) -> StorageFenceRequest {
    let spec = json!({
        "nodeName": "n1",
        "volumeGroups": { "mode": "Named", "names": [name] },
        "drainTimeoutSeconds": 2,
    });
    let mut request = StorageFenceRequest::new(name, serde_json::from_value(spec).expect("spec"));
    request.metadata.uid = Some(format!("uid-{name}"));
    request.metadata.generation = Some(1);
    let created = Timestamp::from_second(created).expect("a time");
    request.metadata.creation_timestamp = Some(Time(created));
    request
}

fn report<'a>(desk: &'a Desk, vg: &str) -> Option<&'a FenceReport> {
    let mut all = desk.known.values().map(|k| &k.report);
    all.find(|r| r.volume_groups.iter().any(|g| g.name == vg))
}

fn is(outcome: Outcome, vg: &'static str) -> impl Fn(&Desk) -> bool {
    move |desk| report(desk, vg).is_some_and(|r| r.outcome == outcome)
}

fn released(vg: &'static str) -> impl Fn(&Desk) -> bool {
    move |desk| {
        let ended = |r: &FenceReport| r.finished_after.is_some();
        report(desk, vg).is_some_and(|r| r.locks == LocksOutcome::Released && ended(r))
    }
}

#[test]
fn a_second_array_that_fails_while_the_fence_of_the_first_hangs_is_fenced_by_its_policy() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.policies(&["a", "b"]);
    agent.until("not proven", is(Outcome::NotProven, "a"));
    bench.cut("b");
    agent.until("b is released", released("b"));
    assert!(bench.held("a") && !bench.held("b"));
    let a = report(&agent.desk, "a").expect("a report");
    assert_eq!(
        (&a.outcome, a.locks, a.finished_after),
        (&Outcome::NotProven, LocksOutcome::Kept, None)
    );
    let fell_short = |d: &crate::fence::report::DeviceReport| d.outcome == DeviceOutcome::NotProven;
    assert!(a.volume_groups[0].devices.iter().any(fell_short));
    assert!(agent.fencing());
    // It is tried on, without another one for the same, until its I/O ends.
    agent.until("a goes on", |desk| desk.running.is_some());
    assert_eq!((bench.count("swap a-lv0"), agent.desk.known.len()), (1, 2));
    bench.io_ends();
    agent.until("a is released", released("a"));
    agent.until("its end", |desk| desk.running.is_none());
    assert!(!bench.held("a") && !agent.fencing());
    assert_eq!(bench.count("kill_vg a"), 1);
}

#[test]
fn a_request_whose_fence_hangs_says_so_while_others_go_first_and_is_not_lost_over_kills() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.requests([request("a", 1)]);
    agent.policies(&["b", "c"]);
    agent.until("not proven", is(Outcome::NotProven, "a"));
    agent.kill();

    let mut agent = bench.agent();
    assert!(is(Outcome::NotProven, "a")(&agent.desk), "at once");
    agent.requests([request("a", 1)]);
    agent.policies(&["b", "c"]);
    bench.cut("b");
    agent.until("b begins", |desk| report(desk, "b").is_some());
    assert_eq!(agent.told, [Outcome::NotProven], "and nothing else");
    let (status, reason, message) = agent.says("uid-a");
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::False, "NotProven")
    );
    assert!(
        message.contains("a-lv0") && message.contains("tried on"),
        "{message}"
    );
    agent.kill();

    let mut agent = bench.agent();
    agent.requests([request("a", 1)]);
    agent.policies(&["b", "c"]);
    agent.until("b is released", released("b"));
    agent.until("a goes on", |d| d.runs("uid-a"));
    assert!(is(Outcome::NotProven, "a")(&agent.desk), "it stays so");
    agent.kill();

    let mut agent = bench.agent();
    agent.requests([request("a", 1)]);
    agent.policies(&["b", "c"]);
    assert!(is(Outcome::NotProven, "a")(&agent.desk), "at once");
    agent.until("its status", |d| d.tools.board.wanted("uid-a").is_some());
    assert_eq!(agent.says("uid-a").1, "NotProven");
    bench.cut("c");
    agent.until("c is released", released("c"));
    assert!(bench.held("a"));
    bench.io_ends();
    agent.until("a is released", released("a"));
    assert_eq!(agent.says("uid-a").1, "Proven");
    assert!(!bench.held("a"));
}

#[test]
fn a_request_for_another_volume_group_does_not_wait_for_one_that_was_deleted_while_it_hangs() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.requests([request("a", 1)]);
    agent.until("not proven", is(Outcome::NotProven, "a"));
    bench.cut("b");
    agent.desk.see(Seen::Is(Box::new(request("b", 2)), false));
    agent.until("b has to wait", |d| d.tools.board.wanted("uid-b").is_some());
    assert_eq!(agent.says("uid-b").1, "OtherRequestGoverns");
    agent.desk.see(Seen::Gone(Box::new(request("a", 1))));
    agent.until("b is released", released("b"));
    assert_eq!(agent.says("uid-b").1, "Proven");
    assert!(bench.held("a"));
    // A dry run waits, as does what would hang on the same.
    bench.cut("c");
    let mut dry_run = request("c", 3);
    dry_run.spec.dry_run = true;
    agent.desk.see(Seen::Is(Box::new(dry_run), false));
    agent.until("a goes on", |d| d.runs("uid-a"));
    let began = Instant::now();
    agent.until("some time", |_| began.elapsed() > Duration::from_secs(3));
    assert!(report(&agent.desk, "c").is_none() && agent.desk.runs("uid-a"));
    bench.io_ends();
    agent.until("a is released", |_| !bench.held("a"));
    agent.until("the dry run", is(Outcome::DryRun, "c"));
}

#[test]
fn what_another_process_gave_up_is_tried_on_after_an_order() {
    let bench = Bench::new();
    bench.node.state(|s| s.wdmd = Daemon::Dead);
    let mut agent = bench.agent();
    let host = bench.node.host();
    let order = crate::agent::decide::order(&request("a", 1));
    let boot_id = host.system.boot_id().expect("boot ID");
    let (mut journal, _) = Journal::open(bench.state.path(), &boot_id).expect("open");
    let inventory = crate::agent::observe::observe(&host).expect("an inventory");
    let report = executor::run(
        &host,
        &mut journal,
        &order,
        inventory,
        &|| false,
        &mut |_| (),
    );
    assert_eq!(report.outcome, Outcome::NotProven);
    bench.cut("b");
    agent.requests([request("b", 2)]);
    agent.until("b is proven", is(Outcome::Proven, "b"));
    agent.until("a goes on", |desk| desk.runs("uid-a"));
    bench.io_ends();
    agent.until("a is proven", is(Outcome::Proven, "a"));
}

#[test]
fn a_kill_hook_of_another_volume_group_goes_first_and_that_of_the_same_waits() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.requests([request("a", 1)]);
    agent.until("not proven", is(Outcome::NotProven, "a"));
    let mut of_a = agent.call("a");
    bench.cut("b");
    let mut of_b = agent.call("b");
    agent.until("b is let go of", |_| !bench.held("b"));
    let began = Instant::now();
    agent.until("some time", |_| began.elapsed() > Duration::from_secs(3));
    assert_eq!(of_b.try_recv(), Ok(Ok(())));
    assert!(of_a.try_recv().is_err(), "nothing is said yet");
    assert!(bench.held("a") && bench.count("kill_vg a") == 1);
    bench.io_ends();
    agent.until("a is released", released("a"));
    // That is told before its thread has ended.
    agent.until("a has ended", |desk| !desk.runs("uid-a"));
    assert_eq!(of_a.try_recv(), Ok(Ok(())));
}

#[test]
fn a_kill_hook_has_the_fence_of_its_volume_group_that_waits_go_next() {
    let bench = Bench::new();
    bench.node.state(|s| {
        s.device("b-lv0").expect("a device").in_flight = InFlight::Forever;
    });
    let mut agent = bench.agent();
    agent.policies(&["a", "b"]);
    agent.until("a is not proven", is(Outcome::NotProven, "a"));
    bench.cut("b");
    agent.until("b is not proven", is(Outcome::NotProven, "b"));
    let of_a = |k: &&Known| k.report.volume_groups.iter().any(|g| g.name == "a");
    let a = agent.desk.known.values().find(of_a);
    let a = a.expect("it is known").order.uid.clone();
    let waits = |desk: &Desk| desk.queue.has(&a);
    assert!(waits(&agent.desk));
    // The other one's turn lasts for ten seconds at least, and has just begun.
    let began = Instant::now();
    let _of_a = agent.call("a");
    agent.until("a has its turn", |desk| !waits(desk));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    // Once: then they take turns as before.
    let again = Instant::now();
    agent.until("b has its turn again", waits);
    assert!(
        again.elapsed() > Duration::from_secs(5),
        "{:?}",
        again.elapsed()
    );
    assert!(bench.held("a") && bench.held("b"));
}

#[test]
fn two_that_ended_without_proof_or_watchdog_come_to_rest() {
    let bench = Bench::new();
    bench.node.state(|s| {
        s.wdmd = Daemon::Dead;
        s.device("b-lv0").expect("a device").in_flight = InFlight::Forever;
    });
    let mut agent = bench.agent();
    agent.policies(&["a", "b"]);
    agent.until("a is not proven", is(Outcome::NotProven, "a"));
    bench.cut("b");
    agent.until("b is not proven", is(Outcome::NotProven, "b"));
    agent.until("both have ended", |d| {
        let ended = |vg| report(d, vg).is_some_and(|r| r.finished_after.is_some());
        // The last report comes before the word that it has ended.
        ended("a") && ended("b") && d.running.is_none()
    });
    let began = Instant::now();
    agent.until("some time", |d| {
        assert!(d.running.is_none() && d.queue.is_empty(), "tried on again");
        began.elapsed() > Duration::from_secs(5)
    });
    assert!(!agent.fencing());
}

#[test]
fn a_second_fence_that_falls_due_while_an_unfence_is_interrupted_does_not_take_the_place_of_the_first()
 {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.policies(&["b", "c"]);
    let unfence = Running {
        uid: "uid-a".into(),
        work: Work::Unfence,
    };
    agent.desk.running = Some((unfence, Arc::default()));
    bench.cut("b");
    agent.until("b waits for its end", |d| d.after_unfence.is_some());
    bench.cut("c");
    let began = Instant::now();
    agent.until("c is due", |_| began.elapsed() > Duration::from_secs(3));
    // It has ended.
    agent.desk.running = None;
    let first = agent.desk.after_unfence.take().expect("an order");
    agent.desk.begin_own(&first);
    agent.until("b is released", released("b"));
    agent.until("c is released", released("c"));
}

#[test]
fn what_reaches_the_san_without_a_lock_is_counted() {
    let bench = Bench::new();
    let mut agent = bench.agent();
    agent.until("the node was looked at", |d| {
        d.tools.observer.latest().borrow().is_some()
    });
    assert!(agent.counts("unlocked_volume_groups 0"));
    let before = bench.node.state(|s| std::mem::take(&mut s.lockspaces));
    agent.until("all are told", |d| d.unlocked == ["a", "b", "c"]);
    assert!(agent.counts("unlocked_volume_groups 3"));
    bench.node.state(|s| s.lockspaces = before);
    agent.until("none is", |d| d.unlocked.is_empty());
    assert!(agent.counts("unlocked_volume_groups 0"));
}
