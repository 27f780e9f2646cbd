//! Remediations and templates as the API server has them.
//!
//! Apart from the other watches: a cluster whose CRDs are of an older version has neither kind, and everything else must work there.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::{Config, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{StorageFenceRemediation, StorageFenceRemediationTemplate};
use crate::controller::context::Context;
use crate::controller::metrics::{KindLabels, Metrics};
use crate::controller::unreadable;
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::watch::patient;

type Guarded<K> = DeserializeGuard<K>;

/// Both watches; they end when this is dropped.
pub struct Watch {
    remediations: Store<Guarded<StorageFenceRemediation>>,
    templates: Store<Guarded<StorageFenceRemediationTemplate>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Watch {
    /// Starts them. `bell` is rung for every change.
    #[must_use]
    pub fn start(client: &Client, bell: &Arc<Notify>, backoff: Backoff, metrics: &Metrics) -> Self {
        let (remediations, one) = follow(client, super::KIND, bell, backoff.clone(), metrics);
        let (templates, other) = follow(client, super::TEMPLATE_KIND, bell, backoff, metrics);
        Self {
            remediations,
            templates,
            _tasks: [one, other],
        }
    }

    /// One that has seen these.
    #[cfg(test)]
    pub(super) fn of(remediation: StorageFenceRemediation) -> Self {
        let nothing = || AbortOnDropHandle::new(tokio::spawn(std::future::ready(())));
        Self {
            remediations: crate::controller::fixtures::cache([DeserializeGuard(Ok(remediation))]),
            templates: crate::controller::fixtures::cache([]),
            _tasks: [nothing(), nothing()],
        }
    }

    /// Waits until both were read once.
    pub async fn filled(&self) {
        let _ = tokio::join!(
            self.remediations.wait_until_ready(),
            self.templates.wait_until_ready()
        );
    }

    /// Those that can be read; the others are told of.
    #[must_use]
    pub fn remediations(&self, context: &Context) -> Vec<StorageFenceRemediation> {
        readable(&self.remediations, context)
    }

    /// Those that can be read; the others are told of.
    #[must_use]
    pub fn templates(&self, context: &Context) -> Vec<StorageFenceRemediationTemplate> {
        readable(&self.templates, context)
    }
}

fn readable<K>(store: &Store<Guarded<K>>, context: &Context) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let objects = store.state();
    for object in &objects {
        unreadable::report(context, object);
    }
    let readable = objects.iter().filter_map(|o| o.0.as_ref().ok().cloned());
    readable.collect()
}

fn follow<K>(
    client: &Client,
    kind: &'static str,
    bell: &Arc<Notify>,
    backoff: Backoff,
    metrics: &Metrics,
) -> (Store<Guarded<K>>, AbortOnDropHandle<()>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let api: Api<Guarded<K>> = Api::all(client.clone());
    let stream = patient(watcher(api, Config::default()), backoff)
        .modify(|object| object.managed_fields_mut().clear());
    let stream = reflector(writer, stream);
    let (bell, metrics) = (Arc::clone(bell), metrics.clone());
    let task = async move {
        let labels = KindLabels { kind };
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => {
                    metrics.watch_events.get_or_create(&labels).inc();
                    bell.notify_one();
                }
                // It goes on by itself, after its back-off.
                Err(error) => {
                    metrics.watch_errors.get_or_create(&labels).inc();
                    tracing::warn!(kind, %error, "watch failed, trying again");
                }
            }
        }
    };
    (reader, AbortOnDropHandle::new(tokio::spawn(task)))
}
