//! What the controller counts. Every label has a bounded set of values: no node, no request and no message is ever one.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::kubernetes::client::Calls;

/// Which controller, and how it went.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind that is reconciled.
    pub kind: &'static str,
    /// `unchanged`, `written`, `unreadable`, or the class of an error.
    pub result: &'static str,
}

/// A kind that is watched.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// The kind.
    pub kind: &'static str,
}

/// A phase of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PhaseLabels {
    /// The phase.
    pub phase: &'static str,
}

/// Where a request's phase comes from, in the conditions' words.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The condition.
    pub condition: &'static str,
    /// Its reason.
    pub reason: &'static str,
}

/// The metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Calls of the API server.
    pub api_calls: Calls,
    /// Reconciliations.
    pub reconciliations: Family<ReconcileLabels, Counter<u64, AtomicU64>>,
    /// Watch events.
    pub watch_events: Family<KindLabels, Counter<u64, AtomicU64>>,
    /// Watch errors.
    pub watch_errors: Family<KindLabels, Counter<u64, AtomicU64>>,
    /// Lists that were read anew.
    pub watch_lists: Family<KindLabels, Counter<u64, AtomicU64>>,
    /// When a watch last said something, in seconds since the epoch.
    pub watch_last_event: Family<KindLabels, Gauge<i64, AtomicI64>>,
    /// Whether this replica leads.
    pub leading: Gauge<i64, AtomicI64>,
    /// Requests by phase.
    pub phases: Family<PhaseLabels, Gauge<i64, AtomicI64>>,
    /// Requests by condition and reason.
    pub reasons: Family<ReasonLabels, Gauge<i64, AtomicI64>>,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("storage_fence_controller");
        self.api_calls.register(registry);
        registry.register(
            "reconciliations",
            "Reconciliations by kind and result",
            self.reconciliations.clone(),
        );
        registry.register(
            "watch_events",
            "Events of the watches",
            self.watch_events.clone(),
        );
        registry.register(
            "watch_errors",
            "Errors of the watches; each is followed by another attempt",
            self.watch_errors.clone(),
        );
        registry.register(
            "watch_lists",
            "How often a watch had to read the whole list",
            self.watch_lists.clone(),
        );
        registry.register(
            "watch_last_event_timestamp_seconds",
            "When a watch last said something",
            self.watch_last_event.clone(),
        );
        registry.register(
            "leader",
            "1 if this replica holds the lease",
            self.leading.clone(),
        );
        registry.register(
            "requests",
            "StorageFenceRequests by phase",
            self.phases.clone(),
        );
        registry.register(
            "request_conditions",
            "StorageFenceRequests by condition and reason; reasons that this version does not know count as Other",
            self.reasons.clone(),
        );
    }

    /// Counts a reconciliation.
    pub fn reconciled(&self, kind: &'static str, result: &'static str) {
        self.reconciliations
            .get_or_create(&ReconcileLabels { kind, result })
            .inc();
    }
}
