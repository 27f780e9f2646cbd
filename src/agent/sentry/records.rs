//! Fences that the node began by itself, and their records: StorageFenceRequests that are made afterwards, each exactly once.
//!
//! The name of a record follows from the node, its boot ID and what was answered, so that a successor (or the same agent, whose call was
//! answered by nothing) makes the same one again, and the API server has it once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::decide::{Known, Uid, order};
use crate::agent::report::cut;
use crate::api::policy::StorageFencePolicy;
use crate::api::record::NAME_PREFIX;
pub use crate::api::record::annotation;
use crate::api::request::{VolumeGroupMode, VolumeGroupSelection, WhenPathsRemain};
use crate::api::{self, StorageFenceRequest, StorageFenceRequestSpec};
use crate::fence::Order;
use crate::fence::order::WhenPathsRemain as When;
use crate::fence::report::{FenceReport, Outcome, StepKind, StepResult};
use crate::fence::trigger::Alarm;

/// A UID that no API server gives: of a fence whose record it does not hold yet.
const LOCAL: &str = "local:";
/// So many reports are kept for a successor; more than that many fences of one boot without an API server have other problems.
const KEPT: usize = 16;

/// A fence that the node began by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalFence {
    /// What is to be recorded.
    pub record: StorageFenceRequest,
    /// Volume groups (by UUID) with the episodes that are answered by it.
    pub answers: BTreeMap<String, String>,
    /// Whether it touched anything, or was only planned: from then on there is something to record.
    pub to_record: bool,
    /// UID of its record, once the API server holds it.
    pub uid: Option<Uid>,
    /// How it ended.
    pub report: Option<FenceReport>,
}

impl LocalFence {
    /// Name of the record.
    #[must_use]
    pub fn name(&self) -> &str {
        self.record.metadata.name.as_deref().unwrap_or_default()
    }

    /// The UID that it goes by until the API server gives it one.
    #[must_use]
    pub fn local_uid(&self) -> Uid {
        format!("{LOCAL}{}", self.name())
    }

    /// Whether that UID is its own: the API server's, or the one before.
    #[must_use]
    pub fn goes_by(&self, uid: &str) -> bool {
        self.uid.as_deref() == Some(uid) || self.local_uid() == uid
    }

    /// The order, as its record gives it.
    #[must_use]
    pub fn order(&self) -> Order {
        Order {
            uid: self.uid.clone().unwrap_or_else(|| self.local_uid()),
            generation: self.record.metadata.generation.unwrap_or(1),
            ..order(&self.record)
        }
    }
}

/// Whether a UID is of a fence whose record the API server does not hold yet.
#[must_use]
pub fn is_local(uid: &str) -> bool {
    uid.starts_with(LOCAL)
}

/// One volume group that is to be fenced, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the volume group.
    pub name: String,
    /// UUID of the volume group.
    pub uuid: String,
    /// What went off.
    pub alarm: Alarm,
}

/// Where and when.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of the node.
    pub node_name: &'a str,
    /// Boot ID.
    pub boot_id: &'a str,
    /// Seconds since boot.
    pub uptime: u64,
}

/// What a policy has the node do about some volume groups.
#[must_use]
pub fn local_fence(
    policy: &StorageFencePolicy,
    answers: &[Answer],
    when: When,
    place: Place<'_>,
) -> LocalFence {
    let policy_name = policy.metadata.name.clone().unwrap_or_default();
    let seen: Vec<String> = answers
        .iter()
        .map(|a| format!("volume group {}: {}", a.name, a.alarm.seen))
        .collect();
    let causes: Vec<&str> = answers.iter().map(|a| a.alarm.cause.as_str()).collect();
    let settings = &policy.spec.request;
    let reason = format!("policy {policy_name}: {}", seen.join("; "));
    let spec = StorageFenceRequestSpec {
        node_name: place.node_name.to_owned(),
        fence_state: api::request::FenceState::Fenced,
        deletion_policy: api::request::DeletionPolicy::default(),
        unfence_after_seconds: api::request::UNFENCE_AFTER_SECONDS,
        volume_groups: VolumeGroupSelection {
            mode: VolumeGroupMode::Named,
            names: answers.iter().map(|a| a.name.clone()).collect(),
        },
        when_paths_remain: match when {
            When::Refuse => WhenPathsRemain::Refuse,
            When::Fence => WhenPathsRemain::Fence,
        },
        release_locks: settings.release_locks,
        takeover: settings.takeover,
        workloads: settings.workloads,
        drain_timeout_seconds: settings.drain_timeout_seconds,
        dry_run: policy.spec.dry_run,
        reason: Some(cut(&reason, 1024)),
    };
    let answered: BTreeMap<String, String> = answers
        .iter()
        .map(|a| (a.uuid.clone(), a.alarm.episode.clone()))
        .collect();
    let mut record = StorageFenceRequest::new(&name(place, &answered, policy.spec.dry_run), spec);
    record.metadata.labels = Some(BTreeMap::from([(
        annotation::RECORDED_BY.to_owned(),
        annotation::AGENT.to_owned(),
    )]));
    record.metadata.annotations = Some(BTreeMap::from([
        (annotation::POLICY.to_owned(), policy_name),
        (annotation::TRIGGER.to_owned(), causes.join(",")),
        (annotation::BOOT_ID.to_owned(), place.boot_id.to_owned()),
        (
            annotation::TRIGGERED_AT.to_owned(),
            place.uptime.to_string(),
        ),
    ]));
    LocalFence {
        record,
        answers: answered,
        to_record: false,
        uid: None,
        report: None,
    }
}

/// `auto-NODE-16 hex digits`, of the node, its boot and what is answered; a dry run's is another than that of the fence that may follow it.
fn name(place: Place<'_>, answered: &BTreeMap<String, String>, dry_run: bool) -> String {
    /// A name has at most 253 characters.
    const NODE: usize = 200;
    let short: String = place.node_name.chars().take(NODE).collect();
    let mut all = json!([place.node_name, place.boot_id, answered]).to_string();
    if dry_run {
        all.push_str("dry run");
    }
    format!(
        "{NAME_PREFIX}{}-{:016x}",
        short.trim_end_matches(['.', '-']),
        fnv(all.as_bytes())
    )
}

/// FNV-1a, 64 bits: the same in every version of this program, which the standard library's hasher is not.
fn fnv(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

/// Whether a report is worth a record: something was done that leaves a trace, or was to be planned and was.
#[must_use]
pub fn worth_a_record(report: &FenceReport) -> bool {
    match report.outcome {
        Outcome::Proven | Outcome::NotProven | Outcome::DryRun => true,
        Outcome::Refused(_) | Outcome::CalledOff => false,
        Outcome::InProgress => report.steps.iter().any(|s| match s.kind {
            StepKind::FreezeLocks => s.result == StepResult::Done,
            // Of a volume group whose locks nobody holds nothing is frozen.
            StepKind::Swap => s.result != StepResult::Planned,
            _ => false,
        }),
    }
}

/// All local fences of this boot.
#[derive(Clone, Debug, Default)]
pub struct Records(pub Vec<LocalFence>);

impl Records {
    /// The one of a UID, whichever of both it goes by.
    pub fn by_uid(&mut self, uid: &str) -> Option<&mut LocalFence> {
        self.0.iter_mut().find(|f| f.goes_by(uid))
    }

    /// Whether an episode of a volume group was answered already: by a fence; or by a plan, if no more than that is wanted. A plan is no answer to
    /// who wants a fence: the storage is still lost.
    #[must_use]
    pub fn answered(&self, vg_uuid: &str, episode: &str, dry_run: bool) -> bool {
        let mut all = self.answers(vg_uuid, episode);
        all.any(|f| dry_run || !f.record.spec.dry_run)
    }

    /// Whether a fence that was the answer to an episode has ended without proof.
    #[must_use]
    pub fn fell_short(&self, vg_uuid: &str, episode: &str) -> bool {
        let mut reports = self
            .answers(vg_uuid, episode)
            .filter_map(|f| f.report.as_ref());
        reports.any(|r| r.outcome == Outcome::NotProven)
    }

    fn answers(&self, vg_uuid: &str, episode: &str) -> impl Iterator<Item = &LocalFence> {
        let of_it = move |f: &&LocalFence| f.answers.get(vg_uuid).is_some_and(|e| e == episode);
        self.0.iter().filter(of_it)
    }

    /// Whether there is one of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|f| f.name() == name)
    }

    /// Those to be made.
    pub fn to_make(&self) -> impl Iterator<Item = &StorageFenceRequest> {
        self.0
            .iter()
            .filter(|f| f.to_record && f.uid.is_none())
            .map(|f| &f.record)
    }

    /// The record of a local fence has turned up: from now on it goes by the UID that the API server gave. Gives the UID that it went by; None when
    /// it is nobody's record.
    pub fn adopt(&mut self, request: &StorageFenceRequest) -> Option<Uid> {
        let uid = request.metadata.uid.clone()?;
        let boot_id = |r: &StorageFenceRequest| {
            let annotations = r.metadata.annotations.as_ref()?;
            annotations.get(annotation::BOOT_ID).cloned()
        };
        let fence = self.0.iter_mut().find(|f| {
            f.record.metadata.name == request.metadata.name
                && boot_id(&f.record) == boot_id(request)
                && f.uid.is_none()
        })?;
        let local = fence.local_uid();
        fence.uid = Some(uid);
        fence.record.metadata.generation = request.metadata.generation;
        Some(local)
    }

    /// Forgets the oldest that the API server holds, when there are many.
    pub fn bound(&mut self) {
        while self.0.len() > KEPT {
            let Some(oldest) = self.0.iter().position(|f| f.uid.is_some()) else {
                return;
            };
            self.0.remove(oldest);
        }
    }
}

/// Has a fence's report speak of the request as the API server holds it.
pub fn rename(known: &mut Known, uid: &str, generation: i64) {
    uid.clone_into(&mut known.order.uid);
    known.order.generation = generation;
    uid.clone_into(&mut known.report.uid);
    known.report.generation = generation;
}
