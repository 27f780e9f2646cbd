//! What the report says of the devices.

use std::collections::HashMap;

use super::{Book, Settled, State, Tracked};
use crate::fence::Monotonic;
use crate::fence::report::{DeviceOutcome, DeviceReport, VolumeGroupReport};

impl Book {
    /// Writes the book into the report. `proven`: by the last listing; `given_up`: the deadline has passed.
    pub(in crate::agent::executor) fn report(
        &self,
        groups: &mut [VolumeGroupReport],
        proven: bool,
        given_up: bool,
        now: Monotonic,
    ) {
        let places = |g: &VolumeGroupReport| -> HashMap<String, usize> {
            let uuids = g.devices.iter().map(|d| d.uuid.clone());
            uuids.enumerate().map(|(at, uuid)| (uuid, at)).collect()
        };
        let places: Vec<_> = groups.iter().map(places).collect();
        for t in &self.devices {
            let Some(group) = groups.get_mut(t.group) else {
                continue;
            };
            let at = places.get(t.group).and_then(|p| p.get(&t.uuid)).copied();
            let at = at.unwrap_or_else(|| {
                group.devices.push(DeviceReport {
                    uuid: t.uuid.clone(),
                    name: t.name.clone(),
                    open_count: t.open_count,
                    ..DeviceReport::default()
                });
                group.devices.len() - 1
            });
            if let Some(d) = group.devices.get_mut(at) {
                d.dev = t.dev;
                self.report_device(t, d, proven, given_up, now);
            }
        }
        // In the plan, but in no listing.
        let unseen = |d: &&mut DeviceReport| !self.places.contains_key(&d.uuid);
        let (outcome, message) = match (proven, given_up) {
            (true, _) => (DeviceOutcome::Gone, None),
            (false, true) => (DeviceOutcome::NotProven, Some("it could not be read back")),
            (false, false) => return,
        };
        for d in groups
            .iter_mut()
            .flat_map(|g| &mut g.devices)
            .filter(unseen)
        {
            d.outcome = outcome;
            d.message = message.map(str::to_owned);
        }
    }

    fn report_device(
        &self,
        t: &Tracked,
        d: &mut DeviceReport,
        proven: bool,
        given_up: bool,
        now: Monotonic,
    ) {
        let unproven = if given_up {
            DeviceOutcome::NotProven
        } else {
            DeviceOutcome::Planned
        };
        let late = t.late.then(|| "it appeared during the fence".to_owned());
        (d.outcome, d.message) = match &t.state {
            State::Settled(Settled::Gone) => (DeviceOutcome::Gone, None),
            State::Settled(settled) => {
                let message = match settled {
                    Settled::Swapped(took) => {
                        d.swap_took = Some(*took);
                        late
                    }
                    _ => Some("the error target was in place already; the kernel puts it there only when no I/O is in flight".into()),
                };
                if proven || t.read_back {
                    (DeviceOutcome::Error, message)
                } else {
                    (unproven, Some("swapped, but not read back".into()))
                }
            }
            State::Running(since) | State::Elsewhere(since, _) => {
                let waited = now.since(*since).as_secs();
                (
                    unproven,
                    Some(format!(
                        "its I/O that was already issued has not ended for {waited} s: the kernel cannot swap its table before"
                    )),
                )
            }
            State::Waiting(_) | State::Queued => {
                let above = self
                    .above(t)
                    .map(|a| format!("waits for {}, which is stacked on it", a.name));
                let failed = t.note.clone();
                let both = above.iter().chain(&failed).cloned().collect::<Vec<_>>();
                let why = (!both.is_empty()).then(|| both.join("; "));
                (unproven, why.or(late))
            }
        };
    }

    /// A device that has to be settled first: it is stacked on this one.
    fn above(&self, t: &Tracked) -> Option<&Tracked> {
        let on_top = |o: &&Tracked| o.uuid != t.uuid && !o.settled() && o.below.contains(&t.dev);
        self.devices.iter().find(on_top)
    }
}
