//! Requests as the API server tells of them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{Desk, stored};
use crate::api::StorageFenceRequest;
use crate::api::request::DeletionPolicy;
use crate::fence::unfence::{UnfenceOutcome, UnfenceReport};
use crate::kubernetes::watch::Seen;

impl Desk {
    pub(super) fn see(&mut self, seen: Seen<StorageFenceRequest>) {
        let uid = |r: &StorageFenceRequest| r.metadata.uid.clone().unwrap_or_default();
        match seen {
            Seen::Listing => self.listing = Some(BTreeMap::new()),
            Seen::Is(request, true) => {
                self.adopt(&request);
                if let Some(listing) = &mut self.listing {
                    listing.insert(uid(&request), *request);
                }
            }
            Seen::Is(request, false) => {
                self.adopt(&request);
                self.requests.insert(uid(&request), *request);
            }
            Seen::Gone(request) => {
                self.requests.remove(&uid(&request));
                self.gone(&uid(&request), &request);
            }
            Seen::Listed => {
                let listing = self.listing.take().unwrap_or_default();
                let before = std::mem::replace(&mut self.requests, listing);
                for (uid, request) in before {
                    if !self.requests.contains_key(&uid) {
                        self.gone(&uid, &request);
                    }
                }
                for (uid, request) in &self.requests {
                    self.tools.board.stored(uid, stored(request));
                }
                self.listed = true;
                self.tools.listed.store(true, Ordering::Relaxed);
            }
            Seen::Unreadable(name, why) => {
                tracing::error!(
                    request = name,
                    why,
                    "a request is not understood and not acted upon; was it made by a newer version?"
                );
            }
            Seen::Broken(why) => {
                tracing::warn!(why, "the requests cannot be watched; trying again");
                self.tools.metrics.api_error("watch");
            }
        }
    }

    /// `request` is what was last seen of it.
    fn gone(&mut self, uid: &str, request: &StorageFenceRequest) {
        self.tools.board.forget(uid);
        if request.spec.deletion_policy == DeletionPolicy::Retain {
            self.retain(uid);
        }
        if !self.runs(uid) && !self.queue.has(uid) {
            self.known.remove(uid);
            self.started.remove(uid);
            // What was left half-way is looked for when nothing is going on.
            if !self.lifts.get(uid).is_some_and(half_way) {
                self.lifts.remove(uid);
            }
            self.lifts_started.remove(uid);
        }
    }
}

/// Whether something of it was done, and not all.
fn half_way(report: &UnfenceReport) -> bool {
    report.started.is_some() && report.outcome != UnfenceOutcome::Done
}
