//! The peer's agent on a simulated node: host 8 of lockspace lvm_san. Host 7 is the fenced node, in generation 3.

use serde_json::{Value, json};

use super::*;
use crate::fence::LockspaceState;
use crate::host::simulated::{Daemon, Declaring, Group, Layout, Simulation, State, Under, uuid_of};
use crate::host::{HostState, LockspaceHost};
use crate::kubernetes::mock;

const DECLARED: DeclareDeadResult = DeclareDeadResult::Declared;
const REFUSED: DeclareDeadResult = DeclareDeadResult::Refused;
const FAILED: DeclareDeadResult = DeclareDeadResult::Failed;

/// What is otherwise, and how.
type Change<T> = (&'static str, fn(&mut T));

fn fenced_host() -> (String, u64) {
    ("lvm_san".to_owned(), 7)
}

fn node() -> Simulation {
    let group = Group {
        under: vec![Under::Map {
            active: 2,
            queueing: true,
        }],
        ..Group::target("san")
    };
    let node = Simulation::in_real_time(&Layout {
        groups: vec![group],
    });
    node.state(|s| {
        s.lockspaces[0].lockspace.host_id = 8;
        s.lockspaces[0].lockspace.generation = Some(5);
        let live = LockspaceHost {
            host_id: 7,
            generation: 3,
            state: HostState::Live,
            declared_dead: false,
        };
        s.hosts.insert(fenced_host(), live);
        s.fenced_hosts.insert(("lvm_san".into(), 7, 3));
    });
    node
}

fn task() -> DeclareDead {
    DeclareDead {
        request_uid: "uid".into(),
        request: "n1-san".into(),
        node_name: "n1".into(),
        boot_id: "boot-1".into(),
        volume_group_uuid: uuid_of("san"),
        lockspace: "lvm_san".into(),
        host_id: 7,
        generation: 3,
    }
}

/// What the agent of n1 has attested.
fn request() -> Value {
    let condition = |type_: &str| {
        json!({ "type": type_, "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": { "name": "n1-san", "uid": "uid", "generation": 1 },
        "spec": { "nodeName": "n1", "takeover": "Expedite" },
        "status": {
            "conditions": [condition("Fenced"), condition("LocksReleased")],
            "node": {
                "observedGeneration": 1, "bootId": "boot-1", "agentVersion": "1", "dryRun": false,
                "volumeGroups": [{
                    "name": "san", "uuid": uuid_of("san"), "lockspace": "lvm_san", "hostId": 7, "generation": 3,
                    "pathsTotal": 2, "pathsActive": 0, "devicesTotal": 3, "devicesProven": 3, "locksReleased": true,
                }],
            },
        },
    })
}

/// What comes of the task on that node, when the API server has that request (Null: none).
async fn outcome(node: &Simulation, task: DeclareDead, request: Value) -> DeclaredDead {
    let client = mock::client(move |call| {
        assert_eq!(call.method, "GET", "nothing is written");
        if request.is_null() {
            let gone = json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404 });
            return (404, gone);
        }
        (200, request.clone())
    });
    let observer = Observer::start(node.host(), None, Duration::from_millis(50), |_| {}).unwrap();
    let mut latest = observer.latest();
    latest.wait_for(Option::is_some).await.unwrap();
    let (tell, mut told) = watch::channel(Vec::new());
    let peer = Peer {
        client,
        host: node.host(),
        observer,
        tell,
    };
    let (ask, asked) = watch::channel(vec![task.clone()]);
    let work = tokio::spawn(peer.run(asked));
    let answered = told.wait_for(|all: &Vec<DeclaredDead>| {
        all.iter()
            .any(|d| d.result != DeclareDeadResult::InProgress)
    });
    let answered = tokio::time::timeout(Duration::from_mins(1), answered).await;
    let outcome = answered.unwrap().unwrap()[0].clone();
    drop(ask);
    work.abort();
    assert!(outcome.is_of(&task));
    outcome
}

fn declarations(node: &Simulation) -> Vec<String> {
    let log = node.log().into_iter();
    log.filter(|l| l.starts_with("declare_dead")).collect()
}

#[tokio::test]
async fn a_fenced_peer_is_declared_dead_and_that_is_read_back() {
    let node = node();
    let outcome = outcome(&node, task(), request()).await;
    assert_eq!(outcome.result, DECLARED, "{outcome:?}");
    assert_eq!(declarations(&node), ["declare_dead lvm_san 7 3"]);
    assert!(node.state(|s| s.hosts[&fenced_host()].declared_dead));
    assert_eq!(node.violations(), [] as [String; 0]);
}

/// Task and sanlock agree in each of these: it is the word of the fenced node's own agent that is missing.
#[tokio::test]
async fn nobody_is_declared_dead_whom_his_own_agent_does_not_attest() {
    let node = node();
    let group = "/status/node/volumeGroups/0";
    for (what, at, to) in [
        ("request UID", "/metadata/uid".to_owned(), json!("other")),
        ("node", "/spec/nodeName".to_owned(), json!("n3")),
        ("not asked for", "/spec/takeover".to_owned(), json!("Wait")),
        ("boot ID", "/status/node/bootId".to_owned(), json!("boot-2")),
        ("VG UUID", format!("{group}/uuid"), json!(uuid_of("other"))),
        (
            "lockspace",
            format!("{group}/lockspace"),
            json!("lvm_other"),
        ),
        ("host id", format!("{group}/hostId"), json!(6)),
        ("generation", format!("{group}/generation"), json!(2)),
        ("later generation", format!("{group}/generation"), json!(4)),
        (
            "unknown generation",
            format!("{group}/generation"),
            Value::Null,
        ),
        (
            "not released",
            format!("{group}/locksReleased"),
            json!(false),
        ),
        (
            "not proven",
            "/status/conditions/0/status".to_owned(),
            json!("False"),
        ),
        (
            "proof unknown",
            "/status/conditions/0/status".to_owned(),
            json!("Unknown"),
        ),
        (
            "locks held",
            "/status/conditions/1/status".to_owned(),
            json!("False"),
        ),
        ("plan", "/status/node/dryRun".to_owned(), json!(true)),
        ("no word", "/status/node".to_owned(), Value::Null),
        ("no status", "/status".to_owned(), Value::Null),
        ("no request", String::new(), Value::Null),
    ] {
        let mut request = request();
        *request.pointer_mut(&at).unwrap() = to;
        let outcome = outcome(&node, task(), request).await;
        assert_eq!(outcome.result, REFUSED, "{what}: {outcome:?}");
        assert_eq!(declarations(&node), [] as [String; 0], "{what}");
    }
    for (what, at, key, to) in [
        ("un-fenced", "/spec", "fenceState", json!("Unfenced")),
        ("dry run", "/spec", "dryRun", json!(true)),
        (
            "deleted",
            "/metadata",
            "deletionTimestamp",
            json!("2026-01-01T00:00:00Z"),
        ),
    ] {
        let mut request = request();
        request.pointer_mut(at).unwrap()[key] = to;
        let outcome = outcome(&node, task(), request).await;
        assert_eq!(outcome.result, REFUSED, "{what}: {outcome:?}");
        assert_eq!(declarations(&node), [] as [String; 0], "{what}");
    }
}

/// The request is in order in each of these; the task says something else of it.
#[tokio::test]
async fn a_task_that_says_otherwise_than_the_attestation_is_refused() {
    let changes: [Change<DeclareDead>; 8] = [
        ("request UID", |t| t.request_uid = "other".into()),
        ("node", |t| t.node_name = "n3".into()),
        ("boot ID", |t| t.boot_id = "boot-2".into()),
        ("VG UUID", |t| t.volume_group_uuid = uuid_of("other")),
        ("host id", |t| t.host_id = 6),
        ("own host id", |t| t.host_id = 8),
        ("generation", |t| t.generation = 2),
        ("later generation", |t| t.generation = 4),
    ];
    let node = node();
    for (what, change) in changes {
        let mut task = task();
        change(&mut task);
        let outcome = outcome(&node, task, request()).await;
        assert_eq!(outcome.result, REFUSED, "{what}: {outcome:?}");
        assert_eq!(declarations(&node), [] as [String; 0], "{what}");
    }
}

/// What is attested is over, or was never so: sanlock sees another life of that host.
#[tokio::test]
async fn a_host_that_is_seen_in_another_generation_is_not_declared_dead() {
    for generation in [0, 2, 4] {
        let node = node();
        node.state(|s| {
            if let Some(host) = s.hosts.get_mut(&fenced_host()) {
                host.generation = generation;
            }
        });
        let outcome = outcome(&node, task(), request()).await;
        assert_eq!(outcome.result, REFUSED, "{generation}: {outcome:?}");
        assert_eq!(declarations(&node), [] as [String; 0], "{generation}");
    }
}

/// Lockspaces are called after volume groups, and there may be two of one name.
#[tokio::test]
async fn a_lockspace_of_another_volume_group_of_that_name_is_left_alone() {
    let node = node();
    node.state(|s| s.lockspaces[0].lockspace.vg_uuid = uuid_of("other"));
    let outcome = outcome(&node, task(), request()).await;
    assert_eq!(outcome.result, REFUSED, "{outcome:?}");
    assert_eq!(declarations(&node), [] as [String; 0]);
}

#[tokio::test]
async fn a_peer_that_is_not_well_declares_nobody_dead() {
    let changes: [Change<State>; 5] = [
        ("not joined", |s| s.lockspaces.clear()),
        ("being fenced", |s| s.lockspaces[0].lockspace.frozen = true),
        ("lease not renewed", |s| {
            s.lockspaces[0].lockspace.state = LockspaceState::RenewalFailing;
        }),
        ("no sanlock", |s| s.sanlock = Daemon::Dead),
        ("own id", |s| s.lockspaces[0].lockspace.host_id = 7),
    ];
    for (what, change) in changes {
        let node = node();
        node.state(change);
        let outcome = outcome(&node, task(), request()).await;
        assert!(
            [FAILED, REFUSED].contains(&outcome.result),
            "{what}: {outcome:?}"
        );
        assert_eq!(declarations(&node), [] as [String; 0], "{what}");
    }
}

#[tokio::test]
async fn what_sanlock_says_is_told_and_its_yes_is_not_believed() {
    for (declare, words) in [
        (Declaring::OldLeases, "-204"),
        (Declaring::Lies, "all the same"),
    ] {
        let node = node();
        node.state(|s| s.declare = declare);
        let outcome = outcome(&node, task(), request()).await;
        assert_eq!(outcome.result, FAILED, "{outcome:?}");
        assert!(outcome.message.contains(words), "{outcome:?}");
    }
}

/// A successor finds what was done, and a host that has left needs no declaration.
#[tokio::test]
async fn what_is_done_is_not_done_again() {
    let node = node();
    assert_eq!(outcome(&node, task(), request()).await.result, DECLARED);
    assert_eq!(outcome(&node, task(), request()).await.result, DECLARED);
    assert_eq!(declarations(&node).len(), 1);

    let left = self::node();
    left.state(|s| {
        if let Some(host) = s.hosts.get_mut(&fenced_host()) {
            host.state = HostState::Free;
        }
    });
    let outcome = outcome(&left, task(), request()).await;
    assert_eq!(outcome.result, DeclareDeadResult::Free);
    assert_eq!(declarations(&left), [] as [String; 0]);
}

/// Nothing waits for a sanlock that hangs but the task itself, and no second thread is left behind.
#[tokio::test]
async fn a_sanlock_that_hangs_is_given_up_and_not_asked_by_a_second_thread() {
    let node = node();
    let observer = Observer::start(node.host(), None, Duration::from_millis(50), |_| {}).unwrap();
    let mut latest = observer.latest();
    latest.wait_for(Option::is_some).await.unwrap();
    let peer = Peer {
        client: mock::client(|_| (200, request())),
        host: node.host(),
        observer,
        tell: watch::channel(Vec::new()).0,
    };
    let own = peer.place(&task()).unwrap();
    node.state(|s| s.sanlock = Daemon::Hangs);
    let busy = Arc::new(AtomicBool::new(false));
    let task = task();
    let first = peer.declare(&task, own.clone(), &busy);
    tokio::select! {
        outcome = first => panic!("{outcome:?}"),
        () = tokio::time::sleep(Duration::from_millis(200)) => {}
    }
    let second = peer.declare(&task, own, &busy).await;
    assert_eq!(second.0, FAILED);
    assert!(second.1.contains("has not ended"), "{}", second.1);
    node.end();
}
