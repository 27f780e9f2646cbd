//! How a fence of this process gets on, and devices and calls at which a thread of it was left behind.
//!
//! A call that hangs in the kernel cannot be called back: whoever comes to the same device later leaves it to the thread that is there, and whoever asks
//! the same question is refused once some hang at it; or each attempt would leave one more behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fence::Monotonic;

/// What a process knows of its own threads; all clones know the same.
#[derive(Clone, Debug, Default)]
pub struct Underway(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    devices: Mutex<BTreeMap<String, Monotonic>>,
    /// How many there are: mostly none, and then nobody has to wait for the lock.
    count: AtomicUsize,
    /// How many threads were left at calls, by what these are about.
    calls: Mutex<BTreeMap<String, usize>>,
    /// How many devices were swapped, or found gone.
    swapped: AtomicU64,
}

/// A thread was left at a device. It has come back when this is dropped.
#[derive(Debug)]
pub struct At {
    all: Underway,
    uuid: String,
}

/// A thread was left at a call. It has come back when this is dropped.
#[derive(Debug)]
pub struct Left {
    all: Underway,
    call: String,
}

impl Underway {
    /// A fence, or who closes one again, has one device less to swap.
    pub fn note_swapped(&self) {
        self.0.swapped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were swapped so far: while that grows, a fence gets on.
    #[must_use]
    pub fn swapped(&self) -> u64 {
        self.0.swapped.load(Ordering::Relaxed)
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread is left at such a call.
    #[must_use]
    pub fn leave(&self, call: &str) -> Left {
        *self.calls().entry(call.to_owned()).or_default() += 1;
        Left {
            all: self.clone(),
            call: call.to_owned(),
        }
    }

    /// How many threads were left at such calls, and have not come back.
    #[must_use]
    pub fn left(&self, call: &str) -> usize {
        self.calls().get(call).copied().unwrap_or_default()
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<String, Monotonic>> {
        self.0
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread is left at the device with that UUID, at which it has been since then. None when another one was left there before.
    #[must_use]
    pub fn enter(&self, uuid: &str, since: Monotonic) -> Option<At> {
        let mut devices = self.devices();
        if devices.contains_key(uuid) {
            return None;
        }
        devices.insert(uuid.to_owned(), since);
        self.0.count.store(devices.len(), Ordering::Release);
        Some(At {
            all: self.clone(),
            uuid: uuid.to_owned(),
        })
    }

    /// Since when a thread is at the device with that UUID that was left there.
    #[must_use]
    pub fn since(&self, uuid: &str) -> Option<Monotonic> {
        if self.0.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.devices().get(uuid).copied()
    }
}

impl Drop for At {
    fn drop(&mut self) {
        let mut devices = self.all.devices();
        devices.remove(&self.uuid);
        self.all.0.count.store(devices.len(), Ordering::Release);
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let mut calls = self.all.calls();
        if let Some(n) = calls.get_mut(&self.call) {
            *n -= 1;
            if *n == 0 {
                calls.remove(&self.call);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_left_to_one_thread_until_that_has_come_back() {
        let (all, since) = (Underway::default(), Monotonic::from_secs(7));
        assert_eq!(all.since("a"), None);
        let first = all.enter("a", since).expect("nobody is there");
        let later = Monotonic::from_secs(9);
        assert!(all.clone().enter("a", later).is_none());
        let other = all.enter("b", later);
        assert_eq!((all.since("a"), all.since("b")), (Some(since), Some(later)));
        drop(first);
        assert_eq!((all.since("a"), all.since("b")), (None, Some(later)));
        drop(other);
        assert_eq!(all.0.count.load(Ordering::Relaxed), 0);
    }
}
