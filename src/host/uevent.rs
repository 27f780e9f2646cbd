//! What the kernel tells about devices: uevents, as udev gets them (`lib/kobject_uevent.c`, `drivers/md/dm-uevent.c`).
//!
//! A message is `ACTION@DEVPATH` and then `KEY=VALUE`s, each ended by a NUL. They come in the network namespace of the host only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket, sockopt,
};

use super::{Error, Heard, Result};

/// The kernel's own group; udev tells its clients in another.
const KERNEL: u32 = 1;
/// The kernel's messages are at most 2 KiB (`UEVENT_BUFFER_SIZE`) and a header.
const LONGEST: usize = 8 * 1024;
/// Room for the storm of an outage: one event for each path and each try.
const ROOM: usize = 1024 * 1024;
/// Messages that are read in one go; the rest waits for the next.
const AT_ONCE: usize = 1024;

/// One message of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`...
    pub action: String,
    /// `block`, `scsi`...
    pub subsystem: String,
    /// Kernel name of a block device, such as `sda`.
    pub device: String,
    /// `disk`, `partition`, `scsi_device`...
    pub kind: String,
    /// `PATH_FAILED` or `PATH_REINSTATED`, from multipath.
    pub dm_action: String,
}

/// Reads a message; None when it is not the kernel's.
#[must_use]
pub fn parse(message: &[u8]) -> Option<Uevent> {
    let mut parts = message.split(|b| *b == 0).filter(|p| !p.is_empty());
    let first = parts.next()?;
    // udev's own begin with "libudev".
    let at = first.iter().position(|b| *b == b'@')?;
    let mut uevent = Uevent {
        action: text(first.get(..at)?),
        ..Uevent::default()
    };
    for part in parts {
        let Some(equals) = part.iter().position(|b| *b == b'=') else {
            continue;
        };
        let (key, value) = part.split_at(equals);
        let value = || text(value.get(1..).unwrap_or_default());
        match key {
            b"SUBSYSTEM" => uevent.subsystem = value(),
            b"DEVNAME" => uevent.device = value(),
            b"DEVTYPE" => uevent.kind = value(),
            b"DM_ACTION" => uevent.dm_action = value(),
            _ => {}
        }
    }
    Some(uevent)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Uevent {
    /// Whether it is about a device of device mapper: it came, went, or was resumed, with another table perhaps.
    #[must_use]
    pub fn is_of_device_mapper(&self) -> bool {
        self.subsystem == "block" && self.device.starts_with("dm-")
    }

    /// Whether it may say something about a path to storage: a path of a map failed or came back, a disk or SCSI device came, went or changed.
    /// Not what happens to loop devices and the like all day long on a node full of containers, nor that a partition was read anew.
    #[must_use]
    pub fn concerns_paths(&self) -> bool {
        const NEVER_A_PATH: [&str; 5] = ["loop", "ram", "zram", "dm-", "sr"];
        match self.subsystem.as_str() {
            "block" if !self.dm_action.is_empty() => true,
            "block" => {
                self.kind == "disk" && !NEVER_A_PATH.iter().any(|p| self.device.starts_with(p))
            }
            "scsi" | "nvme" => self.action != "bind" && self.action != "unbind",
            _ => false,
        }
    }
}

/// The socket on which they come.
#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel has no such socket, or does not give one.
    pub fn open() -> Result<Self> {
        let unavailable = |errno: Errno| Error::Unavailable {
            what: "the kernel's uevents (netlink)".to_owned(),
            source: errno.into(),
            hint: "The agent has to live in the host's network namespace (hostNetwork: true)",
        };
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .map_err(unavailable)?;
        // Only a privileged process may have more than the system's limit; a smaller buffer loses messages, and that is noticed.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &ROOM);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL)).map_err(unavailable)?;
        Ok(Self { socket })
    }

    /// What to poll for reading.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what has come. Messages that were lost may have said anything.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub fn drain(&self) -> Result<Heard> {
        let mut heard = Heard::default();
        let mut buffer = [0; LONGEST];
        for _ in 0..AT_ONCE {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    // Only the kernel has the number 0: anybody else may claim anything.
                    let kernel = from.is_some_and(|a| a.pid() == 0);
                    let message = buffer.get(..length).unwrap_or_default();
                    if let Some(uevent) = parse(message).filter(|_| kernel) {
                        heard.paths |= uevent.concerns_paths();
                        heard.devices |= uevent.is_of_device_mapper();
                    }
                }
                Err(Errno::EAGAIN) => return Ok(heard),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => {
                    heard = Heard {
                        paths: true,
                        devices: true,
                    };
                }
                Err(errno) => {
                    return Err(Error::Unavailable {
                        what: "the kernel's uevents (netlink)".to_owned(),
                        source: errno.into(),
                        hint: "The node's state is read again every few seconds all the same",
                    });
                }
            }
        }
        Ok(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[&str]) -> Vec<u8> {
        parts.iter().flat_map(|p| p.bytes().chain([0])).collect()
    }

    /// As Linux 6.12 sends it when a path of a map fails.
    fn path_failed() -> Vec<u8> {
        message(&[
            "change@/devices/virtual/block/dm-3",
            "ACTION=change",
            "DEVPATH=/devices/virtual/block/dm-3",
            "SUBSYSTEM=block",
            "DM_TARGET=multipath",
            "DM_ACTION=PATH_FAILED",
            "DM_SEQNUM=1",
            "DM_PATH=8:16",
            "DM_NR_VALID_PATHS=0",
            "DM_NAME=mpatha",
            "DM_UUID=mpath-3600",
            "MAJOR=253",
            "MINOR=3",
            "DEVNAME=dm-3",
            "DEVTYPE=disk",
            "SEQNUM=4711",
        ])
    }

    #[test]
    fn a_failed_path_is_understood_and_concerns_us() {
        let uevent = parse(&path_failed()).unwrap();
        assert_eq!(uevent.action, "change");
        assert_eq!(uevent.dm_action, "PATH_FAILED");
        assert_eq!(uevent.device, "dm-3");
        assert!(uevent.concerns_paths());
    }

    #[test]
    fn only_what_may_be_about_a_path_concerns_us() {
        let block = |action: &str, device: &str, kind: &str| Uevent {
            action: action.into(),
            subsystem: "block".into(),
            device: device.into(),
            kind: kind.into(),
            ..Uevent::default()
        };
        let other = |action: &str, subsystem: &str| Uevent {
            action: action.into(),
            subsystem: subsystem.into(),
            ..Uevent::default()
        };
        for (uevent, concerns) in [
            (block("add", "sdb", "disk"), true),
            (block("remove", "sdb", "disk"), true),
            (block("change", "nvme0n1", "disk"), true),
            (block("add", "sdb1", "partition"), false),
            (block("change", "loop7", "disk"), false),
            (block("change", "dm-4", "disk"), false),
            (other("change", "scsi"), true),
            (other("remove", "scsi"), true),
            (other("bind", "scsi"), false),
            (other("change", "nvme"), true),
            (other("add", "net"), false),
            (other("add", "cpu"), false),
        ] {
            assert_eq!(uevent.concerns_paths(), concerns, "{uevent:?}");
            let of_device_mapper = uevent.device == "dm-4";
            assert_eq!(uevent.is_of_device_mapper(), of_device_mapper, "{uevent:?}");
        }
    }

    #[test]
    fn what_is_not_the_kernels_is_none_and_garbage_does_no_harm() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"libudev\0\xfe\xed\xca\xfe"), None);
        let whole = path_failed();
        for end in 0..whole.len() {
            // A message that was cut off is read as far as it goes.
            let _ = parse(&whole[..end]);
        }
        assert_eq!(parse(&[0xff, b'@', 0xff, 0, b'=']).unwrap().subsystem, "");
    }

    /// The real socket: there, silent, and drained without waiting. (Sending a uevent takes a device or the privilege to feign one.)
    #[test]
    fn the_kernel_gives_the_socket() {
        let Ok(uevents) = Uevents::open() else {
            // A sandbox without netlink: nothing to be had here.
            return;
        };
        assert!(uevents.drain().is_ok());
    }
}
