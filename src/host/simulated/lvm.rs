//! LVM's tools, and who holds devices open.

use std::time::Duration;

use smallvec::smallvec;
use smol_str::SmolStr;

use super::{SimulatedLockspace, Simulation, Starting, State, uuid_of};
use crate::fence::unfence::Opener;
use crate::fence::{DmDevice, Lockspace, LockspaceState, Monotonic, Target};
use crate::host::{Error, Lvm, Openers, Result};

/// A join by the same name writes and then waits two I/O time-outs.
const JOIN: Duration = Duration::from_secs(21);

impl Lvm for Simulation {
    fn names_of(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<Vec<String>> {
        let state = self.enter();
        let names = state.names(vg_uuid);
        if let Some(takes) = state.found_after.get(vg_uuid).copied() {
            let until = state.now + takes;
            self.leave(state);
            drop(self.wait_until(Some(until), None, None));
            return Ok(names);
        }
        if state.lvm_hangs {
            let until = state.now + limit;
            self.leave(state);
            drop(self.wait_until(Some(until), None, None));
            return Err(Error::TimedOut {
                what: format!("vgs {vg} on the host"),
                limit,
                hint: "It was killed",
            });
        }
        self.leave(state);
        Ok(names)
    }

    fn start_lockspace(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<()> {
        let mut state = self.enter();
        state.log.push(format!("lockstart {vg}"));
        if !state.names(vg_uuid).iter().any(|name| name == vg) {
            self.leave(state);
            return Err(Error::Refused {
                what: format!("vgchange --lockstart {vg} on the host"),
                detail: format!("Volume group \"{vg}\" not found"),
            });
        }
        state.judge_start(vg_uuid);
        let how = state.start;
        let until = match how {
            Starting::Works | Starting::WorksAndFails => {
                let name = vg.to_owned();
                // lvmlockd does it, whatever becomes of the tool.
                state.begin_join(vg_uuid, vg);
                state.later(JOIN, move |s| s.end_join(&name));
                state.now + JOIN
            }
            Starting::Fails => state.now + Duration::from_secs(1),
            Starting::Hangs => state.now + limit,
        };
        self.leave(state);
        drop(self.wait_until(Some(until), None, None));
        let what = format!("vgchange --lockstart {vg} on the host");
        match how {
            Starting::Works => Ok(()),
            Starting::Fails | Starting::WorksAndFails => Err(Error::Refused {
                what,
                detail: "start failed: -214".into(),
            }),
            Starting::Hangs => Err(Error::TimedOut {
                what,
                limit,
                hint: "It was killed",
            }),
        }
    }
}

impl Openers for Simulation {
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener)) {
        let all = self.enter().openers.clone();
        let asked = |o: &Opener| devices.iter().any(|d| d.dev == o.dev);
        all.into_iter().filter(asked).for_each(found);
    }
}

impl State {
    /// What must be so when a host joins a lockspace again: its old leases count as free from then on.
    fn judge_start(&mut self, uuid: &str) {
        if !self.targets.contains(uuid) {
            self.violate(format!(
                "lockstart of {uuid}, which is none of the fence's business"
            ));
        }
        if self.lockspaces.iter().any(|l| l.lockspace.vg_uuid == uuid) {
            self.violate(format!("lockstart of {uuid} on top of its lockspace"));
        }
        let prefix = format!("LVM-{uuid}");
        let left: Vec<String> = self
            .devices
            .values()
            .filter(|d| d.dm.uuid.starts_with(&prefix))
            // The leases' volume may stay, as long as it leads to the leases.
            .filter(|d| d.cut_off() || !d.dm.name.ends_with("-lvmlock"))
            .map(|d| d.dm.name.to_string())
            .collect();
        if !left.is_empty() {
            self.violate(format!("lockstart of {uuid} while {left:?} are there"));
        }
    }

    /// What the volume group is called on the disks.
    fn names(&self, uuid: &str) -> Vec<String> {
        let called = self.called.get(uuid).cloned();
        called.unwrap_or_else(|| vec![uuid.trim_end_matches('x').to_owned()])
    }

    fn begin_join(&mut self, uuid: &str, vg: &str) {
        self.starts += 1;
        // Who renames a volume group writes its leases anew, and the generations count from the beginning: up to that of the fence, as it happens.
        let renamed = u64::from(uuid != uuid_of(vg));
        let lockspace = Lockspace {
            name: format!("lvm_{vg}"),
            vg_name: vg.to_owned(),
            vg_uuid: uuid.to_owned(),
            host_id: 7,
            generation: Some(3 + self.starts - renamed),
            io_timeout: 10,
            last_renewal: Some(Monotonic(self.now)),
            state: LockspaceState::Adding,
            ..Lockspace::default()
        };
        self.lockspaces.push(SimulatedLockspace {
            lockspace,
            armed: false,
            unadopted: false,
        });
    }

    fn end_join(&mut self, vg: &str) {
        for l in &mut self.lockspaces {
            if l.lockspace.vg_name == vg && l.lockspace.state == LockspaceState::Adding {
                l.lockspace.state = LockspaceState::Healthy;
                l.armed = true;
            }
        }
    }
}

/// What else happens on a node, for tests.
impl State {
    /// The present incarnation of a volume group may be fenced too.
    pub fn allow(&mut self, vg_uuid: &str) {
        let ours = self
            .lockspaces
            .iter()
            .filter(|l| l.lockspace.vg_uuid == vg_uuid);
        let all: Vec<_> = ours
            .map(|l| (l.lockspace.name.clone(), l.lockspace.generation))
            .collect();
        self.may_drop.extend(all);
    }

    /// Somebody has joined the lockspace by hand.
    pub fn join_now(&mut self, vg: &str) {
        self.join_as(&uuid_of(vg), vg);
    }

    /// The same, by the name that the volume group has by now.
    pub fn join_as(&mut self, uuid: &str, vg: &str) {
        self.begin_join(uuid, vg);
        self.end_join(vg);
    }

    /// sanlock has not done with the former lockspace yet.
    pub fn removing(&mut self, vg: &str) {
        self.begin_join(&uuid_of(vg), vg);
        for l in &mut self.lockspaces {
            if l.lockspace.vg_name == vg {
                l.lockspace.state = LockspaceState::Removing;
                l.lockspace.vg_uuid = uuid_of(vg);
            }
        }
    }

    /// A device is put on the error target.
    pub fn wipe(&mut self, name: &str) {
        if let Some(d) = self.device(name) {
            d.dm.deps.clear();
            d.dm.targets = smallvec![Target {
                start: 0,
                length: d.dm.sectors,
                kind: "error".into(),
                params: SmolStr::default(),
            }];
        }
    }

    /// Somebody loads a device's real table again (`lvchange --refresh`).
    pub fn lead_to(&mut self, name: &str, map: &str) {
        let below = self.device(map).map(|d| d.dm.dev);
        if let (Some(below), Some(d)) = (below, self.device(name)) {
            d.dm.deps = smallvec![below];
            for t in &mut d.dm.targets {
                t.kind = "linear".into();
                t.params = format!("{below} 0").into();
            }
        }
    }

    /// A volume is activated on a map.
    pub fn add_volume_on(&mut self, vg: &str, lv: &str, map: &str) {
        self.add_volume(vg, lv);
        self.lead_to(&format!("{vg}-{lv}"), map);
    }
}
