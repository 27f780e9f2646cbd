//! Keeps this node's NodeStorage current: made if it is missing, written when something has changed.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use serde_json::json;

use super::hook::install::State;
use super::journal::Standing;
use super::metrics::Metrics;
use super::node_storage::{Moment, Reporter, fences, kill_hook, status};
use super::observer::{LOOK_LIMIT, Observer};
use super::sentry::Outlook;
use super::sight::Sight;
use crate::api::takeover::DeclaredDead;
use crate::api::{AGENT_FIELD_MANAGER, NodeStorage, NodeStorageStatus};
use crate::fence::preflight::Facts;
use crate::host::Host;
use crate::kubernetes::apply::{Result, Target, apply, apply_status, call};
use crate::kubernetes::backoff::Backoff;

/// Everything is written again after this time: somebody may have deleted it.
const REWRITE: Duration = Duration::from_mins(10);

/// What the task needs.
pub struct Task {
    /// Client to write with.
    pub client: Client,
    /// Name of the node, and so of the object.
    pub node_name: String,
    /// Name and UID of the agent's pod.
    pub pod: Option<String>,
    /// Boot ID of the running kernel.
    pub boot_id: String,
    /// For its clock.
    pub host: Host,
    /// Inventories.
    pub observer: Observer,
    /// Fences that stand.
    pub standing: tokio::sync::watch::Receiver<Vec<Standing>>,
    /// Which policies govern.
    pub outlook: tokio::sync::watch::Receiver<Outlook>,
    /// The Node, as the API server has it.
    pub sight: tokio::sync::watch::Receiver<Option<Sight>>,
    /// Whether the kill hook is in force.
    pub kill_hook: tokio::sync::watch::Receiver<Option<State>>,
    /// What the preflight has to know besides the inventory.
    pub facts: tokio::sync::watch::Receiver<Facts>,
    /// What came of the peers that were to be declared dead.
    pub declared_dead: tokio::sync::watch::Receiver<Vec<DeclaredDead>>,
    /// Counters.
    pub metrics: Metrics,
}

impl Task {
    /// Writes for ever.
    pub async fn run(self) {
        let mut latest = self.observer.latest();
        let (mut outlook, mut sight) = (self.outlook.clone(), self.sight.clone());
        let (mut standing, mut kill_hook) = (self.standing.clone(), self.kill_hook.clone());
        let mut declared_dead = self.declared_dead.clone();
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        let mut reporter = Reporter {
            node_uid: None,
            boot_id: self.boot_id.clone(),
            pod: self.pod.clone(),
            ..Reporter::default()
        };
        let mut before: Option<NodeStorageStatus> = None;
        let mut written: Option<Instant> = None;
        loop {
            let observation = latest.borrow_and_update().clone();
            reporter.facts = self.facts.borrow().clone();
            let hangs = self.observer.hangs();
            if let Some(observation) = observation.filter(|_| !hangs).or_else(|| {
                hangs.then(|| {
                    Err("a look at the node has not ended; the kernel or a daemon hangs".to_owned())
                        .into()
                })
            }) {
                let result = self
                    .write(&mut reporter, &observation, &mut before, &mut written)
                    .await;
                if let Err(error) = result {
                    tracing::warn!(%error, "NodeStorage not written yet");
                    self.metrics.api_error(error.class());
                    written = None;
                    tokio::time::sleep(backoff.wait()).await;
                    continue;
                }
                backoff.reset();
            }
            // The pause is for a look that hangs, which changes nothing by itself.
            tokio::select! {
                _ = tokio::time::timeout(LOOK_LIMIT, latest.changed()) => {}
                // A guard that is gone tells of nothing any more: the pause is long enough then.
                Ok(()) = standing.changed() => {}
                Ok(()) = outlook.changed() => {}
                Ok(()) = kill_hook.changed() => {}
                Ok(()) = sight.changed() => {}
                Ok(()) = declared_dead.changed() => {}
            }
        }
    }

    async fn write(
        &self,
        reporter: &mut Reporter,
        observation: &std::result::Result<crate::fence::Inventory, String>,
        before: &mut Option<NodeStorageStatus>,
        written: &mut Option<Instant>,
    ) -> Result<()> {
        let api: Api<NodeStorage> = Api::all(self.client.clone());
        let seen = self.sight.borrow().as_ref().and_then(|s| s.uid.clone());
        if reporter.node_uid.is_some() && seen.is_some() && reporter.node_uid != seen {
            // Deleted and registered anew. What is owned by the former Node is taken away, and nobody takes it for a report about this one.
            reporter.node_uid = None;
            *written = None;
        }
        if reporter.node_uid.is_none() {
            let nodes: Api<Node> = Api::all(self.client.clone());
            let node = call(
                format!("read Node {}", self.node_name),
                nodes.get(&self.node_name),
            )
            .await?;
            reporter.node_uid = node.metadata.uid;
            let stored = call("read the NodeStorage", api.get_opt(&self.node_name)).await?;
            *before = stored.and_then(|s| s.status);
        }
        reporter.fences = fences(&self.standing.borrow());
        reporter
            .policies
            .clone_from(&self.outlook.borrow().policies);
        reporter.kill_hook = self.kill_hook.borrow().as_ref().map(kill_hook);
        let declared_dead = self.declared_dead.borrow().clone();
        reporter.declared_dead = declared_dead;
        let wanted = status(
            observation.as_ref().map_err(String::as_str),
            reporter,
            before.as_ref().unwrap_or(&NodeStorageStatus::default()),
            Moment {
                wall: Timestamp::now(),
                monotonic: self.host.system.monotonic(),
            },
        );
        self.metrics
            .fenced(wanted.volume_groups.iter().filter(|g| g.fenced).count());
        let recent = written.is_some_and(|at| at.elapsed() < REWRITE);
        if recent && before.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let target = Target {
            name: &self.node_name,
            uid: None,
            manager: AGENT_FIELD_MANAGER,
        };
        if !recent {
            // Goes when the Node goes.
            let owner = json!({
                "apiVersion": "v1", "kind": "Node", "name": self.node_name, "uid": reporter.node_uid,
            });
            let content = json!({ "metadata": { "ownerReferences": [owner] }, "spec": {} });
            apply(&api, target, &content).await?;
        }
        apply_status(&api, target, &wanted).await?;
        *before = Some(wanted);
        *written = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
#[path = "node_storage_task_tests.rs"]
mod tests;
