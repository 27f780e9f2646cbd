//! Evicts the pods that hold fenced volumes open, and only them, where a request says `workloads: Evict`: dereference, plan, apply.
//!
//! A stage of its own beside the requests' statuses: evicting may take long, and its condition has a writer of its own. Gated throughout (S9): by the
//! proof, by the policy's limit, by PodDisruptionBudgets. The fence waits for none of it.

pub mod apply;
pub mod dereference;
pub mod plan;
pub mod rounds;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::controller::Action;

use self::plan::Wish;
use super::context::{Class, Context};
use super::limits::limited_by;
use super::request::dereference::dereference;
use super::watches::Request;
use crate::api::StorageFenceRequest;
use crate::api::eviction::{AffectedPods, reason};
use crate::kubernetes::apply::Error;

const KIND: &str = "Eviction";
/// For what a watch may miss.
const AT_THE_LATEST: Duration = Duration::from_mins(10);
/// While the limit is reached: nodes are counted from the caches.
const COUNT_AGAIN: Duration = Duration::from_secs(5);

/// One reconciliation.
///
/// # Errors
/// When the API server does not answer as it should.
pub async fn reconcile(request: Arc<Request>, context: Arc<Context>) -> Result<Action, Error> {
    let Ok(request) = &request.0 else {
        return Ok(Action::await_change());
    };
    if !context.leads() {
        // Becoming leader rings for all.
        return Ok(Action::await_change());
    }
    if context.written.is_ahead_of(request) {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let uid = request.uid().unwrap_or_default();
    let facts = dereference(request, &context.caches);
    let (written, again) = match plan::wish(request, &facts) {
        Wish::Silent => {
            context.rounds.forget(&uid);
            (apply::say(request, None, &context).await?, AT_THE_LATEST)
        }
        Wish::Say(verdict) => {
            if verdict.reason == reason::NOT_FENCED {
                context.rounds.forget(&uid);
            }
            let written = apply::say(request, Some(&verdict), &context).await?;
            (written, AT_THE_LATEST)
        }
        Wish::Evict(affected) => evict(request, &uid, &affected, &context).await?,
    };
    context.failures.forget(&failures_of(&uid));
    let result = if written { "written" } else { "unchanged" };
    context.metrics.reconciled(KIND, result);
    Ok(Action::requeue(again.min(AT_THE_LATEST)))
}

/// Evicts, unless it is not the time for it. Whether the status was written, and when to look again.
async fn evict(
    request: &StorageFenceRequest,
    uid: &str,
    affected: &AffectedPods,
    context: &Context,
) -> Result<(bool, Duration), Error> {
    let now = Instant::now();
    let wished_for = context.rounds.wished_for(uid, now);
    if limited_by(request).is_some() {
        if let Some(message) = context.limits.held_back(request, &context.caches) {
            let verdict = plan::no(reason::LIMIT_REACHED, message);
            let may_tell = context.rounds.limited(uid, now) || !apply::is_limited(request);
            let written = may_tell && apply::say(request, Some(&verdict), context).await?;
            return Ok((written, COUNT_AGAIN));
        }
        if wished_for < rounds::COUNTING {
            let message = format!(
                "it is seen for {} s whether other nodes of the policy lose their storage too, before pods are evicted",
                rounds::COUNTING.as_secs()
            );
            let verdict = plan::no(reason::COUNTING_NODES, message);
            let written = apply::say(request, Some(&verdict), context).await?;
            return Ok((written, rounds::COUNTING.saturating_sub(wished_for)));
        }
    }
    let about = (request.metadata.generation, affected.clone());
    if let Some(wait) = context.rounds.wait(uid, &about, now) {
        return Ok((false, wait));
    }
    let asked = match dereference::ask(&request.spec.node_name, context).await {
        // It stays so until somebody does something: that is not for the log alone.
        Err(error) if error.is_forbidden() => {
            apply::say(request, Some(&plan::forbidden(&error)), context).await?;
            return Err(error);
        }
        asked => asked?,
    };
    let boot_id = asked.boot_id.as_ref();
    if boot_id.is_some_and(|boot_id| *boot_id != affected.boot_id) {
        let written = apply::say(request, Some(&plan::rebooted()), context).await?;
        return Ok((written, AT_THE_LATEST));
    }
    let plan = plan::plan(affected, asked.pods);
    let done = apply::evict_all(request, &plan, context).await?;
    let (verdict, settled) = plan::verdict(request, affected, &plan, &done);
    let again = context.rounds.asked(uid, about, settled, now);
    let written = apply::say(request, Some(&verdict), context).await?;
    Ok((written, again))
}

/// The requests' own failures are counted by the same UID.
fn failures_of(uid: &str) -> String {
    format!("evictions of {uid}")
}

/// What to do after an error.
#[must_use]
pub fn on_error(request: &Request, error: &Error, context: &Context) -> Action {
    let class = Class::of(error);
    context.metrics.reconciled(KIND, class.label());
    let uid = request.0.as_ref().map(ResourceExt::uid);
    let uid = uid.ok().flatten().unwrap_or_default();
    let failures = context.failures.count(&failures_of(&uid));
    let retry = class.retry_after(failures);
    tracing::warn!(%error, ?class, ?retry, failures, "evictions failed");
    Action::requeue(retry)
}
