//! Calls that may hang, each on a thread of its own that is given up when its time is over (S3).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fence::Monotonic;
use crate::host::{Bell, Error, Host, Result};

/// A call that is going on.
pub(super) struct Pending<T> {
    what: &'static str,
    started: Monotonic,
    answer: Arc<Mutex<Option<Result<T>>>>,
}

impl<T: Send + 'static> Pending<T> {
    /// Starts `call` on a thread of its own; `bell` rings when it ends.
    pub(super) fn start(
        host: &Host,
        bell: &Bell,
        what: &'static str,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Self {
        let answer = Arc::new(Mutex::new(None));
        let started = host.system.monotonic();
        let (theirs, rings, with) = (Arc::clone(&answer), bell.clone(), host.clone());
        let work = move || {
            let result = call(&with);
            *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            rings.ring();
        };
        if let Err(source) = host.system.spawn(what, Box::new(work)) {
            let error = Error::Unavailable {
                what: format!("a thread for: {what}"),
                source,
                hint: "Raise the limit of threads (pids) of the agent",
            };
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(error));
            bell.ring();
        }
        Self {
            what,
            started,
            answer,
        }
    }

    /// When it was started: its answer is not older.
    pub(super) fn started(&self) -> Monotonic {
        self.started
    }

    /// The answer, once.
    pub(super) fn take(&self) -> Option<Result<T>> {
        self.answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Waits for the answer, at most until `limit` after the start.
    ///
    /// # Errors
    /// The call's own, or [`Error::TimedOut`]: its thread is then left to itself.
    pub(super) fn wait(self, host: &Host, bell: &Bell, limit: Duration) -> Result<T> {
        let until = self.started + limit;
        loop {
            let seen = bell.rings();
            if let Some(answer) = self.take() {
                return answer;
            }
            if host.system.monotonic() >= until {
                return Err(Error::TimedOut {
                    what: self.what.to_owned(),
                    limit,
                    hint: "Its thread was left to itself",
                });
            }
            host.system.wait(bell, seen, until);
        }
    }
}

/// Makes `call` and waits for its answer, at most `limit`.
///
/// # Errors
/// The call's own, or [`Error::TimedOut`].
pub(super) fn call<T: Send + 'static>(
    host: &Host,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
) -> Result<T> {
    let bell = Bell::default();
    Pending::start(host, &bell, what, call).wait(host, &bell, limit)
}
