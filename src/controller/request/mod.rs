//! Reconciles `StorageFenceRequest`s: dereference, validate, plan, apply; the status is derived in between.

pub mod apply;
pub mod dereference;
pub mod finalizer;
pub mod plan;
pub mod status;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::context::{Class, Context};
use super::unreadable;
use super::watches::Request;
use crate::kubernetes::apply::Error;

const KIND: &str = "StorageFenceRequest";

/// One reconciliation.
///
/// # Errors
/// When the API server does not take a write.
pub async fn reconcile(request: Arc<Request>, context: Arc<Context>) -> Result<Action, Error> {
    if !context.leads() {
        // Becoming leader rings for all.
        return Ok(Action::await_change());
    }
    let Ok(request) = &request.0 else {
        context.metrics.reconciled(KIND, "unreadable");
        unreadable::report(&context, &request);
        return Ok(Action::requeue(look_again(None)));
    };
    let uid = request.uid().unwrap_or_default();
    let deleted = request.metadata.deletion_timestamp.is_some();
    if deleted && !finalizer::has(request) {
        context.failures.forget(&uid);
        return Ok(Action::await_change());
    }
    if context.written.is_ahead_of(request) {
        // The watch brings our own write soon; what we would write now compares with what is no longer there.
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    let now = Timestamp::now();
    let facts = dereference::dereference(request, &context.caches);
    if finalizer::reconcile(request, &facts, &context).await? == finalizer::Done::Freed {
        // It goes away now; there is nothing left to write to.
        context.failures.forget(&uid);
        return Ok(Action::await_change());
    }
    let verdicts = validate::validate(request, &facts, &context.settings, now);
    let plan = plan::plan(request, &facts, &verdicts, now);
    let written = apply::apply(request, &facts, &plan, &context).await?;
    context.failures.forget(&uid);
    context
        .metrics
        .reconciled(KIND, if written { "written" } else { "unchanged" });
    // A deleted one waits for its node, of whose end or restart no watch may tell.
    let soon = deleted.then_some(finalizer::LOOK_AGAIN);
    Ok(Action::requeue(look_again(soon.or(plan.look_again))))
}

/// Everything else is told by a watch; this is for what a watch may miss.
fn look_again(after: Option<Duration>) -> Duration {
    const AT_THE_LATEST: Duration = Duration::from_mins(10);
    after.map_or(AT_THE_LATEST, |after| {
        (after + Duration::from_millis(100)).min(AT_THE_LATEST)
    })
}

/// What to do after an error.
#[must_use]
pub fn on_error(request: &Request, error: &Error, context: &Context) -> Action {
    let class = Class::of(error);
    context.metrics.reconciled(KIND, class.label());
    let uid = request.meta().uid.clone().unwrap_or_default();
    let failures = context.failures.count(&uid);
    let retry = class.retry_after(failures);
    tracing::warn!(%error, ?class, ?retry, failures, "reconciliation failed");
    Action::requeue(retry)
}
