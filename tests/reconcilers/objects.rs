//! Requests and what is said about them.

use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use storage_fence::api::condition::find;
use storage_fence::api::{NodeStorage, StorageFenceRequest};

use crate::bed::Bed;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, until};

/// A request for a node; `spec` on top of the defaults.
pub fn request(name: &str, node: &str, spec: Value) -> Result<StorageFenceRequest> {
    let mut object = json!({
        "apiVersion": "storagefence.io/v1alpha1", "kind": "StorageFenceRequest",
        "metadata": { "name": name },
    });
    object["spec"] = spec;
    object["spec"]["nodeName"] = json!(node);
    // A case that is not about giving storage back ends without it.
    if object["spec"]["deletionPolicy"].is_null() {
        object["spec"]["deletionPolicy"] = json!("Retain");
    }
    Ok(serde_json::from_value(object)?)
}

/// `Fenced=True/Proven`, or what there is of it.
pub fn word(request: &StorageFenceRequest, type_: &str) -> String {
    let conditions = request.status.iter().flat_map(|s| &s.conditions);
    let conditions: Vec<_> = conditions.cloned().collect();
    find(&conditions, type_).map_or_else(
        || format!("{type_}=absent"),
        |c| format!("{type_}={:?}/{}", c.status, c.reason),
    )
}

/// The message of a condition, empty if there is none.
pub fn message(request: &StorageFenceRequest, type_: &str) -> String {
    let conditions = request.status.iter().flat_map(|s| &s.conditions);
    let mut of_type = conditions.filter(|c| c.type_ == type_);
    of_type
        .next()
        .map(|c| c.message.clone())
        .unwrap_or_default()
}

/// The phase as it is printed.
pub fn phase(request: &StorageFenceRequest) -> String {
    let phase = request.status.as_ref().and_then(|s| s.phase);
    phase.map_or_else(String::new, |p| format!("{p:?}"))
}

/// All of it in a line, for failures.
pub fn summary(request: &StorageFenceRequest) -> String {
    let words: Vec<String> = [
        "Accepted",
        "AgentReady",
        "Fenced",
        "LocksReleased",
        "WorkloadsEvicted",
    ]
    .map(|t| format!("{} ({})", word(request, t), message(request, t)))
    .into();
    format!("phase {}; {}", phase(request), words.join("; "))
}

impl Bed {
    /// The requests.
    pub fn requests(&self) -> Api<StorageFenceRequest> {
        self.all()
    }

    /// Makes a request.
    pub async fn ask(&self, name: &str, node: &str, spec: Value) -> Result<StorageFenceRequest> {
        let request = request(name, node, spec)?;
        let made = self
            .requests()
            .create(&PostParams::default(), &request)
            .await;
        made.context(format!("making request {name}"))
    }

    /// Deletes a request; the fence stays, since the paths of most nodes here never come back.
    pub async fn withdraw(&self, name: &str) -> Result {
        let retain = Patch::Merge(json!({ "spec": { "deletionPolicy": "Retain" } }));
        let params = PatchParams::default();
        self.requests().patch(name, &params, &retain).await?;
        let deleted = self.requests().delete(name, &DeleteParams::default()).await;
        deleted
            .map(drop)
            .context(format!("deleting request {name}"))
    }

    /// Waits until a request is so.
    pub async fn sees(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&StorageFenceRequest) -> bool,
    ) -> Result<StorageFenceRequest> {
        until(&format!("request {name}: {what}"), LIMIT, async || {
            self.controllers.all_alive()?;
            let request = self.requests().get(name).await?;
            Ok(if is_so(&request) {
                Ok(request)
            } else {
                Err(summary(&request))
            })
        })
        .await
    }

    /// Waits until a request's phase and conditions are these, such as `Accepted=True/Valid`.
    pub async fn settles(
        &self,
        name: &str,
        wanted: &str,
        words: &[&str],
    ) -> Result<StorageFenceRequest> {
        let what = format!("phase {wanted}, {words:?}");
        self.sees(name, &what, |r| {
            let said = |w: &&str| w.split('=').next().is_some_and(|t| word(r, t) == *w);
            phase(r) == wanted && words.iter().all(said)
        })
        .await
    }

    /// Waits until a request is gone.
    pub async fn forgets(&self, name: &str) -> Result {
        until(&format!("request {name} is gone"), LIMIT, async || {
            let there = self.requests().get_opt(name).await?;
            Ok(there.map_or(Ok(()), |r| Err(summary(&r))))
        })
        .await
    }

    /// Waits until a node's report is so.
    pub async fn reports(
        &self,
        node: &str,
        what: &str,
        is_so: impl Fn(&NodeStorage) -> bool,
    ) -> Result<NodeStorage> {
        until(&format!("NodeStorage {node}: {what}"), LIMIT, async || {
            Ok(match self.all::<NodeStorage>().get_opt(node).await? {
                Some(storage) if is_so(&storage) => Ok(storage),
                other => Err(format!("{:?}", other.and_then(|s| s.status))),
            })
        })
        .await
    }

    /// Reasons of the events about an object, with who reported them.
    pub async fn events(&self, kind: &str, name: &str) -> Result<Vec<(String, String)>> {
        // Those on cluster-scoped objects are in `default`, the others beside their object.
        let events: Api<Event> = Api::all(self.client.clone());
        let about = |e: &Event| {
            e.regarding
                .as_ref()
                .is_some_and(|r| r.kind.as_deref() == Some(kind) && r.name.as_deref() == Some(name))
        };
        let found = events.list(&ListParams::default()).await?.items;
        let told = found.into_iter().filter(about);
        Ok(told
            .map(|e| {
                let by = e.reporting_controller.clone().unwrap_or_default();
                (e.reason.unwrap_or_default(), by)
            })
            .collect())
    }

    /// Waits until something was told about an object.
    pub async fn told(&self, kind: &str, name: &str, reason: &str, by: &str) -> Result {
        let wanted = (reason.to_owned(), by.to_owned());
        until(
            &format!("event {reason} by {by} on {kind} {name}"),
            LIMIT,
            async || {
                let events = self.events(kind, name).await?;
                Ok(if events.contains(&wanted) {
                    Ok(())
                } else {
                    Err(format!("{events:?}"))
                })
            },
        )
        .await
    }
}

/// The resource version: it moves with every write that changes something.
pub fn version(object: &impl kube::Resource) -> String {
    object.resource_version().unwrap_or_default()
}
