//! lvmlockd, sanlock, wdmd and multipathd.

use std::time::Duration;

use super::clock::Waiter;
use super::{Daemon, Declaring, Dropping, Simulation, State, build, dead};
use crate::fence::preflight::can_declare_dead;
use crate::fence::{Lockspace, LockspaceState, Monotonic, Watchdog};
use crate::host::lvmlockd::QUIET;
use crate::host::{
    Death, Error, HostState, LockspaceHost, Lvmlockd, Multipathd, Result, Sanlock,
    SanlockLockspace, SanlockStatus, Wdmd,
};

impl Simulation {
    /// Enters a daemon: it answers, or does not.
    fn reach(
        &self,
        what: &str,
        which: fn(&State) -> Daemon,
    ) -> Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.enter();
        if which(&state) == Daemon::Hangs {
            drop(state);
            // For as long as it does: whoever asks has to give up. One that goes on takes what lies in its socket, whoever gave up meanwhile.
            state = self.wait(Waiter {
                daemon: Some(which),
                ..Waiter::default()
            });
        }
        match which(&state) {
            Daemon::Alive => Ok(state),
            Daemon::Dead | Daemon::Hangs => Err(dead(what)),
        }
    }
}

impl Multipathd for Simulation {
    fn disable_queueing(&self, map: &str) -> Result<()> {
        let mut state = self.reach("multipathd", |s| s.multipathd)?;
        if !state.map_of_target.contains(map) {
            state.violate(format!(
                "disablequeueing {map}, which is none of the fence's business"
            ));
        }
        state.queueing_disabled.insert(map.to_owned());
        if let Some(d) = state.device(map) {
            build::set_queueing(d, false);
        }
        state.log.push(format!("disablequeueing {map}"));
        self.leave(state);
        Ok(())
    }

    fn restore_queueing(&self, map: &str) -> Result<()> {
        let mut state = self.reach("multipathd", |s| s.multipathd)?;
        state.queueing_disabled.remove(map);
        // Maps are named after their volume group: nothing of it leads there any more.
        let vg = map.split('-').nth(1).unwrap_or_default();
        let prefix = format!("LVM-{}", build::uuid_of(vg));
        let left = state
            .devices
            .values()
            .any(|d| d.cut_off() && d.dm.uuid.starts_with(&prefix));
        if left {
            state.restored_early.push(map.to_owned());
        }
        if let Some(d) = state.device(map) {
            build::set_queueing(d, true);
        }
        state.log.push(format!("restorequeueing {map}"));
        self.leave(state);
        Ok(())
    }
}

impl Lvmlockd for Simulation {
    fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        let mut state = self.reach("lvmlockd", |s| s.lvmlockd)?;
        while state.now < state.tells_from {
            let until = state.tells_from;
            drop(state);
            drop(self.wait_until(Some(until), None, None));
            state = self.reach("lvmlockd", |s| s.lvmlockd)?;
        }
        Ok(state
            .lockspaces
            .iter()
            .filter(|l| !l.unadopted)
            .map(|l| l.lockspace.clone())
            .collect())
    }

    fn kill_vg(&self, vg: &str) -> Result<()> {
        let which = |s: &State| {
            if s.kill_hangs {
                Daemon::Hangs
            } else {
                s.lvmlockd
            }
        };
        let mut state = self.reach("lvmlockd", which)?;
        let Some(at) = state
            .lockspaces
            .iter()
            .position(|l| l.lockspace.vg_name == vg && !l.unadopted)
        else {
            return Err(Error::Refused {
                what: "kill_vg".into(),
                detail: "-210".into(),
            });
        };
        let Some(l) = state.lockspaces.get_mut(at) else {
            return Ok(());
        };
        l.lockspace.frozen = true;
        let (uuid, name, generation) = (
            l.lockspace.vg_uuid.clone(),
            l.lockspace.name.clone(),
            l.lockspace.generation,
        );
        state.log.push(format!("kill_vg {vg}"));
        if !state.targets.contains(&uuid) {
            state.violate(format!(
                "kill_vg {vg}, which is none of the fence's business"
            ));
        }
        if !state.may_drop.contains(&(name, generation)) {
            state.violate(format!("kill_vg {vg} in another generation"));
        }
        self.leave(state);
        Ok(())
    }

    fn drop_vg(&self, vg: &str, _: Duration) -> Result<()> {
        let mut state = self.reach("lvmlockd", |s| s.lvmlockd)?;
        let mut all = state.lockspaces.iter();
        let found = all.find(|l| l.lockspace.vg_name == vg && !l.unadopted);
        let Some(lockspace) = found.map(|l| l.lockspace.clone()) else {
            return Err(Error::Refused {
                what: "drop_vg".into(),
                detail: "-210".into(),
            });
        };
        state.log.push(format!("drop_vg {vg}"));
        let open = state.not_fenced(&lockspace.vg_uuid);
        if !open.is_empty() {
            state.violate(format!("drop_vg {vg} while {open:?} may reach the SAN"));
        }
        if !state
            .may_drop
            .contains(&(lockspace.name.clone(), lockspace.generation))
        {
            state.violate(format!("drop_vg {vg} in another generation"));
        }
        let how = state.drop;
        if how == Dropping::Refused {
            return Err(Error::Refused {
                what: "drop_vg".into(),
                detail: "-22".into(),
            });
        }
        if how != Dropping::Ignored && lockspace.state != LockspaceState::Removing {
            let (first, then) = (lockspace.name.clone(), lockspace.name);
            state.later(Duration::from_secs(1), move |s| {
                for l in s
                    .lockspaces
                    .iter_mut()
                    .filter(|l| l.lockspace.name == first)
                {
                    l.lockspace.state = LockspaceState::Removing;
                    l.armed = false;
                }
            });
            state.later(Duration::from_secs(2), move |s| {
                s.lockspaces.retain(|l| l.lockspace.name != then);
            });
        }
        let until = match how {
            Dropping::Works => Some(state.now + Duration::from_secs(2)),
            Dropping::NeverAnswers => None,
            Dropping::Ignored | Dropping::Refused => Some(state.now),
        };
        let quiet = state.now + QUIET;
        let until_told = until.map_or(quiet, |until| until.min(quiet));
        state.tells_from = state.tells_from.max(until_told);
        self.leave(state);
        drop(self.wait_until(until, None, None));
        Ok(())
    }
}

impl Sanlock for Simulation {
    fn status(&self) -> Result<SanlockStatus> {
        let state = self.reach("sanlock", |s| s.sanlock)?;
        let tells = state.tells_generation;
        let lockspace = |l: &super::SimulatedLockspace| SanlockLockspace {
            name: l.lockspace.name.clone(),
            host_id: l.lockspace.host_id,
            generation: l.lockspace.generation.filter(|_| tells),
            io_timeout: l.lockspace.io_timeout,
            last_renewal: l.lockspace.last_renewal,
            last_result: 1,
            state: l.lockspace.state,
        };
        Ok(SanlockStatus {
            lockspaces: state.lockspaces.iter().map(lockspace).collect(),
            version: state.sanlock_version,
            ..SanlockStatus::default()
        })
    }

    fn host(&self, lockspace: &str, host_id: u64) -> Result<LockspaceHost> {
        let state = self.reach("sanlock", |s| s.sanlock)?;
        if !state
            .lockspaces
            .iter()
            .any(|l| l.lockspace.name == lockspace)
        {
            return Err(refused("host", -2));
        }
        let known = state.hosts.get(&(lockspace.to_owned(), host_id)).copied();
        Ok(known.unwrap_or(LockspaceHost {
            host_id,
            ..LockspaceHost::default()
        }))
    }

    fn declare_dead(&self, death: &Death, limit: Duration) -> Result<()> {
        let mut state = self.reach("sanlock", |s| s.sanlock)?;
        let Death {
            lockspace,
            own_host_id,
            host_id,
            generation,
        } = death.clone();
        state
            .log
            .push(format!("declare_dead {lockspace} {host_id} {generation}"));
        let own = |l: &&super::SimulatedLockspace| {
            l.lockspace.name == lockspace && l.lockspace.host_id == own_host_id
        };
        if !can_declare_dead(state.sanlock_version) || state.lockspaces.iter().find(own).is_none() {
            return Err(refused("declare_dead", -22));
        }
        let whom = (lockspace.clone(), host_id, generation);
        if !state.fenced_hosts.contains(&whom) {
            state.violate(format!("{whom:?} was declared dead and is not fenced"));
        }
        match state.declare {
            Declaring::OldLeases => return Err(refused("declare_dead", -204)),
            Declaring::Hangs => {
                let until = Some(state.now + limit);
                self.leave(state);
                drop(self.wait_until(until, None, None));
                return Err(Error::TimedOut {
                    what: "declare_dead".into(),
                    limit,
                    hint: "Look at it",
                });
            }
            Declaring::Lies => {
                self.leave(state);
                return Ok(());
            }
            Declaring::Works => {}
        }
        let host = state.hosts.entry((lockspace, host_id)).or_default();
        // As 5.1.1 does: a generation that is over is refused, and one that was never there is taken.
        if generation < host.generation {
            return Err(refused("declare_dead", -280));
        }
        *host = LockspaceHost {
            host_id,
            generation,
            state: HostState::Dead,
            declared_dead: true,
        };
        self.leave(state);
        Ok(())
    }
}

fn refused(what: &str, code: i32) -> Error {
    Error::Refused {
        what: what.into(),
        detail: code.to_string(),
    }
}

impl Wdmd for Simulation {
    fn status(&self) -> Watchdog {
        match self.reach("wdmd", |s| s.wdmd) {
            Ok(state) => state.watchdog(),
            Err(e) => Watchdog {
                problem: Some(e.to_string()),
                ..Watchdog::default()
            },
        }
    }
}

impl State {
    pub(super) fn watchdog(&self) -> Watchdog {
        let client = |l: &super::SimulatedLockspace| {
            let name = format!("sanlock_{}:{}", l.lockspace.name, l.lockspace.host_id);
            (
                name,
                l.lockspace.last_renewal.unwrap_or_default() + Duration::from_secs(80),
            )
        };
        let armed = self.lockspaces.iter().filter(|l| l.armed);
        Watchdog {
            known: true,
            problem: None,
            fire_timeout: self.fire_timeout,
            clients: armed.map(client).collect::<Vec<(String, Monotonic)>>(),
        }
    }
}
