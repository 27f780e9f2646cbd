//! Evicts, and writes what there is to say.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::plan::{Done, Found, Plan};
use crate::api::condition::find;
use crate::api::eviction::{condition_type, reason};
use crate::api::{
    CONTROLLER_EVICTION_FIELD_MANAGER, Condition, ConditionStatus, StorageFenceRequest,
};
use crate::controller::context::Context;
use crate::controller::request::validate::Verdict;
use crate::kubernetes::apply::{Result, Target, apply_status};
use crate::kubernetes::events::Happening;
use crate::kubernetes::evict::{Outcome, evict};

/// Evicts one after the other.
///
/// # Errors
/// When the API server does not answer as it should: those that are left come at the next time.
pub async fn evict_all(
    request: &StorageFenceRequest,
    plan: &Plan,
    context: &Context,
) -> Result<Done> {
    let mut done = Done::default();
    for pod in &plan.evict {
        if !context.leads() {
            break;
        }
        match evict(&context.evictor, &pod.namespace, &pod.name, &pod.uid).await {
            Ok(Outcome::Evicted) => {
                tell_of(request, pod, context);
                done.evicted.push(pod.clone());
            }
            Ok(Outcome::Gone) => done.gone.push(pod.clone()),
            Ok(Outcome::DisruptionBudget(words)) => done.held.push((pod.clone(), words)),
            Ok(Outcome::Refused(words)) => {
                tracing::warn!(request = request.name_any(), words, "pod not evicted");
                done.refused.push((pod.clone(), words));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// On the pod, for whoever wonders why it went.
fn tell_of(request: &StorageFenceRequest, pod: &Found, context: &Context) {
    let node = &request.spec.node_name;
    let name = request.name_any();
    tracing::info!(
        request = name,
        node,
        pod = format!("{}/{}", pod.namespace, pod.name),
        "pod evicted"
    );
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    };
    let note = format!(
        "evicted: it held volumes open that node {node} has lost; they were fenced there by StorageFenceRequest {name}"
    );
    let happening = Happening {
        warning: true,
        reason: "StorageFenced",
        action: "Evict",
        note: &note,
    };
    context.events.tell(regarding, &happening);
}

/// Writes the condition, or takes it away, when that is not what is stored. Whether it wrote.
///
/// # Errors
/// When the API server does not take it.
pub async fn say(
    request: &StorageFenceRequest,
    verdict: Option<&Verdict>,
    context: &Context,
) -> Result<bool> {
    let stored = request.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::WORKLOADS_EVICTED));
    let (type_, generation) = (
        condition_type::WORKLOADS_EVICTED,
        request.metadata.generation,
    );
    let wanted = verdict.map(|v| v.condition(type_, generation, stored, Timestamp::now()));
    if stored == wanted.as_ref() {
        return Ok(false);
    }
    let name = request.name_any();
    let api = Api::<StorageFenceRequest>::all(context.client.clone());
    let target = Target {
        name: &name,
        uid: request.metadata.uid.as_deref(),
        manager: CONTROLLER_EVICTION_FIELD_MANAGER,
    };
    let conditions: Vec<&Condition> = wanted.iter().collect();
    let written = apply_status(&api, target, &json!({ "conditions": conditions })).await?;
    context.written.note(&written);
    if let Some(wanted) = &wanted
        && stored.is_none_or(|s| s.reason != wanted.reason)
        && let Some(warning) = weight(&wanted.reason)
    {
        let happening = Happening {
            warning,
            reason: &wanted.reason,
            action: "Evict",
            note: &wanted.message,
        };
        context.events.tell(request.object_ref(&()), &happening);
    }
    Ok(true)
}

/// Whether a reason is a warning. None: not worth an event.
fn weight(of: &str) -> Option<bool> {
    match of {
        reason::EVICTING | reason::EVICTED => Some(false),
        reason::LIMIT_REACHED | reason::WAITING_FOR_DISRUPTION_BUDGET | reason::EVICTION_FAILED => {
            Some(true)
        }
        _ => None,
    }
}

/// Whether the stored condition is about the limit, and of this spec: its numbers change all the time while an outage goes on.
#[must_use]
pub fn is_limited(request: &StorageFenceRequest) -> bool {
    let stored = request.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::WORKLOADS_EVICTED));
    stored.is_some_and(|c| {
        c.reason == reason::LIMIT_REACHED
            && c.status == ConditionStatus::False
            && c.observed_generation == request.metadata.generation
    })
}
