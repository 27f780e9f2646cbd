//! Gathers what the cluster knows that bears on a request, from the caches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::api::StorageFenceRequest;
use crate::api::governing::outranked_by;
use crate::controller::facts::{AgentPod, Facts, NodeFacts};
use crate::controller::watches::Caches;

/// Gathers.
#[must_use]
pub fn dereference(request: &StorageFenceRequest, caches: &Caches) -> Facts {
    let name = &request.spec.node_name;
    let node = caches.nodes.get(&ObjectRef::new(name));
    let storage = caches.storages.get(&ObjectRef::new(name));
    let others = caches.requests_of(name);
    let mut agent_pods: Vec<AgentPod> = caches
        .pods
        .state_filter(|pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.as_ref() == Some(name))
        })
        .iter()
        .map(|pod| agent_pod(pod))
        .collect();
    // The cache has no order, and messages name the first.
    agent_pods.sort_by(|a, b| a.name.cmp(&b.name));
    Facts {
        node: node.map(|node| NodeFacts {
            uid: node.uid().unwrap_or_default(),
        }),
        storage: storage.and_then(|storage| match &storage.0 {
            Ok(storage) => storage.status.clone(),
            Err(error) => {
                tracing::warn!(node = name, %error, "NodeStorage cannot be read");
                None
            }
        }),
        agent_pods,
        governed_by: outranked_by(request, &others).map(ResourceExt::name_any),
    }
}

/// The agents' pods, by node.
#[must_use]
pub fn agent_pods(caches: &Caches) -> BTreeMap<String, Vec<AgentPod>> {
    let mut all: BTreeMap<String, Vec<AgentPod>> = BTreeMap::new();
    for pod in caches.pods.state() {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            all.entry(node).or_default().push(agent_pod(&pod));
        }
    }
    all
}

/// A pod of the agent in short.
#[must_use]
pub fn agent_pod(pod: &Pod) -> AgentPod {
    let status = pod.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    let deleted = pod.metadata.deletion_timestamp.is_some();
    AgentPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        ready: ready && !deleted,
        trouble: if deleted {
            Some("it is being deleted".to_owned())
        } else {
            trouble(pod)
        },
    }
}

/// Why a pod is not ready, in the word of whoever knows.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone());
    waiting
        .or_else(|| status.reason.clone())
        .or_else(|| status.phase.clone())
}
