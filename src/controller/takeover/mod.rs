//! Has fenced nodes declared dead by a healthy peer (`takeover: Expedite`): dereference, plan, apply.
//!
//! Not a reconciler of single requests: whom to ask depends on all nodes, and a node has one list of tasks. The fence waits for none of it, and where it
//! does not succeed other hosts get the locks when the leases have run out.

pub mod apply;
pub mod dereference;
pub mod fitness;
pub mod plan;
pub mod proof;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::context::Context;
use crate::api::takeover::DeclareDead;

/// Several changes within this time are one.
const GATHER: Duration = Duration::from_millis(20);
/// For what a watch may miss.
const AGAIN: Duration = Duration::from_mins(1);
/// For writes that failed: twice as long each time that they fail again.
const SOON: Duration = Duration::from_secs(1);

/// Since when nodes have had their tasks, as this replica has seen it.
#[derive(Debug, Default)]
struct Asked(BTreeMap<(String, DeclareDead), Instant>);

impl Asked {
    fn note(&mut self, view: &plan::View, now: Instant) {
        let tasks = view.peers.iter().flat_map(|p| {
            let name = p.name.clone();
            p.tasks.iter().map(move |t| (name.clone(), t.clone()))
        });
        self.0 = tasks
            .map(|key| {
                let since = self.0.get(&key).copied().unwrap_or(now);
                (key, since)
            })
            .collect();
    }

    fn waited(&self, node: &str, task: &DeclareDead, now: Instant) -> Duration {
        let since = self.0.get(&(node.to_owned(), task.clone()));
        since.map_or(Duration::ZERO, |since| {
            now.saturating_duration_since(*since)
        })
    }
}

/// Works for ever.
pub async fn run(context: Arc<Context>, changed: Arc<Notify>) {
    let mut asked = Asked::default();
    let mut again = AGAIN;
    let mut failures: u32 = 0;
    loop {
        let _ = tokio::time::timeout(again, changed.notified()).await;
        tokio::time::sleep(GATHER).await;
        again = AGAIN;
        if !context.leads() {
            continue;
        }
        let Some(view) = dereference::dereference(&context.caches, &context.limits) else {
            continue;
        };
        let now = Instant::now();
        asked.note(&view, now);
        let plan = plan::plan(&view, &|node, task| asked.waited(node, task, now));
        if apply::carry_out(&view, &plan, &context).await {
            failures = 0;
        } else {
            again = SOON.saturating_mul(1 << failures.min(6)).min(AGAIN);
            failures = failures.saturating_add(1);
        }
        again = plan.look_again.map_or(again, |left| left.min(again));
    }
}
