//! What the agent counts. Labels have few values: no request, volume group or message is ever one.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::report::refusal;
use crate::fence::report::{FenceReport, Outcome, StepKind};
use crate::kubernetes::client::Calls;

/// How a fence ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `Proven`, `NotProven`, `CalledOff`, `DryRun`, or the reason of a refusal.
    pub result: &'static str,
}

/// A step.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StepLabels {
    /// As in the status.
    pub step: &'static str,
}

/// A class of errors of the API server.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ErrorLabels {
    /// `timeout`, `connection`, `forbidden`...
    pub class: &'static str,
}

/// The metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Calls of the API server.
    pub api_calls: Calls,
    fences: Family<OutcomeLabels, Counter<u64, AtomicU64>>,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    observations: Histogram,
    api_errors: Family<ErrorLabels, Counter<u64, AtomicU64>>,
    fencing: Gauge<i64, AtomicI64>,
    fenced: Gauge<i64, AtomicI64>,
    unlocked: Gauge<i64, AtomicI64>,
}

fn steps() -> Histogram {
    Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            api_calls: Calls::default(),
            fences: Family::default(),
            steps: Family::new_with_constructor(steps),
            observations: Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
            api_errors: Family::default(),
            fencing: Gauge::default(),
            fenced: Gauge::default(),
            unlocked: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("storage_fence_agent");
        self.api_calls.register(registry);
        registry.register(
            "fences",
            "Fences that ended, by result",
            self.fences.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "How long the steps of fences took",
            Unit::Seconds,
            self.steps.clone(),
        );
        registry.register_with_unit(
            "observation_duration",
            "How long it took to look at the node",
            Unit::Seconds,
            self.observations.clone(),
        );
        registry.register(
            "api_errors",
            "Failed calls to the API server, by class",
            self.api_errors.clone(),
        );
        registry.register(
            "fencing",
            "Whether a fence is going on",
            self.fencing.clone(),
        );
        registry.register(
            "fenced_volume_groups",
            "Volume groups that stand fenced",
            self.fenced.clone(),
        );
        registry.register(
            "unlocked_volume_groups",
            "Volume groups that reach the SAN although nobody holds their locks",
            self.unlocked.clone(),
        );
    }

    /// A fence ended.
    pub fn ended(&self, report: &FenceReport) {
        let result = match report.outcome {
            Outcome::InProgress => "InProgress",
            Outcome::Refused(why) => refusal(why),
            Outcome::DryRun => "DryRun",
            Outcome::CalledOff => "CalledOff",
            Outcome::Proven => "Proven",
            Outcome::NotProven => "NotProven",
        };
        self.fences.get_or_create(&OutcomeLabels { result }).inc();
        for step in &report.steps {
            if let Some(took) = step.took {
                let step = StepKind::as_str(step.kind);
                self.steps
                    .get_or_create(&StepLabels { step })
                    .observe(took.as_secs_f64());
            }
        }
    }

    /// The node was looked at.
    pub fn observed(&self, took: Duration) {
        self.observations.observe(took.as_secs_f64());
    }

    /// A call to the API server failed.
    pub fn api_error(&self, class: &'static str) {
        self.api_errors.get_or_create(&ErrorLabels { class }).inc();
    }

    /// Whether a fence is going on.
    pub fn fencing(&self, yes: bool) {
        self.fencing.set(yes.into());
    }

    /// How many volume groups stand fenced.
    pub fn fenced(&self, n: usize) {
        self.fenced.set(n.try_into().unwrap_or(i64::MAX));
    }

    /// How many volume groups reach the SAN without a lock.
    pub fn unlocked(&self, n: usize) {
        self.unlocked.set(n.try_into().unwrap_or(i64::MAX));
    }
}
