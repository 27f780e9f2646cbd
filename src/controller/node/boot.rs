//! Boot IDs, as Nodes tell them.
//!
//! No cache holds whole Nodes, but their metadata, which say when a Node has changed: it is asked once for each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use crate::controller::context::Context;
use crate::kubernetes::apply::{Result, call};

/// What a Node said is not trusted for longer: for what a watch may miss.
const TRUSTED: Duration = Duration::from_mins(10);

#[derive(Clone, Debug)]
struct Said {
    version: u64,
    boot_id: Option<String>,
    at: Instant,
}

/// What Nodes said last.
#[derive(Debug, Default)]
pub struct Boots(Mutex<HashMap<String, Said>>);

impl Boots {
    /// The boot ID of a node whose Node is of this version by now, as far as the cache knows. `ask` reads the Node, and is called only when it
    /// may say something new.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn of<F>(
        &self,
        node: &str,
        version: Option<&str>,
        now: Instant,
        ask: impl FnOnce() -> F,
    ) -> Result<Option<String>>
    where
        F: Future<Output = Result<Option<Node>>>,
    {
        let version = version.and_then(|v| v.parse::<u64>().ok());
        if let Some(said) = self.said(node)
            && version.is_some_and(|version| version <= said.version)
            && now.saturating_duration_since(said.at) < TRUSTED
        {
            return Ok(said.boot_id);
        }
        let found = ask().await?;
        let answered = found.as_ref().and_then(ResourceExt::resource_version);
        let info = found.and_then(|n| n.status).and_then(|s| s.node_info);
        let boot_id = info.map(|i| i.boot_id).filter(|id| !id.is_empty());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody asks any more about most of those that are old.
        all.retain(|_, said| now.saturating_duration_since(said.at) < TRUSTED);
        if let Some(version) = answered.and_then(|v| v.parse().ok()) {
            let said = Said {
                version,
                boot_id: boot_id.clone(),
                at: now,
            };
            all.insert(node.to_owned(), said);
        }
        Ok(boot_id)
    }

    fn said(&self, node: &str) -> Option<Said> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).cloned()
    }
}

/// The boot ID of the running kernel as the Node says; None when there is no Node, or it does not say.
///
/// # Errors
/// When the Node cannot be read.
pub async fn boot_id(node: &str, context: &Context) -> Result<Option<String>> {
    let cached = context.caches.nodes.get(&ObjectRef::new(node));
    let version = cached.and_then(|n| n.resource_version());
    let nodes = Api::<Node>::all(context.client.clone());
    let ask = || call(format!("read Node {node}"), nodes.get_opt(node));
    let boots = &context.boots;
    boots
        .of(node, version.as_deref(), Instant::now(), ask)
        .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;

    fn node(version: &str, boot_id: &str) -> Node {
        let fields = [
            "architecture",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "machineID",
            "operatingSystem",
            "osImage",
            "systemUUID",
        ];
        let mut info = json!({ "bootID": boot_id });
        for field in fields {
            info[field] = json!("");
        }
        serde_json::from_value(json!({
            "metadata": { "name": "n1", "resourceVersion": version }, "status": { "nodeInfo": info },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_node_is_asked_once_for_each_time_that_it_has_changed() {
        let (boots, asked) = (Boots::default(), Cell::new(0));
        let start = Instant::now();
        let ask = async |version, second, says: Node| {
            let now = start + Duration::from_secs(second);
            let asked = &asked;
            let says = || async move {
                asked.set(asked.get() + 1);
                Ok(Some(says))
            };
            let boot_id = boots.of("n1", Some(version), now, says).await.unwrap();
            (boot_id.unwrap(), asked.get())
        };
        // The cache lags: the answer is newer.
        assert_eq!(ask("9", 0, node("10", "a")).await, ("a".into(), 1));
        for second in 1..60 {
            let version = if second < 30 { "9" } else { "10" };
            let again = ask(version, second, node("10", "not asked")).await;
            assert_eq!(again, ("a".into(), 1), "after {second} s");
        }
        assert_eq!(ask("11", 60, node("11", "b")).await, ("b".into(), 2));
        assert_eq!(ask("11", 61, node("11", "not asked")).await.1, 2);
        // A watch that tells nothing is not believed for ever.
        assert_eq!(ask("11", 700, node("12", "c")).await, ("c".into(), 3));
    }
}
