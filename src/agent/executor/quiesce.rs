//! Turning the queueing of multipath maps off, and keeping it off until the fence is proven.
//!
//! The kernel's own message comes first: it works when multipathd hangs. multipathd comes second, since it turns queueing on again whenever it
//! synchronises a map; it is not waited for, and its answer is reported when it comes. The guard looks once a second.

use std::time::Duration;

use super::Fence;
use super::limited::Pending;
use crate::fence::report::{StepKind, StepResult};
use crate::fence::{DevNo, DmDevice, Monotonic};
use crate::host::{Bell, Error, Host, Result};

/// How long the first round may hold up the swap: waiting I/O ends in milliseconds once it may.
const LIMIT: Duration = Duration::from_secs(2);
const GUARD_EVERY: Duration = Duration::from_secs(1);
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A map and its step.
#[derive(Clone)]
struct Map {
    step: usize,
    dev: DevNo,
    uuid: String,
    name: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
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
    round: Option<Pending<Vec<(usize, Result<Found>)>>>,
    last_round: Monotonic,
    multipathd: Vec<(usize, Pending<()>)>,
}

impl Fence<'_> {
    /// One round over all maps; the guard goes on from there.
    pub(super) fn quiesce(&mut self) -> Guard {
        let maps = self.maps();
        let bell = Bell::default();
        let calls: Vec<_> = maps
            .iter()
            .filter(|m| {
                self.report
                    .steps
                    .get(m.step)
                    .is_some_and(|s| s.result != StepResult::Skipped)
            })
            .cloned()
            .map(|map| {
                let theirs = map.clone();
                let what = "turning queueing off";
                // A path that the map still counts but whose disk is offline would only hold I/O up: the plan knew better.
                let call = move |h: &Host| turn_off(h, theirs.dev, &theirs.uuid, true);
                (map, Pending::start(self.host, &bell, what, call))
            })
            .collect();
        for (map, _) in &calls {
            self.begin(Some(map.step));
        }
        let mut guard = Guard {
            maps,
            round: None,
            last_round: self.host.system.monotonic(),
            multipathd: Vec::new(),
        };
        for (map, call) in calls {
            match call.wait(self.host, &bell, LIMIT) {
                Ok(_) => {
                    let done = "the kernel fails I/O instead of queueing it";
                    self.end(Some(map.step), StepResult::Done, done.into());
                    guard.tell_multipathd(self.host, &Bell::default(), &map);
                }
                Err(Error::NoSuchDevice { .. }) => {
                    let why = "the map is gone, and with it what it queued";
                    self.end(Some(map.step), StepResult::Skipped, why.into());
                }
                Err(e) => {
                    let why = format!("{e}; tried again every second");
                    self.end(Some(map.step), StepResult::Failed, why);
                    guard.tell_multipathd(self.host, &Bell::default(), &map);
                }
            }
        }
        guard
    }

    /// The maps of all groups as the kernel has them now. One that is gone ends its step here.
    fn maps(&mut self) -> Vec<Map> {
        let listed = self.ask("listing the devices", |h| h.device_mapper.devices());
        let listed = match listed {
            Ok(listed) => listed,
            Err(e) => {
                self.note(format!("The multipath maps could not be looked up: {e}"));
                Vec::new()
            }
        };
        let mut maps = Vec::new();
        for index in 0..self.report.steps.len() {
            let Some(step) = self.report.steps.get(index) else {
                break;
            };
            let (StepKind::Quiesce, Some(name)) = (step.kind, &step.map) else {
                continue;
            };
            let of_step = self.groups.iter().find(|g| g.name == step.volume_group);
            let Some(record) = of_step.and_then(|g| g.maps.iter().find(|m| m.name == *name)) else {
                continue;
            };
            match listed.iter().find(|d| d.uuid == record.uuid) {
                Some(d) => maps.push(Map {
                    step: index,
                    dev: d.dev,
                    uuid: record.uuid.clone(),
                    name: d.name.clone(),
                }),
                None => {
                    let why = "the map is gone, and with it what it queued".to_owned();
                    self.end(Some(index), StepResult::Skipped, why);
                }
            }
        }
        maps
    }

    /// Lets the guard do what is due, and reports what it did. Never waits.
    pub(super) fn guard(&mut self, guard: &mut Guard, bell: &Bell) {
        guard.multipathd.retain(|(step, call)| {
            let Some(answer) = call.take() else {
                return true;
            };
            if let Err(e) = answer
                && let Some(step) = self.report.steps.get_mut(*step)
            {
                let said = step.message.get_or_insert_default();
                let addition = format!("; multipathd did not follow ({e}), so it is watched");
                if !said.contains("multipathd did not follow") {
                    said.push_str(&addition);
                }
            }
            false
        });
        if let Some(answer) = guard.round.as_ref().and_then(Pending::take) {
            guard.round = None;
            for (at, found) in answer.unwrap_or_default() {
                let Some(map) = guard.maps.get(at).cloned() else {
                    continue;
                };
                if matches!(found, Ok(Found::TurnedOff)) {
                    let done = "queueing came back and was turned off again";
                    if let Some(step) = self.report.steps.get_mut(map.step) {
                        // A correction of what stands there, not a second end.
                        step.result = StepResult::Failed;
                    }
                    self.end(Some(map.step), StepResult::Done, done.into());
                    guard.tell_multipathd(self.host, bell, &map);
                }
            }
        }
        let now = self.host.system.monotonic();
        if guard.round.is_none() && !guard.maps.is_empty() && now >= guard.due() {
            guard.last_round = now;
            let maps = guard.maps.clone();
            let round = move |h: &Host| {
                let look = |(at, m): (usize, &Map)| (at, turn_off(h, m.dev, &m.uuid, false));
                Ok(maps.iter().enumerate().map(look).collect())
            };
            let what = "looking after the queueing";
            guard.round = Some(Pending::start(self.host, bell, what, round));
        }
    }
}

impl Guard {
    /// When it wants to look next.
    pub(super) fn due(&self) -> Monotonic {
        self.last_round + GUARD_EVERY
    }

    fn tell_multipathd(&mut self, host: &Host, bell: &Bell, map: &Map) {
        if self.multipathd.iter().any(|(step, _)| *step == map.step) {
            return;
        }
        let name = map.name.clone();
        let tell = move |h: &Host| h.multipathd.disable_queueing(&name);
        let call = Pending::start(host, bell, "telling multipathd", tell);
        self.multipathd.push((map.step, call));
    }
}

/// Has a map fail its I/O, if it queues and (or `whatever_paths`) no path works.
fn turn_off(host: &Host, dev: DevNo, uuid: &str, whatever_paths: bool) -> Result<Found> {
    let map = host.device_mapper.device(dev)?;
    if map.uuid != uuid {
        return Err(Error::NoSuchDevice {
            what: format!("multipath map {uuid}"),
        });
    }
    if !queues(&map) {
        return Ok(Found::Off);
    }
    if !whatever_paths && path_works(&host.device_mapper.status(dev)?) {
        return Ok(Found::PathWorks);
    }
    for _ in 0..BUSY_TRIES {
        match host.device_mapper.message(dev, "fail_if_no_path") {
            Err(Error::Busy { .. } | Error::Interrupted { .. }) => {
                let until = host.system.monotonic() + BUSY_PAUSE;
                host.system.wait(&Bell::default(), 0, until);
            }
            other => return other.map(|()| Found::TurnedOff),
        }
    }
    host.device_mapper
        .message(dev, "fail_if_no_path")
        .map(|()| Found::TurnedOff)
}

/// `queue_if_no_path` among the features of the table: `N feature...` (k: dm-mpath.c `multipath_status`).
fn queues(map: &DmDevice) -> bool {
    map.targets.iter().any(|t| {
        let mut words = t.params.split_whitespace();
        let features = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        t.kind == "multipath" && words.take(features).any(|w| w == "queue_if_no_path")
    })
}

/// Whether a status line has a path in state A: `MAJOR:MINOR A FAILURES` (k: dm-mpath.c `multipath_status`).
fn path_works(status: &[(String, String)]) -> bool {
    let is_dev = |w: &str| {
        w.split_once(':')
            .is_some_and(|(a, b)| a.parse::<u32>().is_ok() && b.parse::<u32>().is_ok())
    };
    status
        .iter()
        .filter(|(kind, _)| kind == "multipath")
        .any(|(_, line)| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words
                .windows(2)
                .any(|w| matches!(w, [dev, "A"] if is_dev(dev)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::Target;

    fn map(params: &str) -> DmDevice {
        let target = Target {
            kind: "multipath".into(),
            params: params.into(),
            ..Target::default()
        };
        DmDevice {
            targets: vec![target],
            ..DmDevice::default()
        }
    }

    #[test]
    fn queueing_is_read_from_the_features() {
        assert!(queues(&map(
            "1 queue_if_no_path 0 1 1 service-time 0 1 2 7:0 1 1"
        )));
        assert!(queues(&map(
            "3 pg_init_retries 50 queue_if_no_path 1 alua 1 1 rr 0 1 1 7:0 1"
        )));
        assert!(!queues(&map("0 0 1 1 service-time 0 1 2 7:0 1 1")));
        assert!(!queues(&map("")));
    }

    #[test]
    fn a_working_path_is_seen_in_any_group() {
        let status = |line: &str| vec![("multipath".to_owned(), line.to_owned())];
        // As measured on Linux 6.1 and 6.12.
        let dead = "2 1 0 0 2 1 E 0 1 2 7:0 F 1 0 1 E 0 1 2 7:1 F 1 0 1";
        assert!(!path_works(&status(dead)));
        assert!(path_works(&status(&dead.replace("7:1 F", "7:1 A"))));
        // The state of a group is no path.
        assert!(!path_works(&status(&dead.replace("1 E 0", "1 A 0"))));
    }
}
