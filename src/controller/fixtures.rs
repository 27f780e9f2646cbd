//! Requests and reports for the tests of the pure stages.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::Event;
use kube::{Client, Resource};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;

use super::context::{Context, Failures, Written};
use super::facts::{AgentMode, AgentPod, Facts, NodeFacts, Settings};
use super::watches::Caches;
use crate::api::{Condition, ConditionStatus, NodeStorageStatus, StorageFenceRequest};
use crate::kubernetes::events::Events;

/// A way in which the world may be otherwise, and its name.
pub type Otherwise = (&'static str, fn(&mut Facts));

pub const BOOT: &str = "boot-1";

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A request for node `n1`, generation 2.
pub fn request(spec: &Value) -> StorageFenceRequest {
    let mut full = json!({ "nodeName": "n1" });
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    let mut request = StorageFenceRequest::new("r", serde_json::from_value(full).unwrap());
    request.metadata.generation = Some(2);
    request.metadata.uid = Some("request-uid".into());
    request.metadata.creation_timestamp = Some(Time(at(1000)));
    request
}

pub fn condition(type_: &str, status: ConditionStatus, reason: &str) -> Condition {
    Condition {
        type_: type_.into(),
        status,
        observed_generation: Some(2),
        last_transition_time: at(1000),
        reason: reason.into(),
        message: format!("{type_} says {reason}"),
    }
}

/// With a condition as its writer would leave it.
pub fn with(mut request: StorageFenceRequest, condition: Condition) -> StorageFenceRequest {
    let status = request.status.get_or_insert_default();
    crate::api::condition::set(&mut status.conditions, condition);
    request
}

/// With the word of the agent.
pub fn fenced(
    request: StorageFenceRequest,
    status: ConditionStatus,
    reason: &str,
) -> StorageFenceRequest {
    with(request, condition("Fenced", status, reason))
}

pub fn settings(agent_mode: AgentMode) -> Settings {
    Settings {
        agent_mode,
        agent_wait: Duration::from_mins(1),
        namespace: "storage-fence".into(),
    }
}

pub fn pod(ready: bool) -> AgentPod {
    AgentPod {
        name: "agent-x1".into(),
        uid: "pod-uid".into(),
        ready,
        trouble: (!ready).then(|| "ImagePullBackOff".into()),
    }
}

/// A report of two shared volume groups (`gone` without paths, `half` with one of two) and a local one.
pub fn storage() -> NodeStorageStatus {
    let pv = |states: [bool; 2]| {
        json!([{ "device": "mpatha", "kind": "Multipath", "paths": states.map(|active|
            json!({ "device": "sda", "active": active, "deviceState": "running" })) }])
    };
    let vg = |name: &str, shared: bool, pvs: Value| {
        json!({ "name": name, "uuid": name, "shared": shared, "physicalVolumes": pvs,
                "logicalVolumes": 1, "logicalVolumesOpen": 1 })
    };
    serde_json::from_value(json!({
        "nodeUid": "node-uid", "bootId": BOOT, "agentVersion": "1", "agentPod": "agent-x1 (pod-uid)",
        "sharedVolumeGroups": 2, "activeLogicalVolumes": 3, "paths": "1/4",
        "volumeGroups": [
            vg("gone", true, pv([false, false])),
            vg("half", true, pv([true, false])),
            vg("local", false, pv([true, true])),
            vg("dark", true, json!([])),
        ],
    }))
    .unwrap()
}

/// Node, agent and report are there.
pub fn facts() -> Facts {
    Facts {
        node: Some(NodeFacts {
            uid: "node-uid".into(),
        }),
        storage: Some(storage()),
        agent_pods: vec![pod(true)],
        governed_by: None,
    }
}

/// A cache that holds these.
pub fn cache<K>(objects: impl IntoIterator<Item = K>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (reader, mut writer) = store();
    for object in objects {
        writer.apply_watcher_event(&Event::Apply(object));
    }
    reader
}

pub fn empty_caches() -> Caches {
    Caches {
        requests: cache([]),
        policies: cache([]),
        storages: cache([]),
        nodes: cache([]),
        pods: cache([]),
    }
}

/// A controller that leads, in front of that API server. Within a runtime.
pub fn context_of(client: Client, caches: Caches) -> Context {
    let (events, _) = Events::start(client.clone(), "test", "test");
    Context {
        client: client.clone(),
        evictor: client,
        settings: settings(AgentMode::Resident),
        caches,
        events,
        metrics: super::metrics::Metrics::default(),
        leading: watch::channel(true).1,
        written: Written::default(),
        failures: Failures::default(),
        absences: super::node::absence::Absences::default(),
        boots: super::node::boot::Boots::default(),
        unreadable: super::unreadable::Told::default(),
        limits: super::limits::Limits::default(),
        rounds: super::eviction::rounds::Rounds::default(),
    }
}
