//! What the reconcilers share, and how they fail.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;

use super::facts::Settings;
use super::metrics::Metrics;
use super::watches::Caches;
use crate::kubernetes::events::Events;

/// Shared by all reconcilers.
pub struct Context {
    /// For writes.
    pub client: Client,
    /// What does not change.
    pub settings: Settings,
    /// What is known of the cluster.
    pub caches: Caches,
    /// For `kubectl describe`.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether this replica may write.
    pub leading: watch::Receiver<bool>,
    /// Last versions that we wrote, by UID.
    pub written: Written,
    /// Failures in a row, by UID.
    pub failures: Failures,
}

impl Context {
    /// Whether this replica may write now.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }
}

/// A reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not take a write.
    #[error("could not write {what} of {kind} {name}: {source}")]
    Write {
        /// Which part.
        what: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// What kind of failure it is, which says when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The server is away, busy, or somebody else was faster.
    Transient,
    /// The object went away meanwhile.
    Gone,
    /// It would fail in the same way at once: permissions, or a schema that does not fit.
    Structural,
}

impl Error {
    /// The class.
    #[must_use]
    pub fn class(&self) -> Class {
        let Self::Write { source, .. } = self;
        match source.as_ref() {
            kube::Error::Api(status) => match status.code {
                404 => Class::Gone,
                401 | 403 | 400 | 405 | 415 | 422 => Class::Structural,
                _ => Class::Transient,
            },
            _ => Class::Transient,
        }
    }
}

impl Class {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient_error",
            Self::Gone => "gone",
            Self::Structural => "structural_error",
        }
    }

    /// When to try again after so many failures in a row.
    #[must_use]
    pub fn retry_after(self, failures: u32) -> Duration {
        match self {
            // 0.5 s, 1 s, 2 s, ... 32 s
            Self::Transient => Duration::from_millis(500 << failures.saturating_sub(1).min(6)),
            Self::Gone => Duration::from_mins(10),
            Self::Structural => Duration::from_mins(5),
        }
    }
}

/// Failures in a row of each object.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    /// One more.
    pub fn count(&self, uid: &str) -> u32 {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = failures.entry(uid.to_owned()).or_default();
        *failures = failures.saturating_add(1);
        *failures
    }

    /// It succeeded, or it is gone.
    pub fn forget(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

/// What we wrote last, so that a cache that does not know it yet is not taken for the truth.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<String, u64>>);

impl Written {
    /// Notes the version that the server gave our write.
    pub fn note(&self, object: &impl Resource) {
        if let (Some(uid), Some(version)) = (object.meta().uid.clone(), version(object)) {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(uid, version);
        }
    }

    /// Whether the cached object is older than our last write to it: then it will come again.
    #[must_use]
    pub fn is_ahead_of(&self, cached: &impl Resource) -> bool {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(uid), Some(cached)) = (cached.meta().uid.as_ref(), version(cached)) else {
            return false;
        };
        match written.get(uid) {
            Some(ours) if *ours > cached => true,
            Some(_) => {
                written.remove(uid);
                false
            }
            None => false,
        }
    }

    /// It is gone.
    pub fn forget(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

/// Resource versions are numbers that grow (promised since Kubernetes 1.35, true of etcd before).
fn version(object: &impl Resource) -> Option<u64> {
    object.resource_version()?.parse().ok()
}
