//! Has fenced nodes declared dead by a healthy peer (`takeover: Expedite`): dereference, plan, apply.
//!
//! Not a reconciler of single requests: whom to ask depends on all nodes, and a node has one list of tasks. The fence waits for none of it, and where it
//! does not succeed other hosts get the locks when the leases have run out.

pub mod apply;
pub mod dereference;
pub mod fitness;
pub mod memory;
pub mod plan;
pub mod proof;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::memory::Memory;
use self::plan::View;
use super::context::Context;

/// Several changes within this time are one.
const GATHER: Duration = Duration::from_millis(20);
/// For what a watch may miss.
const AGAIN: Duration = Duration::from_mins(1);
/// For writes that failed: twice as long each time that they fail again.
const SOON: Duration = Duration::from_secs(1);

/// Nodes whose tasks the API server refuses are passed over until so many were tried; the others have their turn in the next round.
const MOST_TRIES: usize = 8;

/// Works for ever.
pub async fn run(context: Arc<Context>, changed: Arc<Notify>) {
    let mut memory = Memory::default();
    let mut again = AGAIN;
    let mut failures: u32 = 0;
    loop {
        let _ = tokio::time::timeout(again, changed.notified()).await;
        tokio::time::sleep(GATHER).await;
        again = AGAIN;
        if !context.leads() {
            continue;
        }
        let Some(view) = dereference::dereference(&context, &memory) else {
            continue;
        };
        let round = round(view, &mut memory, &context).await;
        if round.all {
            failures = 0;
        } else {
            again = SOON.saturating_mul(1 << failures.min(6)).min(AGAIN);
            failures = failures.saturating_add(1);
        }
        again = round.look_again.map_or(again, |left| left.min(again));
    }
}

/// How one round went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    /// Whether the API server has taken all of it, or has said that it never will.
    all: bool,
    /// Look again after this time even if nothing changes.
    look_again: Option<Duration>,
}

/// Asks first, and then says who was asked: what the API server did not take was not asked.
async fn round(mut view: View, memory: &mut Memory, context: &Context) -> Round {
    let now = Instant::now();
    let (mut all, mut tries) = (true, MOST_TRIES);
    loop {
        memory.compare(&mut view, now);
        let plan = plan::plan(&view, &|node, task| memory.waited(node, task, now));
        let given = apply::give(&mut view, &plan, memory, context).await;
        for (node, why) in &given.refused {
            memory.refused(node, why, now);
        }
        all &= given.all;
        tries = tries.saturating_sub(1);
        // Somebody else may do. Where the API server does not answer, another try now only takes longer.
        if !given.refused.is_empty() && given.all && tries > 0 {
            continue;
        }
        all &= given.refused.is_empty();
        all &= apply::say_all(&view, &plan, &given.unasked, context).await;
        let waits = plan.look_again.into_iter().chain(memory.look_again(now));
        return Round {
            all,
            look_again: waits.min(),
        };
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
