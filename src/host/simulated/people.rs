//! What administrators and their scripts do to the node, asking nobody.

use smallvec::smallvec;

use super::{SimulatedDevice, SimulatedLockspace, State, build};
use crate::fence::{DevNo, DmDevice, Target};

impl State {
    /// An administrator's `lvchange --refresh`: a real table again, on the same device below, without asking for any lock.
    pub fn refresh(&mut self, name: &str, below: DevNo) {
        if let Some(d) = self.device(name) {
            d.inactive = None;
            d.dm.deps = smallvec![below];
            d.dm.targets = smallvec![Target {
                start: 0,
                length: d.dm.sectors,
                kind: "linear".into(),
                params: format!("{below} 0").into(),
            }];
        }
        self.device_bell.ring();
    }

    /// An LVM command dies half-way: what it had suspended stays so.
    pub fn leave_suspended(&mut self, dev: DevNo) {
        if let Some(d) = self.devices.get_mut(&dev) {
            (d.dm.suspended, d.left_suspended) = (true, true);
        }
    }

    /// Takes a device down, as `dmsetup remove` does, whoever had it open.
    pub fn deactivate(&mut self, name: &str) {
        self.devices.retain(|_, d| d.dm.name != name);
        self.device_bell.ring();
    }

    /// Makes a device of that number, with a real table.
    pub fn activate(&mut self, dev: DevNo, name: &str, uuid: &str, below: DevNo) {
        self.made += 1;
        let dm = DmDevice {
            dev,
            name: name.into(),
            uuid: uuid.into(),
            sectors: 2048,
            open_count: 1,
            targets: smallvec![Target {
                length: 2048,
                ..Target::default()
            }],
            ..DmDevice::default()
        };
        let device = SimulatedDevice {
            dm,
            sequence: self.made,
            ..SimulatedDevice::default()
        };
        self.devices.insert(dev, device);
        self.refresh(name, below);
    }

    /// A map is taken down with what leads to it, and its number passes to a healthy map of another volume group, whose volume comes into use.
    pub fn number_passes_on(&mut self, map: &str) {
        let number = self.device(map).map(|d| d.dm.dev).unwrap_or_default();
        self.devices
            .retain(|_, d| d.dm.dev != number && !d.dm.deps.contains(&number));
        self.make_map(number, "mpath-foreign");
        let volume = self.free_number();
        self.activate(volume, "foreign-lv0", &build::foreign_uuid(), number);
    }

    /// A map is made anew, under another number than it ever had: that number.
    pub fn come_back(&mut self, map: &str) -> DevNo {
        let number = self.free_number();
        self.make_map(number, map);
        number
    }

    fn free_number(&self) -> DevNo {
        let highest = self.devices.keys().max().copied().unwrap_or_default();
        DevNo {
            minor: highest.minor + 1,
            ..highest
        }
    }

    fn make_map(&mut self, number: DevNo, name: &str) {
        let disk = DevNo {
            major: 8,
            minor: 2000,
        };
        self.activate(number, name, name, disk);
        if let Some(d) = self.devices.get_mut(&number) {
            d.active_paths = 2;
            d.dm.open_count = 0;
            for t in &mut d.dm.targets {
                t.kind = "multipath".into();
            }
            build::set_queueing(d, true);
        }
    }

    /// A volume group gets another name: its lockspace is stopped, and the one of its new name joined, whose generations count from the beginning.
    /// It is the fence's business still, if it was.
    pub fn rename(&mut self, vg_uuid: &str, to: &str) {
        for l in &mut self.lockspaces {
            if l.lockspace.vg_uuid == vg_uuid {
                to.clone_into(&mut l.lockspace.vg_name);
                l.lockspace.name = format!("lvm_{to}");
                l.lockspace.generation = Some(1);
                l.lockspace.frozen = false;
            }
        }
        let prefix = format!("LVM-{vg_uuid}");
        for d in self.devices.values_mut() {
            if d.dm.uuid.starts_with(&prefix) && d.dm.name.ends_with("-lvmlock") {
                d.dm.name = format!("{to}-lvmlock").into();
            }
        }
        if self.targets.contains(vg_uuid) {
            self.allow(vg_uuid);
        }
    }

    /// The lockspace of a volume group is joined after it had gone: another generation.
    pub fn join(&mut self, lockspace: crate::fence::Lockspace) {
        self.lockspaces.push(SimulatedLockspace {
            lockspace,
            armed: true,
            unadopted: false,
        });
    }

    /// Takes down the lockspace of a volume group and joins it again: the next generation. Who joins it writes the lease.
    pub fn rejoin(&mut self, vg_uuid: &str) {
        let now = self.now();
        for l in &mut self.lockspaces {
            if l.lockspace.vg_uuid == vg_uuid {
                l.lockspace.last_renewal = Some(now);
                l.lockspace.generation = l.lockspace.generation.map(|g| g + 1);
                l.lockspace.frozen = false;
            }
        }
    }
}
