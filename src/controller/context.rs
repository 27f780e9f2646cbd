//! What the reconcilers share, and how they fail.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;

use super::eviction::rounds::Rounds;
use super::facts::Settings;
use super::limits::Limits;
use super::metrics::Metrics;
use super::node::absence::Absences;
use super::node::boot::Boots;
use super::unreadable::Told;
use super::watches::Caches;
use crate::kubernetes::apply::Error;
use crate::kubernetes::events::Events;

/// Shared by all reconcilers.
pub struct Context {
    /// For writes.
    pub client: Client,
    /// For evictions, which it does not try again by itself.
    pub evictor: Client,
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
    /// Nodes whose agent is gone.
    pub absences: Absences,
    /// Boot IDs that Nodes told.
    pub boots: Boots,
    /// What was told of objects that cannot be read.
    pub unreadable: Told,
    /// Whether what is gated has to wait.
    pub limits: Limits,
    /// When evictions were tried.
    pub rounds: Rounds,
}

impl Context {
    /// Whether this replica may write now.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }
}

/// What kind of failure an error is, which says when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The server is away, busy, or somebody else was faster.
    Transient,
    /// The object went away meanwhile.
    Gone,
    /// It would fail in the same way at once: permissions, or a schema that does not fit.
    Structural,
}

impl Class {
    /// The class of an error.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        if error.is_not_found() {
            Self::Gone
        } else if error.is_invalid() || error.class() == "forbidden" {
            Self::Structural
        } else {
            Self::Transient
        }
    }

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
    /// Notes the version that the server gave our write. Several stages write the same object, and the answer to the last one may come first.
    pub fn note(&self, object: &impl Resource) {
        if let (Some(uid), Some(version)) = (object.meta().uid.clone(), version(object)) {
            let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let last = written.entry(uid).or_default();
            *last = version.max(*last);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: u16) -> Error {
        let status = kube::core::Status {
            code,
            ..kube::core::Status::default()
        };
        Error::Call {
            what: "x".into(),
            source: Box::new(kube::Error::Api(Box::new(status))),
        }
    }

    #[test]
    fn every_error_has_its_cadence() {
        for (code, class) in [
            (404, Class::Gone),
            (403, Class::Structural),
            (422, Class::Structural),
            (409, Class::Transient),
            (429, Class::Transient),
            (500, Class::Transient),
            (503, Class::Transient),
        ] {
            assert_eq!(Class::of(&failed(code)), class, "{code}");
        }
        let waits: Vec<u128> = (1..=9)
            .map(|n| Class::Transient.retry_after(n).as_millis())
            .collect();
        assert_eq!(
            waits,
            [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 32_000, 32_000]
        );
    }

    #[test]
    fn failures_are_counted_in_a_row() {
        let failures = Failures::default();
        assert_eq!(
            [
                failures.count("a"),
                failures.count("a"),
                failures.count("b")
            ],
            [1, 2, 1]
        );
        failures.forget("a");
        assert_eq!(failures.count("a"), 1);
    }

    #[test]
    fn a_cache_behind_our_own_write_is_known_to_be() {
        let object = |version: &str| {
            let mut pod = k8s_openapi::api::core::v1::Pod::default();
            pod.metadata.uid = Some("u".into());
            pod.metadata.resource_version = Some(version.into());
            pod
        };
        let written = Written::default();
        assert!(!written.is_ahead_of(&object("9")));
        written.note(&object("10"));
        assert!(written.is_ahead_of(&object("9")));
        assert!(!written.is_ahead_of(&object("11")));
        assert!(
            !written.is_ahead_of(&object("9")),
            "forgotten once it was seen"
        );
        // The answers of two stages in the wrong order.
        written.note(&object("12"));
        written.note(&object("11"));
        assert!(written.is_ahead_of(&object("11")));
    }
}
