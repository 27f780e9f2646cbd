//! Names and UUIDs that were read before. Several lists of the same ten thousand devices may be held at a time, by a fence, the guard and who
//! observes; a name and a UUID of 68 bytes for each device of each would be most of what they take. So they are had once, and shared.

use std::sync::{Arc, Mutex, PoisonError};

use smol_str::SmolStr;

use crate::fence::{DevNo, DmDevice};

/// What a device was called when all were listed.
#[derive(Debug)]
struct Label {
    dev: DevNo,
    name: SmolStr,
    uuid: SmolStr,
}

impl Label {
    fn of(device: &DmDevice) -> Self {
        Self {
            dev: device.dev,
            name: device.name.clone(),
            uuid: device.uuid.clone(),
        }
    }
}

/// The labels of one list, by number.
#[derive(Debug, Default)]
pub(super) struct Labels(Vec<Label>);

impl Labels {
    /// Has the device share its name and UUID with the list, where they are the same. A number that is another device's by now shares nothing.
    pub(super) fn share(&self, device: &mut DmDevice) {
        let found = self.0.binary_search_by_key(&device.dev, |label| label.dev);
        let Some(label) = found.ok().and_then(|at| self.0.get(at)) else {
            return;
        };
        for (own, known) in [
            (&mut device.name, &label.name),
            (&mut device.uuid, &label.uuid),
        ] {
            if own == known {
                own.clone_from(known);
            }
        }
    }

    /// Takes a device in, by number the highest so far.
    pub(super) fn take(&mut self, device: &DmDevice) {
        self.0.push(Label::of(device));
    }

    pub(super) fn with_room_for(devices: usize) -> Self {
        Self(Vec::with_capacity(devices))
    }
}

/// The labels of the last list.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Arc<Labels>>);

impl Known {
    pub(super) fn labels(&self) -> Arc<Labels> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replace(&self, labels: Labels) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *known, Arc::new(labels));
        // Nobody waits while thousands of them are let go of.
        drop(known);
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32, uuid: &str) -> DmDevice {
        DmDevice {
            dev: DevNo { major: 253, minor },
            name: format!("a-name-of-more-than-23-bytes-{minor}").into(),
            uuid: uuid.into(),
            ..DmDevice::default()
        }
    }

    fn shares(a: &SmolStr, b: &SmolStr) -> bool {
        std::ptr::eq(a.as_str(), b.as_str())
    }

    #[test]
    fn a_device_that_was_listed_shares_its_labels_and_another_of_its_number_does_not() {
        let uuid = |n: u32| format!("LVM-{n:0>64}");
        let listed: Vec<_> = [1, 2, 4].map(|n| device(n, &uuid(n))).into();
        let mut labels = Labels::with_room_for(listed.len());
        for device in &listed {
            labels.take(device);
        }
        let known = Known::default();
        known.replace(labels);
        for before in &listed {
            let mut again = device(before.dev.minor, &uuid(before.dev.minor));
            let read = again.clone();
            assert!(!shares(&again.uuid, &before.uuid));
            known.labels().share(&mut again);
            assert!(shares(&again.uuid, &before.uuid) && shares(&again.name, &before.name));
            assert_eq!(again, read);
        }
        let mut another = device(2, &uuid(9));
        let (read, mut fresh) = (another.clone(), device(3, &uuid(3)));
        known.labels().share(&mut another);
        assert_eq!(another, read);
        assert!(shares(&another.uuid, &read.uuid) && shares(&another.name, &listed[1].name));
        let read = fresh.clone();
        known.labels().share(&mut fresh);
        assert!(fresh == read && shares(&fresh.uuid, &read.uuid));
    }
}
