//! Watches fences that stand (S6): an `lvchange --refresh`, or whatever loads a real table, opens a fence without asking anybody. It is closed
//! again at once, and told with the time that it was open.
//!
//! Device mapper rings at every change; the kernel is asked again every second all the same. A fence stands from its proof until it is lifted
//! ([`Standings::lift`](super::journal::Standings::lift)), or its volume group has been joined to its lockspace again and nothing is left of what it
//! fenced. What came into use under new locks is not touched ([`sieve`]); what the fence left behind stays closed.

mod closing;
mod opening;
mod sieve;
#[cfg(test)]
mod tests;
mod veil;

use std::collections::BTreeMap;
use std::time::Duration;

use super::executor::{FIND_OUT, Strangers, keep_queueing_off, limited, strangers};
use super::journal::{Standing, Standings};
use crate::fence::report::LocksOutcome;
use crate::fence::{DmDevice, Monotonic};
use crate::host::urgency::rest_after;
use crate::host::{Bell, DeviceEvents, Host};
use closing::{Closing, Shared};
use sieve::{Sieve, Silence};

/// The kernel is asked at least this often while a fence stands...
const LOOK: Duration = Duration::from_secs(1);
/// ...seldom while none does...
const SELDOM: Duration = Duration::from_secs(5);
/// ...unless device mapper has rung since then: another process may be about to bring a fence to stand, the kill hook above all...
const LATELY: Duration = Duration::from_mins(1);
/// ...more often while one is being closed...
const LOOK_CLOSELY: Duration = Duration::from_millis(100);
/// ...and not more often than this, however often device mapper rings.
const LEAST: Duration = Duration::from_millis(20);
/// How exactly it is known when a fence was closed last.
const SLICE: Duration = Duration::from_millis(100);
/// Whether volume groups were joined anew, and whether maps queue.
const LOOK_AROUND: Duration = Duration::from_secs(5);
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// Of the devices that were open, so many are named.
const NAMED: usize = 16;

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether it is a reason to worry.
    pub warning: bool,
    /// For programs.
    pub reason: &'static str,
    /// What happened, to what, and what to do next.
    pub note: String,
}

/// Where news and the list of standing fences go.
pub type Tell = Box<dyn FnMut(Option<News>, &[Standing]) + Send>;

/// The guard of a node.
pub struct Guard {
    host: Host,
    standings: Standings,
    events: Option<Box<dyn DeviceEvents>>,
    /// When each was last seen closed.
    closed: BTreeMap<String, Monotonic>,
    /// The same of those of which it is not known whether they are, with what is open of them.
    doubtful: BTreeMap<String, (Monotonic, Vec<String>)>,
    closing: BTreeMap<String, Closing>,
    sieves: BTreeMap<String, Sieve>,
    silence: Silence,
    /// What was told last, by volume group and reason.
    told: BTreeMap<(String, &'static str), Vec<String>>,
    around: Option<Monotonic>,
    /// When device mapper rang last.
    rang: Monotonic,
    queueing: Shared<Vec<String>>,
    problem: Option<String>,
    tell: Tell,
}

/// When to look again at the soonest, after a look from then to then: however often the kernel rings.
fn soonest(began: Monotonic, looked: Monotonic) -> Monotonic {
    (began + LEAST).max(looked + rest_after(looked.since(began)))
}

impl Guard {
    /// Over the fences in `standings`.
    #[must_use]
    pub fn new(host: Host, standings: Standings, tell: Tell) -> Self {
        Self {
            rang: host.system.monotonic(),
            host,
            standings,
            events: None,
            closed: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            closing: BTreeMap::new(),
            sieves: BTreeMap::new(),
            silence: Silence::default(),
            told: BTreeMap::new(),
            around: None,
            queueing: Shared::default(),
            problem: None,
            tell,
        }
    }

    /// Watches until `stop` says so.
    pub fn run(mut self, stop: impl Fn() -> bool) {
        while !stop() {
            let began = self.host.system.monotonic();
            let armed = self.arm();
            let wait = self.round();
            let looked = self.host.system.monotonic();
            let woken = armed && self.listen(wait);
            let now = self.host.system.monotonic();
            let until = if woken {
                soonest(began, looked)
            } else {
                now + wait
            };
            if until > now {
                self.host.system.wait(&Bell::default(), 0, until);
            }
        }
    }

    /// Waits for a change. What was closed at the last look is closed for as long as nothing rings. False when nothing can be heard.
    fn listen(&mut self, limit: Duration) -> bool {
        let Some(events) = self.events.as_mut() else {
            return false;
        };
        let until = self.host.system.monotonic() + limit;
        loop {
            let now = self.host.system.monotonic();
            if now >= until {
                return true;
            }
            let left = until.since(now);
            // While nothing stands, there is nothing to be known exactly.
            let slice = if self.closed.is_empty() {
                left
            } else {
                left.min(SLICE)
            };
            match events.wait(slice) {
                Ok(true) => {
                    self.rang = self.host.system.monotonic();
                    return true;
                }
                Ok(false) => self.closed.values_mut().for_each(|at| *at = now),
                Err(_) => return false,
            }
        }
    }

    /// Before the look: what changes during it rings.
    fn arm(&mut self) -> bool {
        if self.events.is_none() {
            self.events = self.host.device_mapper.events().ok();
        }
        let armed = self.events.as_mut().is_some_and(|e| e.arm().is_ok());
        if !armed {
            self.events = None;
        }
        armed
    }

    /// Looks once. How long until the next look.
    pub fn round(&mut self) -> Duration {
        let standing = match self.standings.all() {
            Ok(standing) => standing,
            Err(e) => {
                self.trouble(format!("which fences stand cannot be read: {e}"));
                return LOOK;
            }
        };
        let stands = |uuid: &String| standing.iter().any(|s| s.group.uuid == *uuid);
        self.closed.retain(|uuid, _| stands(uuid));
        self.doubtful.retain(|uuid, _| stands(uuid));
        self.sieves.retain(|uuid, _| stands(uuid));
        self.told.retain(|(uuid, _), _| stands(uuid));
        self.closing.retain(|uuid, closing| {
            let goes_on = stands(uuid);
            if !goes_on {
                closing.leave();
            }
            goes_on
        });
        if standing.is_empty() {
            self.problem = None;
            (self.tell)(None, &[]);
            let quiet = self.host.system.monotonic().since(self.rang) >= LATELY;
            return if quiet && self.events.is_some() {
                SELDOM
            } else {
                LOOK
            };
        }
        let began = self.host.system.monotonic();
        let list = |h: &Host| h.device_mapper.devices();
        let list = match limited::call(&self.host, "listing the devices", LIST_LIMIT, list) {
            Ok(list) => list,
            Err(e) => {
                self.trouble(format!("whether the fences hold is not known: {e}"));
                return LOOK;
            }
        };
        self.problem = None;
        for one in &standing {
            self.first_sight(one);
            self.look_at(one, &list, began);
        }
        if self.around.is_none_or(|at| began.since(at) >= LOOK_AROUND) {
            self.around = Some(began);
            let still = self.standings.all().unwrap_or_default();
            self.look_around(&still, &list);
        }
        let now = self.standings.all().unwrap_or(standing);
        (self.tell)(None, &now);
        if self.closing.is_empty() {
            LOOK
        } else {
            LOOK_CLOSELY
        }
    }

    /// The kill hook fences when there is no agent: it is told by the agent that comes next.
    fn first_sight(&mut self, one: &Standing) {
        if one.told || !super::hook::is_ours(&one.uid) {
            return;
        }
        let told = self.standings.update(&one.group.uuid, |s| s.told = true);
        if told.is_ok() {
            self.news(
                true,
                "FencedByKillHook",
                format!(
                    "Volume group {} was fenced by the kill hook, because its lease was lost: every device is cut off from the SAN. Locks: {:?}. \
                     Move what used it to another node",
                    one.group.name, one.locks
                ),
            );
        }
    }

    fn look_at(&mut self, one: &Standing, list: &[DmDevice], began: Monotonic) {
        let uuid = &one.group.uuid;
        let sieve = self.sieve(one);
        sieve.learn(&self.host, list);
        let open = sieve.open(&self.host, list);
        let newest = sieve.newest();
        // Until the locks are settled, the fence writes there itself.
        if newest > one.newest && one.locks != LocksOutcome::Pending {
            let noted = self
                .standings
                .update(uuid, |s| s.newest = s.newest.max(newest));
            if let Err(e) = noted {
                self.trouble(e.to_string());
            }
        }
        self.strange(one, strangers(&self.host, list, &one.group));
        self.cannot_tell(one, open.untold);
        if sieve.was_joined() && !one.joined {
            self.joined(one, &sieve, list);
        }
        if let Some(closing) = self.closing.get(uuid)
            && closing.ended()
        {
            self.closing.remove(uuid);
        }
        if self.closing.contains_key(uuid) {
            return;
        }
        if open.ours.is_empty() && !open.unknown.is_empty() {
            let closed = self.closed.remove(uuid).unwrap_or(one.proven);
            let doubt = self.doubtful.entry(uuid.clone());
            let (_, names) = doubt.or_insert((closed, Vec::new()));
            names.extend(open.unknown);
            names.sort_unstable();
            names.dedup();
            names.truncate(NAMED);
        } else if open.ours.is_empty() {
            if let Some((closed, names)) = self.doubtful.remove(uuid)
                && !sieve.joined(&self.host)
            {
                self.was_doubtful(one, names, closed);
            }
            self.is_closed(one, began);
        } else {
            self.is_open(one, &open.ours, &sieve);
        }
    }

    fn sieve(&mut self, one: &Standing) -> Sieve {
        let known = self.sieves.get(&one.group.uuid);
        // A fence that was carried out once more has noted more than was known here.
        let same = |s: &&Sieve| s.proven() == one.proven && s.newest() >= one.newest;
        if let Some(sieve) = known.filter(same) {
            return sieve.clone();
        }
        let sieve = Sieve::new(one, &self.silence);
        self.sieves.insert(one.group.uuid.clone(), sieve.clone());
        sieve
    }

    /// The volume group was joined to its lockspace again. Its fence is over if nothing is left of it.
    fn joined(&mut self, one: &Standing, sieve: &Sieve, list: &[DmDevice]) {
        let mut left = sieve.left(&self.host, list);
        if left.is_empty() {
            self.lift(one);
            return;
        }
        if one.joined {
            return;
        }
        let uuid = &one.group.uuid;
        if let Err(e) = self.standings.update(uuid, |s| s.joined = true) {
            self.trouble(e.to_string());
        }
        left.sort_unstable();
        left.truncate(NAMED);
        let note = format!(
            "Volume group {0} was joined to its lockspace again, but devices of its fence are still there: {1}. They stay on the error target and \
             are watched, since who holds them open has no lock, and another node may have one by now. End who holds them open and remove them \
             (lvchange -an, or dmsetup remove); then activate them anew, which asks for the lock. Never lvchange or vgchange --refresh {0}",
            one.group.name,
            left.join(", ")
        );
        self.tell_once(one, "JoinedWhileFenced", vec![note.clone()], note);
    }

    /// Whoever is told to remove a device does so: that is said only of one that is proven to stand on the volume group's storage (S2). Silence about one
    /// that may do so would hide a writer without a lock, so that is told as what it is.
    fn strange(&mut self, one: &Standing, found: Strangers) {
        let Strangers {
            mut surely,
            mut perhaps,
        } = found;
        surely.sort_unstable();
        perhaps.sort_unstable();
        let vg = &one.group.name;
        let note = format!(
            "{} stands on a physical volume of {vg}, which stands fenced, and is none of its devices: it reaches the SAN without a lock, and is not the \
             agent's to touch. Remove it (dmsetup remove)",
            surely.join(", ")
        );
        self.tell_once(one, "StrangerOnFencedGroup", surely, note);
        let note = format!(
            "{} is none of {vg}'s devices, and stands on the device number of a physical volume of {vg}, which stands fenced. Whether it is still that \
             disk is not known: {FIND_OUT}",
            perhaps.join(", ")
        );
        self.tell_once(one, "PerhapsStrangerOnFencedGroup", perhaps, note);
    }

    fn cannot_tell(&mut self, one: &Standing, mut found: Vec<String>) {
        found.sort_unstable();
        let note = format!(
            "Volume group {} was joined to its lockspace again, and the kernel does not tell whether {} was activated since, under a lock, or had been \
             there before: it is not closed. If it was refreshed, deactivate it now; what was written there meanwhile had no lock",
            one.group.name,
            found.join(", ")
        );
        self.tell_once(one, "DeviceNotTold", found, note);
    }

    /// A reason to worry, told when it is another one than at the last look.
    fn tell_once(&mut self, one: &Standing, reason: &'static str, what: Vec<String>, note: String) {
        let key = (one.group.uuid.clone(), reason);
        if what.is_empty() {
            self.told.remove(&key);
        } else if self.told.get(&key) != Some(&what) {
            self.told.insert(key, what);
            self.news(true, reason, note);
        }
    }

    /// What needs no hurry: volume groups that were joined again while nothing of them was open, and maps that queue again.
    fn look_around(&mut self, standing: &[Standing], list: &[DmDevice]) {
        for map in self.queueing.take().unwrap_or_default() {
            self.news(
                true,
                "QueueingCameBack",
                format!(
                    "Multipath map {map} under a fenced volume group queued I/O again while no path works: it was turned off again"
                ),
            );
        }
        let mut maps = Vec::new();
        for one in standing {
            let sieve = self.sieve(one);
            if sieve.joined(&self.host) {
                // In use anew: what waits there for a path does so under its lock. What the fence left behind is on the error target, queueing or not.
                self.joined(one, &sieve, list);
            } else {
                maps.extend(one.group.maps.clone());
            }
        }
        let (with, found) = (self.host.clone(), self.queueing.clone());
        if !maps.is_empty() && found.start() {
            let work = move || {
                let turned_off = |m: &&super::journal::MapRecord| {
                    keep_queueing_off(&with, &m.uuid).is_ok_and(|was_on| was_on)
                };
                let names = maps.iter().filter(turned_off).map(|m| m.name.clone());
                found.put(names.collect());
            };
            if self.host.system.spawn("queueing", Box::new(work)).is_err() {
                self.queueing.put(Vec::new());
            }
        }
    }

    fn lift(&mut self, one: &Standing) {
        match self.standings.lift(&one.group.uuid) {
            Ok(_) => self.news(
                false,
                "FenceLifted",
                format!(
                    "Volume group {} was joined to its lockspace again, and no device of its fence is left: it is over, and no longer watched",
                    one.group.name
                ),
            ),
            Err(e) => self.trouble(e.to_string()),
        }
    }

    fn news(&mut self, warning: bool, reason: &'static str, note: String) {
        let news = News {
            warning,
            reason,
            note,
        };
        let standing = self.standings.all().unwrap_or_default();
        (self.tell)(Some(news), &standing);
    }

    /// Told once, not at every look.
    fn trouble(&mut self, what: String) {
        if self.problem.as_ref() != Some(&what) {
            tracing::warn!(problem = what, "the guard of fences that stand");
            self.problem = Some(what);
        }
    }
}
