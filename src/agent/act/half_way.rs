//! What un-fences have left half-way, as the desk asks for it between two orders.

use std::sync::PoisonError;

use super::Actor;
use crate::agent::restore;
use crate::fence::unfence::UnfenceReport;

impl Actor {
    /// The un-fences that were begun and have not ended, by this agent or an earlier one; the one that was at work last comes last. Not while anything
    /// is going on.
    #[must_use]
    pub fn lifting(&self) -> Vec<UnfenceReport> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let left = journal.half_way().unwrap_or_default();
        left.into_iter().map(|lift| lift.report).collect()
    }

    /// What un-fences had lifted, and have left devices of, is watched over again. Not while anything is going on.
    pub fn watch_again(&self) {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        restore::watch_again(&self.host, &journal);
    }

    /// What the un-fence of that request has left half-way is not to be gone on with; what stays fenced of it is watched over. Whether that is done. Not
    /// while anything is going on.
    #[must_use]
    pub fn let_go(&self, uid: &str) -> bool {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        restore::let_go(&self.host, &journal, uid)
    }
}
