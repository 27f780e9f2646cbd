//! The kernel's side of the device-mapper ioctls.

use std::time::Duration;

use smallvec::smallvec;
use smol_str::SmolStr;

use super::{Simulation, State, build};
use crate::fence::{DevNo, DmDevice, Monotonic, Target};
use crate::host::{Device, DeviceEvents, DeviceMapper, Error, Result};

fn gone(dev: DevNo) -> Error {
    Error::NoSuchDevice {
        what: format!("device {dev}"),
    }
}

impl State {
    /// Notes a change, and that it must not be, when the device is none of those that may be fenced (S2).
    fn changes(&mut self, what: &str, dev: DevNo) {
        let Some(d) = self.devices.get(&dev) else {
            return;
        };
        let (name, uuid) = (d.dm.name.clone(), d.dm.uuid.clone());
        self.log.push(format!("{what} {name}"));
        let of_target = self
            .targets
            .iter()
            .any(|vg| uuid.starts_with(&format!("LVM-{vg}")));
        let below_target = self.devices.values().any(|above| {
            above.dm.deps.contains(&dev)
                && self
                    .targets
                    .iter()
                    .any(|vg| above.dm.uuid.starts_with(&format!("LVM-{vg}")))
        });
        let map = what == "message" && (below_target || self.map_of_target.contains(name.as_str()));
        if !(map || (of_target && !name.ends_with("-lvmlock") && what != "message")) {
            self.violate(format!(
                "{what} of {name}, which is none of the fence's business"
            ));
        }
    }

    fn pass_on(&mut self, dev: DevNo) {
        if let Some(d) = self.devices.get_mut(&dev).filter(|d| d.passes_on_at_load) {
            d.dm.uuid = build::foreign_uuid().into();
            d.dm.deps.clear();
            d.dm.targets = smallvec![Target {
                start: 0,
                length: d.dm.sectors,
                kind: "zero".into(),
                params: SmolStr::default(),
            }];
        }
    }

    /// Notes that a device was swapped while one of its own volume group still stood on it.
    fn comes_before_its_users(&mut self, dev: DevNo) {
        let Some(d) = self.devices.get(&dev) else {
            return;
        };
        let group = d.dm.uuid.get(..36).unwrap_or_default();
        let real = |of: &DmDevice, kinds: &[&str]| {
            let target = of.targets.iter().find(|t| kinds.contains(&t.kind.as_str()));
            target.and_then(|t| t.params.split(' ').next().map(str::to_owned))
        };
        let origin = real(&d.dm, &["snapshot-origin", "snapshot-merge"]);
        let early: Vec<String> = self
            .devices
            .values()
            .filter(|above| {
                above.dm.uuid.starts_with(group) && !self.disturbed.contains(&above.dm.dev)
            })
            .filter(|above| {
                let snapshot = origin.is_some() && real(&above.dm, &["snapshot"]) == origin;
                above.dm.deps.contains(&dev) || snapshot
            })
            .map(|above| format!("{} was swapped before {}", d.dm.name, above.dm.name))
            .collect();
        for what in early {
            self.violate(what);
        }
    }

    /// The device with that UUID, now.
    fn find(&self, uuid: &str) -> Result<DevNo> {
        let found = self.devices.values().find(|d| d.dm.uuid == uuid);
        found.map(|d| d.dm.dev).ok_or_else(|| Error::NoSuchDevice {
            what: uuid.to_owned(),
        })
    }

    fn busy(&mut self, dev: DevNo) -> Result<()> {
        let d = self.devices.get_mut(&dev).ok_or_else(|| gone(dev))?;
        if d.busy > 0 {
            d.busy -= 1;
            return Err(Error::Busy {
                what: format!("device {dev}"),
            });
        }
        if d.no_memory > 0 {
            d.no_memory -= 1;
            return Err(Error::Refused {
                what: format!("device {dev}"),
                detail: "ENOMEM: Cannot allocate memory".into(),
            });
        }
        Ok(())
    }
}

impl DeviceMapper for Simulation {
    fn version(&self) -> Result<(u32, u32, u32)> {
        drop(self.enter());
        Ok((4, 48, 0))
    }

    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        let mut state = self.enter();
        if state.listing_hangs {
            drop(state);
            state = self.wait_until(None, None, None);
        }
        if !state.listing_takes.is_zero() {
            let until = state.now + state.listing_takes;
            drop(state);
            state = self.wait_until(Some(until), None, None);
        }
        if state.listing_fails {
            return Err(super::dead("/dev/mapper/control"));
        }
        let now = Monotonic(state.now);
        state.lists.iter_mut().for_each(|all| all.push(now));
        let devices = state.devices.values();
        devices.map(super::SimulatedDevice::describe).for_each(take);
        Ok(())
    }

    fn device(&self, uuid: &str) -> Result<DmDevice> {
        let state = self.enter();
        let dev = state.find(uuid)?;
        state
            .devices
            .get(&dev)
            .map(super::SimulatedDevice::describe)
            .ok_or_else(|| gone(dev))
    }

    fn status(&self, dev: Device) -> Result<Vec<(String, String)>> {
        let state = self.enter();
        let d = state.devices.get(&dev).ok_or_else(|| gone(dev))?;
        let line = |t: &Target| (t.kind.to_string(), build::status_line(d.active_paths));
        Ok(d.dm.targets.iter().map(line).collect())
    }

    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        let mut state = self.enter();
        let dev = state.find(uuid)?;
        state.pass_on(dev);
        let dev = state.find(uuid)?;
        state.busy(dev)?;
        state.changes("load", dev);
        let d = state.devices.get_mut(&dev).ok_or_else(|| gone(dev))?;
        d.inactive = Some(smallvec![Target {
            start: 0,
            length: sectors,
            kind: "error".into(),
            params: SmolStr::default(),
        }]);
        self.leave(state);
        Ok(())
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        let mut state = self.enter();
        let dev = state.find(uuid)?;
        state.busy(dev)?;
        state.changes("swap", dev);
        if state
            .devices
            .get(&dev)
            .is_some_and(|d| d.inactive.is_some())
        {
            // Killed in here, the wait ends as by any signal: the old table stays live, nothing stays suspended.
            drop(state);
            state = self.wait_until(None, None, Some(dev));
        }
        if state
            .devices
            .get(&dev)
            .is_some_and(|d| d.interrupts == 0 && d.inactive.is_some())
        {
            state.comes_before_its_users(dev);
        }
        let d = state.devices.get_mut(&dev).ok_or_else(|| gone(dev))?;
        if d.interrupts > 0 {
            d.interrupts -= 1;
            return Err(Error::Interrupted {
                what: format!("device {dev}"),
            });
        }
        if let Some(table) = d.inactive.take() {
            d.dm.sectors = table.iter().map(|t| t.length).sum();
            d.dm.targets = table;
            d.dm.deps.clear();
        }
        (d.dm.suspended, d.left_suspended) = (false, false);
        state.device_bell.ring();
        self.leave(state);
        Ok(())
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        let mut state = self.enter();
        let found = state.devices.values().find(|d| d.dm.uuid == uuid);
        let found = found.map(|d| (d.dm.dev, d.dm.name.clone(), d.cut_off(), d.dm.open_count));
        let Some((dev, name, cut_off, open)) = found else {
            return Err(Error::NoSuchDevice {
                what: uuid.to_owned(),
            });
        };
        state.busy(dev)?;
        let of_target = state
            .targets
            .iter()
            .any(|vg| uuid.starts_with(&format!("LVM-{vg}")));
        if !of_target || !cut_off {
            state.violate(format!(
                "remove of {name}, which is no fenced device of the fence's"
            ));
        }
        let below = state
            .devices
            .values()
            .any(|d| d.dm.deps.contains(&dev) && d.dm.uuid != uuid);
        if open > 0 || below {
            return Err(Error::Busy { what: name.into() });
        }
        state.log.push(format!("remove {name}"));
        state.devices.remove(&dev);
        self.leave(state);
        Ok(())
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        let mut state = self.enter();
        let dev = state.find(uuid)?;
        state.busy(dev)?;
        state.changes("message", dev);
        let d = state.devices.get_mut(&dev).ok_or_else(|| gone(dev))?;
        if message == "fail_if_no_path" {
            build::set_queueing(d, false);
        }
        self.leave(state);
        Ok(())
    }

    fn events(&self) -> Result<Box<dyn DeviceEvents>> {
        Ok(Box::new(Events {
            node: self.clone(),
            seen: 0,
        }))
    }
}

struct Events {
    node: Simulation,
    seen: u64,
}

impl DeviceEvents for Events {
    fn arm(&mut self) -> Result<()> {
        self.seen = self.node.enter().device_bell.rings();
        Ok(())
    }

    fn wait(&mut self, limit: Duration) -> Result<bool> {
        let (bell, until) = {
            let state = self.node.enter();
            (state.device_bell.clone(), state.now + limit)
        };
        let waited = (bell.clone(), self.seen);
        drop(self.node.wait_until(Some(until), Some(waited), None));
        Ok(bell.rings() > self.seen)
    }
}
