//! `/dev/mapper/control`: the executor of the ioctls. The only `unsafe` of the crate is the system call itself.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::libc::c_int;

use super::codec::{self, HEADER, Header, Request, flag};
use super::known::{Known, Labels};
use super::{listing, table};
use crate::fence::{DevNo, DevNos, DmDevice, Table, Target};
use crate::host::{Device, DeviceEvents, DeviceMapper, Error, Paths, Result};

/// First size of a buffer. Enough for nearly every table; the kernel copies all of it at each call, so not more.
const BUFFER: usize = 1024;
/// The same for the list of all devices, which is one call: enough for some hundreds.
const LIST_BUFFER: usize = 64 * 1024;
/// A list or table of more than this is not believed. 10,000 devices make a list of 1.5 MB.
const BUFFER_LIMIT: usize = 8 * 1024 * 1024;
/// What udev is told at the resume that ends a swap: `DM_SUBSYSTEM_UDEV_FLAG0 | DM_UDEV_PRIMARY_SOURCE_FLAG` in the upper half of a cookie
/// whose lower half is 0. LVM's rules take it as "do not scan": links and properties stay, blkid is not started, and there is no semaphore
/// that anybody has to wait for.
const UDEV_KEEP: u32 = 0x0140_0000;
/// How often a device whose table changed between two questions is asked again.
const CONSISTENT_TRIES: u32 = 3;

/// The wrappers around the system call. The argument is the header's size only because the ioctl's number contains that size.
mod sys {
    use super::HEADER;
    use nix::ioctl_readwrite;

    type Argument = [u8; HEADER];
    ioctl_readwrite!(version, 0xfd, 0, Argument);
    ioctl_readwrite!(list_devices, 0xfd, 2, Argument);
    ioctl_readwrite!(dev_remove, 0xfd, 4, Argument);
    ioctl_readwrite!(dev_suspend, 0xfd, 6, Argument);
    ioctl_readwrite!(dev_status, 0xfd, 7, Argument);
    ioctl_readwrite!(table_load, 0xfd, 9, Argument);
    ioctl_readwrite!(table_deps, 0xfd, 11, Argument);
    ioctl_readwrite!(table_status, 0xfd, 12, Argument);
    ioctl_readwrite!(target_msg, 0xfd, 14, Argument);
    ioctl_readwrite!(dev_arm_poll, 0xfd, 16, Argument);

    /// The numbers are ABI: a header of another size would make other numbers.
    const _: () =
        assert!(nix::request_code_readwrite!(0xfd, 6, size_of::<Argument>()) == 0xc138_fd06);
}

/// The commands that we use. None that creates or renames a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Version,
    ListDevices,
    DevRemove,
    DevSuspend,
    DevStatus,
    TableLoad,
    TableDeps,
    TableStatus,
    TargetMsg,
    DevArmPoll,
}

impl Command {
    /// As the kernel's header file calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Version => "DM_VERSION",
            Self::ListDevices => "DM_LIST_DEVICES",
            Self::DevRemove => "DM_DEV_REMOVE",
            Self::DevSuspend => "DM_DEV_SUSPEND",
            Self::DevStatus => "DM_DEV_STATUS",
            Self::TableLoad => "DM_TABLE_LOAD",
            Self::TableDeps => "DM_TABLE_DEPS",
            Self::TableStatus => "DM_TABLE_STATUS",
            Self::TargetMsg => "DM_TARGET_MSG",
            Self::DevArmPoll => "DM_DEV_ARM_POLL",
        }
    }

    /// The system call. `buffer` has been filled by [`codec::encode`]: its `data_size` is its length.
    fn invoke(self, fd: c_int, buffer: &mut [u8]) -> std::result::Result<c_int, Errno> {
        // The kernel believes the header's data_size, so it has to be true whatever happened above.
        let told = buffer.get(codec::offset::DATA_SIZE..codec::offset::DATA_SIZE + 4);
        let told = told.and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        if buffer.len() < HEADER || told.and_then(|n| usize::try_from(n).ok()) != Some(buffer.len())
        {
            return Err(Errno::EINVAL);
        }
        let argument = buffer.as_mut_ptr().cast::<[u8; HEADER]>();
        // SAFETY: `argument` points to `buffer.len()` writable bytes, at least a header, borrowed for the whole call. The kernel reads and
        // writes no more than `data_size` bytes of them, which was checked to be their number. `fd` is only a number: a wrong one is EBADF
        // or ENOTTY. Bytes have no invalid values, so whatever the kernel writes is sound.
        unsafe {
            match self {
                Self::Version => sys::version(fd, argument),
                Self::ListDevices => sys::list_devices(fd, argument),
                Self::DevRemove => sys::dev_remove(fd, argument),
                Self::DevSuspend => sys::dev_suspend(fd, argument),
                Self::DevStatus => sys::dev_status(fd, argument),
                Self::TableLoad => sys::table_load(fd, argument),
                Self::TableDeps => sys::table_deps(fd, argument),
                Self::TableStatus => sys::table_status(fd, argument),
                Self::TargetMsg => sys::target_msg(fd, argument),
                Self::DevArmPoll => sys::dev_arm_poll(fd, argument),
            }
        }
    }
}

/// What went wrong in one ioctl, before it is told to people.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The kernel said so.
    Errno(Errno),
    /// The kernel's answer makes no sense.
    Malformed(codec::Malformed),
    /// The answer did not fit into the largest buffer.
    TooLong,
}

impl From<codec::Malformed> for Failure {
    fn from(e: codec::Malformed) -> Self {
        Self::Malformed(e)
    }
}

/// Encodes and calls; doubles the buffer while the kernel says that it is too small. The answer is in the buffer.
pub(super) fn exchange(
    buffer: &mut Vec<u8>,
    request: Request<'_>,
    payload: &[u8],
    mut invoke: impl FnMut(&mut [u8]) -> std::result::Result<(), Errno>,
) -> std::result::Result<(), Failure> {
    let least = HEADER + payload.len();
    if buffer.is_empty() {
        buffer.resize(least.max(BUFFER), 0);
    } else if buffer.len() < least {
        buffer.resize(least, 0);
    }
    loop {
        codec::encode(buffer, request, payload)?;
        invoke(buffer).map_err(Failure::Errno)?;
        if codec::decode_flags(buffer)? & flag::BUFFER_FULL == 0 {
            return Ok(());
        }
        let double = buffer.len().saturating_mul(2);
        if double > BUFFER_LIMIT {
            return Err(Failure::TooLong);
        }
        buffer.resize(double, 0);
    }
}

/// Says what a failure means.
pub(super) fn explain(command: &'static str, about: &str, failure: Failure) -> Error {
    let what = format!("device mapper, {command} of {about}");
    match failure {
        Failure::Errno(Errno::ENXIO) => Error::NoSuchDevice { what },
        Failure::Errno(Errno::EINTR) => Error::Interrupted { what },
        Failure::Errno(Errno::EBUSY) => Error::Busy { what },
        Failure::Errno(errno @ (Errno::EACCES | Errno::EPERM)) => Error::Unavailable {
            what,
            source: errno.into(),
            hint: "It takes CAP_SYS_ADMIN in the host's user namespace: run it as root, in a privileged pod",
        },
        Failure::Errno(errno @ (Errno::ENOTTY | Errno::EBADF)) => Error::Unavailable {
            what,
            source: errno.into(),
            hint: "The control file is not device mapper's (10:236): look at what lies at that path",
        },
        Failure::Errno(errno) => Error::Refused {
            what,
            detail: format!("{errno}; the kernel's log may say more"),
        },
        Failure::Malformed(e) => Error::Protocol {
            what,
            detail: e.to_string(),
        },
        Failure::TooLong => Error::Protocol {
            what,
            detail: format!("more than {BUFFER_LIMIT} bytes"),
        },
    }
}

/// The real device mapper.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    sys: PathBuf,
    /// Opened at first use and kept: in an outage no path needs to be looked up.
    file: OnceLock<Arc<File>>,
    /// Threads that may read at a time.
    readers: usize,
    known: Known,
}

impl Control {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            path: paths.dev.join("mapper/control"),
            sys: paths.sys.clone(),
            file: OnceLock::new(),
            readers: listing::readers(),
            known: Known::default(),
        }
    }

    /// The same device with an open file of its own.
    fn another(&self) -> Self {
        Self {
            path: self.path.clone(),
            sys: self.sys.clone(),
            file: OnceLock::new(),
            readers: self.readers,
            known: Known::default(),
        }
    }

    /// The open control file; opened now if it was not.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        if let Some(file) = self.file.get() {
            return Ok(Arc::clone(file));
        }
        let open = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = open.map_err(|source| Error::Unavailable {
            what: format!("device mapper at {}", self.path.display()),
            hint: match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "It takes root and, in a pod, `privileged: true`"
                }
                _ => "Load it on the host (`modprobe dm_mod`); in a pod, mount the host's /dev",
            },
            source,
        })?;
        // If two threads opened it at once, one of the two files is closed again.
        Ok(Arc::clone(self.file.get_or_init(|| Arc::new(file))))
    }

    /// `DM_DEV_ARM_POLL`: from now on the control file is readable once device mapper has told of something.
    pub(super) fn arm_poll(&self) -> Result<()> {
        self.order(Command::DevArmPoll, Request::default(), &[])
    }

    /// A command that is answered: its payload is in the buffer, where the header says.
    fn call(
        &self,
        buffer: &mut Vec<u8>,
        command: Command,
        request: Request<'_>,
        payload: &[u8],
    ) -> Result<Header> {
        self.send(buffer, command, request, payload)?;
        codec::decode_header(buffer).map_err(|e| Self::failed_of(command, request, e))
    }

    fn send(
        &self,
        buffer: &mut Vec<u8>,
        command: Command,
        request: Request<'_>,
        payload: &[u8],
    ) -> Result<()> {
        let file = self.file()?;
        let answer = exchange(buffer, request, payload, |b| {
            command.invoke(file.as_raw_fd(), b).map(|_| ())
        });
        answer.map_err(|failure| Self::failed_of(command, request, failure))
    }

    fn failed_of(command: Command, request: Request<'_>, failure: impl Into<Failure>) -> Error {
        match request.uuid {
            Some(uuid) => explain(command.name(), uuid, failure.into()),
            None => Self::failed(command, request.dev, failure),
        }
    }

    fn failed(command: Command, dev: Option<DevNo>, failure: impl Into<Failure>) -> Error {
        let about = dev.map_or_else(|| "all devices".to_owned(), |d| d.to_string());
        explain(command.name(), &about, failure.into())
    }

    /// Header and targets; the table, or with `status` what the targets say of themselves.
    fn table(&self, buffer: &mut Vec<u8>, dev: Device, table: u32) -> Result<(Header, Table)> {
        // Without NOFLUSH a thin pool or cache would commit its metadata to the storage before it answers.
        let request = Request {
            dev: Some(dev),
            flags: flag::NOFLUSH | table,
            ..Request::default()
        };
        let header = self.call(buffer, Command::TableStatus, request, &[])?;
        let targets = header
            .payload(buffer)
            .and_then(|p| codec::decode_targets(p, header.target_count));
        Ok((
            header,
            targets.map_err(|e| Self::failed(Command::TableStatus, Some(dev), e))?,
        ))
    }

    fn deps(&self, buffer: &mut Vec<u8>, dev: Device) -> Result<DevNos> {
        let request = Request {
            dev: Some(dev),
            ..Request::default()
        };
        let header = self.call(buffer, Command::TableDeps, request, &[])?;
        let deps = header.payload(buffer).and_then(codec::decode_deps);
        deps.map_err(|e| Self::failed(Command::TableDeps, Some(dev), e))
    }

    /// The numbers of all devices, in their order.
    fn numbers(&self) -> Result<Vec<DevNo>> {
        let mut buffer = vec![0; LIST_BUFFER];
        let header = self.call(&mut buffer, Command::ListDevices, Request::default(), &[])?;
        let numbers = header.payload(&buffer).and_then(codec::decode_numbers);
        let mut numbers = numbers.map_err(|e| Self::failed(Command::ListDevices, None, e))?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn describe(&self, buffer: &mut Vec<u8>, dev: Device) -> Result<DmDevice> {
        let mut tries = 0;
        let (header, targets, deps) = loop {
            let (header, targets) = self.table(buffer, dev, flag::STATUS_TABLE)?;
            // Of one moment, and one ioctl less.
            if let Some(deps) = table::devices_used(&targets) {
                break (header, targets, deps);
            }
            let deps = self.deps(buffer, dev)?;
            tries += 1;
            // Two ioctls are two moments: ask again where they plainly speak of two tables.
            if !deps.is_empty() || tries == CONSISTENT_TRIES {
                break (header, targets, deps);
            }
        };
        Ok(DmDevice {
            dev,
            sectors: targets.last().map_or_else(
                || self.sysfs_size(dev),
                |t| t.start.saturating_add(t.length),
            ),
            open_count: header.open_count,
            suspended: header.has(flag::SUSPEND),
            internally_suspended: header.has(flag::INTERNAL_SUSPEND),
            inactive_table: header.has(flag::INACTIVE_PRESENT),
            name: header.name,
            uuid: header.uuid,
            targets,
            deps,
        })
    }

    /// The size of a device without a live table; 0 where sysfs does not know either.
    fn sysfs_size(&self, dev: Device) -> u64 {
        let size = fs::read_to_string(self.sys.join(format!("dev/block/{dev}/size")));
        size.ok()
            .and_then(|s| s.trim().parse().ok())
            .unwrap_or_default()
    }

    /// A command about one device that answers nothing.
    fn order(&self, command: Command, request: Request<'_>, payload: &[u8]) -> Result<()> {
        // The kernel copies all of a buffer, there and back: no more than it takes.
        let mut buffer = vec![0; HEADER + payload.len()];
        self.send(&mut buffer, command, request, payload)
    }
}

impl DeviceMapper for Control {
    fn version(&self) -> Result<(u32, u32, u32)> {
        self.call(&mut Vec::new(), Command::Version, Request::default(), &[])
            .map(|h| h.version)
    }

    fn each(&self, take: &mut dyn FnMut(DmDevice)) -> Result<()> {
        let numbers = self.numbers()?;
        let known = self.known.labels();
        let mut labels = Labels::with_room_for(numbers.len());
        let describe = |buffer: &mut Vec<u8>, dev| {
            let mut device = self.describe(buffer, dev)?;
            known.share(&mut device);
            Ok(device)
        };
        listing::each(&numbers, self.readers, describe, &mut |device| {
            labels.take(&device);
            take(device);
        })?;
        self.known.replace(labels);
        Ok(())
    }

    fn device(&self, uuid: &str) -> Result<DmDevice> {
        let mut buffer = Vec::new();
        let request = Request {
            uuid: Some(uuid),
            ..Request::default()
        };
        let found = self.call(&mut buffer, Command::DevStatus, request, &[])?;
        let device = self.describe(&mut buffer, found.dev)?;
        // The number may have passed on in between.
        if device.uuid == uuid {
            Ok(device)
        } else {
            Err(Error::NoSuchDevice {
                what: format!("device mapper, device {uuid}"),
            })
        }
    }

    fn status(&self, dev: Device) -> Result<Vec<(String, String)>> {
        let (_, targets) = self.table(&mut Vec::new(), dev, 0)?;
        let line = |t: Target| (t.kind.into(), t.params.into());
        Ok(targets.into_iter().map(line).collect())
    }

    fn load_error(&self, uuid: &str, sectors: u64) -> Result<()> {
        let target = codec::encode_target("error", sectors);
        let target = target.map_err(|e| explain(Command::TableLoad.name(), uuid, e.into()))?;
        self.order(
            Command::TableLoad,
            Request {
                uuid: Some(uuid),
                targets: 1,
                ..Request::default()
            },
            &target,
        )
    }

    fn swap(&self, uuid: &str) -> Result<()> {
        let flags = flag::NOFLUSH | flag::SKIP_LOCKFS;
        self.order(
            Command::DevSuspend,
            Request {
                uuid: Some(uuid),
                flags,
                event_nr: UDEV_KEEP,
                ..Request::default()
            },
            &[],
        )
    }

    fn remove(&self, uuid: &str) -> Result<()> {
        // No cookie at all: udev takes its links away by itself, and there is nothing to be kept. No deferred removal either: what is open stays.
        self.order(
            Command::DevRemove,
            Request {
                uuid: Some(uuid),
                ..Request::default()
            },
            &[],
        )
    }

    fn message(&self, uuid: &str, message: &str) -> Result<()> {
        self.order(
            Command::TargetMsg,
            Request {
                uuid: Some(uuid),
                ..Request::default()
            },
            &codec::encode_message(message),
        )
    }

    fn events(&self) -> Result<Box<dyn DeviceEvents>> {
        Ok(Box::new(super::Events::on(self.another())))
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
