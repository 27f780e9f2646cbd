//! Carries a plan out: first who is asked, then what is said of the requests.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::memory::Memory;
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

/// What became of the tasks.
#[derive(Debug, Default)]
pub struct Given {
    /// Nodes whose tasks the API server will not take, and why.
    pub refused: Vec<(String, String)>,
    /// UIDs of the requests for which somebody was to be asked and was not.
    pub unasked: BTreeSet<String>,
    /// Whether there is nothing to try again soon.
    pub all: bool,
}

/// Asks. What was taken is in the view then.
pub async fn give(view: &mut View, plan: &Plan, memory: &mut Memory, context: &Context) -> Given {
    let mut given = Given {
        all: true,
        ..Given::default()
    };
    let api = Api::<NodeStorage>::all(context.client.clone());
    for (name, tasks) in &plan.tasks {
        let peer = view.peers.iter_mut().find(|p| p.name == *name);
        // What was refused a moment ago would be again.
        let Some(peer) = peer.filter(|p| p.refused.is_none()) else {
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
            Ok(stored) => {
                context.written.note(&stored);
                memory.gave(name, tasks);
                peer.tasks.clone_from(tasks);
                tracing::info!(node = name, ?tasks, "peers to be declared dead");
            }
            Err(error) => {
                tracing::warn!(node = name, %error, "tasks not written");
                let new = tasks.iter().filter(|t| !peer.tasks.contains(t));
                given.unasked.extend(new.map(|t| t.request_uid.clone()));
                if error.is_invalid() || error.is_forbidden() {
                    given.refused.push((name.clone(), error.to_string()));
                } else {
                    // Also one that is gone or another by now: the cache is behind.
                    given.all = false;
                }
            }
        }
    }
    given
}

/// Says of each request how far it is, but for those that are `unasked`: what the plan says of them is not so. Whether all of it was taken.
pub async fn say_all(
    view: &View,
    plan: &Plan,
    unasked: &BTreeSet<String>,
    context: &Context,
) -> bool {
    let mut all = true;
    for (request, verdict) in view.requests.iter().zip(&plan.verdicts) {
        let uid = request.metadata.uid.as_deref().unwrap_or_default();
        // What we would compare with is no longer there; the watch brings our own write, and rings.
        if unasked.contains(uid) || context.written.is_ahead_of(request) {
            continue;
        }
        if let Err(error) = say(request, verdict.as_ref(), context).await
            && !error.is_not_found()
            && !error.is_conflict()
        {
            tracing::warn!(request = request.name_any(), %error, "TakenOver not written yet");
            all = false;
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
    let stored = apply_status(&api, target, &json!({ "conditions": conditions })).await?;
    context.written.note(&stored);
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
