//! A node on which several remediations follow each other: a health controller that gives one up makes the next from another template. Pure.

use kube::ResourceExt;

use super::judge::timed_out;
use super::plan::may_be_withdrawn;
use crate::api::remediation::REMEDIATION_UID_LABEL;
use crate::api::{StorageFenceRemediation, StorageFenceRequest};

/// The other of the `remediations` that `request` serves, if that takes it back: it was given up before the request came to anything, or was deleted.
/// What such a request says of the node is no answer for whoever comes next: its turn comes a moment later.
#[must_use]
pub fn taken_back_by(
    request: &StorageFenceRequest,
    remediations: &[StorageFenceRemediation],
) -> Option<String> {
    let uid = request.labels().get(REMEDIATION_UID_LABEL)?;
    let goes = |r: &StorageFenceRemediation| {
        r.metadata.deletion_timestamp.is_some() || (timed_out(r) && may_be_withdrawn(r, request))
    };
    let served = remediations
        .iter()
        .find(|r| r.uid().as_ref() == Some(uid) && goes(r));
    served.map(ResourceExt::name_any)
}

#[cfg(test)]
#[path = "predecessor_tests.rs"]
mod tests;
