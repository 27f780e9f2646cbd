//! A node on which several remediations follow each other: a health controller that gives one up makes the next from another template. Pure.

use kube::ResourceExt;

use super::judge::timed_out;
use super::plan::may_be_withdrawn;
use crate::api::remediation::REMEDIATION_UID_LABEL;
use crate::api::{StorageFenceRemediation, StorageFenceRequest};

/// Whether `request` serves another of the `remediations`, which takes it back: it was given up before the request came to anything, or was deleted.
/// What such a request says of the node is no answer for whoever comes next: its turn comes a moment later.
#[must_use]
pub fn is_taken_back(
    request: &StorageFenceRequest,
    remediations: &[StorageFenceRemediation],
) -> bool {
    let Some(uid) = request.labels().get(REMEDIATION_UID_LABEL) else {
        return false;
    };
    let mut served = remediations
        .iter()
        .filter(|r| r.uid().as_ref() == Some(uid));
    served.any(|r| {
        r.metadata.deletion_timestamp.is_some() || (timed_out(r) && may_be_withdrawn(r, request))
    })
}

#[cfg(test)]
#[path = "predecessor_tests.rs"]
mod tests;
