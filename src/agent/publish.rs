//! Brings the agent's parts of the statuses to the API server: the latest of each request, one write at a time, until it gets through.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::{Api, Client};
use tokio::sync::Notify;

use super::decide::Uid;
use super::metrics::Metrics;
use super::report::AgentPart;
use crate::api::{AGENT_FIELD_MANAGER, StorageFenceRequest};
use crate::kubernetes::apply::{Target, apply_status};
use crate::kubernetes::backoff::Backoff;

#[derive(Clone, Debug, Default)]
struct Entry {
    name: String,
    wanted: AgentPart,
    /// What the API server has, as far as is known.
    stored: Option<AgentPart>,
}

impl Entry {
    fn due(&self) -> bool {
        self.stored.as_ref() != Some(&self.wanted)
    }
}

/// The statuses as they should be. Clones share it.
#[derive(Clone, Default)]
pub struct Board(Arc<(Mutex<BTreeMap<Uid, Entry>>, Notify)>);

impl Board {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uid, Entry>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `wanted` written, unless the API server holds it already. What was wanted before and was not written yet never will be.
    ///
    /// `stored` is asked what the API server holds when the request is new to the board.
    pub fn want(
        &self,
        uid: &str,
        name: &str,
        wanted: AgentPart,
        stored: impl FnOnce() -> AgentPart,
    ) {
        let mut entries = self.entries();
        let entry = entries.entry(uid.to_owned()).or_insert_with(|| Entry {
            name: name.to_owned(),
            wanted: AgentPart::default(),
            stored: Some(stored()),
        });
        entry.wanted = wanted;
        if entry.due() {
            self.0.1.notify_one();
        }
    }

    /// Tells what the API server holds, after a time in which changes may have been missed.
    pub fn stored(&self, uid: &str, stored: AgentPart) {
        if let Some(entry) = self.entries().get_mut(uid) {
            entry.stored = Some(stored);
            if entry.due() {
                self.0.1.notify_one();
            }
        }
    }

    /// What was wanted last.
    #[must_use]
    pub fn wanted(&self, uid: &str) -> Option<AgentPart> {
        self.entries().get(uid).map(|e| e.wanted.clone())
    }

    /// The request is gone.
    pub fn forget(&self, uid: &str) {
        self.entries().remove(uid);
    }

    /// Whether everything was written.
    #[must_use]
    pub fn settled(&self) -> bool {
        !self.entries().values().any(Entry::due)
    }

    fn due(&self) -> Vec<(Uid, String, AgentPart)> {
        let entries = self.entries();
        let due = entries.iter().filter(|(_, e)| e.due());
        due.map(|(uid, e)| (uid.clone(), e.name.clone(), e.wanted.clone()))
            .collect()
    }

    fn written(&self, uid: &str, part: AgentPart) {
        if let Some(entry) = self.entries().get_mut(uid) {
            entry.stored = Some(part);
        }
    }

    /// Writes for ever.
    pub async fn publish(&self, client: Client, metrics: &Metrics) {
        let api: Api<StorageFenceRequest> = Api::all(client);
        let mut backoff = Backoff::agent();
        loop {
            let due = self.due();
            if due.is_empty() {
                self.0.1.notified().await;
                continue;
            }
            let mut failed = false;
            for (uid, name, part) in due {
                let target = Target {
                    name: &name,
                    uid: Some(&uid),
                    manager: AGENT_FIELD_MANAGER,
                };
                match apply_status(&api, target, &part).await {
                    Ok(_) => self.written(&uid, part),
                    // It was deleted, and maybe made again under the same name: the watch tells so too, and has it forgotten. Until then what
                    // is wanted next is tried: an answer about this part must not take the next one with it.
                    Err(error) if error.is_not_found() || error.is_conflict() => {
                        tracing::info!(request = name, %error, "status not written: the request seems to be gone");
                        self.written(&uid, part);
                    }
                    Err(error) if error.is_invalid() => {
                        tracing::error!(request = name, %error, "status refused; are the installed CRDs of this version?");
                        metrics.api_error(error.class());
                        self.written(&uid, part);
                    }
                    Err(error) => {
                        tracing::warn!(request = name, %error, "status not written yet");
                        metrics.api_error(error.class());
                        failed = true;
                    }
                }
            }
            if failed {
                tokio::time::sleep(backoff.wait()).await;
            } else {
                backoff.reset();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::api::request::NodeFence;
    use crate::kubernetes::mock;

    fn part(generation: i64) -> AgentPart {
        AgentPart {
            node: Some(NodeFence {
                observed_generation: generation,
                ..NodeFence::default()
            }),
            ..AgentPart::default()
        }
    }

    /// Two parts are wanted while the first is being written and answered with `status`: whether the second is written.
    async fn written_after(status: u16) -> bool {
        let board = Board::default();
        let (late, asked) = (board.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        let client = mock::client(move |call| {
            let generation = call.body["status"]["node"]["observedGeneration"].clone();
            let first = {
                let mut seen = seen.lock().unwrap();
                seen.push(generation);
                seen.len() == 1
            };
            if !first {
                let metadata = json!({ "name": "a" });
                let spec = json!({ "nodeName": "n" });
                return (200, json!({ "metadata": metadata, "spec": spec }));
            }
            late.want("u", "a", part(2), AgentPart::default);
            let message = "no";
            (
                status,
                json!({ "kind": "Status", "apiVersion": "v1", "code": status, "reason": "x", "message": message, "status": "Failure" }),
            )
        });
        board.want("u", "a", part(1), AgentPart::default);
        let metrics = Metrics::default();
        let written = async {
            while !(asked.lock().unwrap().contains(&json!(2)) && board.settled()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = board.publish(client, &metrics) => false,
            ended = tokio::time::timeout(Duration::from_secs(5), written) => ended.is_ok(),
        }
    }

    #[tokio::test]
    async fn what_is_wanted_meanwhile_is_not_lost_with_a_part_that_the_server_refuses() {
        for status in [404, 409, 422, 500] {
            assert!(written_after(status).await, "{status}");
        }
    }
}
