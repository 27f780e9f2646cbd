//! The sentry on a clock of the test's own, with the files of a real folder.

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::in_force::SeenCondition;
use super::records::{annotation, is_local};
use super::*;
use crate::fence::order::Selection;
use crate::fence::report::{FenceReport, Outcome, StepKind, StepReport, StepResult};
use crate::fence::{
    DevNo, DmDevice, LockManager, Lockspace, LockspaceState, Path, PhysicalVolume, PvKind, Target,
    Watchdog,
};

mod changed;
mod conditions;
mod in_hand;
mod old_looks;
mod to_nothing;
mod unlocked;

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_secs(seconds)
}

fn policy(name: &str, more: &Value) -> StorageFencePolicy {
    let mut spec =
        json!({ "response": "Fence", "triggers": { "allPathsDown": { "forSeconds": 10 } } });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    StorageFencePolicy::new(name, serde_json::from_value(spec).unwrap())
}

fn group(name: &str, up: bool) -> VolumeGroup {
    VolumeGroup {
        name: name.into(),
        uuid: format!("uuid-{name}"),
        devices: [DmDevice::default().into()].into(),
        pvs: vec![PhysicalVolume {
            dev: DevNo::default(),
            uuid: String::new(),
            kind: PvKind::Disk(Path {
                active: up,
                device_state: "running".into(),
                ..Path::default()
            }),
        }],
        lockspace: Some(Lockspace {
            io_timeout: 10,
            last_renewal: Some(at(1000)),
            ..Lockspace::default()
        }),
        ..VolumeGroup::default()
    }
}

fn fenced(name: &str) -> VolumeGroup {
    let cut_off = DmDevice {
        sectors: 8,
        targets: vec![Target {
            length: 8,
            kind: "error".into(),
            ..Target::default()
        }]
        .into(),
        ..DmDevice::default()
    };
    VolumeGroup {
        devices: [cut_off.into()].into(),
        ..group(name, false)
    }
}

struct Node {
    dir: tempfile::TempDir,
    sentry: Sentry,
    to_make: UnboundedReceiver<StorageFenceRequest>,
}

impl Node {
    fn new(policies: Vec<StorageFencePolicy>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "boot");
        let (sentry, to_make) = Sentry::new("n1", store, at(1000));
        let mut node = Self {
            dir,
            sentry,
            to_make,
        };
        node.sentry.hear(Learned::Policies(policies), at(1000));
        node.hears(vec![]);
        node
    }

    fn hears(&mut self, conditions: Vec<SeenCondition>) {
        let news = Learned::Node(BTreeMap::new(), conditions);
        self.sentry.hear(news, at(1000));
    }

    /// The next agent on the same node, without an API server.
    fn restart(&mut self, second: u64, left: Option<&Record>) -> Vec<Known> {
        let store = Store::new(self.dir.path(), "boot");
        (self.sentry, self.to_make) = Sentry::new("n1", store, at(second));
        self.sentry.resume(left, &|_| false)
    }

    fn look(&mut self, second: u64, groups: Vec<VolumeGroup>) -> Due {
        self.look_busy(second, groups, false)
    }

    fn look_busy(&mut self, second: u64, groups: Vec<VolumeGroup>, busy: bool) -> Due {
        self.turn(second, second, groups, busy)
    }

    /// The desk's turn at `second`, with what was seen at `looked`.
    fn turn(&mut self, looked: u64, second: u64, groups: Vec<VolumeGroup>, busy: bool) -> Due {
        let inventory = Inventory {
            taken_at: at(looked),
            boot_id: "boot".into(),
            volume_groups: groups,
            lock_manager: LockManager::Running(vec![]),
            watchdog: Watchdog::default(),
        };
        self.sentry.look(Ok(&inventory), at(second));
        self.sentry.due(&inventory, at(second), busy)
    }

    /// Down since second 1000: what is due at 1010.
    fn down(&mut self, groups: &[&str]) -> Due {
        let all = || groups.iter().map(|g| group(g, false)).collect();
        assert!(self.look(1000, all()).fence.is_none());
        self.look(1010, all())
    }
}

fn known(order: &Order, outcome: Outcome) -> Known {
    let frozen = StepReport {
        kind: StepKind::FreezeLocks,
        volume_group: "san".into(),
        map: None,
        result: StepResult::Done,
        at: None,
        took: None,
        message: None,
        untold: false,
    };
    Known {
        order: order.clone(),
        report: FenceReport {
            request: order.name.clone(),
            uid: order.uid.clone(),
            generation: order.generation,
            boot_id: "boot".into(),
            steps: vec![frozen],
            outcome,
            ..FenceReport::default()
        },
    }
}

fn stored(request: &StorageFenceRequest, uid: &str, generation: i64) -> StorageFenceRequest {
    let mut stored = request.clone();
    stored.metadata.uid = Some(uid.into());
    stored.metadata.generation = Some(generation);
    stored
}

#[test]
fn without_a_policy_that_says_so_nothing_is_fenced() {
    for policies in [
        vec![],
        vec![policy("p", &json!({ "response": "Report" }))],
        vec![policy("p", &json!({ "response": "ConditionOnly" }))],
        vec![policy(
            "p",
            &json!({ "volumeGroups": { "except": ["san"] } }),
        )],
        vec![policy(
            "p",
            &json!({ "nodeSelector": { "matchLabels": { "a": "b" } } }),
        )],
    ] {
        let mut node = Node::new(policies.clone());
        assert!(node.down(&["san"]).fence.is_none(), "{policies:?}");
        for second in 1011..1100 {
            assert!(node.look(second, vec![group("san", false)]).fence.is_none());
        }
    }
}

#[test]
fn a_report_is_told_once_an_outage() {
    let mut node = Node::new(vec![policy("p", &json!({ "response": "Report" }))]);
    let told = node.down(&["san"]).reports;
    assert_eq!(told.len(), 1);
    assert!(
        told[0]
            .note
            .contains("policy p: volume group san: no path has worked for 10 s"),
        "{told:?}"
    );
    let reports = |node: &mut Node, second| node.look(second, vec![group("san", false)]).reports;
    assert_eq!(reports(&mut node, 1011), []);
    // The next agent tells it in other words, and the API server knows that it is the same.
    node.restart(1012, None);
    let again = reports(&mut node, 1013);
    assert_ne!(again[0].note, told[0].note);
    assert_eq!(again[0].occasion, told[0].occasion);
    // The next outage is another, in whatever words.
    node.look(1020, vec![group("san", true)]);
    node.look(1030, vec![group("san", true)]);
    assert_eq!(reports(&mut node, 1040), []);
    let next = reports(&mut node, 1050);
    assert_eq!(next[0].note, told[0].note);
    assert_ne!(next[0].occasion, told[0].occasion);
}

#[test]
fn what_is_due_is_an_order_for_the_lost_groups_of_one_policy() {
    let mut node = Node::new(vec![
        policy(
            "p",
            &json!({ "request": { "drainTimeoutSeconds": 7, "releaseLocks": "Never" } }),
        ),
        policy(
            "q",
            &json!({ "priority": 1, "volumeGroups": { "names": ["c"] } }),
        ),
    ]);
    let waits = node.look(
        1000,
        vec![group("a", false), group("b", false), group("c", true)],
    );
    assert_eq!(waits.wait, Some(Duration::from_secs(10)));
    let due = node.look(
        1010,
        vec![group("a", false), group("b", false), group("c", false)],
    );
    let (order, why) = due.fence.unwrap();
    assert_eq!(
        order.volume_groups,
        Selection::Named(vec!["a".into(), "b".into()])
    );
    assert_eq!(order.when_paths_remain, WhenPathsRemain::Refuse);
    assert_eq!(order.drain_timeout, Duration::from_secs(7));
    assert_eq!(
        order.release_locks,
        crate::fence::order::ReleaseLocks::Never
    );
    assert!(is_local(&order.uid));
    assert!(why.contains("policy p: volume group a: no path"), "{why}");
    // The same outage is answered once; another policy's group has its own.
    let again = node.look(1020, vec![fenced("a"), fenced("b"), group("c", false)]);
    assert_eq!(
        again.fence.unwrap().0.volume_groups,
        Selection::Named(vec!["c".into()])
    );
    assert!(
        node.look(1021, vec![fenced("a"), fenced("b"), fenced("c")])
            .fence
            .is_none()
    );
}

#[test]
fn a_fence_that_goes_on_is_waited_for_and_a_fenced_group_is_left_alone() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    node.look(1000, vec![group("san", false)]);
    let busy = node.look_busy(1010, vec![group("san", false)], true);
    assert!(busy.fence.is_none() && busy.wait.is_some());
    assert!(node.look(1011, vec![fenced("san")]).fence.is_none());
    assert!(node.look(1012, vec![group("san", false)]).fence.is_some());
}

#[test]
fn an_outage_is_looked_at_closely_until_the_group_stands_fenced() {
    let mut node = Node::new(vec![]);
    for (second, groups, closely) in [
        (1000, vec![group("san", true)], false),
        (1001, vec![group("san", false)], true),
        (1002, vec![fenced("san")], false),
        // It comes back: seen without delay that it has settled.
        (1003, vec![group("san", true)], true),
        (1010, vec![group("san", true)], false),
    ] {
        node.look(second, groups);
        assert_eq!(node.sentry.alarmed(), closely, "{second}");
    }
}

#[test]
fn the_lease_decides_whatever_the_paths_look_like() {
    let spec = json!({ "triggers": { "renewalsFailing": { "forSeconds": 40 } } });
    let mut node = Node::new(vec![policy("p", &spec)]);
    let mut failing = group("san", true);
    failing.lockspace.as_mut().unwrap().state = LockspaceState::RenewalFailing;
    assert!(node.look(1039, vec![failing.clone()]).fence.is_none());
    let (order, _) = node.look(1040, vec![failing]).fence.unwrap();
    assert_eq!(order.when_paths_remain, WhenPathsRemain::Fence);
}

#[test]
fn an_excluded_node_is_out_of_every_policy() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    let out = BTreeMap::from([(crate::api::EXCLUDE_LABEL.to_owned(), String::new())]);
    node.sentry.hear(Learned::Node(out, vec![]), at(1000));
    assert!(node.down(&["san"]).fence.is_none());
}

#[test]
fn policies_in_force_outlive_the_agent_without_an_api_server() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    node.restart(1000, None);
    let (order, _) = node.down(&["san"]).fence.unwrap();
    assert!(order.name.starts_with("auto-n1-"), "{}", order.name);
    // An API server that has none any more is believed.
    node.sentry.hear(Learned::Policies(vec![]), at(1000));
    node.hears(vec![]);
    node.restart(1000, None);
    assert!(node.down(&["san"]).fence.is_none());
}

#[test]
fn an_outage_goes_on_over_a_restart_unless_nobody_looked_for_long() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    node.look(1000, vec![group("san", false)]);
    node.look(1005, vec![group("san", false)]);
    node.restart(1009, None);
    assert!(node.look(1010, vec![group("san", false)]).fence.is_some());
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    node.look(1000, vec![group("san", false)]);
    node.restart(1016, None);
    assert!(node.look(1017, vec![group("san", false)]).fence.is_none());
    assert!(node.look(1027, vec![group("san", false)]).fence.is_some());
}

#[test]
fn a_fence_is_recorded_once_and_its_report_moves_to_the_record() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    let (order, _) = node.down(&["san"]).fence.unwrap();
    node.sentry
        .goes(&mut known(&order, Outcome::InProgress), false, at(1011));
    node.sentry
        .goes(&mut known(&order, Outcome::InProgress), false, at(1011));
    let record = node.to_make.try_recv().unwrap();
    assert!(node.to_make.try_recv().is_err(), "once");
    let annotations = record.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[annotation::POLICY], "p");
    assert_eq!(annotations[annotation::TRIGGER], "AllPathsDown");
    assert_eq!(record.spec.node_name, "n1");
    assert!(
        record
            .spec
            .reason
            .as_ref()
            .unwrap()
            .contains("no path has worked for 10 s")
    );
    // Another boot's record of the same name would be somebody else's.
    let mut other = stored(&record, "u-0", 1);
    other
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert(annotation::BOOT_ID.into(), "other".into());
    assert_eq!(node.sentry.adopt(&other), None);
    assert_eq!(
        node.sentry.adopt(&stored(&record, "u-1", 1)),
        Some(order.uid.clone())
    );
    assert_eq!(node.sentry.uid_now(&order.uid), "u-1");
    let mut proven = known(&order, Outcome::Proven);
    node.sentry.goes(&mut proven, true, at(1012));
    assert_eq!(
        (proven.order.uid.as_str(), proven.report.uid.as_str()),
        ("u-1", "u-1")
    );
    assert!(!node.sentry.owns(&proven.order.uid));
    let after = node.restart(1020, None);
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].order.uid, "u-1");
    assert!(node.to_make.try_recv().is_err(), "the API server has it");
    assert!(
        node.look(1021, vec![group("san", false)]).fence.is_none(),
        "answered"
    );
}

/// What the desk asks when the record is there: does the request say what was done? Otherwise it would be done again.
#[test]
fn the_record_gives_the_order_that_was_carried_out() {
    for more in [
        json!({}),
        json!({ "dryRun": true, "request": { "takeover": "Expedite", "drainTimeoutSeconds": 5 } }),
    ] {
        let mut node = Node::new(vec![policy("p", &more)]);
        let (order, _) = node.down(&["san"]).fence.unwrap();
        let outcome = if order.dry_run {
            Outcome::DryRun
        } else {
            Outcome::Proven
        };
        let mut known = known(&order, outcome);
        node.sentry.goes(&mut known, true, at(1011));
        let request = stored(&node.to_make.try_recv().unwrap(), "u-1", 1);
        node.sentry.adopt(&request).unwrap();
        records::rename(&mut known, "u-1", 1);
        assert_eq!(known.order, crate::agent::decide::order(&request));
    }
}

#[test]
fn a_successor_makes_the_record_that_the_dead_agent_could_not() {
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    let (order, _) = node.down(&["san"]).fence.unwrap();
    node.sentry
        .goes(&mut known(&order, Outcome::InProgress), false, at(1011));
    let first = node.to_make.try_recv().unwrap();
    let proven = known(&order, Outcome::Proven).report;
    let left = Record {
        begun: crate::agent::journal::Begun {
            order: order.clone(),
            groups: vec![],
            reset: None,
            report: proven.clone(),
        },
        steps: proven.steps.clone(),
        finished: Some(proven),
    };
    let after = node.restart(1020, Some(&left));
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].report.outcome, Outcome::Proven);
    let second = node.to_make.try_recv().unwrap();
    assert_eq!(
        second.metadata.name, first.metadata.name,
        "so that it exists once"
    );
    // Killed before the fence left a trace: it never was, and is due again under its name.
    let mut node = Node::new(vec![policy("p", &json!({}))]);
    let (order, _) = node.down(&["san"]).fence.unwrap();
    assert!(node.restart(1011, None).is_empty());
    assert!(node.to_make.try_recv().is_err());
    let (again, _) = node.look(1012, vec![group("san", false)]).fence.unwrap();
    assert_eq!(again.name, order.name);
}

#[test]
fn names_differ_by_node_boot_and_outage_and_are_names() {
    let name = |node: &str, boot: &str, episode: &str| {
        let answers = [Answer {
            name: "san".into(),
            uuid: "u".into(),
            alarm: Alarm {
                cause: crate::fence::trigger::Cause::AllPathsDown,
                episode: episode.into(),
                seen: String::new(),
            },
        }];
        let place = Place {
            node_name: node,
            boot_id: boot,
            uptime: 1,
        };
        let when = WhenPathsRemain::Refuse;
        let fence = local_fence(&policy("p", &json!({})), &answers, when, place);
        fence.record.metadata.name.unwrap()
    };
    let one = name("n1", "b", "e");
    assert_eq!(one, name("n1", "b", "e"));
    for other in [
        name("n2", "b", "e"),
        name("n1", "c", "e"),
        name("n1", "b", "f"),
    ] {
        assert_ne!(one, other);
    }
    let long = name(&format!("{}.x", "n".repeat(199)), "b", "e");
    assert!(long.len() <= 253 && !long.contains(".-"), "{long}");
}
