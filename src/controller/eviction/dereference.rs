//! Who the affected pods are: the agent knows their UIDs, the API server the rest. Asked when there is something to evict, for one node at a time: no
//! cache holds the cluster's pods.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt};

use super::plan::{Found, Kind};
use crate::controller::context::Context;
use crate::controller::node::boot::boot_id;
use crate::kubernetes::apply::{Result, call};

/// On a pod that the kubelet mirrors to the API server: the UID that it runs under, which is the hash of its file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The node's pods.
    pub pods: Vec<Found>,
    /// The boot that the Node tells, if it tells one.
    pub boot_id: Option<String>,
}

/// Asks.
///
/// # Errors
/// When the API server does not answer.
pub async fn ask(node: &str, context: &Context) -> Result<Asked> {
    let pods = Api::<Pod>::all(context.client.clone());
    // Only the metadata: a pod's spec is most of it.
    let of_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let list = call(
        format!("list the pods of node {node}"),
        pods.list_metadata(&of_it),
    )
    .await?;
    let ours = &context.settings.namespace;
    Ok(Asked {
        pods: list.iter().map(|pod| found(pod, ours)).collect(),
        boot_id: boot_id(node, context).await?,
    })
}

fn found(pod: &PartialObjectMeta<Pod>, our_namespace: &str) -> Found {
    let namespace = pod.namespace().unwrap_or_default();
    let owners = pod.owner_references();
    let daemon_set = owners
        .iter()
        .find(|o| o.controller == Some(true) && o.kind == "DaemonSet");
    let mirror = pod.annotations().get(MIRROR);
    let kind = if mirror.is_some() {
        Kind::Static
    } else if namespace == our_namespace {
        Kind::Ours
    } else if let Some(owner) = daemon_set {
        Kind::DaemonSet(owner.name.clone())
    } else if pod.metadata.deletion_timestamp.is_some() {
        Kind::Ending
    } else {
        Kind::Evictable
    };
    let uid = pod.uid().unwrap_or_default();
    Found {
        namespace,
        name: pod.name_any(),
        runs_as: mirror.cloned().unwrap_or_else(|| uid.clone()),
        uid,
        kind,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, more: &Value) -> Found {
        let mut metadata = json!({ "name": "p", "namespace": namespace, "uid": "u" });
        for (key, value) in more.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        let object = json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata });
        found(&serde_json::from_value(object).unwrap(), "storage-fence")
    }

    #[test]
    fn pods_are_told_apart_by_who_would_bring_them_back() {
        let owner = |kind: &str, controller: bool| {
            json!({ "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": controller,
            }]})
        };
        let mirror = json!({ "annotations": { MIRROR: "hash" } });
        let ending = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        for (namespace, more, kind) in [
            ("shop", json!({}), Kind::Evictable),
            ("shop", owner("ReplicaSet", true), Kind::Evictable),
            (
                "shop",
                owner("DaemonSet", true),
                Kind::DaemonSet("o".into()),
            ),
            ("shop", owner("DaemonSet", false), Kind::Evictable),
            ("kube-system", mirror, Kind::Static),
            ("storage-fence", json!({}), Kind::Ours),
            ("shop", ending, Kind::Ending),
        ] {
            let found = pod(namespace, &more);
            assert_eq!(found.kind, kind, "{namespace} {more}");
            let runs_as = if kind == Kind::Static { "hash" } else { "u" };
            assert_eq!((found.uid.as_str(), found.runs_as.as_str()), ("u", runs_as));
        }
    }
}
