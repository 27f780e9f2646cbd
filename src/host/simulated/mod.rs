//! A simulated node behind the traits of [`crate::host`], for tests: devices in stacks, multipath maps, lock manager and watchdog, on a clock of its own.
//!
//! The clock stands still while a thread works and jumps when all of them wait, so that a fence of two minutes takes milliseconds. It keeps its
//! own account of what must never happen ([`Simulation::violations`]), without knowing anything of the engine.
//!
//! The thread that makes the simulation counts as working; other threads have to be started with [`System::spawn`](super::System::spawn).
//! [`Simulation::in_real_time`] follows the wall's clock instead, for a whole agent that lives beside other processes.

mod build;
mod clock;
mod daemons;
mod device_mapper;
mod faults;
mod lvm;
mod people;
mod stack;
mod system;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clock::Waiter;

pub use build::{Group, Layout, Under, uuid_of};
pub use faults::{Daemon, Declaring, Dropping, InFlight, Starting};
pub use stack::Stack;

use super::{Error, Host, LockspaceHost, Underway};
use crate::fence::{DevNo, DiskMark, DmDevice, LockspaceState, Monotonic, Table};

/// A device-mapper device.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDevice {
    /// As its ioctls describe it.
    pub dm: DmDevice,
    /// The inactive slot.
    pub inactive: Option<Table>,
    /// I/O that was issued. What queues in a map below comes on top.
    pub in_flight: InFlight,
    /// So many swaps are interrupted first.
    pub interrupts: u32,
    /// So many ioctls find it busy first.
    pub busy: u32,
    /// For so many ioctls the kernel has no memory first.
    pub no_memory: u32,
    /// Somebody left it suspended, and it is nobody's fault but theirs that it is.
    pub left_suspended: bool,
    /// Right before the load, the number passes to a device that is none of the fence's business.
    pub passes_on_at_load: bool,
    /// Of a multipath map: working paths.
    pub active_paths: u32,
    /// What the kernel counted when it was made; all of the layout's have 0.
    pub sequence: u64,
}

/// A lockspace with its watchdog client.
#[derive(Clone, Debug, Default)]
pub struct SimulatedLockspace {
    /// As lvmlockd and sanlock know it.
    pub lockspace: crate::fence::Lockspace,
    /// Whether wdmd has its client.
    pub armed: bool,
    /// sanlock's only: lvmlockd was started anew and has not adopted it.
    pub unadopted: bool,
}

/// More calls than that at one point in time are a circle.
const NO_PROGRESS: u64 = 50_000;

thread_local! {
    /// Whether this thread counts as working while it does not wait.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

type Event = Box<dyn FnOnce(&mut State) + Send>;

/// The node. Tests change it before a fence, or by [`Simulation::at`] during one.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "what is so or not so")]
pub struct State {
    now: Duration,
    /// When the clock began, if it is the wall's.
    real_time: Option<Instant>,
    running: usize,
    threads: usize,
    waiters: BTreeMap<u64, Waiter>,
    next_waiter: u64,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// Rings when a table has changed.
    device_bell: super::Bell,
    calls: u64,
    calls_at_last_tick: u64,
    crash_at: Option<u64>,
    crashed: bool,
    /// When all devices were listed, where somebody wants to know.
    pub lists: Option<Vec<Monotonic>>,
    /// Devices by number.
    pub devices: BTreeMap<DevNo, SimulatedDevice>,
    /// Lockspaces.
    pub lockspaces: Vec<SimulatedLockspace>,
    /// lvmlockd.
    pub lvmlockd: Daemon,
    /// sanlock.
    pub sanlock: Daemon,
    /// wdmd.
    pub wdmd: Daemon,
    /// multipathd.
    pub multipathd: Daemon,
    queueing_disabled: BTreeSet<String>,
    /// Multipath maps under the volume groups that may be fenced.
    map_of_target: BTreeSet<String>,
    /// Disks without multipath that still work.
    pub working_disks: BTreeSet<DevNo>,
    /// Disks that sysfs calls offline.
    pub dead_disks: BTreeSet<DevNo>,
    /// Disks that sysfs has no entry of any more.
    pub gone_disks: BTreeSet<DevNo>,
    /// What tells a disk from the next one of its number; none is told of those that are not in it.
    pub marks: BTreeMap<DevNo, DiskMark>,
    /// How often that was asked.
    pub marks_read: usize,
    /// `/sys/kernel/rcu_expedited`.
    pub rcu_expedited: u32,
    /// Whether `kill_vg` waits in the lockspace's thread, behind a lock that the SAN does not give, while lvmlockd answers all else.
    pub kill_hangs: bool,
    /// Drops of lockspaces.
    pub drop: Dropping,
    /// When lvmlockd tells of lockspaces again, of which one is being dropped.
    tells_from: Duration,
    /// sanlock's version.
    pub sanlock_version: Option<u32>,
    /// Other hosts, by lockspace and id.
    pub hosts: BTreeMap<(String, u64), LockspaceHost>,
    /// Declarations of death.
    pub declare: Declaring,
    /// Who may be declared dead: lockspace, host id, generation.
    pub fenced_hosts: BTreeSet<(String, u64, u64)>,
    /// Listing the devices fails.
    pub listing_fails: bool,
    /// Listing the devices does not end.
    pub listing_hangs: bool,
    /// How long it takes to list all devices.
    pub listing_takes: Duration,
    /// Fire time-out of the watchdog, seconds.
    pub fire_timeout: u32,
    /// Whether sanlock tells generations.
    pub tells_generation: bool,
    /// Whether the kernel tells which number a device was made with.
    pub tells_sequence: bool,
    made: u64,
    /// UUIDs of the volume groups that may be fenced; everything else must not be touched.
    pub targets: BTreeSet<String>,
    /// Incarnations that may be dropped: (lockspace, generation).
    may_drop: BTreeSet<(String, Option<u64>)>,
    /// Maps that were told to queue again while fenced devices stood on them.
    pub restored_early: Vec<String>,
    /// Devices that somebody else brought up or opened during a fence: nobody can be asked to have swapped them before what is below them.
    pub disturbed: BTreeSet<DevNo>,
    /// Starts of lockspaces.
    pub start: Starting,
    /// What volume groups are called on the disks, by UUID, where that is not the layout's name: one that LVM does not find has none.
    pub called: BTreeMap<String, Vec<String>>,
    /// What LVM needs so long to find, by UUID.
    pub found_after: BTreeMap<String, Duration>,
    /// LVM's other tools do not end.
    pub lvm_hangs: bool,
    /// No thread of that name is given, so many times.
    pub no_thread: Option<(String, u32)>,
    starts: u64,
    /// Who holds devices open, for those who ask; `open_count` of the device is what decides.
    pub openers: Vec<crate::fence::unfence::Opener>,
    /// What must never happen, but did.
    violations: Vec<String>,
    /// Calls that change something, in order.
    log: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// What a thread dies of when the agent is killed.
struct Killed;

/// A handle on the simulated node.
#[derive(Clone)]
pub struct Simulation(Arc<Shared>);

impl Simulation {
    /// A node of that layout.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        COUNTS.set(true);
        Self::of(State {
            running: 1,
            ..build::state(layout)
        })
    }

    /// A node of that layout whose clock is the wall's: whatever thread may call it, and nothing is waited for that others wait for too.
    #[must_use]
    pub fn in_real_time(layout: &Layout) -> Self {
        Self::of(State {
            real_time: Some(Instant::now()),
            ..build::state(layout)
        })
    }

    fn of(state: State) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.follow_the_wall();
        state
    }

    /// The traits.
    #[must_use]
    pub fn host(&self) -> Host {
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

    /// Looks at, or changes, the node.
    pub fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.wake.notify_all();
        result
    }

    /// Has something happen at a time on the simulated clock.
    pub fn at(&self, at: Duration, event: impl FnOnce(&mut State) + Send + 'static) {
        self.lock().schedule(at, Box::new(event));
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// What must never happen, but did.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Calls that changed something, in order.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// Has the agent killed at the n-th call from now on; calls begin with 1.
    pub fn kill_at_call(&self, n: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.calls + n);
    }

    /// How many threads there are that [`System::spawn`](super::System::spawn) started.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.lock().threads
    }

    /// How many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Waits until the killed agent's threads have gone, and lets a new agent begin. Whether one was killed at all.
    pub fn restart_agent(&self) -> bool {
        let mut state = self.lock();
        state.crash_at = None;
        let killed = state.crashed;
        while killed && state.threads > 0 {
            let waited = self.0.wake.wait_timeout(state, Duration::from_millis(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.crashed = false;
        if killed {
            // Nobody keeps others from asking any more.
            state.tells_from = Duration::ZERO;
        }
        killed
    }

    /// Ends all threads that still hang: call it when the test is over.
    pub fn end(&self) {
        self.lock().crashed = true;
        self.0.wake.notify_all();
    }

    /// Dies here if the agent was killed, or is now.
    fn checkpoint(&self, state: &mut State) {
        state.calls += 1;
        if state.calls - state.calls_at_last_tick > NO_PROGRESS && !state.crashed {
            state
                .violations
                .push("it turns in circles while no time passes".into());
            state.crashed = true;
        }
        if state.crash_at == Some(state.calls) {
            state.crashed = true;
            self.0.wake.notify_all();
        }
    }

    /// Enters a call: what a daemon or the kernel does happens under this lock.
    fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        self.checkpoint(&mut state);
        die_if_killed(state)
    }

    /// Leaves a call that changed something: the agent may die before it learns of it.
    fn leave(&self, mut state: MutexGuard<'_, State>) {
        self.checkpoint(&mut state);
        self.0.wake.notify_all();
        std::mem::drop(die_if_killed(state));
    }
}

fn die_if_killed(state: MutexGuard<'_, State>) -> MutexGuard<'_, State> {
    if state.crashed {
        std::mem::drop(state);
        // Not a panic: nothing is printed, nobody is blamed.
        std::panic::resume_unwind(Box::new(Killed));
    }
    state
}

impl State {
    fn schedule(&mut self, at: Duration, event: Event) {
        let id = self.next_event;
        self.next_event += 1;
        self.events.insert((at.max(self.now), id), event);
    }

    /// The time.
    #[must_use]
    pub const fn now(&self) -> Monotonic {
        Monotonic(self.now)
    }

    /// Has something happen so much later.
    pub fn later(&mut self, after: Duration, event: impl FnOnce(&mut State) + Send + 'static) {
        self.schedule(self.now + after, Box::new(event));
    }

    /// multipathd synchronises its maps: queueing comes back where it was not told otherwise.
    pub fn requeue_now(&mut self) {
        for d in self.devices.values_mut() {
            if d.dm.uuid.starts_with("mpath-")
                && !self.queueing_disabled.contains(d.dm.name.as_str())
            {
                build::set_queueing(d, true);
            }
        }
    }

    /// The agent is killed now.
    pub fn kill_now(&mut self) {
        self.crashed = true;
    }

    /// The device of that name.
    pub fn device(&mut self, name: &str) -> Option<&mut SimulatedDevice> {
        self.devices.values_mut().find(|d| d.dm.name == name)
    }

    /// Devices of a volume group that could reach the SAN, the `lvmlock` volume aside.
    #[must_use]
    pub fn not_fenced(&self, vg_uuid: &str) -> Vec<String> {
        let prefix = format!("LVM-{vg_uuid}");
        let counts = |d: &&SimulatedDevice| {
            d.dm.uuid.starts_with(&prefix) && !d.dm.name.ends_with("-lvmlock")
        };
        let open = |d: &&SimulatedDevice| !d.cut_off();
        self.devices
            .values()
            .filter(counts)
            .filter(open)
            .map(|d| d.dm.name.to_string())
            .collect()
    }

    /// Devices that are suspended, but for those that somebody left so before.
    #[must_use]
    pub fn suspended(&self) -> Vec<String> {
        let is = |d: &&SimulatedDevice| d.dm.suspended && !d.left_suspended;
        self.devices
            .values()
            .filter(is)
            .map(|d| d.dm.name.to_string())
            .collect()
    }

    /// The lockspace of a volume group, while sanlock has it and it is not on its way out.
    #[must_use]
    pub fn held(&self, vg_uuid: &str) -> bool {
        let is = |l: &&SimulatedLockspace| l.lockspace.vg_uuid == vg_uuid;
        let held = |l: &SimulatedLockspace| l.lockspace.state != LockspaceState::Removing;
        self.lockspaces.iter().find(is).is_some_and(held)
    }

    fn violate(&mut self, what: String) {
        self.violations.push(what);
    }
}

impl SimulatedDevice {
    /// Whether nothing can get through it now or by a mere resume. Not the engine's own judgement, on purpose.
    fn cut_off(&self) -> bool {
        let error = self.dm.targets.iter().all(|t| t.kind == "error");
        error && !self.dm.targets.is_empty() && self.inactive.is_none() && !self.dm.suspended
    }

    fn describe(&self) -> DmDevice {
        DmDevice {
            inactive_table: self.inactive.is_some(),
            sectors: self.dm.targets.iter().map(|t| t.length).sum(),
            ..self.dm.clone()
        }
    }
}

fn dead(what: &str) -> Error {
    Error::Unavailable {
        what: what.to_owned(),
        source: std::io::ErrorKind::ConnectionRefused.into(),
        hint: "Start it",
    }
}
