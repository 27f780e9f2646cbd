//! Reconciles nodes: the label that brings the agent to a node and keeps it there (OnDemand mode).
//!
//! And the Node's conditions, when its agent is gone ([`absence`]).
//!
//! A label that no request needs is removed, whoever left it: a former leader, or the other mode.

pub mod absence;
pub mod boot;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::context::{Class, Context};
use super::facts::{AgentMode, needs_agent};
use super::watches::NodeMeta;
use crate::api::governing::outranked_by;
use crate::api::{AGENT_WANTED_LABEL, CONTROLLER_FIELD_MANAGER, StorageFenceRequest};
use crate::kubernetes::apply::{Error, call};

const KIND: &str = "Node";
const WANTED: &str = "true";

/// What is to become of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelChange {
    /// Nothing.
    Keep,
    /// It is set.
    Set,
    /// It is removed.
    Remove,
}

/// Decides about the label of a node. Pure.
///
/// `unreadable`: some request cannot be read, and so may be about this node. Then no label is removed: taking an agent away by mistake is worse
/// than keeping one.
#[must_use]
pub fn decide(
    mode: AgentMode,
    label: Option<&str>,
    requests: &[StorageFenceRequest],
    unreadable: bool,
) -> LabelChange {
    let wanted = mode == AgentMode::OnDemand
        && requests
            .iter()
            .any(|request| needs_agent(request, outranked_by(request, requests).is_some()));
    match (wanted, label) {
        (true, Some(WANTED)) | (false, None) => LabelChange::Keep,
        (true, _) => LabelChange::Set,
        (false, Some(_)) if unreadable => LabelChange::Keep,
        (false, Some(_)) => LabelChange::Remove,
    }
}

/// One reconciliation.
///
/// # Errors
/// When the API server does not take the label.
pub async fn reconcile(node: Arc<NodeMeta>, context: Arc<Context>) -> Result<Action, Error> {
    if !context.leads() {
        return Ok(Action::await_change());
    }
    let name = node.name_any();
    let requests = context.caches.requests_of(&name);
    let unreadable = context
        .caches
        .requests
        .state()
        .iter()
        .any(|request| request.0.is_err());
    let label = node.labels().get(AGENT_WANTED_LABEL).map(String::as_str);
    let change = decide(context.settings.agent_mode, label, &requests, unreadable);
    let value = match change {
        LabelChange::Keep => None,
        LabelChange::Set => Some(json!(WANTED)),
        LabelChange::Remove => Some(json!(null)),
    };
    if let Some(value) = value {
        // The UID makes the write fail on another node of the same name.
        let patch = json!({
            "metadata": { "uid": node.uid(), "labels": { AGENT_WANTED_LABEL: value } },
        });
        let params = PatchParams {
            field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = Api::<Node>::all(context.client.clone());
        let patch = Patch::Merge(&patch);
        call(
            format!("label node {name}"),
            api.patch_metadata(&name, &params, &patch),
        )
        .await?;
        tracing::info!(node = name, ?change, "label {AGENT_WANTED_LABEL}");
    }
    context.failures.forget(&node.uid().unwrap_or_default());
    let result = if change == LabelChange::Keep {
        "unchanged"
    } else {
        "written"
    };
    context.metrics.reconciled(KIND, result);
    let again = absence::look_after(&name, &context).await?;
    let at_the_latest = Duration::from_mins(10);
    let again = again.map_or(at_the_latest, |left| left + Duration::from_secs(1));
    Ok(Action::requeue(again.min(at_the_latest)))
}

/// What to do after an error.
#[must_use]
pub fn on_error(node: &NodeMeta, error: &Error, context: &Context) -> Action {
    let class = Class::of(error);
    context.metrics.reconciled(KIND, class.label());
    let failures = context.failures.count(&node.uid().unwrap_or_default());
    let retry = class.retry_after(failures);
    tracing::warn!(%error, ?class, ?retry, failures, "reconciliation failed");
    Action::requeue(retry)
}

#[cfg(test)]
mod tests;
