//! A template's status: which nodes could be served. And its annotation, which lets several templates of the kind serve one node.

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{Outcome, Template};
use crate::api::condition::find;
use crate::api::node_storage::condition_type::READY as STORAGE_READY;
use crate::api::remediation::{
    NotReadyNode, StorageFenceRemediationTemplateStatus, condition_type, contract,
};
use crate::api::{CONTROLLER_FIELD_MANAGER, Condition, ConditionStatus, NodeStorage};
use crate::controller::context::Context;
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
    let readable = storages.iter().filter_map(|s| s.0.as_ref().ok());
    let status = status(template, readable, Timestamp::now());
    if template.status.as_ref() != Some(&status) {
        context
            .written
            .note(&apply_status(&api, target, &status).await?);
        outcome.written = true;
    }
    Ok(outcome)
}

/// The status for what the nodes' agents say. Pure.
#[must_use]
pub fn status<'a>(
    template: &Template,
    storages: impl Iterator<Item = &'a NodeStorage>,
    now: Timestamp,
) -> StorageFenceRemediationTemplateStatus {
    let mut known = 0;
    let mut not_ready = Vec::new();
    for storage in storages {
        known += 1;
        let conditions = storage.status.as_ref().map(|s| s.conditions.as_slice());
        let ready = conditions.and_then(|c| find(c, STORAGE_READY));
        if !ready.is_some_and(|c| c.status == ConditionStatus::True) {
            not_ready.push(NotReadyNode {
                name: storage.name_any(),
                reason: ready.map_or_else(|| "NotReported".to_owned(), |c| c.reason.clone()),
            });
        }
    }
    // The cache has no order.
    not_ready.sort_by(|a, b| a.name.cmp(&b.name));
    let ready = known - not_ready.len();
    let (status, reason, message) = match (ready, known) {
        (_, 0) => (
            ConditionStatus::Unknown,
            "NoNodeReported",
            "no agent has reported yet: with agents OnDemand, none does before it is needed. See kubectl get nodestorages".to_owned(),
        ),
        (0, _) => (
            ConditionStatus::False,
            "NoNodeReady",
            "no node could be fenced now: see kubectl get nodestorages".to_owned(),
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
    let same = before
        .and_then(|c| find(c, condition_type::READY))
        .filter(|c| c.status == status);
    let condition = Condition {
        type_: condition_type::READY.to_owned(),
        status,
        observed_generation: template.metadata.generation,
        last_transition_time: same.map_or_else(
            || Timestamp::from_second(now.as_second()).unwrap_or(now),
            |c| c.last_transition_time,
        ),
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
