//! Gathers what bears on take-overs, from the caches.

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::memory::Memory;
use super::plan::{Peer, View};
use crate::api::condition::find;
use crate::api::request::Takeover;
use crate::api::takeover::{DeclareDead, condition_type};
use crate::api::{NodeStorage, StorageFenceRequest};
use crate::controller::context::Context;
use crate::controller::request::dereference::agent_pods;
use crate::controller::watches::Caches;

/// Gathers; None when nobody asks for a take-over and nothing is left of one.
#[must_use]
pub fn dereference(context: &Context, memory: &Memory) -> Option<View> {
    let caches = &context.caches;
    let requests = requests(caches);
    let storages = caches.storages.state();
    let readable = || storages.iter().filter_map(|s| s.0.as_ref().ok());
    let tasks_of = |storage: &NodeStorage| tasks_of(storage, context, memory);
    let tasks = readable().any(|s| !tasks_of(s).is_empty());
    if requests.is_empty() && !tasks {
        return None;
    }
    let pods = agent_pods(caches);
    let peer = |storage: &NodeStorage| {
        let name = storage.name_any();
        let status = storage.status.clone().unwrap_or_default();
        let node = caches.nodes.get(&ObjectRef::new(&name));
        let node_uid = node.and_then(|n| n.uid());
        let answers = node_uid.is_some_and(|uid| {
            let pods = pods.get(&name).into_iter().flatten();
            storage.status.is_some() && pods.clone().any(|pod| pod.speaks_for(&uid, &status))
        });
        Peer {
            uid: storage.uid().unwrap_or_default(),
            answers,
            storage: status,
            tasks: tasks_of(storage),
            refused: None,
            name,
        }
    };
    let mut peers: Vec<Peer> = readable().map(peer).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let held_back = requests
        .iter()
        .filter_map(|r| Some((r.uid()?, context.limits.held_back(r, caches)?)))
        .collect();
    Some(View {
        requests,
        peers,
        held_back,
    })
}

/// What a node was asked. A cache that does not know our last write yet would have us ask twice, or count on a task that is not there any more.
#[must_use]
pub fn tasks_of(storage: &NodeStorage, context: &Context, memory: &Memory) -> Vec<DeclareDead> {
    let ours = memory.given(&storage.name_any());
    let ours = ours.filter(|_| context.written.is_ahead_of(storage));
    ours.map_or_else(|| storage.spec.declare_dead.clone(), <[_]>::to_vec)
}

/// Those that ask for it, and those that say something of it.
fn requests(caches: &Caches) -> Vec<StorageFenceRequest> {
    let all = caches.requests.state();
    let about = |r: &&StorageFenceRequest| {
        let said = r.status.as_ref();
        r.spec.takeover == Takeover::Expedite
            || said.is_some_and(|s| find(&s.conditions, condition_type::TAKEN_OVER).is_some())
    };
    let mut requests: Vec<StorageFenceRequest> = all
        .iter()
        .filter_map(|r| r.0.as_ref().ok())
        .filter(about)
        .cloned()
        .collect();
    requests.sort_by_key(ResourceExt::name_any);
    requests
}
