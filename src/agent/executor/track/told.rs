//! What the report says of the devices.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Book, Settled, State, Tracked};
use crate::fence::report::{DeviceOutcome, DeviceReport, VolumeGroupReport};
use crate::fence::{DevNo, Monotonic};

impl Book {
    /// Writes the book into the report. `proven`: by the last listing; `given_up`: the deadline has passed.
    pub(in crate::agent::executor) fn report(
        &self,
        groups: &mut [VolumeGroupReport],
        proven: bool,
        given_up: bool,
        now: Monotonic,
    ) {
        let mut groups: Vec<&mut Vec<DeviceReport>> = groups
            .iter_mut()
            .map(|g| Arc::make_mut(&mut g.devices))
            .collect();
        // Of each device of the book its place in the report.
        let mut places = vec![None; self.devices.len()];
        for (group, devices) in groups.iter().enumerate() {
            for (at, d) in devices.iter().enumerate() {
                if let Some(place) = self.places.get(d.uuid.as_str())
                    && self.devices.get(*place).is_some_and(|t| t.group == group)
                    && let Some(place) = places.get_mut(*place)
                {
                    *place = Some(at);
                }
            }
        }
        let above = self.on_top();
        for (t, at) in self.devices.iter().zip(places) {
            // Nothing more is told of what is left out.
            let Some(devices) = groups
                .get_mut(t.group)
                .filter(|_| !self.left_out.contains(&t.group))
            else {
                continue;
            };
            let at = at.unwrap_or_else(|| {
                devices.push(DeviceReport {
                    uuid: t.uuid.clone(),
                    name: t.name.clone(),
                    open_count: t.open_count,
                    ..DeviceReport::default()
                });
                devices.len() - 1
            });
            if let Some(d) = devices.get_mut(at) {
                d.dev = t.dev;
                let above = above.get(&t.dev).copied();
                report_device(t, above, d, (proven, given_up), now);
            }
        }
        // In the plan, but in no listing.
        let unseen = |d: &&mut DeviceReport| !self.places.contains_key(d.uuid.as_str());
        let (outcome, message) = match (proven, given_up) {
            (true, _) => (DeviceOutcome::Gone, None),
            (false, true) => (DeviceOutcome::NotProven, Some("it could not be read back")),
            (false, false) => return,
        };
        let told = |(at, _): &(usize, &mut Vec<DeviceReport>)| !self.left_out.contains(at);
        let of_them = groups.into_iter().enumerate().filter(told);
        for d in of_them.flat_map(|(_, all)| all).filter(unseen) {
            d.outcome = outcome;
            d.message = message.map(str::to_owned);
        }
    }

    /// Devices that have to be settled first, by what they are stacked on: of each the first in the book.
    fn on_top(&self) -> HashMap<DevNo, &Tracked> {
        let mut all = HashMap::new();
        for t in self.devices.iter().filter(|t| !t.settled()) {
            for dev in &t.below {
                all.entry(*dev).or_insert(t);
            }
        }
        all
    }
}

/// Writes one device into its report. `above` has to be settled first.
fn report_device(
    t: &Tracked,
    above: Option<&Tracked>,
    d: &mut DeviceReport,
    (proven, given_up): (bool, bool),
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
            let above = above.map(|a| format!("waits for {}, which is stacked on it", a.name));
            let failed = t.note.clone();
            let both = above.iter().chain(&failed).cloned().collect::<Vec<_>>();
            let why = (!both.is_empty()).then(|| both.join("; "));
            (unproven, why.or(late))
        }
    };
}
