//! What this replica remembers of take-overs: nothing that a new leader would miss for long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::plan::View;
use crate::api::takeover::DeclareDead;

/// A node whose task the API server refused is asked again after this time: whoever refused it may have been put right.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// Tasks that were given, and that could not be.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when nodes have had their tasks, as this replica has seen it.
    asked: BTreeMap<(String, DeclareDead), Instant>,
    /// What was written last, by node: the cache may not know it yet.
    given: BTreeMap<String, Vec<DeclareDead>>,
    /// Why the API server did not take a node's tasks, and until when that counts.
    refused: BTreeMap<String, (String, Instant)>,
}

impl Memory {
    /// Takes in what the nodes have, and tells the view what the API server does not take.
    pub fn compare(&mut self, view: &mut View, now: Instant) {
        let tasks = view.peers.iter().flat_map(|p| {
            let name = p.name.clone();
            p.tasks.iter().map(move |t| (name.clone(), t.clone()))
        });
        self.asked = tasks
            .map(|key| {
                let since = self.asked.get(&key).copied().unwrap_or(now);
                (key, since)
            })
            .collect();
        let there = |name: &String| view.peers.iter().any(|p| p.name == *name);
        self.given.retain(|name, _| there(name));
        self.refused
            .retain(|name, (_, until)| there(name) && *until > now);
        for peer in &mut view.peers {
            peer.refused = self.refused.get(&peer.name).map(|(why, _)| why.clone());
        }
    }

    /// How long a node has had a task.
    #[must_use]
    pub fn waited(&self, node: &str, task: &DeclareDead, now: Instant) -> Duration {
        let since = self.asked.get(&(node.to_owned(), task.clone()));
        since.map_or(Duration::ZERO, |since| {
            now.saturating_duration_since(*since)
        })
    }

    /// The API server has taken these as a node's tasks.
    pub fn gave(&mut self, node: &str, tasks: &[DeclareDead]) {
        self.given.insert(node.to_owned(), tasks.to_vec());
        self.refused.remove(node);
    }

    /// What was given to a node last.
    #[must_use]
    pub fn given(&self, node: &str) -> Option<&[DeclareDead]> {
        self.given.get(node).map(Vec::as_slice)
    }

    /// The API server does not take a node's tasks.
    pub fn refused(&mut self, node: &str, why: &str, now: Instant) {
        let until = (why.to_owned(), now + ASK_AGAIN);
        self.refused.insert(node.to_owned(), until);
    }

    /// After how long the first of these may be asked again.
    #[must_use]
    pub fn look_again(&self, now: Instant) -> Option<Duration> {
        let until = self.refused.values().map(|(_, until)| *until).min();
        until.map(|until| until.saturating_duration_since(now))
    }
}
