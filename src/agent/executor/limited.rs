//! Calls that may hang, each on a thread of its own that is given up when its time is over (S3).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fence::Monotonic;
use crate::host::{Bell, Error, Host, Result};

/// A call that is going on.
pub(in crate::agent) struct Pending<T> {
    what: &'static str,
    started: Monotonic,
    answer: Arc<Mutex<Option<Result<T>>>>,
}

impl<T: Send + 'static> Pending<T> {
    /// Starts `call` on a thread of its own; `bell` rings when it ends.
    pub(in crate::agent) fn start(
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
    pub(in crate::agent) fn started(&self) -> Monotonic {
        self.started
    }

    /// The answer, once.
    pub(in crate::agent) fn take(&self) -> Option<Result<T>> {
        self.answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Waits for the answer, at most until `limit` after the start.
    ///
    /// # Errors
    /// The call's own, or [`Error::TimedOut`]: its thread is then left to itself.
    pub(in crate::agent) fn wait(self, host: &Host, bell: &Bell, limit: Duration) -> Result<T> {
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
pub(in crate::agent) fn call<T: Send + 'static>(
    host: &Host,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
) -> Result<T> {
    let bell = Bell::default();
    Pending::start(host, &bell, what, call).wait(host, &bell, limit)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::fence::DevNo;
    use crate::host::simulated::{Layout, Simulation};
    use crate::host::{DiskInfo, System};

    /// The wall's clock, and real threads.
    struct Wall(Instant);

    impl System for Wall {
        fn boot_id(&self) -> Result<String> {
            Ok("boot".into())
        }
        fn monotonic(&self) -> Monotonic {
            Monotonic(self.0.elapsed())
        }
        fn disk(&self, _: DevNo) -> Option<DiskInfo> {
            None
        }
        fn rcu_expedited(&self) -> Result<u32> {
            unreachable!("nothing is swapped")
        }
        fn set_rcu_expedited(&self, _: u32) -> Result<()> {
            unreachable!("nothing is swapped")
        }
    }

    fn host() -> Host {
        Host {
            system: Arc::new(Wall(Instant::now())),
            ..Simulation::new(&Layout::default()).host()
        }
    }

    #[test]
    fn a_call_that_hangs_is_left_to_itself() {
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let began = Instant::now();
        let result = call(&host(), "hanging", Duration::from_millis(50), move |_| {
            // Ends when the test does, whatever comes first.
            let _ = hang.recv_timeout(Duration::from_mins(1));
            Ok(())
        });
        assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(50) && took < Duration::from_secs(30),
            "{took:?}"
        );
        drop(release);
    }

    #[test]
    fn an_answer_is_there_as_soon_as_it_is_given() {
        let limit = Duration::from_mins(1);
        let began = Instant::now();
        assert_eq!(call(&host(), "quick", limit, |_| Ok(7)).ok(), Some(7));
        let refused = call(&host(), "refused", limit, |_| -> Result<()> {
            Err(Error::Busy { what: "it".into() })
        });
        assert!(matches!(refused, Err(Error::Busy { .. })));
        assert!(began.elapsed() < limit / 2);
    }
}
