//! The Node's conditions when its agent is gone: nobody can tell any more, so they say so.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api::CONTROLLER_FIELD_MANAGER;
use crate::api::condition::whole_seconds;
use crate::api::node_condition_type::{AGENT_GONE, SAN_PATHS_AVAILABLE, STORAGE_FENCED};
use crate::controller::context::Context;
use crate::controller::request::dereference::agent_pod;
use crate::kubernetes::apply::{Error, Target, apply_status, call};

#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    /// Whether the conditions say so by now.
    told: bool,
}

/// Since when nodes have been without an agent that answers, as this replica has seen it.
#[derive(Debug, Default)]
pub struct Absences(Mutex<HashMap<String, Absence>>);

/// What is to be done about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Its agent is there, or all is said.
    Nothing,
    /// Its agent has been gone for less than the time-out: look again after this.
    Wait(Duration),
    /// Its agent has been gone too long.
    Tell,
}

impl Absences {
    /// Notes whether the node's agent is there.
    pub fn note(&self, node: &str, there: bool, now: Instant, limit: Duration) -> Next {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if there {
            all.remove(node);
            return Next::Nothing;
        }
        let absence = all.entry(node.to_owned()).or_insert(Absence {
            since: now,
            told: false,
        });
        let left = limit.saturating_sub(now.saturating_duration_since(absence.since));
        match (absence.told, left.is_zero()) {
            (true, _) => Next::Nothing,
            (false, true) => Next::Tell,
            (false, false) => Next::Wait(left),
        }
    }

    /// The conditions say so.
    pub fn told(&self, node: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(absence) = all.get_mut(node) {
            absence.told = true;
        }
    }
}

/// What our conditions become when the agent is gone; None when there are none, or all of them say so already.
#[must_use]
pub fn unknown(stored: &[NodeCondition], now: Timestamp) -> Option<Vec<NodeCondition>> {
    const UNKNOWN: &str = "Unknown";
    let ours: Vec<&NodeCondition> = stored
        .iter()
        .filter(|c| [SAN_PATHS_AVAILABLE, STORAGE_FENCED].contains(&c.type_.as_str()))
        .collect();
    let said = |c: &&NodeCondition| c.status == UNKNOWN && c.reason.as_deref() == Some(AGENT_GONE);
    if ours.iter().all(said) {
        return None;
    }
    let now = Time(whole_seconds(now));
    let become_unknown = |c: &NodeCondition| {
        NodeCondition {
        type_: c.type_.clone(),
        status: UNKNOWN.to_owned(),
        reason: Some(AGENT_GONE.to_owned()),
        message: Some(
            "No agent answers on the node: what is so cannot be told. Look at the agent's pod there".to_owned(),
        ),
        last_transition_time: if c.status == UNKNOWN {
            c.last_transition_time.clone()
        } else {
            Some(now.clone())
        },
        last_heartbeat_time: Some(now.clone()),
    }
    };
    Some(ours.into_iter().map(become_unknown).collect())
}

/// Looks after the conditions of a node. Gives when to look again.
///
/// # Errors
/// When the API server does not take them.
pub async fn look_after(name: &str, context: &Context) -> Result<Option<Duration>, Error> {
    let caches = &context.caches;
    let on_node = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)
    };
    let pods = caches.pods.state();
    // Where there was never an agent, there is nothing to take back. One that died early may have left conditions and no report.
    let storage = kube::runtime::reflector::ObjectRef::new(name);
    if caches.storages.get(&storage).is_none() && !pods.iter().any(|pod| on_node(pod)) {
        return Ok(None);
    }
    let there = pods.iter().any(|pod| on_node(pod) && agent_pod(pod).ready);
    let limit = context.settings.agent_wait;
    match context.absences.note(name, there, Instant::now(), limit) {
        Next::Nothing => return Ok(None),
        Next::Wait(left) => return Ok(Some(left)),
        Next::Tell => {}
    }
    let api = Api::<Node>::all(context.client.clone());
    let node = call(format!("read node {name}"), api.get(name)).await?;
    let stored = node.status.as_ref().and_then(|s| s.conditions.as_deref());
    if let Some(conditions) = unknown(stored.unwrap_or_default(), Timestamp::now()) {
        let uid = node.uid();
        let target = Target {
            name,
            uid: uid.as_deref(),
            manager: CONTROLLER_FIELD_MANAGER,
        };
        apply_status(&api, target, &json!({ "conditions": conditions })).await?;
        tracing::info!(node = name, "no agent: the Node's conditions are Unknown");
    }
    context.absences.told(name);
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(type_: &str, status: &str, reason: &str) -> NodeCondition {
        NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            last_transition_time: Some(Time(Timestamp::from_second(5).unwrap())),
            ..NodeCondition::default()
        }
    }

    #[test]
    fn an_agent_that_is_gone_too_long_is_told_once_and_one_that_returns_is_forgotten() {
        let absences = Absences::default();
        let limit = Duration::from_secs(60);
        let start = Instant::now();
        let note =
            |there, second| absences.note("n1", there, start + Duration::from_secs(second), limit);
        assert_eq!(note(true, 0), Next::Nothing);
        assert_eq!(note(false, 10), Next::Wait(limit));
        assert_eq!(note(false, 69), Next::Wait(Duration::from_secs(1)));
        assert_eq!(note(false, 70), Next::Tell);
        assert_eq!(note(false, 71), Next::Tell, "until it was told");
        absences.told("n1");
        assert_eq!(note(false, 500), Next::Nothing);
        assert_eq!(note(true, 501), Next::Nothing);
        assert_eq!(note(false, 502), Next::Wait(limit));
    }

    #[test]
    fn only_our_conditions_become_unknown_and_only_once() {
        let now = Timestamp::from_second(100).unwrap();
        let ready = condition("Ready", "True", "KubeletReady");
        let paths = condition(SAN_PATHS_AVAILABLE, "True", "PathsWork");
        let fenced = condition(STORAGE_FENCED, "Unknown", "NotObserved");
        assert_eq!(unknown(std::slice::from_ref(&ready), now), None);
        let written = unknown(&[ready.clone(), paths, fenced], now).unwrap();
        let types: Vec<&str> = written.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, [SAN_PATHS_AVAILABLE, STORAGE_FENCED]);
        assert!(written.iter().all(|c| c.status == "Unknown"));
        let since = |at: usize| {
            written[at]
                .last_transition_time
                .clone()
                .unwrap()
                .0
                .as_second()
        };
        assert_eq!(
            (since(0), since(1)),
            (100, 5),
            "the time of a transition is that of the status"
        );
        assert_eq!(unknown(&[vec![ready], written].concat(), now), None);
    }
}
