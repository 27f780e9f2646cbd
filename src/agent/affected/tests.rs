use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::agent::journal::GroupRecord;
use crate::agent::report::AgentPart;
use crate::fence::report::LocksOutcome;
use crate::fence::unfence::Opener;
use crate::fence::{DmDevice, Monotonic, Target};
use crate::host::Openers;
use crate::host::simulated::{Group, Layout, Simulation, uuid_of};
use crate::kubernetes::mock;

const PAUSE: Duration = Duration::from_millis(100);
/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

fn standing(vg: &str, locks: LocksOutcome) -> Standing {
    Standing {
        group: GroupRecord {
            name: vg.into(),
            uuid: uuid_of(vg),
            ..GroupRecord::default()
        },
        boot_id: "boot".into(),
        by: "r".into(),
        uid: "u".into(),
        lockspace: None,
        host_id: None,
        generation: None,
        proven: Monotonic::from_secs(1),
        proven_anew: None,
        locks,
        keep_locks: false,
        newest: None,
        joined: false,
        told: false,
        openings: 0,
        last_opening: None,
    }
}

fn subject(uid: &str, groups: &[&str], stored: Option<AffectedPods>) -> Subject {
    Subject {
        uid: uid.into(),
        name: format!("name-of-{uid}"),
        groups: groups.iter().map(|g| uuid_of(g)).collect(),
        stored,
    }
}

/// A node with volume groups `a` and `b`, on the error target, and the task.
struct Bench {
    node: Simulation,
    written: Arc<Mutex<Vec<(String, Value)>>>,
    standing: watch::Sender<Vec<Standing>>,
    subjects: watch::Sender<Vec<Subject>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Bench {
    fn new(openers: Option<Arc<dyn Openers>>) -> Self {
        let groups = vec![Group::target("a"), Group::target("b")];
        let node = Simulation::in_real_time(&Layout { groups });
        node.state(|s| {
            let volumes = s.devices.values_mut();
            for device in volumes.filter(|d| d.dm.name.contains("-lv")) {
                device.dm.open_count = 1;
                device.dm.deps.clear();
                device.dm.targets = vec![Target {
                    start: 0,
                    length: device.dm.sectors,
                    kind: "error".into(),
                    params: smol_str::SmolStr::default(),
                }]
                .into();
            }
        });
        let mut host = node.host();
        host.openers = openers.unwrap_or(host.openers);
        let written = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&written);
        let client = mock::client(move |call| {
            told.lock()
                .unwrap()
                .push((call.path.clone(), call.body["status"].clone()));
            let mut answer = call.body;
            answer["spec"] = json!({ "nodeName": "n1" });
            (200, answer)
        });
        let (tell_standing, standing) = watch::channel(Vec::new());
        let (tell_subjects, subjects) = watch::channel(Vec::new());
        let task = Task {
            client,
            host,
            boot_id: "boot".into(),
            standing,
            subjects,
            pause: PAUSE,
            limit: PAUSE * 3,
            metrics: Metrics::default(),
        };
        Self {
            node,
            written,
            standing: tell_standing,
            subjects: tell_subjects,
            _task: tokio_util::task::AbortOnDropHandle::new(tokio::spawn(task.run())),
        }
    }

    fn holds(&self, device: &str, pod: &str) {
        self.node.state(|s| {
            let dev = s.device(device).expect("a device").dm.dev;
            s.openers.push(Opener {
                dev,
                who: format!("process of {pod}"),
                pod_uid: Some(pod.to_owned()),
            });
        });
    }

    fn stands(&self, vgs: &[(&str, LocksOutcome)]) {
        let all = vgs.iter().map(|(vg, locks)| standing(vg, *locks));
        self.standing.send_replace(all.collect());
    }

    fn asks(&self, all: Vec<Subject>) {
        self.subjects.send_replace(all);
    }

    fn count(&self) -> usize {
        self.written.lock().unwrap().len()
    }

    /// What the next write says, of which request.
    async fn next(&self, after: usize) -> (String, Value) {
        let began = Instant::now();
        while self.count() <= after {
            assert!(began.elapsed() < LIMIT, "nothing was written");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.written.lock().unwrap()[after].clone()
    }

    /// Nothing is written for a while.
    async fn quiet(&self, so_far: usize) {
        tokio::time::sleep(PAUSE * 8).await;
        let written = self.written.lock().unwrap();
        assert_eq!(written.len(), so_far, "{written:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.end();
    }
}

fn pods(status: &Value) -> Vec<String> {
    let list = status["affectedPods"]["pods"].as_array();
    list.into_iter()
        .flatten()
        .map(|p| format!("{} {}", p["uid"].as_str().unwrap(), p["volumes"]))
        .collect()
}

#[tokio::test]
async fn who_holds_a_fenced_volume_open_is_told_while_the_fence_stands_and_only_when_it_changes() {
    let bench = Bench::new(None);
    bench.holds("a-lv0", "p1");
    bench.holds("a-lv1", "p1");
    bench.holds("b-lv0", "p2");
    bench.asks(vec![subject("u1", &["a"], None), subject("u2", &[], None)]);
    bench.quiet(0).await;
    bench.stands(&[("a", LocksOutcome::Released), ("b", LocksOutcome::Kept)]);
    let (path, status) = bench.next(0).await;
    assert!(path.ends_with("/name-of-u1/status"), "{path}");
    assert_eq!(pods(&status), ["p1 [\"a-lv0\",\"a-lv1\"]"]);
    assert_eq!(status["affectedPods"]["bootId"], "boot");
    assert_eq!(status["affectedPods"]["total"], 1);
    // Nothing else of the status is this writer's.
    assert_eq!(status.as_object().unwrap().len(), 1);
    bench.quiet(1).await;
    // Those that are gone leave it, and nobody at all is told too.
    bench.node.state(|s| s.openers.clear());
    let (_, status) = bench.next(1).await;
    assert_eq!(
        status["affectedPods"],
        json!({ "bootId": "boot", "total": 0 })
    );
    bench.quiet(2).await;
    // Lifted: the list goes.
    bench.stands(&[("b", LocksOutcome::Kept)]);
    let (_, status) = bench.next(2).await;
    assert_eq!(status, json!({}));
    bench.quiet(3).await;
}

/// The fence comes first, to its last step.
#[tokio::test]
async fn nothing_is_searched_before_the_locks_are_settled() {
    struct Count(AtomicUsize);
    impl Openers for Count {
        fn of(&self, _: &[DmDevice], _: &mut dyn FnMut(Opener)) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let bench = Bench::new(Some(count.clone()));
    bench.asks(vec![subject("u1", &["a"], None)]);
    bench.quiet(0).await;
    bench.stands(&[("a", LocksOutcome::Pending)]);
    bench.quiet(0).await;
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    bench.stands(&[("a", LocksOutcome::NotConfirmed)]);
    bench.next(0).await;
    assert!(count.0.load(Ordering::Relaxed) > 0);
}

/// Meets two pods at one time, and one of them at the next.
struct Looks(AtomicUsize);

impl Openers for Looks {
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener)) {
        let odd = self.0.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        for pod in ["holds", "looks"].into_iter().take(2 - usize::from(odd)) {
            found(Opener {
                dev: devices[0].dev,
                who: "process".into(),
                pod_uid: Some(pod.into()),
            });
        }
    }
}

#[tokio::test]
async fn a_pod_that_only_looks_for_a_moment_is_not_told() {
    let looks = Arc::new(Looks(AtomicUsize::new(0)));
    let bench = Bench::new(Some(looks.clone()));
    bench.asks(vec![subject("u1", &["a"], None)]);
    bench.stands(&[("a", LocksOutcome::Released)]);
    let (_, status) = bench.next(0).await;
    assert_eq!(pods(&status), ["holds [\"a-lv0\"]"]);
    bench.quiet(1).await;
    assert!(looks.0.load(Ordering::Relaxed) > 2);
}

/// Comes back once, having met nobody, and then meets a pod and hangs.
struct LooksAndHangs(AtomicUsize);

impl Openers for LooksAndHangs {
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener)) {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            return;
        }
        found(Opener {
            dev: devices[0].dev,
            who: "process".into(),
            pod_uid: Some("looks".into()),
        });
        std::thread::sleep(PAUSE * 30);
    }
}

#[tokio::test]
async fn a_search_that_hangs_is_one_search_however_often_it_is_looked_at() {
    let looks = Arc::new(LooksAndHangs(AtomicUsize::new(0)));
    let bench = Bench::new(Some(looks.clone()));
    bench.asks(vec![subject("u1", &["a"], None)]);
    bench.stands(&[("a", LocksOutcome::Released)]);
    let (_, status) = bench.next(0).await;
    assert_eq!(pods(&status), Vec::<String>::new());
    assert_eq!(status["affectedPods"]["incomplete"], true);
    bench.quiet(1).await;
    assert_eq!(looks.0.load(Ordering::Relaxed), 2);
}

/// Twice it finds one pod and comes back; after that, it finds nobody and hangs.
struct Hangs {
    searches: AtomicUsize,
    release: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Openers for Hangs {
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener)) {
        if self.searches.fetch_add(1, Ordering::Relaxed) < 2 {
            found(Opener {
                dev: devices[0].dev,
                who: "process".into(),
                pod_uid: Some("p1".into()),
            });
            return;
        }
        let release = self.release.lock().unwrap();
        let _ = release.recv_timeout(Duration::from_mins(2));
    }
}

#[tokio::test]
async fn a_search_that_hangs_denies_nobody_and_is_not_joined_by_others() {
    let (release, waits) = std::sync::mpsc::channel();
    let hangs = Arc::new(Hangs {
        searches: AtomicUsize::new(0),
        release: Mutex::new(waits),
    });
    let bench = Bench::new(Some(hangs.clone()));
    bench.asks(vec![subject("u1", &["a"], None)]);
    bench.stands(&[("a", LocksOutcome::Released)]);
    let (_, status) = bench.next(0).await;
    assert_eq!(pods(&status).len(), 1);
    assert_eq!(status["affectedPods"]["incomplete"], Value::Null);
    let (_, status) = bench.next(1).await;
    assert_eq!(pods(&status).len(), 1, "{status}");
    assert_eq!(status["affectedPods"]["incomplete"], true);
    bench.quiet(2).await;
    assert_eq!(hangs.searches.load(Ordering::Relaxed), 3);
    // It comes back, and found nobody.
    drop(release);
    let (_, status) = bench.next(2).await;
    assert_eq!(
        status["affectedPods"],
        json!({ "bootId": "boot", "total": 0 })
    );
}

#[test]
fn what_the_api_server_will_not_have_is_not_sent_again_and_again() {
    let pods = || AffectedPods {
        boot_id: "boot".into(),
        ..AffectedPods::default()
    };
    let now = Instant::now();
    let subject = subject("u", &["a"], None);
    assert!(!is_known(&subject, None, Some(&pods())));
    let took = Said::Took(Some(pods()), now);
    assert!(is_known(&subject, Some(&took), Some(&pods())));
    assert!(!is_known(&subject, Some(&took), None));
    assert!(is_known(&subject, Some(&Said::Refused(now)), Some(&pods())));
}

fn request(fenced: &str, boot_id: &str) -> StorageFenceRequest {
    serde_json::from_value(json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": { "name": "r" }, "spec": { "nodeName": "n1" },
        "status": {
            "conditions": [{
                "type": "Fenced", "status": fenced, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "node": {
                "observedGeneration": 1, "bootId": boot_id, "agentVersion": "0",
                "volumeGroups": [{ "name": "a", "uuid": "A", "pathsTotal": 0, "pathsActive": 0, "devicesTotal": 1, "devicesProven": 1 }],
            },
        },
    }))
    .unwrap()
}

#[test]
fn a_request_is_about_what_is_proven_for_it_in_this_boot() {
    for (fenced, boot_id, groups) in [
        ("True", "boot", 1),
        ("False", "boot", 0),
        ("Unknown", "boot", 0),
        ("True", "former", 0),
    ] {
        let request = request(fenced, boot_id);
        let part = AgentPart::of(request.status.as_ref().unwrap());
        let subject = Subject::of("u", &request, &part, "boot");
        assert_eq!(subject.groups.len(), groups, "{fenced} {boot_id}");
    }
}

#[test]
fn lists_have_an_end() {
    let mut affected = Affected::default();
    let device = |n: u32| DmDevice {
        dev: crate::fence::DevNo {
            major: 253,
            minor: n,
        },
        name: format!("a-lv{n}").into(),
        uuid: format!("LVM-{}{n:032}", uuid_of("a")).into(),
        sectors: 1,
        open_count: 1,
        targets: vec![Target {
            length: 1,
            kind: "error".into(),
            ..Target::default()
        }]
        .into(),
        ..DmDevice::default()
    };
    let devices: Vec<DmDevice> = (0..20).map(device).collect();
    let groups = BTreeSet::from([uuid_of("a")]);
    let doors = Doors::of(&groups, &BTreeSet::new(), &devices);
    for pod in 0..100 {
        for device in &devices {
            affected.found(
                &doors,
                &Opener {
                    dev: device.dev,
                    who: String::new(),
                    pod_uid: Some(format!("p{pod}")),
                },
            );
        }
    }
    let list = list(&affected, &groups, "boot", false);
    assert_eq!(
        (list.total, list.pods.len(), list.pods[0].volumes.len()),
        (100, 64, 16)
    );
}
