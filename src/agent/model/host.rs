//! The world as an agent sees it: the traits of [`crate::host`] on a [`Stage`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::answers::{Answer, Call};
use super::stage::{AGENT, Stage, at};
use super::world::{FIRE_TIMEOUT, IO_TIMEOUT, Lock, State, Table, Volume, World};
use crate::fence::topology::{self, Disk, Look, MapState, Observed};
use crate::fence::unfence::Opener;
use crate::fence::{
    DevNo, DmDevice, Inventory, LockManager, Lockspace, LockspaceState, Monotonic, Target, Watchdog,
};
use crate::host::simulated::uuid_of;
use crate::host::{
    Bell, Death, DeviceEvents, DeviceMapper, DiskInfo, Error, Host, LockspaceHost, Lvm, Lvmlockd,
    Multipathd, Openers, Result, Sanlock, SanlockLockspace, SanlockStatus, System, Underway, Wdmd,
};

pub(super) const BOOT_ID: &str = "boot";
pub(super) const VG: &str = "vg";
const LOCKSPACE: &str = "lvm_vg";
const SECTORS: u64 = 2048;
const MAP: DevNo = dm(0);
const MAP_UUID: &str = "mpath-map";
const LEASES: DevNo = dm(1);
const FIRST: u32 = 2;
const PATH: DevNo = DevNo { major: 8, minor: 0 };

const fn dm(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

/// A host on a stage, as that process sees it.
#[derive(Clone)]
pub(super) struct Seat {
    pub stage: Stage,
    pub process: u8,
}

impl Seat {
    pub(super) fn host(&self) -> Host {
        let me = Arc::new(self.clone());
        Host {
            device_mapper: me.clone(),
            system: me.clone(),
            multipathd: me.clone(),
            lvmlockd: me.clone(),
            sanlock: me.clone(),
            wdmd: me.clone(),
            lvm: me.clone(),
            openers: me,
            underway: Underway::default(),
        }
    }

    /// What a fence begins with. From here on it is this generation that may be fenced.
    pub(super) fn inventory(&self) -> Inventory {
        let Answer::World(world) = self.stage.call(Call::Inventory) else {
            panic!("an inventory");
        };
        // A volume group that is being joined or removed is not one that anybody asked to have fenced.
        if let Some(lock) = world.lock {
            self.stage.world(|w| w.allowed = lock.generation);
        }
        let state = MapState {
            queueing: world.queueing,
            paths: vec![(PATH, world.up)],
        };
        let disk = Disk {
            name: "sda".into(),
            state: "running".into(),
            io: None,
        };
        let lockspaces: Vec<Lockspace> = world.lock.map(lockspace).into_iter().collect();
        let look = Look {
            taken_at: Monotonic(at(world.now)),
            boot_id: BOOT_ID.into(),
            maps: BTreeMap::from([(MAP, state)]),
            disks: BTreeMap::from([(PATH, disk)]),
            lock_manager: match world.silent {
                Some(super::world::Daemon::Lvmlockd) => {
                    LockManager::LvmlockdUnavailable("silent".into())
                }
                Some(super::world::Daemon::Sanlock) => {
                    LockManager::SanlockUnavailable("silent".into(), lockspaces)
                }
                _ => LockManager::Running(lockspaces),
            },
            watchdog: watchdog(world.lock),
        };
        topology::build(Observed {
            devices: devices(&world).into_iter().map(Arc::new).collect(),
            look,
        })
    }

    fn ask(&self, call: Call) -> Result<Answer> {
        match self.stage.call(call) {
            Answer::Gone => Err(Error::NoSuchDevice {
                what: format!("{call:?}"),
            }),
            Answer::Silent => Err(Error::Unavailable {
                what: format!("{call:?}"),
                source: std::io::ErrorKind::ConnectionRefused.into(),
                hint: "Start it",
            }),
            Answer::Refused => Err(Error::Refused {
                what: format!("{call:?}"),
                detail: "-210".into(),
            }),
            answer => Ok(answer),
        }
    }

    fn lock(&self, call: Call) -> Result<Option<Lock>> {
        match self.ask(call)? {
            Answer::Lock(lock) => Ok(lock),
            other => panic!("{call:?} was answered with {other:?}"),
        }
    }
}

fn table(table: Table) -> (Vec<Target>, Vec<DevNo>) {
    let (kind, params, deps) = match table {
        Table::Linear => ("linear", format!("{MAP} 0"), vec![MAP]),
        Table::Error => ("error", String::new(), Vec::new()),
    };
    let target = Target {
        start: 0,
        length: SECTORS,
        kind: kind.into(),
        params,
    };
    (vec![target], deps)
}

fn volume(number: usize, v: Volume) -> DmDevice {
    let lv = format!("lv{number}");
    let (targets, deps) = table(v.table);
    DmDevice {
        dev: dm(FIRST + u32::try_from(number).expect("few volumes")),
        name: format!("{VG}-{lv}"),
        uuid: format!("LVM-{}{lv:y<32.32}", uuid_of(VG)),
        sectors: SECTORS,
        open_count: 1,
        suspended: v.suspended,
        inactive_table: v.inactive.is_some(),
        targets,
        deps,
        ..DmDevice::default()
    }
}

fn map(queueing: bool) -> DmDevice {
    let features = if queueing { "1 queue_if_no_path" } else { "0" };
    DmDevice {
        dev: MAP,
        name: "map".into(),
        uuid: MAP_UUID.into(),
        sectors: SECTORS,
        targets: vec![Target {
            start: 0,
            length: SECTORS,
            kind: "multipath".into(),
            params: format!("{features} 0 1 1 service-time 0 1 0 {PATH}"),
        }],
        deps: vec![PATH],
        ..DmDevice::default()
    }
}

fn devices(world: &World) -> Vec<DmDevice> {
    let map = map(world.queueing);
    let leases = DmDevice {
        dev: LEASES,
        name: format!("{VG}-lvmlock"),
        uuid: format!("LVM-{}{:y<32.32}", uuid_of(VG), "lvmlock"),
        ..volume(0, super::world::activated(false, 0))
    };
    let volumes = world.volumes.iter().enumerate();
    let volumes = volumes.filter_map(|(n, v)| v.map(|v| volume(n, v)));
    [map, leases].into_iter().chain(volumes).collect()
}

fn lockspace(lock: Lock) -> Lockspace {
    Lockspace {
        name: LOCKSPACE.into(),
        vg_name: VG.into(),
        vg_uuid: uuid_of(VG),
        host_id: 7,
        generation: Some(lock.generation),
        io_timeout: IO_TIMEOUT,
        last_renewal: Some(renewed(lock)),
        state: lock.state.into(),
        frozen: lock.frozen,
        lv_locks: 1,
    }
}

fn renewed(lock: Lock) -> Monotonic {
    Monotonic::from_secs(u64::from(lock.renewed / 1000))
}

fn watchdog(lock: Option<Lock>) -> Watchdog {
    let client = |l: Lock| {
        let name = crate::fence::budget::watchdog_client(LOCKSPACE, 7);
        let expires = renewed(l) + crate::fence::budget::lease_lifetime(IO_TIMEOUT);
        (name, expires)
    };
    let armed = lock.filter(|l| l.state == State::Healthy);
    Watchdog {
        known: true,
        problem: None,
        fire_timeout: FIRE_TIMEOUT,
        clients: armed.map(client).into_iter().collect(),
    }
}

/// Number of the volume with that UUID; None for the map and the leases.
fn number(uuid: &str) -> Option<usize> {
    let rest = uuid.strip_prefix("LVM-")?.strip_prefix(&uuid_of(VG))?;
    rest.trim_end_matches('y').strip_prefix("lv")?.parse().ok()
}

impl Seat {
    fn of_volume(&self, uuid: &str, call: impl Fn(usize) -> Call) -> Result<Answer> {
        match number(uuid) {
            Some(n) => self.ask(call(n)),
            None => panic!("{uuid} is none of the fence's business"),
        }
    }
}

impl DeviceMapper for Seat {
    fn version(&self) -> Result<(u32, u32, u32)> {
        self.ask(Call::Version).map(|_| (4, 48, 0))
    }

    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        match self.ask(Call::List)? {
            Answer::World(world) => {
                devices(&world).into_iter().for_each(take);
                Ok(())
            }
            other => panic!("a list was answered with {other:?}"),
        }
    }

    fn device(&self, uuid: &str) -> Result<DmDevice> {
        if uuid == MAP_UUID {
            let queueing = self.ask(Call::Map)? == Answer::Flag(true);
            return Ok(map(queueing));
        }
        match self.of_volume(uuid, Call::Device)? {
            Answer::Volume(v) => Ok(volume(number(uuid).unwrap_or_default(), v)),
            other => panic!("a device was answered with {other:?}"),
        }
    }

    fn status(&self, _: DevNo) -> Result<Vec<(String, String)>> {
        let up = self.ask(Call::Paths)? == Answer::Flag(true);
        let state = if up { "A 0" } else { "F 1" };
        let line = format!("2 0 0 0 1 1 E 0 1 0 {PATH} {state}");
        Ok(vec![("multipath".into(), line)])
    }

    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        assert_eq!(sectors, SECTORS, "of the same size");
        self.of_volume(uuid, Call::Load).map(drop)
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        self.of_volume(uuid, |n| Call::Swap(n, self.process))
            .map(drop)
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        panic!("no fence removes {uuid}")
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        assert_eq!((uuid, message), (MAP_UUID, "fail_if_no_path"));
        self.ask(Call::FailIfNoPath).map(drop)
    }

    fn events(&self) -> Result<Box<dyn DeviceEvents>> {
        Err(Error::Refused {
            what: "events".into(),
            detail: "the guard looks every second as well".into(),
        })
    }
}

impl System for Seat {
    fn boot_id(&self) -> Result<String> {
        self.ask(Call::BootId).map(|_| BOOT_ID.to_owned())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(at(self.stage.now()))
    }

    fn disk(&self, _: DevNo) -> Option<DiskInfo> {
        None
    }

    fn sequence(&self, dev: DevNo) -> Option<u64> {
        let at = usize::try_from(dev.minor.checked_sub(FIRST)?).ok()?;
        match self.ask(Call::Device(at)) {
            Ok(Answer::Volume(v)) => Some(v.made),
            _ => None,
        }
    }

    fn rcu_expedited(&self) -> Result<u32> {
        // It changes how long a swap takes, which no rule of the model speaks of.
        Err(Error::Refused {
            what: "rcu_expedited".into(),
            detail: "this kernel has none".into(),
        })
    }

    fn set_rcu_expedited(&self, value: u32) -> Result<()> {
        panic!("{value} without having read it")
    }

    fn wait(&self, bell: &Bell, seen: u64, until: Monotonic) {
        let until = u32::try_from(until.0.as_millis()).unwrap_or(u32::MAX);
        self.stage.wait(Some((bell.clone(), seen)), Some(until));
    }

    fn spawn(&self, _: &str, work: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        self.stage.spawn(work);
        Ok(())
    }
}

impl Multipathd for Seat {
    fn disable_queueing(&self, _: &str) -> Result<()> {
        self.ask(Call::Disable).map(drop)
    }

    fn restore_queueing(&self, map: &str) -> Result<()> {
        panic!("no fence has {map} queue again")
    }
}

impl Lvmlockd for Seat {
    fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        let lock = self.lock(Call::Lockspaces)?;
        Ok(lock.map(lockspace).into_iter().collect())
    }

    fn kill_vg(&self, vg: &str) -> Result<()> {
        assert_eq!(vg, VG);
        self.ask(Call::Kill).map(drop)
    }

    fn drop_vg(&self, vg: &str, limit: Duration) -> Result<()> {
        assert_eq!(vg, VG);
        self.ask(Call::Drop)?;
        // Its answer comes with the lockspace gone, or not in time.
        let until = self.monotonic() + limit.min(Duration::from_millis(400));
        System::wait(self, &Bell::default(), 0, until);
        Ok(())
    }
}

impl Sanlock for Seat {
    fn status(&self) -> Result<SanlockStatus> {
        let lock = self.lock(Call::Sanlock)?;
        let told = |l: Lock| SanlockLockspace {
            name: LOCKSPACE.into(),
            host_id: 7,
            generation: Some(l.generation),
            io_timeout: IO_TIMEOUT,
            last_renewal: Some(renewed(l)),
            last_result: 1,
            state: LockspaceState::from(l.state),
        };
        Ok(SanlockStatus {
            lockspaces: lock.map(told).into_iter().collect(),
            ..SanlockStatus::default()
        })
    }

    fn host(&self, _: &str, host_id: u64) -> Result<LockspaceHost> {
        panic!("no fence asks for host {host_id}")
    }

    fn declare_dead(&self, death: &Death, _: Duration) -> Result<()> {
        panic!("no fence declares anybody dead: {death:?}")
    }
}

impl Wdmd for Seat {
    fn status(&self) -> Watchdog {
        watchdog(self.lock(Call::Wdmd).ok().flatten())
    }
}

impl Lvm for Seat {
    fn start_lockspace(&self, vg: &str, _: Duration) -> Result<()> {
        panic!("no fence joins {vg}")
    }
}

impl Openers for Seat {
    fn of(&self, _: &[DmDevice], _: &mut dyn FnMut(Opener)) {}
}

/// The agent's own view.
pub(super) fn of_agent(stage: &Stage) -> Seat {
    Seat {
        stage: stage.clone(),
        process: AGENT,
    }
}
