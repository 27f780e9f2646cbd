//! A template's status: which nodes could be served. And its annotation, which lets several templates of the kind serve one node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{Outcome, Template};
use crate::api::condition::{find, since};
use crate::api::node_storage::condition_type::READY as STORAGE_READY;
use crate::api::remediation::{
    NotReadyNode, StorageFenceRemediationTemplateStatus, condition_type, contract,
};
use crate::api::request::reason::NO_AGENT;
use crate::api::{CONTROLLER_FIELD_MANAGER, Condition, ConditionStatus, NodeStorage};
use crate::controller::context::Context;
use crate::controller::facts::{AgentMode, AgentPod};
use crate::controller::request::dereference::agent_pods;
use crate::controller::watches::Caches;
use crate::kubernetes::apply::{Result, Target, apply, apply_status};

/// Nodes that are listed: the schema's limit.
const LISTED: usize = 64;

/// Brings annotation and status up to date.
///
/// # Errors
/// When the API server does not take it.
pub async fn see_to(context: &Context, template: &Template) -> Result<Outcome> {
    if template.metadata.deletion_timestamp.is_some() || context.written.is_ahead_of(template) {
        return Ok(Outcome::default());
    }
    let namespace = template.namespace().unwrap_or_default();
    let api: Api<Template> = Api::namespaced(context.client.clone(), &namespace);
    let name = template.name_any();
    let target = Target {
        name: &name,
        uid: template.metadata.uid.as_deref(),
        manager: CONTROLLER_FIELD_MANAGER,
    };
    let mut outcome = Outcome::default();
    if !template
        .annotations()
        .contains_key(contract::MULTIPLE_TEMPLATES)
    {
        let content =
            json!({ "metadata": { "annotations": { contract::MULTIPLE_TEMPLATES: "true" } } });
        context.written.note(&apply(&api, target, &content).await?);
        outcome.written = true;
    }
    let storages = context.caches.storages.state();
    let pods = agent_pods(&context.caches);
    let reports = storages
        .iter()
        .filter_map(|s| report(s.0.as_ref().ok()?, &pods, &context.caches));
    let mode = context.settings.agent_mode;
    let status = status(template, reports, mode, Timestamp::now());
    if template.status.as_ref() != Some(&status) {
        context
            .written
            .note(&apply_status(&api, target, &status).await?);
        outcome.written = true;
    }
    Ok(outcome)
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// What its agent wrote last.
    pub storage: &'a NodeStorage,
    /// Whether it is the word of an agent that answers. What an agent left behind that is gone, or that was another node's, is hearsay.
    pub current: bool,
}

/// None: there is no such node any more.
fn report<'a>(
    storage: &'a NodeStorage,
    pods: &BTreeMap<String, Vec<AgentPod>>,
    caches: &Caches,
) -> Option<Report<'a>> {
    let name = storage.name_any();
    let uid = caches.nodes.get(&ObjectRef::new(&name))?.uid()?;
    let current = storage.status.as_ref().is_some_and(|status| {
        let mut pods = pods.get(&name).into_iter().flatten();
        pods.any(|pod| pod.speaks_for(&uid, status))
    });
    Some(Report { storage, current })
}

/// The status for what the nodes' agents say. Pure.
#[must_use]
pub fn status<'a>(
    template: &Template,
    reports: impl Iterator<Item = Report<'a>>,
    mode: AgentMode,
    now: Timestamp,
) -> StorageFenceRemediationTemplateStatus {
    let mut known = 0;
    let mut not_ready = Vec::new();
    for Report { storage, current } in reports {
        // An agent that is not needed is not there, and nobody knows what it would say.
        if !current && mode == AgentMode::OnDemand {
            continue;
        }
        known += 1;
        let conditions = storage.status.as_ref().map(|s| s.conditions.as_slice());
        let ready = conditions.and_then(|c| find(c, STORAGE_READY));
        let reason = match ready {
            _ if !current => NO_AGENT,
            None => "NotReported",
            Some(c) if c.status == ConditionStatus::True => continue,
            Some(c) => &c.reason,
        };
        not_ready.push(NotReadyNode {
            name: storage.name_any(),
            reason: reason.to_owned(),
        });
    }
    // The cache has no order.
    not_ready.sort_by(|a, b| a.name.cmp(&b.name));
    let ready = known - not_ready.len();
    let (status, reason, message) = match (ready, known) {
        (_, 0) => (
            ConditionStatus::Unknown,
            "NoNodeReported",
            "no agent reports: with agents OnDemand, none does while it is not needed. See kubectl get nodestorages".to_owned(),
        ),
        (0, _) => (
            ConditionStatus::False,
            "NoNodeReady",
            "no node could be fenced now: status.notReady says why, and kubectl get nodestorages has more".to_owned(),
        ),
        (ready, known) if ready < known => (
            ConditionStatus::True,
            "SomeNodesReady",
            format!("{ready} of {known} nodes could be fenced now; the others are in status.notReady"),
        ),
        (_, known) => (
            ConditionStatus::True,
            "AllNodesReady",
            format!("all {known} nodes whose agent has reported could be fenced now"),
        ),
    };
    let before = template.status.as_ref().map(|s| s.conditions.as_slice());
    let stored = before.and_then(|c| find(c, condition_type::READY));
    let condition = Condition {
        type_: condition_type::READY.to_owned(),
        status,
        observed_generation: template.metadata.generation,
        last_transition_time: since(stored, status, now),
        reason: reason.to_owned(),
        message,
    };
    not_ready.truncate(LISTED);
    StorageFenceRemediationTemplateStatus {
        observed_generation: template.metadata.generation,
        nodes: format!("{ready}/{known}"),
        not_ready,
        conditions: vec![condition],
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
