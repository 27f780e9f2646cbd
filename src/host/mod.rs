//! The only room that talks to the node: device mapper, sysfs, multipathd, lvmlockd, sanlock, wdmd.
//!
//! Each stands behind a small trait, with the real one and a simulated one. No call here reads or writes the SAN, forks, or waits without
//! a limit; a call that may hang in the kernel is meant for a thread that can be abandoned. The exception is [`lvm`], which no fence uses.

mod bell;
pub mod device_mapper;
pub mod host_exec;
mod kernel_events;
pub mod kernel_log;
pub mod lvm;
pub mod lvmlockd;
pub mod multipath;
pub mod openers;
mod paths;
pub mod procfs;
mod real;
pub mod sanlock;
pub mod scsi_log;
pub mod simulated;
mod socket;
pub mod system;
pub mod uevent;
pub mod underway;
pub mod urgency;
pub mod wdmd;

pub use bell::Bell;
pub use kernel_events::{Heard, KernelEvents};
pub use paths::Paths;
pub use scsi_log::ScsiLog;
pub use underway::Underway;

use std::time::Duration;

use crate::fence::unfence::Opener;
use crate::fence::{DevNo, DiskMark, DmDevice, IoCount, Lockspace, Monotonic, Watchdog};

/// What went wrong when talking to the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device or file cannot be opened or used.
    #[error("{what}: {source}. {hint}")]
    Unavailable {
        /// What was tried, on which file or socket.
        what: String,
        /// What the system said.
        source: std::io::Error,
        /// What to do next.
        hint: &'static str,
    },
    /// It did not answer in time.
    #[error("{what} did not answer within {limit:?}. {hint}")]
    TimedOut {
        /// Who or what.
        what: String,
        /// How long was waited.
        limit: Duration,
        /// What to do next.
        hint: &'static str,
    },
    /// It answered something that is not in its protocol.
    #[error("{what} answered what its protocol does not know: {detail}")]
    Protocol {
        /// Who.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// It answered with an error of its own.
    #[error("{what} refused: {detail}")]
    Refused {
        /// Who and what.
        what: String,
        /// Its words or number.
        detail: String,
    },
    /// The device does not exist (any more).
    #[error("{what}: no such device")]
    NoSuchDevice {
        /// Which.
        what: String,
    },
    /// The call was interrupted and undone (EINTR): to be tried again.
    #[error("{what} was interrupted and undone")]
    Interrupted {
        /// Which.
        what: String,
    },
    /// The device is busy in the kernel (EBUSY): to be tried again.
    #[error("{what} is busy")]
    Busy {
        /// Which.
        what: String,
    },
}

/// Short form.
pub type Result<T> = std::result::Result<T, Error>;

/// How a device is named to device mapper.
pub type Device = DevNo;

/// The ioctls of `/dev/mapper/control`, one method each.
pub trait DeviceMapper: Send + Sync {
    /// `DM_VERSION`: proves that the control device works.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn version(&self) -> Result<(u32, u32, u32)>;
    /// `DM_LIST_DEVICES`, then `DM_TABLE_STATUS` (NOFLUSH) of each: hands out everything about every device, one by one and by number. A device
    /// that goes away meanwhile is left out. With an error, what was handed out is not all.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()>;
    /// All of them at once.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn devices(&self) -> Result<Vec<DmDevice>> {
        let mut devices = Vec::new();
        self.each(&mut |device| devices.push(device))?;
        Ok(devices)
    }
    /// The device with that UUID: a number may be another device's by now.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] when it is gone.
    fn device(&self, uuid: &str) -> Result<DmDevice>;
    /// Live status lines (`A`/`F` of paths), not tables: (target type, line) of each target.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] when it is gone.
    fn status(&self, dev: Device) -> Result<Vec<(String, String)>>;
    /// `DM_TABLE_LOAD` of one `error` target of that many sectors into the inactive slot of the device with that UUID: a number may be another
    /// device's by now.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] when it is gone.
    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()>;
    /// `DM_DEV_SUSPEND` without the suspend flag, with `NOFLUSH|SKIP_LOCKFS`: suspend, swap and resume in the kernel. Returns when nothing is
    /// in flight; may block for as long as I/O does not end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when a signal ended the wait: the old table is still live.
    fn swap(&self, uuid: &str) -> Result<()>;
    /// `DM_DEV_REMOVE` of the device with that UUID.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is open, [`Error::NoSuchDevice`] when it is gone.
    fn remove(&self, uuid: &str) -> Result<()>;
    /// `DM_TARGET_MSG` to sector 0 of the device with that UUID.
    ///
    /// # Errors
    /// What the target answered, [`Error::NoSuchDevice`] when the device is gone.
    fn message(&self, uuid: &str, message: &str) -> Result<()>;
    /// Begins to listen for changes of any device.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn events(&self) -> Result<Box<dyn DeviceEvents>>;
}

/// Tells that something has changed about some device: it came, went, got another table, or its target says so (a path that failed, say). Not
/// what: look for yourself.
pub trait DeviceEvents: Send {
    /// From now on counts what [`Self::wait`] waits for.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn arm(&mut self) -> Result<()>;
    /// Waits until something has changed since [`Self::arm`], or time is up. Whether it has.
    ///
    /// # Errors
    /// When the control device cannot be used.
    fn wait(&mut self, limit: Duration) -> Result<bool>;
}

/// What sysfs knows of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskInfo {
    /// Kernel name, such as `sda`.
    pub name: String,
    /// `device/state`; `running` for disks that have no such file.
    pub state: String,
    /// From `stat`; None when it cannot be read.
    pub io: Option<IoCount>,
}

/// Facts from sysfs and procfs.
pub trait System: Send + Sync {
    /// `/proc/sys/kernel/random/boot_id`.
    ///
    /// # Errors
    /// When it cannot be read.
    fn boot_id(&self) -> Result<String>;
    /// `CLOCK_MONOTONIC` now.
    fn monotonic(&self) -> Monotonic;
    /// The disk of that number (of a partition: its disk), None when there is none.
    fn disk(&self, dev: DevNo) -> Option<DiskInfo>;
    /// `diskseq` of the block device of that number: counts up over all disks of the kernel, and a device has the one that it was
    /// made with for as long as it lives. None when there is no such device, or the kernel does not tell (before 5.15).
    fn sequence(&self, dev: DevNo) -> Option<u64> {
        let _ = dev;
        None
    }
    /// What tells the disk of that number (a partition as such) from another one that has the number later. Whatever the kernel tells; it asks no disk.
    fn mark(&self, dev: DevNo) -> DiskMark {
        let _ = dev;
        DiskMark::default()
    }
    /// Numbers of the disks (of the partitions, if it is one's) that have the WWID of that mark now. Reads every disk's: not for a fence.
    fn disks_of(&self, mark: &DiskMark) -> Vec<DevNo> {
        let _ = mark;
        Vec::new()
    }
    /// Begins to read what the kernel logs of SCSI commands that fail from now on. None when it does not tell; why, is in our own log.
    fn scsi_log(&self) -> Option<Box<dyn ScsiLog>> {
        None
    }
    /// `/sys/kernel/rcu_expedited`: above 0, the kernel hurries its grace periods along.
    ///
    /// # Errors
    /// When it cannot be read.
    fn rcu_expedited(&self) -> Result<u32>;
    /// Sets it, for the whole kernel.
    ///
    /// # Errors
    /// When it cannot be written.
    fn set_rcu_expedited(&self, value: u32) -> Result<()>;
    /// Waits until `bell` was rung more often than `seen`, or the clock stands at `until`.
    fn wait(&self, bell: &Bell, seen: u64, until: Monotonic) {
        bell.wait(seen, until.since(self.monotonic()));
    }
    /// Runs `work` on a thread of its own that nobody has to wait for.
    ///
    /// The stack is bounded: enough for an ioctl or an exchange on a socket, and there may be hundreds of them. Locked memory is paid for by
    /// the page that was touched.
    ///
    /// # Errors
    /// When the system has no thread to give.
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.stack_size(256 * 1024).spawn(work).map(drop)
    }
}

/// multipathd's socket.
pub trait Multipathd: Send + Sync {
    /// `disablequeueing map NAME`.
    ///
    /// # Errors
    /// When it does not answer `ok` in time.
    fn disable_queueing(&self, map: &str) -> Result<()>;
    /// `restorequeueing map NAME`.
    ///
    /// # Errors
    /// When it does not answer `ok` in time.
    fn restore_queueing(&self, map: &str) -> Result<()>;
}

/// lvmlockd's socket.
pub trait Lvmlockd: Send + Sync {
    /// The lockspaces in `info`; `io_timeout`, `last_renewal` and `state` are sanlock's to fill in.
    ///
    /// # Errors
    /// When it does not answer in its language in time.
    fn lockspaces(&self) -> Result<Vec<Lockspace>>;
    /// `kill_vg`: no lock is granted any more. Cannot be taken back but by dropping and joining again.
    ///
    /// # Errors
    /// When it does not answer in time, or does not know the volume group.
    fn kill_vg(&self, vg: &str) -> Result<()>;
    /// `drop_vg`. Its answer proves nothing: look into sanlock and wdmd.
    ///
    /// # Errors
    /// When it does not answer in time.
    fn drop_vg(&self, vg: &str, limit: Duration) -> Result<()>;
}

/// A lockspace as sanlock has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SanlockLockspace {
    /// Name.
    pub name: String,
    /// This host's id.
    pub host_id: u64,
    /// Generation, when told.
    pub generation: Option<u64>,
    /// I/O time-out in seconds.
    pub io_timeout: u32,
    /// Last successful renewal.
    pub last_renewal: Option<Monotonic>,
    /// Result of the last renewal, 1 is good.
    pub last_result: i64,
    /// Where it is in its life.
    pub state: crate::fence::LockspaceState,
}

/// What sanlock's `STATUS` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SanlockStatus {
    /// Version as in `version_hex`, when told.
    pub version: Option<u32>,
    /// `our_host_name`; empty when it is not told.
    pub host_name: String,
    /// Seconds until the watchdog fires, when told (from 3.9).
    pub fire_timeout: Option<u32>,
    /// Lockspaces.
    pub lockspaces: Vec<SanlockLockspace>,
}

/// How a host of a lockspace is, as sanlock judges by its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostState {
    /// Not watched for long enough.
    #[default]
    Unknown,
    /// It holds no lease: it has left, and its locks are free.
    Free,
    /// It renews its lease, or did a short while ago.
    Live,
    /// It has not renewed it in time: it gives up now, if it lives.
    Failing,
    /// Its locks are free: its watchdog has fired, or somebody declared it dead.
    Dead,
}

/// A host of a lockspace, as sanlock read its lease last: nothing is read for the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockspaceHost {
    /// Its id.
    pub host_id: u64,
    /// Which of its lives in the lockspace; 0 when that is not known.
    pub generation: u64,
    /// How it is.
    pub state: HostState,
    /// Whether that generation was declared dead.
    pub declared_dead: bool,
}

/// Who is to be declared dead, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Death {
    /// The lockspace.
    pub lockspace: String,
    /// This host's own id in it: sanlock refuses if that is not so (any more).
    pub own_host_id: u64,
    /// The other's id.
    pub host_id: u64,
    /// Which of its lives.
    pub generation: u64,
}

/// sanlock's socket.
pub trait Sanlock: Send + Sync {
    /// `STATUS`: nothing that reads the SAN.
    ///
    /// # Errors
    /// When it does not answer in its language in time.
    fn status(&self) -> Result<SanlockStatus>;
    /// `GET_HOSTS` of one host of a lockspace that this node has joined: nothing that reads the SAN either.
    ///
    /// # Errors
    /// When it does not answer in its language in time, or does not have the lockspace.
    fn host(&self, lockspace: &str, host_id: u64) -> Result<LockspaceHost>;
    /// `SET_HOST` with `DEAD_EXT`: the locks of that host in that generation are free for everybody from now on. Reads and writes the SAN, so never
    /// in a fence.
    ///
    /// sanlock (5.1.1) refuses a generation that is over, and takes one that was never there: compare it with [`Self::host`] first.
    ///
    /// # Errors
    /// When it does not answer in its language within `limit`, or refuses; with what to do.
    fn declare_dead(&self, death: &Death, limit: Duration) -> Result<()>;
}

/// wdmd's socket.
pub trait Wdmd: Send + Sync {
    /// Its clients and fire time-out. Never an error: unknown is a state.
    fn status(&self) -> Watchdog;
}

/// The host's own LVM tools. Not for the fence: they fork, and they read the SAN.
pub trait Lvm: Send + Sync {
    /// Names that the volume group of that UUID (without dashes) has on the disks now: one, unless LVM does not find it, or finds disks that
    /// disagree. `vg` is what it was called: looked for first, since the disks of all others need not answer then.
    ///
    /// # Errors
    /// When it cannot be run, does not end in time, or fails without an answer; with what it printed.
    fn names_of(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<Vec<String>>;
    /// `vgchange --lockstart VG`, at most `limit` long; of the volume group of that UUID, and of no other that has the name by then.
    ///
    /// # Errors
    /// When it cannot be run, does not end in time, or fails; with what it printed.
    fn start_lockspace(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<()>;
}

/// Who holds devices open.
pub trait Openers: Send + Sync {
    /// Tells of processes, mounts and devices that hold one of these devices open, as far as they can be seen, each as it is found: looking at a
    /// process whose files lie on a storage that hangs may take for ever. For a thread of its own: it does not go before other work any more.
    fn of(&self, devices: &[DmDevice], found: &mut dyn FnMut(Opener));
}

/// A whole host: what the agent is given.
#[derive(Clone)]
pub struct Host {
    /// Device mapper.
    pub device_mapper: std::sync::Arc<dyn DeviceMapper>,
    /// sysfs and clocks.
    pub system: std::sync::Arc<dyn System>,
    /// multipathd.
    pub multipathd: std::sync::Arc<dyn Multipathd>,
    /// lvmlockd.
    pub lvmlockd: std::sync::Arc<dyn Lvmlockd>,
    /// sanlock.
    pub sanlock: std::sync::Arc<dyn Sanlock>,
    /// wdmd.
    pub wdmd: std::sync::Arc<dyn Wdmd>,
    /// LVM's tools.
    pub lvm: std::sync::Arc<dyn Lvm>,
    /// Who holds devices open.
    pub openers: std::sync::Arc<dyn Openers>,
    /// Devices at which a thread of this process was left behind.
    pub underway: Underway,
}
