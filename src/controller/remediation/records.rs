//! Fences that a policy had the node begin by itself, and on which a remediation's success rests: given back with it, as a request of its own
//! is. Pure.
//!
//! The record itself stays, with its proof and its timeline: its `fenceState` becomes Unfenced, and the agent does the rest under the guards that
//! it has for everybody. What a person asked for is never touched.

use kube::ResourceExt;

use super::full_name;
use super::judge::timed_out;
use crate::api::condition::find;
use crate::api::governing::{governing, kept_fenced_by, outranked_by};
use crate::api::record::{annotation, has_ended, is_record};
use crate::api::remediation::{RecordReference, condition_type as ours};
use crate::api::request::reason::{UNFENCE_WAITING, UNFENCING};
use crate::api::request::{
    DeletionPolicy, FenceState, ReleaseLocks, VolumeGroupMode, condition_type,
};
use crate::api::{ConditionStatus, StorageFenceRemediation, StorageFenceRequest};
use crate::controller::request::finalizer;

/// So many of one node at a time are as many as its volume groups.
const MOST: usize = 16;

/// One that is to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiveBack {
    /// Its name.
    pub name: String,
    /// Its UID: no other one.
    pub uid: String,
    /// Its version: nobody has changed it since it was looked at.
    pub version: String,
    /// What its `unfenceAfterSeconds` becomes.
    pub after_seconds: i32,
    /// For whom.
    pub whom: String,
}

/// Those of the node's `requests` on which a success rests. `governed_by`: the older request that governs instead of the remediation's own.
#[must_use]
pub fn rests_on(
    remediation: &StorageFenceRemediation,
    governed_by: Option<&StorageFenceRequest>,
    requests: &[StorageFenceRequest],
) -> Vec<StorageFenceRequest> {
    // What a person asked for is that person's to take back, and until then the node stays fenced.
    if governed_by.is_some_and(|other| !is_record(other)) {
        return Vec::new();
    }
    let stands = |r: &&StorageFenceRequest| {
        let conditions = r.status.as_ref().map(|s| s.conditions.as_slice());
        let fenced = conditions.and_then(|c| find(c, condition_type::FENCED));
        fenced.is_some_and(|f| f.status == ConditionStatus::True)
    };
    let records = requests.iter().filter(|r| {
        is_record(r)
            && r.metadata.deletion_timestamp.is_none()
            && r.spec.fence_state == FenceState::Fenced
            && !r.spec.dry_run
    });
    let mut found: Vec<StorageFenceRequest> = records
        .filter(stands)
        .filter(|r| is_meant(remediation, r))
        .cloned()
        .collect();
    found.sort_by_key(ResourceExt::name_any);
    found.truncate(MOST);
    found
}

/// Whether a record fences a volume group that the remediation means. One that it does not mean is nothing to it.
fn is_meant(remediation: &StorageFenceRemediation, record: &StorageFenceRequest) -> bool {
    let selection = &remediation.spec.volume_groups;
    let node = record.status.as_ref().and_then(|s| s.node.as_ref());
    let fenced = node.map_or(&[][..], |n| &n.volume_groups);
    selection.mode != VolumeGroupMode::Named
        || fenced.iter().any(|g| selection.names.contains(&g.name))
}

/// As a status holds them.
#[must_use]
pub fn references(records: &[StorageFenceRequest]) -> Vec<RecordReference> {
    let reference = |r: &StorageFenceRequest| RecordReference {
        name: r.name_any(),
        uid: r.uid().unwrap_or_default(),
        returning: false,
    };
    records.iter().map(reference).collect()
}

/// Those of the node's `requests` that the remediation's status names.
#[must_use]
pub fn noted(
    remediation: &StorageFenceRemediation,
    requests: &[StorageFenceRequest],
) -> Vec<StorageFenceRequest> {
    let noted = remediation.status.as_ref().map(|s| s.records.as_slice());
    let is_noted = |r: &&StorageFenceRequest| {
        noted.is_some_and(|n| n.iter().any(|n| r.uid().as_ref() == Some(&n.uid)))
    };
    requests.iter().filter(is_noted).cloned().collect()
}

/// Whether nothing was done yet about the deletion of a remediation: the first that is done is to say so in its status. Whether its own request is
/// there, or goes, tells nothing: a person may have deleted that before.
#[must_use]
pub fn is_news(remediation: &StorageFenceRemediation) -> bool {
    let conditions = remediation.status.as_ref().map(|s| s.conditions.as_slice());
    let processing = conditions.and_then(|c| find(c, ours::PROCESSING));
    // Of one that is not deleted they are never said.
    let said =
        processing.is_some_and(|p| [UNFENCING, UNFENCE_WAITING].contains(&p.reason.as_str()));
    remediation.metadata.deletion_timestamp.is_some() && !said && !timed_out(remediation)
}

/// The older request that governs the `node` instead of the remediation's `own`, or would if that one were not on its way out; where that is gone, the
/// one that governs.
#[must_use]
pub fn governs_instead(
    own: Option<&StorageFenceRequest>,
    node: &str,
    requests: &[StorageFenceRequest],
) -> Option<StorageFenceRequest> {
    let Some(own) = own else {
        return governing(node, requests).cloned();
    };
    let mut wanted = own.clone();
    if wanted.metadata.deletion_timestamp.take().is_some() {
        // Nor had the agent said anything of the deletion then.
        wanted.status = None;
    }
    outranked_by(&wanted, requests).cloned()
}

/// Whether a remediation that was deleted had succeeded before its own request was deleted by somebody else: by what it has noted, or since what was fenced
/// for that request is being given back.
#[must_use]
pub fn had_succeeded(
    remediation: &StorageFenceRemediation,
    own: Option<&StorageFenceRequest>,
) -> bool {
    if own.is_some_and(|own| own.metadata.deletion_timestamp.is_none()) {
        return false;
    }
    let status = own.and_then(|own| own.status.as_ref());
    let fenced = status.and_then(|s| find(&s.conditions, condition_type::FENCED));
    let goes_back =
        fenced.is_some_and(|f| [UNFENCING, UNFENCE_WAITING].contains(&f.reason.as_str()));
    goes_back
        || remediation
            .status
            .as_ref()
            .is_some_and(|s| !s.records.is_empty())
}

/// Of the records that a success `rests_on` those that the remediation's status does not name.
#[must_use]
pub fn unnoted(
    remediation: &StorageFenceRemediation,
    rests_on: Vec<StorageFenceRequest>,
) -> Vec<StorageFenceRequest> {
    let noted: Vec<_> = noted(remediation, &rests_on)
        .iter()
        .filter_map(ResourceExt::uid)
        .collect();
    let is_new = |r: &StorageFenceRequest| r.uid().is_some_and(|uid| !noted.contains(&uid));
    rests_on.into_iter().filter(is_new).collect()
}

/// Names `unnoted` in a status as well, as far as there is room.
pub fn note(records: &mut Vec<RecordReference>, unnoted: &[StorageFenceRequest]) {
    records.extend(references(unnoted));
    records.truncate(MOST);
}

/// What a deleted remediation still owes the node of these.
#[derive(Clone, Debug, Default)]
pub struct Owed<'a> {
    /// To be given back now.
    pub give_back: Vec<GiveBack>,
    /// Being given back.
    pub under_way: Vec<&'a StorageFenceRequest>,
}

impl Owed<'_> {
    /// Whether there is nothing left to wait for.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.give_back.is_empty() && self.under_way.is_empty()
    }
}

/// What `remediation`, which was deleted, owes of the `records` that its success rested on.
#[must_use]
pub fn owed<'a>(
    remediation: &StorageFenceRemediation,
    records: &'a [StorageFenceRequest],
) -> Owed<'a> {
    let mut owed = Owed::default();
    // Somebody else was asked to see to the node: its deletion does not say that this one has made it healthy.
    if timed_out(remediation) {
        return owed;
    }
    let whom = whom(remediation);
    for record in records.iter().filter(|r| is_record(r)) {
        if has_ended(record) || is_held(record) {
            continue;
        }
        let deleted = record.metadata.deletion_timestamp.is_some();
        // What is still there of it is somebody else's finalizer: the agent gives nothing back for it any more.
        if deleted && !finalizer::has(record) {
            continue;
        }
        if deleted || record.spec.fence_state == FenceState::Unfenced {
            owed.under_way.push(record);
            continue;
        }
        // Given back once since this remediation was deleted, and wanted fenced again by somebody since.
        if record.annotations().get(annotation::UNFENCED_FOR) == Some(&whom)
            || was_returning(remediation, record)
        {
            continue;
        }
        let after = remediation.spec.unfence_after_seconds;
        owed.give_back.push(GiveBack {
            name: record.name_any(),
            uid: record.uid().unwrap_or_default(),
            version: record.resource_version().unwrap_or_default(),
            // Neither gets it back sooner than it asks for.
            after_seconds: after.max(record.spec.unfence_after_seconds),
            whom: whom.clone(),
        });
    }
    owed
}

/// Whether the remediation's status says that a record was being given back when it was looked at after the deletion.
fn was_returning(remediation: &StorageFenceRemediation, record: &StorageFenceRequest) -> bool {
    let noted = remediation.status.as_ref().map(|s| s.records.as_slice());
    let mut noted = noted.unwrap_or_default().iter();
    noted.any(|n| n.returning && record.uid().as_ref() == Some(&n.uid))
}

/// Notes in a status which of its `records` are under way. Those that are patched carry that in an annotation.
pub fn note_returning(records: &mut [RecordReference], owed: &Owed<'_>) {
    for noted in records {
        let is_it = |r: &&StorageFenceRequest| r.uid().as_ref() == Some(&noted.uid);
        noted.returning |= owed.under_way.iter().any(is_it);
    }
}

/// Of the node's `requests` the one that keeps the node fenced, and so holds back the remediation's `own` request and what is `owed`, all of which
/// was asked for: the agent gives nothing back before that one is gone, or wants the contrary.
#[must_use]
pub fn held_by<'a>(
    own: Option<&StorageFenceRequest>,
    owed: &Owed<'_>,
    requests: &'a [StorageFenceRequest],
) -> Option<&'a StorageFenceRequest> {
    let waits = own.or(owed.under_way.first().copied())?;
    kept_fenced_by(waits, requests)
}

/// Whether its spec says that the fence stays: the policy has the locks kept, or somebody has it stay whatever becomes of the record.
fn is_held(record: &StorageFenceRequest) -> bool {
    record.spec.release_locks == ReleaseLocks::Never
        || record.spec.deletion_policy == DeletionPolicy::Retain
}

fn whom(remediation: &StorageFenceRemediation) -> String {
    let uid = remediation.uid().unwrap_or_default();
    format!("{} {uid}", full_name(remediation))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "unnoted_tests.rs"]
mod unnoted_tests;
