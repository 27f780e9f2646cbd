//! A bell that threads ring and one thread listens for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts its rings, so that one that came before the wait began is not missed.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<(Mutex<u64>, Condvar)>);

impl Bell {
    fn count(&self) -> MutexGuard<'_, u64> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings.
    pub fn ring(&self) {
        *self.count() += 1;
        self.0.1.notify_all();
    }

    /// How often it was rung so far.
    #[must_use]
    pub fn rings(&self) -> u64 {
        *self.count()
    }

    /// Waits until it was rung more often than `seen`, at most `limit`.
    pub fn wait(&self, seen: u64, limit: Duration) {
        let count = self.count();
        // The result says nothing that the caller does not look up itself.
        let _ = self
            .0
            .1
            .wait_timeout_while(count, limit, |count| *count <= seen);
    }
}
