//! Reconciles `StorageFenceRemediation`s, which node-health controllers make and delete, and their templates: dereference, judge, plan, apply.
//!
//! There are few of them, and each depends on its node, its request and the node's report: so all are gone through whenever one of these changes.
//! What is seen to by us is the request; the agent does not know of remediations.

pub mod apply;
pub mod cover;
pub mod dereference;
pub mod judge;
pub mod patience;
pub mod plan;
pub mod predecessor;
pub mod records;
pub mod template;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::{Class, Context};
use crate::api::{StorageFenceRemediation, StorageFenceRemediationTemplate};
use crate::kubernetes::apply::{Error, Result};

pub use watch::Watch;

const KIND: &str = "StorageFenceRemediation";
const TEMPLATE_KIND: &str = "StorageFenceRemediationTemplate";
/// Several changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Everything else is told by a watch; this is for what a watch may miss.
const AT_THE_LATEST: Duration = Duration::from_mins(10);
/// What no watch tells: a Machine's node. Also when a cache is behind our own write.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Goes through all of them whenever `bell` rings, until `stop`. Without the CRDs it waits, and nothing else does.
pub async fn run(context: Arc<Context>, watch: Watch, bell: Arc<Notify>, stop: CancellationToken) {
    let filled = async {
        // To an empty cache every Node is gone, and whoever waits for it is let go.
        context.caches.filled().await;
        watch.filled().await;
    };
    let Some(()) = stop.run_until_cancelled(filled).await else {
        return;
    };
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = bell.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep_until(next) => {}
        }
        next = Instant::now() + AT_THE_LATEST;
        if !context.leads() {
            // Becoming leader rings.
            continue;
        }
        if let Some(again) = go_through(&context, &watch).await {
            next = next.min(Instant::now() + again);
        }
    }
}

/// Sees to each. When to look again, if that is not to be left to the watches.
async fn go_through(context: &Context, watch: &Watch) -> Option<Duration> {
    let mut again = None;
    let remediations = watch.remediations(context);
    for remediation in &remediations {
        let result = see_to(context, remediation, &remediations).await;
        let uid = remediation.uid().unwrap_or_default();
        again = earlier(
            again,
            settle(context, KIND, &remediation.name_any(), &uid, result),
        );
    }
    for template in watch.templates(context) {
        let result = template::see_to(context, &template).await;
        let uid = template.uid().unwrap_or_default();
        let outcome = settle(context, TEMPLATE_KIND, &template.name_any(), &uid, result);
        again = earlier(again, outcome);
    }
    again
}

fn earlier(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

/// What to do after one: nothing, or to come back.
fn settle(
    context: &Context,
    kind: &'static str,
    name: &str,
    uid: &str,
    result: Result<Outcome>,
) -> Option<Duration> {
    match result {
        Ok(outcome) => {
            context.failures.forget(uid);
            let label = if outcome.written {
                "written"
            } else {
                "unchanged"
            };
            context.metrics.reconciled(kind, label);
            outcome.look_again
        }
        Err(error) => {
            let class = Class::of(&error);
            context.metrics.reconciled(kind, class.label());
            let failures = context.failures.count(uid);
            let retry = class.retry_after(failures);
            tracing::warn!(%error, kind, name, ?class, ?retry, failures, "reconciliation failed");
            Some(retry)
        }
    }
}

/// How one went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether something was written.
    pub written: bool,
    /// When to look again whatever the watches say.
    pub look_again: Option<Duration>,
}

async fn see_to(
    context: &Context,
    remediation: &StorageFenceRemediation,
    all: &[StorageFenceRemediation],
) -> std::result::Result<Outcome, Error> {
    if context.written.is_ahead_of(remediation) {
        // The watch brings our own write soon; what would be compared with now is no longer there.
        return Ok(Outcome {
            written: false,
            look_again: Some(ASK_AGAIN),
        });
    }
    let facts = dereference::dereference(remediation, all, context).await?;
    let now = Timestamp::now();
    let verdict = judge::judge(remediation, &facts, now);
    let plan = plan::plan(remediation, &facts, &verdict, now);
    let written = apply::apply(context, remediation, &plan).await?;
    Ok(Outcome {
        written,
        look_again: plan.look_again,
    })
}

/// NAMESPACE/NAME.
#[must_use]
pub fn full_name(object: &impl kube::Resource) -> String {
    format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

/// A template, as the watch gives it.
pub type Template = StorageFenceRemediationTemplate;

#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod tests;
