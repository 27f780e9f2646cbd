//! Carries a plan out: first what is said of the requests, then who is asked.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::plan::{Plan, View};
use crate::api::condition::find;
use crate::api::takeover::{condition_type, reason};
use crate::api::{
    Condition, ConditionStatus, NodeStorage, StorageFenceRequest, TAKEOVER_FIELD_MANAGER,
};
use crate::controller::context::Context;
use crate::controller::request::validate::Verdict;
use crate::kubernetes::apply::{Result, Target, apply, apply_status};
use crate::kubernetes::events::Happening;

/// Writes all of it. Whether all of it was taken.
pub async fn carry_out(view: &View, plan: &Plan, context: &Context) -> bool {
    let mut all = true;
    let mut failed = |what: &str, name: &str, error: &crate::kubernetes::apply::Error| {
        tracing::warn!(name, %error, "{what} not written yet");
        all = false;
    };
    // A condition first: it is what outlives the tasks.
    for (request, verdict) in view.requests.iter().zip(&plan.verdicts) {
        if let Err(error) = say(request, verdict.as_ref(), context).await
            && !error.is_not_found()
            && !error.is_conflict()
        {
            failed("TakenOver", &request.name_any(), &error);
        }
    }
    let api = Api::<NodeStorage>::all(context.client.clone());
    for (name, tasks) in &plan.tasks {
        let Some(peer) = view.peers.iter().find(|p| p.name == *name) else {
            continue;
        };
        let target = Target {
            name,
            // One that is gone is not made again.
            uid: Some(&peer.uid),
            manager: TAKEOVER_FIELD_MANAGER,
        };
        let content = json!({ "spec": { "declareDead": tasks } });
        match apply(&api, target, &content).await {
            Ok(_) => tracing::info!(node = name, ?tasks, "peers to be declared dead"),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => failed("tasks", name, &error),
        }
    }
    all
}

/// The condition as it should be; None when it is stored already.
#[must_use]
pub fn desired(
    request: &StorageFenceRequest,
    verdict: Option<&Verdict>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let stored = request.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::TAKEN_OVER));
    let Some(verdict) = verdict else {
        return stored.map(|_| Vec::new());
    };
    let (type_, generation) = (condition_type::TAKEN_OVER, request.metadata.generation);
    let wanted = verdict.condition(type_, generation, stored, now);
    (stored != Some(&wanted)).then(|| vec![wanted])
}

async fn say(
    request: &StorageFenceRequest,
    verdict: Option<&Verdict>,
    context: &Context,
) -> Result<()> {
    let Some(conditions) = desired(request, verdict, Timestamp::now()) else {
        return Ok(());
    };
    let name = request.name_any();
    let api = Api::<StorageFenceRequest>::all(context.client.clone());
    let target = Target {
        name: &name,
        uid: request.metadata.uid.as_deref(),
        manager: TAKEOVER_FIELD_MANAGER,
    };
    apply_status(&api, target, &json!({ "conditions": conditions })).await?;
    if let Some(verdict) = verdict {
        tell(request, verdict, context);
    }
    Ok(())
}

/// Tells of a new reason, on the request and on the fenced Node.
fn tell(request: &StorageFenceRequest, verdict: &Verdict, context: &Context) {
    let stored = request.status.as_ref();
    let stored = stored.and_then(|s| find(&s.conditions, condition_type::TAKEN_OVER));
    if verdict.reason == reason::WAITING || stored.is_some_and(|c| c.reason == verdict.reason) {
        return;
    }
    let expected = verdict.status == ConditionStatus::True || verdict.reason == reason::EXPEDITING;
    let happening = Happening {
        warning: !expected,
        reason: &verdict.reason,
        action: "TakeOver",
        note: &verdict.message,
    };
    context.events.tell(request.object_ref(&()), &happening);
    let node_name = &request.spec.node_name;
    let node = kube::runtime::reflector::ObjectRef::new(node_name);
    if let Some(uid) = context.caches.nodes.get(&node).and_then(|n| n.uid()) {
        let note = format!("{}: {}", request.name_any(), verdict.message);
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node_name.clone()),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let happening = Happening {
            note: &note,
            ..happening
        };
        context.events.tell(regarding, &happening);
    }
}
