//! One volume group that is being closed again, on a thread of its own: it may have to wait for I/O that went out meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::agent::executor::refence;
use crate::agent::journal::{GroupRecord, Standings};
use crate::host::Host;

/// A closing that goes on.
#[derive(Debug)]
pub(super) struct Closing {
    ended: Arc<AtomicBool>,
    leave: Arc<AtomicBool>,
}

impl Closing {
    pub(super) fn start(
        host: &Host,
        group: &GroupRecord,
        standings: &Standings,
    ) -> std::io::Result<Self> {
        let me = Self {
            ended: Arc::default(),
            leave: Arc::default(),
        };
        let (ended, leave) = (Arc::clone(&me.ended), Arc::clone(&me.leave));
        let (with, group, standings) = (host.clone(), group.clone(), standings.clone());
        let work = move || {
            // Lifted since: its devices may come back, so that nothing new is begun.
            let lifted = || matches!(standings.of(&group.uuid), Ok(None));
            let stop = || leave.load(Ordering::Relaxed) || lifted();
            let report = refence(&with, &group, &stop, &mut |_| ());
            tracing::info!(volume_group = group.name, outcome = ?report.outcome, "closing a fence again ended");
            ended.store(true, Ordering::Release);
        };
        host.system.spawn("close again", Box::new(work))?;
        Ok(me)
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }
}

/// What a thread found out, for the one that started it.
#[derive(Clone, Debug)]
pub(super) struct Shared<T>(Arc<Mutex<(bool, Option<T>)>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((false, None))))
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, (bool, Option<T>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread may be started: none is under way.
    pub(super) fn start(&self) -> bool {
        !std::mem::replace(&mut self.lock().0, true)
    }

    pub(super) fn put(&self, found: T) {
        *self.lock() = (false, Some(found));
    }

    pub(super) fn take(&self) -> Option<T> {
        self.lock().1.take()
    }
}
