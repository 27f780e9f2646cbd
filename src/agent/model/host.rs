//! The world as an agent sees it: the traits of [`crate::host`] on a [`Stage`].

use std::sync::Arc;
use std::time::Duration;

use super::answers::{Answer, Call};
use super::group::{FIRE_TIMEOUT, Group, IO_TIMEOUT, Lock, State, Table, Volume, activated};
use super::stage::{AGENT, Stage, at};
use super::world::World;
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
/// Volume groups by number.
pub(super) const VGS: [&str; 2] = ["vg", "wg"];
/// The one that the kill hook is called for.
pub(super) const HOOKED: usize = 0;
const SECTORS: u64 = 2048;
/// Numbers of the devices of each volume group: its map, its leases, and from `FIRST` on its volumes.
const EACH: u32 = 10;
const MAP: u32 = 0;
const LEASES: u32 = 1;
const FIRST: u32 = 2;

fn small(n: usize) -> u32 {
    u32::try_from(n).expect("few of them")
}

fn dm(group: usize, which: u32) -> DevNo {
    let minor = small(group) * EACH + which;
    DevNo { major: 253, minor }
}

fn path(group: usize) -> DevNo {
    let minor = small(group) * 16;
    DevNo { major: 8, minor }
}

fn map_uuid(group: usize) -> String {
    format!("mpath-{}", VGS[group])
}

fn lockspace_name(group: usize) -> String {
    format!("lvm_{}", VGS[group])
}

/// The number of a volume group.
fn group_of(vg: &str) -> usize {
    let at = VGS.iter().position(|name| *name == vg);
    at.unwrap_or_else(|| panic!("{vg} is none of the fence's business"))
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
        self.stage.world(|w| {
            for group in &mut w.groups {
                group.allowed = group.lock.map_or(group.allowed, |l| l.generation);
            }
        });
        let groups = || world.groups.iter().enumerate();
        let map = |(n, group): (usize, &Group)| {
            let state = MapState {
                queueing: group.queueing,
                paths: vec![(path(n), group.up)],
            };
            (dm(n, MAP), state)
        };
        let disk = |(n, _)| {
            let disk = Disk {
                name: format!("sd{n}"),
                state: "running".into(),
                io: None,
            };
            (path(n), disk)
        };
        let locks: Vec<_> = world.groups.iter().map(|g| g.lock).collect();
        let lockspaces = lockspaces(&locks);
        let look = Look {
            taken_at: Monotonic(at(world.now)),
            boot_id: BOOT_ID.into(),
            maps: groups().map(map).collect(),
            disks: groups().map(disk).collect(),
            lock_manager: match world.silent {
                Some(super::world::Daemon::Lvmlockd) => {
                    LockManager::LvmlockdUnavailable("silent".into(), None)
                }
                Some(super::world::Daemon::Sanlock) => {
                    LockManager::SanlockUnavailable("silent".into(), lockspaces)
                }
                _ => LockManager::Running(lockspaces),
            },
            watchdog: watchdog(&locks),
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

    fn locks(&self, call: Call) -> Result<Vec<Option<Lock>>> {
        match self.ask(call)? {
            Answer::Locks(locks) => Ok(locks),
            other => panic!("{call:?} was answered with {other:?}"),
        }
    }
}

fn table(group: usize, table: Table) -> (Vec<Target>, Vec<DevNo>) {
    let map = dm(group, MAP);
    let (kind, params, deps) = match table {
        Table::Linear => ("linear", format!("{map} 0"), vec![map]),
        Table::Error => ("error", String::new(), Vec::new()),
    };
    let target = Target {
        start: 0,
        length: SECTORS,
        kind: kind.into(),
        params: params.into(),
    };
    (vec![target], deps)
}

fn volume(group: usize, number: usize, v: Volume) -> DmDevice {
    let (vg, lv) = (VGS[group], format!("lv{number}"));
    let (targets, deps) = table(group, v.table);
    DmDevice {
        dev: dm(group, FIRST + small(number)),
        name: format!("{vg}-{lv}").into(),
        uuid: format!("LVM-{}{lv:y<32.32}", uuid_of(vg)).into(),
        sectors: SECTORS,
        open_count: 1,
        suspended: v.suspended,
        inactive_table: v.inactive.is_some(),
        targets: targets.into(),
        deps: deps.into(),
        ..DmDevice::default()
    }
}

fn map(group: usize, queueing: bool) -> DmDevice {
    let features = if queueing { "1 queue_if_no_path" } else { "0" };
    let path = path(group);
    DmDevice {
        dev: dm(group, MAP),
        name: format!("map-{}", VGS[group]).into(),
        uuid: map_uuid(group).into(),
        sectors: SECTORS,
        targets: vec![Target {
            start: 0,
            length: SECTORS,
            kind: "multipath".into(),
            params: format!("{features} 0 1 1 service-time 0 1 0 {path}").into(),
        }]
        .into(),
        deps: vec![path].into(),
        ..DmDevice::default()
    }
}

fn devices(world: &World) -> Vec<DmDevice> {
    let of_group = |(n, group): (usize, &Group)| {
        let leases = DmDevice {
            dev: dm(n, LEASES),
            name: format!("{}-lvmlock", VGS[n]).into(),
            uuid: format!("LVM-{}{:y<32.32}", uuid_of(VGS[n]), "lvmlock").into(),
            ..volume(n, 0, activated(false, 0))
        };
        let volumes = group.volumes.iter().enumerate();
        let volumes = volumes.filter_map(move |(at, v)| v.map(|v| volume(n, at, v)));
        let fixed = [map(n, group.queueing), leases];
        fixed.into_iter().chain(volumes).collect::<Vec<_>>()
    };
    world.groups.iter().enumerate().flat_map(of_group).collect()
}

/// Those that there are, with the number of the volume group.
fn there(locks: &[Option<Lock>]) -> impl Iterator<Item = (usize, Lock)> {
    let all = locks.iter().enumerate();
    all.filter_map(|(n, lock)| lock.map(|lock| (n, lock)))
}

fn lockspaces(locks: &[Option<Lock>]) -> Vec<Lockspace> {
    let lockspace = |(n, lock): (usize, Lock)| Lockspace {
        name: lockspace_name(n),
        vg_name: VGS[n].into(),
        vg_uuid: uuid_of(VGS[n]),
        host_id: 7,
        generation: Some(lock.generation),
        io_timeout: IO_TIMEOUT,
        last_renewal: Some(renewed(lock)),
        state: lock.state.into(),
        frozen: lock.frozen,
        lv_locks: 1,
    };
    there(locks).map(lockspace).collect()
}

fn renewed(lock: Lock) -> Monotonic {
    Monotonic::from_secs(u64::from(lock.renewed / 1000))
}

fn watchdog(locks: &[Option<Lock>]) -> Watchdog {
    let client = |(n, l): (usize, Lock)| {
        let name = crate::fence::budget::watchdog_client(&lockspace_name(n), 7);
        let expires = renewed(l) + crate::fence::budget::lease_lifetime(IO_TIMEOUT);
        (name, expires)
    };
    let armed = there(locks).filter(|(_, l)| l.state == State::Healthy);
    Watchdog {
        known: true,
        problem: None,
        fire_timeout: FIRE_TIMEOUT,
        clients: armed.map(client).collect(),
    }
}

/// Numbers of the volume group and of the volume with that UUID; None for maps and leases.
fn number(uuid: &str) -> Option<(usize, usize)> {
    VGS.iter().enumerate().find_map(|(group, vg)| {
        let rest = uuid.strip_prefix("LVM-")?.strip_prefix(&uuid_of(vg))?;
        let number = rest.trim_end_matches('y').strip_prefix("lv")?;
        Some((group, number.parse().ok()?))
    })
}

/// Number of the volume group whose map that is.
fn map_number(uuid: &str) -> Option<usize> {
    (0..VGS.len()).find(|group| map_uuid(*group) == uuid)
}

impl Seat {
    fn of_volume(&self, uuid: &str, call: impl Fn(usize, usize) -> Call) -> Result<Answer> {
        match number(uuid) {
            Some((group, at)) => self.ask(call(group, at)),
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
        if let Some(group) = map_number(uuid) {
            let queueing = self.ask(Call::Map(group))? == Answer::Flag(true);
            return Ok(map(group, queueing));
        }
        match self.of_volume(uuid, Call::Device)? {
            Answer::Volume(v) => {
                let (group, at) = number(uuid).unwrap_or_default();
                Ok(volume(group, at, v))
            }
            other => panic!("a device was answered with {other:?}"),
        }
    }

    fn status(&self, dev: DevNo) -> Result<Vec<(String, String)>> {
        let group = (0..VGS.len()).find(|n| dm(*n, MAP) == dev);
        let group = group.unwrap_or_else(|| panic!("{dev} is no map"));
        let up = self.ask(Call::Paths(group))? == Answer::Flag(true);
        let state = if up { "A 0" } else { "F 1" };
        let line = format!("2 0 0 0 1 1 E 0 1 0 {} {state}", path(group));
        Ok(vec![("multipath".into(), line)])
    }

    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        assert_eq!(sectors, SECTORS, "of the same size");
        self.of_volume(uuid, Call::Load).map(drop)
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        self.of_volume(uuid, |group, at| Call::Swap(group, at, self.process))
            .map(drop)
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        panic!("no fence removes {uuid}")
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        let group = map_number(uuid).unwrap_or_else(|| panic!("{uuid} is no map"));
        assert_eq!(message, "fail_if_no_path");
        self.ask(Call::FailIfNoPath(group)).map(drop)
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
        let group = usize::try_from(dev.minor / EACH).ok()?;
        let at = usize::try_from((dev.minor % EACH).checked_sub(FIRST)?).ok()?;
        match self.ask(Call::Device(group, at)) {
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
    fn disable_queueing(&self, map: &str) -> Result<()> {
        let vg = map.strip_prefix("map-").unwrap_or(map);
        self.ask(Call::Disable(group_of(vg))).map(drop)
    }

    fn restore_queueing(&self, map: &str) -> Result<()> {
        panic!("no fence has {map} queue again")
    }
}

impl Lvmlockd for Seat {
    fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        Ok(lockspaces(&self.locks(Call::Lockspaces)?))
    }

    fn kill_vg(&self, vg: &str) -> Result<()> {
        self.ask(Call::Kill(group_of(vg))).map(drop)
    }

    fn drop_vg(&self, vg: &str, limit: Duration) -> Result<()> {
        self.ask(Call::Drop(group_of(vg)))?;
        // Its answer comes with the lockspace gone, or not in time.
        let until = self.monotonic() + limit.min(Duration::from_millis(400));
        System::wait(self, &Bell::default(), 0, until);
        Ok(())
    }
}

impl Sanlock for Seat {
    fn status(&self) -> Result<SanlockStatus> {
        let locks = self.locks(Call::Sanlock)?;
        let told = |(n, l): (usize, Lock)| SanlockLockspace {
            name: lockspace_name(n),
            host_id: 7,
            generation: Some(l.generation),
            io_timeout: IO_TIMEOUT,
            last_renewal: Some(renewed(l)),
            last_result: 1,
            state: LockspaceState::from(l.state),
        };
        Ok(SanlockStatus {
            lockspaces: there(&locks).map(told).collect(),
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
        watchdog(&self.locks(Call::Wdmd).unwrap_or_default())
    }
}

impl Lvm for Seat {
    fn names_of(&self, _: &str, vg: &str, _: Duration) -> Result<Vec<String>> {
        panic!("no fence asks LVM for {vg}")
    }

    fn start_lockspace(&self, _: &str, vg: &str, _: Duration) -> Result<()> {
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
