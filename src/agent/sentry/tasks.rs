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

use super::Outlook;
use super::in_force::{Learned, SeenCondition};
use crate::agent::metrics::Metrics;
use crate::agent::node_conditions::Says;
use crate::api::policy::StorageFencePolicy;
use crate::api::{AGENT_FIELD_MANAGER, StorageFenceRequest};
use crate::kubernetes::apply::{Result, Target, apply_status, call};
use crate::kubernetes::backoff::Backoff;
use crate::kubernetes::watch::{LONG_WATCH_SECONDS, Seen, watch};

/// The Node's conditions are compared with what the API server holds after this time: somebody may have taken them away.
const COMPARE: Duration = Duration::from_mins(10);

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

/// Tells of the node's own Node, for ever.
pub async fn node(client: Client, node_name: String, tell: mpsc::UnboundedSender<Learned>) {
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

/// Keeps the Node's conditions current: written when they change, and only then.
pub async fn conditions(
    client: Client,
    node_name: String,
    mut outlook: watch::Receiver<Outlook>,
    metrics: Metrics,
) {
    let api: Api<Node> = Api::all(client);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        // What the API server holds, read now and then: others may write the same conditions.
        let stored = match call(format!("read Node {node_name}"), api.get(&node_name)).await {
            Ok(node) => node,
            Err(error) => {
                metrics.api_error(error.class());
                tokio::time::sleep(backoff.wait()).await;
                continue;
            }
        };
        let uid = stored.uid();
        let mut stored = stored.status.and_then(|s| s.conditions).unwrap_or_default();
        let compare = tokio::time::Instant::now() + COMPARE;
        loop {
            let wanted = outlook.borrow_and_update().conditions.clone();
            if let Some(conditions) = changed(&stored, &wanted, Timestamp::now()) {
                if let Err(error) = write(&api, &node_name, uid.as_deref(), &conditions).await {
                    tracing::warn!(%error, "the Node's conditions are not written yet");
                    metrics.api_error(error.class());
                    tokio::time::sleep(backoff.wait()).await;
                    break;
                }
                backoff.reset();
                stored = conditions;
            }
            match tokio::time::timeout_at(compare, outlook.changed()).await {
                Ok(Ok(())) => {}
                // The process ends.
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
    }
}

async fn write(
    api: &Api<Node>,
    node_name: &str,
    uid: Option<&str>,
    conditions: &[NodeCondition],
) -> Result<()> {
    let target = Target {
        name: node_name,
        uid,
        manager: AGENT_FIELD_MANAGER,
    };
    let status = json!({ "conditions": conditions });
    apply_status(api, target, &status).await.map(drop)
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
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
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
mod tests {
    use super::*;
    use crate::api::ConditionStatus;

    #[test]
    fn conditions_are_written_on_change_and_keep_the_time_of_their_transition() {
        let says = |status, reason, message: &str| Says {
            type_: "storagefence.io/SANPathsAvailable",
            status,
            reason,
            message: message.into(),
        };
        let time = |s| Timestamp::from_second(s).unwrap();
        let since = |c: &[NodeCondition]| c[0].last_transition_time.clone().unwrap().0;
        let up = [says(ConditionStatus::True, "PathsWork", "a")];
        let first = changed(&[], &up, time(100)).unwrap();
        assert_eq!(since(&first), time(100));
        assert_eq!(changed(&first, &up, time(200)), None);
        let other_word = [says(ConditionStatus::True, "SomePathsLost", "b")];
        let second = changed(&first, &other_word, time(200)).unwrap();
        assert_eq!(since(&second), time(100), "the status is the same");
        let down = [says(ConditionStatus::False, "AllPathsDown", "c")];
        assert_eq!(
            since(&changed(&second, &down, time(300)).unwrap()),
            time(300)
        );
        assert_eq!(
            changed(&first, &[], time(300)),
            None,
            "nothing seen, nothing said"
        );
    }
}
