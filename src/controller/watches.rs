//! The watches: one a kind, each with its own back-off, each filling a cache and ringing for the nodes that it says something about.
//!
//! Every replica runs them, so that the one that becomes leader has warm caches.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::metrics::{KindLabels, Metrics};
use crate::api::{AGENT_WANTED_LABEL, GROUP, NodeStorage, StorageFencePolicy, StorageFenceRequest};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::watch::patient;

/// A request, or what is left of one that cannot be read.
pub type Request = DeserializeGuard<StorageFenceRequest>;
/// A NodeStorage, or what is left of one that cannot be read.
pub type Storage = DeserializeGuard<NodeStorage>;
/// A policy, or what is left of one that cannot be read.
pub type Policy = DeserializeGuard<StorageFencePolicy>;
/// A Node without its bulk.
pub type NodeMeta = PartialObjectMeta<Node>;

/// Something to look at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A node and all requests for it.
    Node(String),
    /// A policy.
    Policy(String),
    /// A request whose node cannot be told.
    Request(String),
    /// Everything: the cache was read anew (what went away meanwhile is not said), or this replica became leader.
    All,
}

/// Rings the controllers, and whoever writes the statuses of policies.
#[derive(Clone, Debug)]
pub struct Bell {
    requests: UnboundedSender<Trigger>,
    evictions: UnboundedSender<Trigger>,
    nodes: UnboundedSender<Trigger>,
    /// Rung with every trigger.
    pub policies: Arc<Notify>,
    /// Rung with every trigger, for the remediations.
    pub remediations: Arc<Notify>,
    /// Rung with every trigger, for the take-overs.
    pub takeovers: Arc<Notify>,
}

impl Bell {
    /// Rings. Nobody listens any more while the process ends: that is fine.
    pub fn ring(&self, trigger: Trigger) {
        let _ = self.requests.send(trigger.clone());
        let _ = self.evictions.send(trigger.clone());
        let _ = self.nodes.send(trigger);
        self.policies.notify_one();
        self.remediations.notify_one();
        self.takeovers.notify_one();
    }
}

/// What is known of the cluster.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Requests.
    pub requests: Store<Request>,
    /// Policies.
    pub policies: Store<Policy>,
    /// Reports of the agents.
    pub storages: Store<Storage>,
    /// Nodes.
    pub nodes: Store<NodeMeta>,
    /// The agents' pods.
    pub pods: Store<Pod>,
}

impl Caches {
    /// Readable requests for a node.
    #[must_use]
    pub fn requests_of(&self, node: &str) -> Vec<StorageFenceRequest> {
        self.requests
            .state()
            .iter()
            .filter_map(|request| request.0.as_ref().ok())
            .filter(|request| request.spec.node_name == node)
            .cloned()
            .collect()
    }

    /// Readable policies that are not being deleted, by name.
    #[must_use]
    pub fn readable_policies(&self) -> Vec<StorageFencePolicy> {
        let mut all: Vec<StorageFencePolicy> = self
            .policies
            .state()
            .iter()
            .filter_map(|policy| policy.0.as_ref().ok())
            .filter(|policy| policy.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect();
        all.sort_by_key(ResourceExt::name_any);
        all
    }

    /// Waits until every cache was filled once. Any number of tasks may.
    pub async fn filled(&self) {
        // The writers live as long as the watches; when those end, so does the process.
        let all = async {
            let _ = tokio::join!(
                self.requests.wait_until_ready(),
                self.policies.wait_until_ready(),
                self.storages.wait_until_ready(),
                self.nodes.wait_until_ready(),
                self.pods.wait_until_ready(),
            );
        };
        let mut all = std::pin::pin!(all);
        // Of several tasks that wait for a cache kube wakes the one that asked last (delayed_init.rs keeps one waker): so each asks again.
        while tokio::time::timeout(ASK_AGAIN, &mut all).await.is_err() {}
    }
}

/// While the caches are being filled.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The watches and what they feed.
pub struct Watches {
    /// The caches.
    pub caches: Caches,
    /// To ring by hand.
    pub bell: Bell,
    /// For the request controller.
    pub request_triggers: UnboundedReceiver<Trigger>,
    /// For the controller of evictions.
    pub eviction_triggers: UnboundedReceiver<Trigger>,
    /// For the node controller.
    pub node_triggers: UnboundedReceiver<Trigger>,
    /// They run while this lives.
    pub tasks: JoinSet<()>,
}

/// Starts all watches. `backoff`: between tries where the API server is away.
#[must_use]
pub fn start(
    client: &Client,
    namespace: &str,
    agent_selector: &str,
    backoff: Backoff,
    metrics: &Metrics,
) -> Watches {
    let (requests_bell, request_triggers) = unbounded_channel();
    let (evictions_bell, eviction_triggers) = unbounded_channel();
    let (nodes_bell, node_triggers) = unbounded_channel();
    let bell = Bell {
        requests: requests_bell,
        evictions: evictions_bell,
        nodes: nodes_bell,
        policies: Arc::default(),
        remediations: Arc::default(),
        takeovers: Arc::default(),
    };
    let mut tasks = JoinSet::new();
    let start = Start {
        backoff,
        bell: &bell,
        metrics,
    };
    let caches = Caches {
        requests: start.watch(
            &mut tasks,
            "StorageFenceRequest",
            Api::<Request>::all(client.clone()),
            Config::default(),
            strip_request,
            |request| match &request.0 {
                Ok(request) => Some(Trigger::Node(request.spec.node_name.clone())),
                Err(unreadable) => unreadable.metadata.name.clone().map(Trigger::Request),
            },
        ),
        policies: start.watch(
            &mut tasks,
            "StorageFencePolicy",
            Api::<Policy>::all(client.clone()),
            Config::default(),
            strip,
            |policy| policy.meta().name.clone().map(Trigger::Policy),
        ),
        storages: start.watch(
            &mut tasks,
            "NodeStorage",
            Api::<Storage>::all(client.clone()),
            Config::default(),
            strip,
            |storage| storage.meta().name.clone().map(Trigger::Node),
        ),
        nodes: start.watch(
            &mut tasks,
            "Node",
            Api::<NodeMeta>::all(client.clone()),
            Config::default(),
            |node| {
                // Its labels stay: policies select by them.
                strip(node);
            },
            |node| node.metadata.name.clone().map(Trigger::Node),
        ),
        pods: start.watch(
            &mut tasks,
            "Pod",
            Api::<Pod>::namespaced(client.clone(), namespace),
            Config::default().labels(agent_selector),
            strip_pod,
            |pod| {
                let node = pod.spec.as_ref()?.node_name.clone()?;
                Some(Trigger::Node(node))
            },
        ),
    };
    Watches {
        caches,
        bell,
        request_triggers,
        eviction_triggers,
        node_triggers,
        tasks,
    }
}

struct Start<'a> {
    backoff: Backoff,
    bell: &'a Bell,
    metrics: &'a Metrics,
}

impl Start<'_> {
    fn watch<K>(
        &self,
        tasks: &mut JoinSet<()>,
        kind: &'static str,
        api: Api<K>,
        config: Config,
        prune: impl Fn(&mut K) + Send + 'static,
        trigger: impl Fn(&K) -> Option<Trigger> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (reader, writer) = store::<K>();
        let stream = patient(watcher(api, config), self.backoff.clone()).modify(prune);
        let stream = reflector(writer, stream);
        let (bell, metrics) = (self.bell.clone(), self.metrics.clone());
        tasks.spawn(follow(kind, stream, trigger, bell, metrics));
        reader
    }
}

async fn follow<K>(
    kind: &'static str,
    stream: impl Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>>,
    trigger: impl Fn(&K) -> Option<Trigger>,
    bell: Bell,
    metrics: Metrics,
) {
    let labels = KindLabels { kind };
    let mut stream = std::pin::pin!(stream);
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                metrics.watch_events.get_or_create(&labels).inc();
                metrics
                    .watch_last_event
                    .get_or_create(&labels)
                    .set(Timestamp::now().as_second());
                match event {
                    Event::Apply(object) | Event::Delete(object) => {
                        if let Some(trigger) = trigger(&object) {
                            bell.ring(trigger);
                        }
                    }
                    // The cache takes these over at InitDone.
                    Event::Init | Event::InitApply(_) => {}
                    Event::InitDone => {
                        metrics.watch_lists.get_or_create(&labels).inc();
                        bell.ring(Trigger::All);
                    }
                }
            }
            Ok(None) => return,
            // The stream goes on by itself, after its back-off.
            Err(error) => {
                metrics.watch_errors.get_or_create(&labels).inc();
                tracing::warn!(kind, %error, "watch failed, trying again");
            }
        }
    }
}

/// About half of an object's metadata says who wrote which field; nobody here asks.
fn strip(object: &mut impl Resource) {
    object.managed_fields_mut().clear();
    object.annotations_mut().clear();
}

/// What we say of a request ourselves stays: which policy it records, say.
fn strip_request(request: &mut Request) {
    let ours = |key: &str| key.split('/').next() == Some(GROUP);
    let mut annotations = std::mem::take(request.annotations_mut());
    strip(request);
    annotations.retain(|key, _| ours(key));
    *request.annotations_mut() = annotations;
}

fn strip_pod(pod: &mut Pod) {
    strip(pod);
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        ..PodSpec::default()
    });
}

/// The requests that a trigger is about.
#[must_use]
pub fn requests_for(trigger: &Trigger, caches: &Caches) -> Vec<ObjectRef<Request>> {
    caches
        .requests
        .state()
        .iter()
        .filter(|request| match (trigger, &request.0) {
            (Trigger::All, _) => true,
            (Trigger::Node(node), Ok(request)) => request.spec.node_name == *node,
            (Trigger::Request(name), _) => request.meta().name.as_ref() == Some(name),
            (Trigger::Node(_), Err(_)) | (Trigger::Policy(_), _) => false,
        })
        .map(|request| ObjectRef::from_obj(&**request))
        .collect()
}

/// The nodes that a trigger is about: those with a request, those with our label, and those that have or had an agent.
#[must_use]
pub fn nodes_for(trigger: &Trigger, caches: &Caches) -> Vec<ObjectRef<NodeMeta>> {
    match trigger {
        Trigger::Node(name) => {
            let node = ObjectRef::new(name);
            // There may be no such node: then there is nothing to label.
            caches.nodes.get(&node).map(|_| node).into_iter().collect()
        }
        Trigger::Request(_) | Trigger::Policy(_) => Vec::new(),
        Trigger::All => {
            let wanted: std::collections::BTreeSet<String> = caches
                .requests
                .state()
                .iter()
                .filter_map(|request| request.0.as_ref().ok())
                .map(|request| request.spec.node_name.clone())
                .collect();
            let pods = caches.pods.state();
            let with_pod: std::collections::BTreeSet<&str> = pods
                .iter()
                .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
                .collect();
            // Where an agent has reported, it may be gone.
            let has_storage = |name: &str| caches.storages.get(&ObjectRef::new(name)).is_some();
            caches
                .nodes
                .state()
                .iter()
                .filter(|node| {
                    node.labels().contains_key(AGENT_WANTED_LABEL)
                        || node.metadata.name.as_ref().is_some_and(|name| {
                            wanted.contains(name)
                                || with_pod.contains(name.as_str())
                                || has_storage(name)
                        })
                })
                .map(|node| ObjectRef::from_obj(&**node))
                .collect()
        }
    }
}

/// Triggers as the references that a kube controller wants.
pub fn references<K>(
    mut triggers: UnboundedReceiver<Trigger>,
    caches: Caches,
    map: fn(&Trigger, &Caches) -> Vec<ObjectRef<K>>,
) -> impl Stream<Item = ObjectRef<K>> + Send + 'static
where
    K: Resource + 'static,
    ObjectRef<K>: Send,
{
    futures::stream::poll_fn(move |cx| triggers.poll_recv(cx))
        .flat_map(move |trigger| futures::stream::iter(map(&trigger, &caches)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::controller::remediation;
    use crate::kubernetes::mock;

    /// How often each kind is tried at a server that answers with errors, watches and remediations alike.
    async fn tries(backoff: Backoff) -> [u64; 2] {
        let client = mock::client(|_| (500, serde_json::Value::Null));
        let metrics = Metrics::default();
        let watches = start(&client, "ns", "app=agent", backoff.clone(), &metrics);
        let bell = &watches.bell.remediations;
        let _remediations = remediation::Watch::start(&client, bell, backoff, &metrics);
        tokio::time::sleep(Duration::from_secs(2)).await;
        ["StorageFencePolicy", "StorageFenceRemediation"].map(|kind| {
            let labels = KindLabels { kind };
            metrics.watch_errors.get_or_create(&labels).get()
        })
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_tried_as_the_back_off_says() {
        let grows = tries(Backoff::new(
            Duration::from_millis(10),
            Duration::from_mins(1),
        ));
        let stays = tries(Backoff::new(
            Duration::from_millis(10),
            Duration::from_millis(20),
        ));
        let (grows, stays) = tokio::join!(grows, stays);
        for kind in 0..2 {
            // After 5, 10, 20... ms at least: the ninth wait is longer than all that is left.
            assert!((2..=10).contains(&grows[kind]), "{grows:?}");
            assert!(stays[kind] >= 20, "{stays:?}");
        }
    }
}
