//! The finalizer that keeps a deleted request until its node was given its storage back.
//!
//! The controller puts it on and takes it off. Agents may write nothing of a request but its status, and that is worth keeping: an agent's
//! credentials lie on the nodes.

use std::time::Duration;

use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api::condition::find;
use crate::api::request::{DeletionPolicy, condition_type, reason};
use crate::api::{
    CONTROLLER_FIELD_MANAGER, ConditionStatus, StorageFenceRequest, UNFENCE_FINALIZER,
};
use crate::controller::context::Context;
use crate::controller::facts::{Facts, was_touched};
use crate::controller::node::boot::boot_id;
use crate::kubernetes::apply::{Error, Target, apply};

/// How often a deleted request is looked at again whatever the watches say.
pub const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// What is to become of the finalizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Keep,
    /// It is put on.
    Put,
    /// It is taken off, for this reason.
    Free(String),
    /// It depends on the boot ID that the Node object tells.
    AskNode,
}

/// Whether it is on.
#[must_use]
pub fn has(request: &StorageFenceRequest) -> bool {
    request.finalizers().iter().any(|f| f == UNFENCE_FINALIZER)
}

/// Decides. Pure. `node_boot_id`: what the Node object says, once it was asked.
#[must_use]
pub fn decide(request: &StorageFenceRequest, facts: &Facts, node_boot_id: Option<&str>) -> Change {
    let wanted = !request.spec.dry_run;
    match (request.metadata.deletion_timestamp.is_some(), has(request)) {
        (false, false) if wanted => return Change::Put,
        (false, _) | (true, false) => return Change::Keep,
        (true, true) => {}
    }
    let node = &request.spec.node_name;
    let free = |why: &str| Change::Free(why.to_owned());
    if !wanted {
        return free("it was a dry run");
    }
    if request.spec.deletion_policy == DeletionPolicy::Retain {
        return free("its deletionPolicy is Retain: what stands fenced stays fenced");
    }
    if facts.node.is_none() {
        return Change::Free(format!(
            "there is no node {node} any more, so there is nothing to give back"
        ));
    }
    let status = request.status.as_ref();
    let fenced = status.and_then(|s| find(&s.conditions, condition_type::FENCED));
    if let Some(word) = fenced
        && word.status == ConditionStatus::False
        && word.reason == reason::UNFENCED
        && word.observed_generation == request.metadata.generation
    {
        return free("the agent says that nothing stands fenced for it");
    }
    let agent = facts.current_agent();
    let fence_boot = status
        .and_then(|s| s.node.as_ref())
        .map(|n| n.boot_id.as_str())
        .filter(|id| !id.is_empty());
    let boots = [
        agent.map(|(_, storage)| storage.boot_id.as_str()),
        node_boot_id,
    ];
    if let Some(then) = fence_boot
        && boots
            .into_iter()
            .flatten()
            .any(|now| !now.is_empty() && now != then)
    {
        return Change::Free(format!(
            "node {node} was rebooted since, which undid the fence"
        ));
    }
    if agent.is_some() {
        // It has the next word.
        return Change::Keep;
    }
    if fenced.is_some_and(was_touched) {
        return if node_boot_id.is_none() && fence_boot.is_some() {
            Change::AskNode
        } else {
            Change::Keep
        };
    }
    free("nothing was fenced for it as far as is known, and no agent runs on the node")
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The request is there.
    There,
    /// Its finalizer is off: it goes away.
    Freed,
}

/// Puts it on or takes it off.
///
/// # Errors
/// When the API server does not take it.
pub async fn reconcile(
    request: &StorageFenceRequest,
    facts: &Facts,
    context: &Context,
) -> Result<Done, Error> {
    let mut change = decide(request, facts, None);
    if change == Change::AskNode {
        let boot_id = boot_id(&request.spec.node_name, context).await?;
        change = decide(request, facts, Some(&boot_id.unwrap_or_default()));
    }
    let name = request.name_any();
    let (finalizers, done) = match &change {
        Change::Keep | Change::AskNode => return Ok(Done::There),
        Change::Put => (vec![UNFENCE_FINALIZER], Done::There),
        Change::Free(why) => {
            tracing::info!(request = name, why, "a deleted request may go");
            (Vec::new(), Done::Freed)
        }
    };
    let api = Api::<StorageFenceRequest>::all(context.client.clone());
    let target = Target {
        name: &name,
        uid: request.metadata.uid.as_deref(),
        manager: CONTROLLER_FIELD_MANAGER,
    };
    // Applied: others' finalizers stay, and so does every field that somebody else answers for.
    let content = json!({ "metadata": { "finalizers": finalizers } });
    match apply(&api, target, &content).await {
        Ok(stored) if done == Done::There => {
            context.written.note(&stored);
            Ok(done)
        }
        Ok(_) => Ok(done),
        // It is gone already, or another of its name took its place.
        Err(e) if done == Done::Freed && (e.is_not_found() || e.is_conflict()) => Ok(done),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
#[path = "finalizer_tests.rs"]
mod tests;
