//! Tells devices that a fence left behind from those that came into use under new locks.
//!
//! A volume group that was fenced and released may be joined to its lockspace again while error devices of the fence are still there: nobody
//! keeps a `vgchange --lockstart` from it. What the fence left behind must stay closed even then, since its opener has no lock, and another host may
//! have taken the volume meanwhile; an `lvchange --refresh` gives it a real table without asking for one. What was deactivated and activated
//! anew has its lock, and must never be fenced. Both have the same UUID, and mostly the same number.
//!
//! They are told apart by the kernel's `diskseq`, which counts up over all disks that are made and stays with a device as long as it lives,
//! whatever table it gets. A volume group is joined before a volume of it can be activated under the new locks. So whatever was there when the
//! lock manager, asked *afterwards*, had not joined it anew, is of the fence, and the highest number among these is noted: a device with a
//! higher one was made later. (An event number would not do: it stays 0 for linear tables. Neither would what was seen between two looks: a
//! device that is removed and made again gets the lowest free number, which is its own.)
//!
//! Where the kernel does not tell, nothing is closed once the volume group is joined again, and people are told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::LOOK_CLOSELY;
use crate::agent::executor::{limited, own_devices};
use crate::agent::journal::Standing;
use crate::agent::observe::lock_manager;
use crate::fence::{DmDevice, LockManager, LockspaceState, Monotonic};
use crate::host::Host;

/// A lock manager that does not answer must not hold up the closing. Longer than others are kept from asking lvmlockd while it drops a lockspace.
const ASK: Duration = Duration::from_secs(1);
/// How long it may be silent before what came up meanwhile counts as made without locks: it is not closed on a mere guess, nor left open for good.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Known {
    newest: Option<u64>,
    joined: bool,
    /// Since when the lock manager has been silent.
    silent: Option<Monotonic>,
}

/// When the lock manager was last found silent, by whichever fence: it is not asked again at once for each device and each volume group of a look.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence(Arc<Mutex<Option<Monotonic>>>);

impl Silence {
    fn at(&self) -> MutexGuard<'_, Option<Monotonic>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lasts(&self, now: Monotonic) -> bool {
        self.at().is_some_and(|at| now.since(at) < LOOK_CLOSELY)
    }
}

/// Whose a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The fence's: it has to be closed.
    Ours,
    /// Of the volume group's next life, or it may be.
    Theirs,
    /// Made later, and the lock manager does not say just now whether under new locks.
    Unknown,
}

/// When a device was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// Before the volume group was joined again.
    Before,
    /// After what is known to be from before.
    After(u64),
    /// The kernel does not tell, or the device is gone.
    Untold,
}

/// What is open of a volume group, by one list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// Names of devices that have to be closed.
    pub(super) ours: Vec<String>,
    /// Names of devices that may be of the fence, or in use under new locks: not to be closed.
    pub(super) untold: Vec<String>,
    /// Names of more, of which it is not known yet.
    pub(super) unknown: Vec<String>,
}

/// One for each fence that stands; its clones know the same.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    of: Arc<Standing>,
    known: Arc<Mutex<Known>>,
    silence: Silence,
}

impl Sieve {
    /// `silence` is the node's.
    pub(super) fn new(of: &Standing, silence: &Silence) -> Self {
        let known = Known {
            newest: of.newest,
            joined: of.joined,
            silent: None,
        };
        Self {
            of: Arc::new(of.clone()),
            known: Arc::new(Mutex::new(known)),
            silence: silence.clone(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fence that it was made for: another one of the same volume group needs another sieve.
    pub(super) fn proven(&self) -> Monotonic {
        self.of.proven
    }

    /// What is known by now, to be noted.
    pub(super) fn newest(&self) -> Option<u64> {
        self.known().newest
    }

    /// Whether the volume group was seen joined again.
    pub(super) fn was_joined(&self) -> bool {
        self.known().joined
    }

    /// Whether the volume group has been joined to its lockspace again since the fence. Unknown is no: the fence holds. Once it was, it remains so:
    /// what came into use then stays in use.
    pub(super) fn joined(&self, host: &Host) -> bool {
        self.asked(host) == Some(true)
    }

    /// None: the lock manager does not say.
    fn asked(&self, host: &Host) -> Option<bool> {
        let now = host.system.monotonic();
        if self.known().joined {
            return Some(true);
        }
        let mut joined = None;
        if !self.silence.lasts(now) {
            // Not under a lock: it may take its time.
            joined = joined_anew(host, &self.of);
            *self.silence.at() = joined.is_none().then(|| host.system.monotonic());
        }
        let mut known = self.known();
        known.joined |= joined == Some(true);
        known.silent = match joined {
            Some(_) => None,
            None => known.silent.or(Some(now)),
        };
        joined
    }

    fn made(&self, host: &Host, d: &DmDevice) -> Made {
        match (host.system.sequence(d.dev), self.known().newest) {
            (Some(made), Some(newest)) if made <= newest => Made::Before,
            (Some(made), Some(_)) => Made::After(made),
            _ => Made::Untold,
        }
    }

    /// Notes what is there, unless the fence noted it itself.
    pub(super) fn learn(&self, host: &Host, list: &[DmDevice]) {
        if self.known().newest.is_some() || self.was_joined() {
            return;
        }
        let made = own_devices(list, &self.of.group).filter_map(|d| host.system.sequence(d.dev));
        let newest = made.max();
        // Not on a guess: it would stay.
        if newest.is_some() && self.asked(host) == Some(false) {
            self.known().newest = newest;
        }
    }

    /// Whether a device that is open has to be closed. It was in a list that is older than this question.
    pub(super) fn is_ours(&self, host: &Host, d: &DmDevice) -> bool {
        self.whose(host, d) == Whose::Ours
    }

    fn whose(&self, host: &Host, d: &DmDevice) -> Whose {
        let made = self.made(host, d);
        if made == Made::Before {
            return Whose::Ours;
        }
        match self.asked(host) {
            Some(true) => return Whose::Theirs,
            Some(false) => {}
            // The fence's own, as far as the kernel tells: that cannot wait.
            None if made == Made::Untold => {}
            None => {
                // It goes on to count as made later: the lock manager may yet say under which locks.
                let now = host.system.monotonic();
                let since = self.known().silent.unwrap_or(now);
                let waits = now.since(since) < PATIENCE;
                return if waits { Whose::Unknown } else { Whose::Ours };
            }
        }
        // Made without locks, while nothing but the fence was there.
        if let Made::After(made) = made {
            let mut known = self.known();
            known.newest = known.newest.max(Some(made));
        }
        Whose::Ours
    }

    /// What is open by that list.
    pub(super) fn open(&self, host: &Host, list: &[DmDevice]) -> Open {
        let mut open = Open::default();
        for d in own_devices(list, &self.of.group).filter(|d| !d.is_error_only()) {
            match self.whose(host, d) {
                Whose::Ours => open.ours.push(d.name.to_string()),
                Whose::Unknown => open.unknown.push(d.name.to_string()),
                Whose::Theirs if self.made(host, d) == Made::Untold => {
                    open.untold.push(d.name.to_string());
                }
                Whose::Theirs => {}
            }
        }
        open
    }

    /// Names of the devices that the fence left behind: those from before, and error devices of which that cannot be told.
    pub(super) fn left(&self, host: &Host, list: &[DmDevice]) -> Vec<String> {
        let left = |d: &&DmDevice| match self.made(host, d) {
            Made::Before => true,
            Made::After(_) => false,
            Made::Untold => d.is_error_only(),
        };
        let own = own_devices(list, &self.of.group);
        own.filter(left).map(|d| d.name.to_string()).collect()
    }

    /// The list as a closing may see it: nothing but the volume group's own devices, without those that are open under new locks. Strangers on its
    /// physical volumes are told of elsewhere; a closing that waited for them would never end.
    pub(super) fn to_close(&self, host: &Host, list: Vec<DmDevice>) -> Vec<DmDevice> {
        let own: BTreeSet<_> = own_devices(&list, &self.of.group).map(|d| d.dev).collect();
        let mut list = list;
        list.retain(|d| own.contains(&d.dev) && (d.is_error_only() || self.is_ours(host, d)));
        list
    }
}

/// None: the lock manager does not say.
fn joined_anew(host: &Host, one: &Standing) -> Option<bool> {
    let Some(name) = &one.lockspace else {
        return Some(false);
    };
    let ask = |h: &Host| Ok(lock_manager(h));
    let manager = limited::call(host, "asking the lock manager", ASK, ask);
    let lockspaces = match manager {
        Ok(LockManager::Running(lockspaces)) => lockspaces,
        // Without sanlock its state is not known, but whether it is there at all.
        Ok(LockManager::SanlockUnavailable(_, known))
            if !known.iter().any(|l| l.is_of(&one.group.uuid, name)) =>
        {
            return Some(false);
        }
        _ => return None,
    };
    let joined = |state| !matches!(state, LockspaceState::Adding | LockspaceState::Removing);
    let mut present = lockspaces
        .iter()
        .filter(|l| l.is_of(&one.group.uuid, name) && joined(l.state));
    Some(present.any(|l| match (one.generation, l.generation) {
        // Renamed meanwhile, by another host: its generations may count from the beginning.
        _ if l.name != *name => true,
        (Some(before), Some(now)) => before != now || one.host_id != Some(l.host_id),
        // The fence froze it, and only joining anew thaws it.
        _ => !l.frozen,
    }))
}
