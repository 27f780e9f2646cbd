//! How many records are kept of fences that are over: as many for each node as their policy says, the newest.
//!
//! Their storage was given back, or went with the kernel that it was of. Deleting a record must not ask anybody to give it back once more: another
//! record may have fenced the same volume group since. So the finalizer goes first, and the record with it at once, in the very version that was
//! looked at: at no time is there a deleted record that an agent could take up.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::AGAIN;
use crate::api::policy::RECORD_HISTORY_LIMIT;
use crate::api::record::{annotation, has_ended, is_record};
use crate::api::{CONTROLLER_FIELD_MANAGER, StorageFencePolicy, StorageFenceRequest};
use crate::controller::context::Context;
use crate::controller::request::{dereference, finalizer};
use crate::kubernetes::apply::{Result, Target, apply, call};

/// So many go at a time: the statuses of policies do not wait for more. The next time comes soon, since each that goes rings.
const AT_A_TIME: usize = 20;

/// What a node's agent says that bears on its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Names of the requests whose fences stand.
    pub standing: BTreeSet<String>,
}

/// Whether nothing stands fenced for a record any more. `word`: what its node's agent says, if one answers.
///
/// Which boot the node runs is not asked: a NodeStorage may still be of the boot before the one that a record was made in, and an agent says soon by
/// itself that a restart has ended a record.
fn is_over(record: &StorageFenceRequest, word: Option<&Word>) -> bool {
    let stands = word.is_some_and(|w| w.standing.contains(&record.name_any()));
    has_ended(record) && !stands
}

/// The records that are too many, the oldest first. `word`: what the agent of a node says, if one answers. A record whose policy is no more counts
/// as one of a policy that says nothing about it.
#[must_use]
pub fn surplus<'a>(
    requests: impl IntoIterator<Item = &'a StorageFenceRequest>,
    policies: &[StorageFencePolicy],
    word: impl Fn(&StorageFenceRequest) -> Option<Word>,
) -> Vec<&'a StorageFenceRequest> {
    let mut all: BTreeMap<(&str, &str), Vec<&StorageFenceRequest>> = BTreeMap::new();
    for record in requests {
        if is_record(record) && record.metadata.deletion_timestamp.is_none() {
            let policy = record.annotations().get(annotation::POLICY);
            let policy = policy.map_or("", String::as_str);
            let node = record.spec.node_name.as_str();
            all.entry((node, policy)).or_default().push(record);
        }
    }
    let limit = |name: &str| {
        let policy = policies.iter().find(|p| p.name_any() == name);
        let limit = policy.map_or(RECORD_HISTORY_LIMIT, |p| p.spec.record_history_limit);
        usize::try_from(limit).unwrap_or_default()
    };
    let mut surplus: Vec<&StorageFenceRequest> = Vec::new();
    for ((_, policy), mut records) in all {
        let limit = limit(policy);
        let Some(first) = records.first().filter(|_| records.len() > limit) else {
            continue;
        };
        // Of the same node all of them.
        let word = word(first);
        records.retain(|r| is_over(r, word.as_ref()));
        records.sort_by_key(|r| age(r));
        let many = records.len().saturating_sub(limit);
        surplus.extend(records.into_iter().take(many));
    }
    surplus.sort_by_key(|r| age(r));
    surplus
}

fn age(record: &StorageFenceRequest) -> (Option<jiff::Timestamp>, String) {
    let created = record.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (created, record.name_any())
}

/// Deletes those that are too many.
#[derive(Debug, Default)]
pub struct Pruner {
    /// Not before this, after one that would not go: its finalizer, which went first, is put back by the request's reconciler. Both writes ring, so
    /// that the next look is a second away, for as long as the deletion is refused.
    not_before: Option<Instant>,
}

impl Pruner {
    /// One look. A failure is told, and tried again after [`AGAIN`].
    pub async fn prune(&mut self, context: &Context, policies: &[StorageFencePolicy]) {
        if !self.is_due() {
            return;
        }
        let requests = context.caches.requests.state();
        let readable = requests.iter().filter_map(|r| r.0.as_ref().ok());
        let surplus = surplus(readable, policies, |record| word(context, record));
        self.delete(&context.client, &surplus).await;
    }

    fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
    }

    async fn delete(&mut self, client: &Client, surplus: &[&StorageFenceRequest]) {
        self.not_before = None;
        for record in surplus.iter().take(AT_A_TIME) {
            let name = record.name_any();
            match delete(client, record).await {
                Ok(Done::Gone) => tracing::info!(request = name, "a record that is over has gone"),
                Ok(Done::Held) => {
                    tracing::warn!(
                        request = name,
                        "a record that is over stays: not only the controller has put its finalizer on"
                    );
                    self.not_before = Some(Instant::now() + AGAIN);
                }
                // Somebody was faster.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    tracing::warn!(request = name, %error, "a record that is over stays yet");
                    self.not_before = Some(Instant::now() + AGAIN);
                    return;
                }
            }
        }
    }
}

fn word(context: &Context, record: &StorageFenceRequest) -> Option<Word> {
    let about = dereference::dereference(record, &context.caches);
    let (_, storage) = about.current_agent()?;
    Some(Word {
        standing: storage.fences.iter().map(|f| f.by.clone()).collect(),
    })
}

/// What became of one.
enum Done {
    /// It was deleted.
    Gone,
    /// Somebody else has put on the finalizer too: deleted, it would be given back.
    Held,
}

async fn delete(client: &Client, record: &StorageFenceRequest) -> Result<Done> {
    let name = record.name_any();
    let api: Api<StorageFenceRequest> = Api::all(client.clone());
    let mut version = record.resource_version();
    if finalizer::has(record) {
        let target = Target {
            name: &name,
            uid: record.metadata.uid.as_deref(),
            manager: CONTROLLER_FIELD_MANAGER,
        };
        let content = json!({ "metadata": { "resourceVersion": version, "finalizers": [] } });
        let stored = apply(&api, target, &content).await?;
        if finalizer::has(&stored) {
            return Ok(Done::Held);
        }
        version = stored.resource_version();
    }
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: record.metadata.uid.clone(),
        resource_version: version,
    });
    call(format!("delete record {name}"), api.delete(&name, &params))
        .await
        .map(|_| Done::Gone)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
