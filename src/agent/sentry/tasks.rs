//! What of the sentry talks to the API server: none of it is needed for a fence.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Outlook;
use super::in_force::{Learned, SeenCondition};
use crate::agent::metrics::Metrics;
use crate::agent::node_conditions::Says;
use crate::agent::sight::Sight;
use crate::api::condition::whole_seconds;
use crate::api::policy::StorageFencePolicy;
use crate::api::{AGENT_FIELD_MANAGER, StorageFenceRequest};
use crate::kubernetes::apply::{Result, Target, apply_status, call};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::watch::{LONG_WATCH_SECONDS, Seen, watch};

/// The Node's conditions are compared with what the API server holds after this time: somebody may have taken them away.
const COMPARE: Duration = Duration::from_mins(10);
/// Somebody who changes the Node's conditions again and again is answered this often.
const QUIET: Duration = Duration::from_mins(1);

/// Tells of the policies, for ever.
pub async fn policies(client: Client, tell: mpsc::UnboundedSender<Learned>) {
    let api: Api<DeserializeGuard<StorageFencePolicy>> = Api::all(client);
    let mut seen = std::pin::pin!(watch(
        api,
        Config::default().timeout(LONG_WATCH_SECONDS),
        Backoff::agent()
    ));
    let mut all: BTreeMap<String, StorageFencePolicy> = BTreeMap::new();
    let mut listing: BTreeMap<String, StorageFencePolicy> = BTreeMap::new();
    while let Some(event) = seen.next().await {
        match event {
            Seen::Listing => listing.clear(),
            Seen::Is(policy, true) => {
                listing.insert(policy.name_any(), *policy);
                continue;
            }
            Seen::Is(policy, false) => {
                all.insert(policy.name_any(), *policy);
            }
            Seen::Gone(policy) => {
                all.remove(&policy.name_any());
            }
            Seen::Listed => all = std::mem::take(&mut listing),
            Seen::Unreadable(name, why) => {
                tracing::error!(
                    policy = name,
                    why,
                    "a policy is not understood and not in force; was it made by a newer version?"
                );
                all.remove(&name);
            }
            Seen::Broken(why) => {
                tracing::warn!(
                    why,
                    "the policies cannot be watched; those of before stay in force"
                );
                continue;
            }
        }
        if tell
            .send(Learned::Policies(all.values().cloned().collect()))
            .is_err()
        {
            return;
        }
    }
}

/// Tells of the node's own Node, for ever: the sentry what its rules ask for, and `sight` what the agent has written there.
pub async fn node(
    client: Client,
    node_name: String,
    tell: mpsc::UnboundedSender<Learned>,
    sight: watch::Sender<Option<Sight>>,
) {
    let mut backoff = Backoff::agent();
    loop {
        let api: Api<DeserializeGuard<Node>> = Api::all(client.clone());
        let config = Config::default()
            .timeout(LONG_WATCH_SECONDS)
            .fields(&format!("metadata.name={node_name}"));
        let mut seen = std::pin::pin!(watch(api, config, Backoff::agent()));
        while let Some(event) = seen.next().await {
            let news = match event {
                Seen::Is(node, _) => {
                    backoff.reset();
                    let seen = Sight::of(&node);
                    sight.send_if_modified(|known| {
                        let news = known.as_ref().is_none_or(|k| !k.says_the_same(&seen));
                        *known = Some(seen);
                        news
                    });
                    of(*node)
                }
                Seen::Gone(_) => Learned::NodeOutOfSight,
                // Made anew, so that it begins with a list: a watch that goes on tells nothing of a Node that has not changed.
                Seen::Broken(why) => {
                    tracing::debug!(why, "the Node cannot be watched");
                    let _ = tell.send(Learned::NodeOutOfSight);
                    break;
                }
                Seen::Listing | Seen::Listed | Seen::Unreadable(..) => continue,
            };
            if tell.send(news).is_err() {
                return;
            }
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

fn of(node: Node) -> Learned {
    let labels = node.metadata.labels.unwrap_or_default();
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    let conditions = conditions.into_iter().filter_map(|c| {
        Some(SeenCondition {
            type_: c.type_,
            status: c.status,
            // Without a time it cannot be told how long it holds.
            since: c.last_transition_time?.0,
        })
    });
    Learned::Node(labels, conditions.collect())
}

/// Makes records, one after the other, each until the API server has it.
pub async fn record(
    client: Client,
    mut to_make: mpsc::UnboundedReceiver<StorageFenceRequest>,
    metrics: Metrics,
) {
    let api: Api<StorageFenceRequest> = Api::all(client);
    let params = PostParams {
        field_manager: Some(AGENT_FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    while let Some(record) = to_make.recv().await {
        let name = record.name_any();
        let mut backoff = Backoff::agent();
        loop {
            let made = call(format!("record fence {name}"), api.create(&params, &record)).await;
            match made {
                Ok(_) => {
                    tracing::info!(request = name, "the fence is recorded");
                    break;
                }
                // Made already, by a call that was answered by nothing or by an earlier agent.
                Err(error) if error.is_conflict() => break,
                Err(error) if error.is_invalid() => {
                    tracing::error!(request = name, %error, "the fence cannot be recorded; are the installed CRDs of this version?");
                    metrics.api_error(error.class());
                    break;
                }
                Err(error) => {
                    tracing::warn!(request = name, %error, "the fence is not recorded yet");
                    metrics.api_error(error.class());
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }
}

/// Keeps the Node's conditions current: written when they change, or when somebody else has changed them, and only then.
pub async fn conditions(
    client: Client,
    node_name: String,
    mut outlook: watch::Receiver<Outlook>,
    mut sight: watch::Receiver<Option<Sight>>,
    metrics: Metrics,
) {
    let api: Api<Node> = Api::all(client);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    let mut pace = Pace::default();
    loop {
        // The watch tells of changes; this is for where it cannot.
        let mut held = match call(format!("read Node {node_name}"), api.get(&node_name)).await {
            Ok(node) => Sight::of(&node),
            Err(error) => {
                metrics.api_error(error.class());
                tokio::time::sleep(backoff.wait()).await;
                continue;
            }
        };
        let compare = Instant::now() + COMPARE;
        loop {
            if let Some((wanted, _)) = due(&mut held, &mut sight, &mut outlook) {
                tokio::select! {
                    () = tokio::time::sleep(pace.pause(&wanted, Instant::now())) => {}
                    _ = outlook.changed() => {}
                }
            }
            // Meanwhile it may have been put right.
            if let Some((wanted, conditions)) = due(&mut held, &mut sight, &mut outlook) {
                match write(&api, &node_name, held.uid.as_deref(), &conditions).await {
                    Ok(node) => held = Sight::of(&node),
                    Err(error) => {
                        tracing::warn!(%error, "the Node's conditions are not written yet");
                        metrics.api_error(error.class());
                        tokio::time::sleep(backoff.wait()).await;
                        break;
                    }
                }
                backoff.reset();
                pace.wrote(wanted, Instant::now());
            }
            let told = tokio::select! {
                () = tokio::time::sleep_until(compare) => break,
                told = outlook.changed() => told,
                told = sight.changed() => told,
            };
            // The process ends.
            if told.is_err() {
                return;
            }
        }
    }
}

/// What is wanted, and how it is to be written, if the API server does not hold it.
fn due(
    held: &mut Sight,
    sight: &mut watch::Receiver<Option<Sight>>,
    outlook: &mut watch::Receiver<Outlook>,
) -> Option<(Vec<Says>, Vec<NodeCondition>)> {
    if let Some(seen) = sight.borrow_and_update().as_ref() {
        held.hear(seen);
    }
    let wanted = outlook.borrow_and_update().conditions.clone();
    let conditions = changed(&held.conditions, &wanted, Timestamp::now())?;
    Some((wanted, conditions))
}

/// How soon the same is written once more. At once when the last time is long ago; less and less often where somebody goes on changing it.
struct Pace {
    last: Option<(Vec<Says>, Instant)>,
    backoff: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            last: None,
            backoff: Backoff::new(Duration::from_millis(200), QUIET),
        }
    }
}

impl Pace {
    fn pause(&mut self, wanted: &[Says], now: Instant) -> Duration {
        match &self.last {
            Some((last, at))
                if last == wanted && now.saturating_duration_since(*at) < QUIET * 2 =>
            {
                self.backoff.wait()
            }
            _ => {
                self.backoff.reset();
                Duration::ZERO
            }
        }
    }

    fn wrote(&mut self, wanted: Vec<Says>, now: Instant) {
        self.last = Some((wanted, now));
    }
}

async fn write(
    api: &Api<Node>,
    node_name: &str,
    uid: Option<&str>,
    conditions: &[NodeCondition],
) -> Result<Node> {
    let target = Target {
        name: node_name,
        uid,
        manager: AGENT_FIELD_MANAGER,
    };
    let status = json!({ "conditions": conditions });
    apply_status(api, target, &status).await
}

/// The conditions as they are to be written; None when the API server holds them already. The time of a transition is that of the status, not
/// of a reason or message.
#[must_use]
pub fn changed(
    stored: &[NodeCondition],
    wanted: &[Says],
    now: Timestamp,
) -> Option<Vec<NodeCondition>> {
    let find = |says: &Says| stored.iter().find(|c| c.type_ == says.type_);
    let same = |says: &Says| {
        find(says).is_some_and(|c| {
            c.status == format!("{:?}", says.status)
                && c.reason.as_deref() == Some(says.reason)
                && c.message.as_deref() == Some(says.message.as_str())
        })
    };
    if wanted.iter().all(same) {
        return None;
    }
    let now = Time(whole_seconds(now));
    let conditions = wanted.iter().map(|says| {
        let status = format!("{:?}", says.status);
        let since = find(says)
            .filter(|c| c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: says.type_.to_owned(),
            status,
            reason: Some(says.reason.to_owned()),
            message: Some(says.message.clone()),
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            last_heartbeat_time: Some(now.clone()),
        }
    });
    Some(conditions.collect())
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
