//! Calls that may hang, each on a thread of its own that is given up when its time is over (S3).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fence::Monotonic;
use crate::host::underway::Left;
use crate::host::{Bell, Error, Host, Result, Underway};

/// So many threads may hang at the same call of a process. A kernel that lets these hang has no answer for one more, and whoever asks again every
/// second for as long as it hangs shall not leave one behind each time.
const MOST_LEFT: usize = 4;

/// What the thread of a call and whoever waits for it share.
struct Shared<T> {
    answer: Option<Result<T>>,
    ended: bool,
    /// Nobody waits any more: kept until the thread comes back.
    left: Option<Left>,
}

/// A call that is going on.
pub(in crate::agent) struct Pending<T> {
    what: &'static str,
    /// What it is about, if there are several of its kind.
    about: String,
    started: Monotonic,
    underway: Underway,
    shared: Arc<Mutex<Shared<T>>>,
}

fn lock<T>(shared: &Mutex<Shared<T>>) -> MutexGuard<'_, Shared<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> Pending<T> {
    /// Starts `call` on a thread of its own; `bell` rings when it ends.
    pub(in crate::agent) fn start(
        host: &Host,
        bell: &Bell,
        what: &'static str,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Self {
        Self::start_about(host, bell, what, "", call)
    }

    /// The same of a call that one map or volume group is asked and another is not: one that hangs says nothing of the others.
    pub(in crate::agent) fn start_about(
        host: &Host,
        bell: &Bell,
        what: &'static str,
        about: &str,
        call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Self {
        let me = Self {
            what,
            about: format!("{what} {about}"),
            started: host.system.monotonic(),
            underway: host.underway.clone(),
            shared: Arc::new(Mutex::new(Shared {
                answer: None,
                ended: false,
                left: None,
            })),
        };
        if me.underway.left(&me.about) >= MOST_LEFT {
            let error = Error::Unavailable {
                what: what.to_owned(),
                source: std::io::ErrorKind::ResourceBusy.into(),
                hint: "Earlier calls still hang in the kernel: it is asked again when one of them ends",
            };
            me.end(Err(error));
            bell.ring();
            return me;
        }
        let (theirs, rings, with) = (Arc::clone(&me.shared), bell.clone(), host.clone());
        let work = move || {
            let result = call(&with);
            end(&theirs, result);
            rings.ring();
        };
        if let Err(source) = host.system.spawn(what, Box::new(work)) {
            me.end(Err(Error::Unavailable {
                what: format!("a thread for: {what}"),
                source,
                hint: "Raise the limit of threads (pids) of the agent",
            }));
            bell.ring();
        }
        me
    }

    fn end(&self, result: Result<T>) {
        end(&self.shared, result);
    }

    /// When it was started: its answer is not older.
    pub(in crate::agent) fn started(&self) -> Monotonic {
        self.started
    }

    /// The answer, once.
    pub(in crate::agent) fn take(&self) -> Option<Result<T>> {
        lock(&self.shared).answer.take()
    }

    /// Waits for the answer, at most until `limit` after the start.
    ///
    /// # Errors
    /// The call's own, or [`Error::TimedOut`]: its thread is then left to itself.
    pub(in crate::agent) fn wait(self, host: &Host, bell: &Bell, limit: Duration) -> Result<T> {
        loop {
            if let Some(answer) = self.wait_a_while(host, bell, limit, limit) {
                return answer;
            }
        }
    }

    /// The same for `a_while` only: None when the answer has not come by then, and its time is not over.
    pub(in crate::agent) fn wait_a_while(
        &self,
        host: &Host,
        bell: &Bell,
        limit: Duration,
        a_while: Duration,
    ) -> Option<Result<T>> {
        let end = self.started + limit;
        let until = end.min(host.system.monotonic() + a_while);
        loop {
            let seen = bell.rings();
            if let Some(answer) = self.take() {
                return Some(answer);
            }
            let now = host.system.monotonic();
            if now >= end {
                return Some(Err(Error::TimedOut {
                    what: self.what.to_owned(),
                    limit,
                    hint: "Its thread was left to itself",
                }));
            }
            if now >= until {
                return None;
            }
            host.system.wait(bell, seen, until);
        }
    }
}

fn end<T>(shared: &Mutex<Shared<T>>, result: Result<T>) {
    let left = {
        let mut shared = lock(shared);
        (shared.answer, shared.ended) = (Some(result), true);
        shared.left.take()
    };
    drop(left);
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        if !shared.ended {
            shared.left = Some(self.underway.leave(&self.about));
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
    call_about(host, what, "", limit, call)
}

/// The same of a call that is about one map or volume group of several.
///
/// # Errors
/// The call's own, or [`Error::TimedOut`].
pub(in crate::agent) fn call_about<T: Send + 'static>(
    host: &Host,
    what: &'static str,
    about: &str,
    limit: Duration,
    call: impl FnOnce(&Host) -> Result<T> + Send + 'static,
) -> Result<T> {
    let bell = Bell::default();
    Pending::start_about(host, &bell, what, about, call).wait(host, &bell, limit)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
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
    fn a_call_that_hangs_leaves_few_threads_behind_however_often_it_is_made() {
        let host = host();
        let limit = Duration::from_millis(10);
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let (hang, threads) = (Arc::new(Mutex::new(hang)), Arc::new(AtomicUsize::new(0)));
        let ask = |about: &str| {
            let (hang, threads) = (Arc::clone(&hang), Arc::clone(&threads));
            call_about(&host, "hanging", about, limit, move |_| {
                threads.fetch_add(1, Ordering::SeqCst);
                // All but the first wait behind it, as in the kernel.
                let _ = hang
                    .lock()
                    .expect("lock")
                    .recv_timeout(Duration::from_mins(1));
                Ok(())
            })
        };
        for n in 0..20 {
            let result = ask("this");
            let refused = matches!(result, Err(Error::Unavailable { .. }));
            assert_eq!(refused, n >= MOST_LEFT, "{n}: {result:?}");
        }
        assert!(threads.load(Ordering::SeqCst) <= MOST_LEFT);
        let other = ask("that");
        assert!(matches!(other, Err(Error::TimedOut { .. })), "{other:?}");
        // It answers again: so do those who ask.
        drop(release);
        let until = Instant::now() + Duration::from_secs(30);
        while ask("this").is_err() || host.underway.left("hanging this") > 0 {
            assert!(Instant::now() < until, "nobody came back");
        }
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
