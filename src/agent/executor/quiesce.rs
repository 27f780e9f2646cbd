//! Turning the queueing of multipath maps off, and keeping it off until the fence is proven.
//!
//! The kernel's own message comes first: it works when multipathd hangs. multipathd comes second, since it turns queueing on again whenever it
//! synchronises a map; it is not waited for, and its answer is reported when it comes. The guard looks once a second.

use std::time::Duration;

use super::Fence;
use super::limited::Pending;
use crate::fence::report::{StepKind, StepReport, StepResult};
use crate::fence::{DmDevice, Monotonic};
use crate::host::{Bell, Error, Host, Result, multipath};

/// How long the first round may hold up the swap: waiting I/O ends in milliseconds once it may.
const LIMIT: Duration = Duration::from_secs(2);
const GUARD_EVERY: Duration = Duration::from_secs(1);
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A map and its step.
#[derive(Clone)]
struct Map {
    step: usize,
    uuid: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A path works: I/O ends by itself, and the map is left alone.
    PathWorks,
    /// Queueing is off, and was before.
    Off,
    /// Queueing was turned off.
    TurnedOff,
}

/// Keeps the queueing off.
pub(super) struct Guard {
    maps: Vec<Map>,
    /// Looks that are going on, by index of the map: one that hangs keeps no other map from being looked at.
    looks: Vec<(usize, Pending<Found>)>,
    last_look: Monotonic,
    multipathd: Vec<(usize, Pending<()>)>,
}

impl Fence<'_> {
    /// Turns the queueing of all maps off; the guard goes on from there.
    pub(super) fn quiesce(&mut self) -> Guard {
        let mut guard = Guard {
            maps: self.maps(),
            looks: Vec::new(),
            last_look: self.host.system.monotonic(),
            multipathd: Vec::new(),
        };
        let bell = Bell::default();
        let mut calls = Vec::new();
        for map in guard.maps.clone() {
            // Skipped in the plan: its paths work. The guard looks after it all the same.
            let step = self.report.steps.get(map.step);
            if step.is_some_and(|s| s.result == StepResult::Skipped) {
                continue;
            }
            self.begin(Some(map.step));
            // A path that the map still counts but whose disk is offline would only hold I/O up: the plan knew better.
            let uuid = map.uuid.clone();
            let call = move |h: &Host| turn_off(h, &uuid, true);
            let what = "turning queueing off";
            let pending = Pending::start_about(self.host, &bell, what, &map.uuid, call);
            calls.push((map, pending));
        }
        for (map, call) in calls {
            let turned = call.wait(self.host, &bell, LIMIT);
            if matches!(turned, Ok(Found::TurnedOff)) {
                self.journal.signs().give();
            }
            let (result, message) = match turned {
                Ok(_) => (
                    StepResult::Done,
                    "the kernel fails I/O instead of queueing it".to_owned(),
                ),
                Err(Error::NoSuchDevice { .. }) => (
                    StepResult::Skipped,
                    "the map is gone, and with it what it queued".to_owned(),
                ),
                Err(e) => (
                    StepResult::Failed,
                    format!("{e}; looked at again every second"),
                ),
            };
            self.end(Some(map.step), result, message);
            if result != StepResult::Skipped {
                guard.tell_multipathd(self.host, &bell, &map);
            }
        }
        guard
    }

    /// The maps of all groups.
    fn maps(&self) -> Vec<Map> {
        let steps = self.report.steps.iter().enumerate();
        let map = |(index, step): (usize, &StepReport)| {
            let name = step
                .map
                .as_ref()
                .filter(|_| step.kind == StepKind::Quiesce)?;
            // Two volume groups may have one name by now; a map has its own.
            let all = self.groups.iter().enumerate();
            let groups =
                all.filter(|(at, g)| g.name == step.volume_group && !self.handed_on.contains(at));
            let record = groups
                .flat_map(|(_, g)| &g.maps)
                .find(|m| m.name == *name)?;
            Some(Map {
                step: index,
                uuid: record.uuid.clone(),
            })
        };
        steps.filter_map(map).collect()
    }

    /// Lets the guard do what is due, and reports what it did. Never waits.
    pub(super) fn guard(&mut self, guard: &mut Guard, bell: &Bell) {
        guard.multipathd.retain(|(step, call)| {
            let Some(answer) = call.take() else {
                return true;
            };
            if let (Err(e), Some(step)) = (answer, self.report.steps.get_mut(*step)) {
                let said = step.message.get_or_insert_default();
                if !said.contains("multipathd did not follow") {
                    let addition = format!("; multipathd did not follow ({e}), so it is watched");
                    said.push_str(&addition);
                }
            }
            false
        });
        let mut turned_off = Vec::new();
        guard.looks.retain(|(at, call)| match call.take() {
            None => true,
            Some(found) => {
                if matches!(found, Ok(Found::TurnedOff)) {
                    turned_off.extend(guard.maps.get(*at).cloned());
                }
                false
            }
        });
        for map in turned_off {
            if let Some(step) = self.report.steps.get_mut(map.step) {
                // A correction of what stands there, not a second end.
                step.result = StepResult::Running;
                step.at
                    .get_or_insert(guard.last_look.since(self.report.started));
            }
            let done = "queueing came back and was turned off again".to_owned();
            self.end(Some(map.step), StepResult::Done, done);
            guard.tell_multipathd(self.host, bell, &map);
        }
        let now = self.host.system.monotonic();
        if now >= guard.due() {
            guard.last_look = now;
            for (at, map) in guard.maps.iter().enumerate() {
                if guard.looks.iter().all(|(going_on, _)| *going_on != at) {
                    let uuid = map.uuid.clone();
                    let call = move |h: &Host| turn_off(h, &uuid, false);
                    let what = "looking after the queueing";
                    let pending = Pending::start_about(self.host, bell, what, &map.uuid, call);
                    guard.looks.push((at, pending));
                }
            }
        }
    }
}

impl Guard {
    /// When it wants to look next.
    pub(super) fn due(&self) -> Monotonic {
        self.last_look + GUARD_EVERY
    }

    fn tell_multipathd(&mut self, host: &Host, bell: &Bell, map: &Map) {
        if self.multipathd.iter().any(|(step, _)| *step == map.step) {
            return;
        }
        let uuid = map.uuid.clone();
        // By the name that it has now: what the fence met it by may be another map's, after a failover or a change of its alias.
        let tell = move |h: &Host| match h.device_mapper.device(&uuid) {
            Ok(map) => h.multipathd.disable_queueing(&map.name),
            Err(Error::NoSuchDevice { .. }) => Ok(()),
            Err(e) => Err(e),
        };
        let call = Pending::start_about(host, bell, "telling multipathd", &map.uuid, tell);
        self.multipathd.push((map.step, call));
    }
}

/// Has a map fail its I/O, if it queues and (or `whatever_paths`) no path works. The map is looked up and told by its UUID: its number may be
/// another's by now.
pub(super) fn turn_off(host: &Host, uuid: &str, whatever_paths: bool) -> Result<Found> {
    let mapper = &host.device_mapper;
    let map = mapper.device(uuid)?;
    if !queues(&map) {
        return Ok(Found::Off);
    }
    if !whatever_paths && path_works(&mapper.status(map.dev)?) {
        return Ok(Found::PathWorks);
    }
    for _ in 0..BUSY_TRIES {
        match mapper.message(uuid, "fail_if_no_path") {
            Err(Error::Busy { .. } | Error::Interrupted { .. }) => {
                let until = host.system.monotonic() + BUSY_PAUSE;
                host.system.wait(&Bell::default(), 0, until);
            }
            other => return other.map(|()| Found::TurnedOff),
        }
    }
    mapper
        .message(uuid, "fail_if_no_path")
        .map(|()| Found::TurnedOff)
}

/// Whether the table says that it queues. A table that cannot be read may well queue, and the message is harmless where it does not.
fn queues(map: &DmDevice) -> bool {
    map.targets
        .iter()
        .filter(|t| t.kind == "multipath")
        .any(|t| multipath::parse_table(&t.params).map_or(true, |t| t.queueing))
}

/// Whether the map has a path in state A.
fn path_works(status: &[(String, String)]) -> bool {
    let paths = |line: &str| multipath::parse_status(line).unwrap_or_default();
    status
        .iter()
        .filter(|(kind, _)| kind == "multipath")
        .any(|(_, line)| paths(line).iter().any(|(_, active)| *active))
}
