//! What a fence has no business to do, told from its system calls: to use a device, of the SAN or any other; to read a file that may lie there; to
//! start a program or a process; to speak to anybody but the daemons of its host. Whoever needs none of it cannot hang in what is broken.
//!
//! A call is told when it begins: whether it succeeds, fails, or never ends makes no difference.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use super::Watch;

/// Device nodes that are no way to any storage: device-mapper commands, and what is said to the kernel's log.
const NODES: [&str; 2] = ["/dev/mapper/control", "/dev/kmsg"];
/// What the kernel tells, what lies in memory, and how the host is set up.
const FOLDERS: [&str; 4] = ["/proc/", "/sys/", "/run/", "/etc/"];
/// Where the loader finds the C library, which the rig's build of the program is linked with, other than the release build.
const LIBRARIES: [&str; 2] = ["/lib/", "/usr/lib/"];
/// `set_tid_address`: the C library calls it once, when all of it is loaded (glibc, `__tls_init_tp`).
pub(super) const LOADED: u64 = 218;

const AT_FDCWD: u64 = 0xffff_ff9c;
const CLONE_THREAD: u64 = 0x1_0000;
const AF_UNIX: u64 = 1;

impl Watch {
    /// In words, if it is such a call. The numbers are those of x86-64.
    pub(super) fn out_of_bounds(&self, number: u64, args: [u64; 4]) -> Option<String> {
        match number {
            // open, creat
            2 | 85 => self.opens(&self.text(args[0], 4096), AT_FDCWD),
            // openat, openat2
            257 | 437 => self.opens(&self.text(args[1], 4096), args[0]),
            41 if args[0] != AF_UNIX => Some(format!("socket of family {}", args[0])),
            56 if args[0] & CLONE_THREAD == 0 => Some("clone of a process".to_owned()),
            435 if self.number_at(args[0]) & CLONE_THREAD == 0 => {
                Some("clone of a process".to_owned())
            }
            57 | 58 => Some("fork".to_owned()),
            59 => Some(format!("execve {}", self.text(args[0], 4096))),
            322 => Some(format!("execve {}", self.text(args[1], 4096))),
            // Ways to a file without its name, and to a device node of its own.
            304 => Some("open_by_handle_at".to_owned()),
            425 => Some("io_uring_setup".to_owned()),
            133 | 259 => Some("mknod".to_owned()),
            _ => None,
        }
    }

    fn opens(&self, name: &str, folder: u64) -> Option<String> {
        let own = format!("/proc/{}/", self.pid);
        let path = if name.starts_with('/') {
            name.replace("/proc/self/", &own)
                .replace("/proc/thread-self/", &own)
        } else if folder & AT_FDCWD == AT_FDCWD {
            let at = fs::read_link(format!("{own}cwd")).unwrap_or_default();
            at.join(name).display().to_string()
        } else {
            format!("{}/{name}", self.name_of(folder))
        };
        let inside = |folder: &&str| format!("{path}/").starts_with(*folder);
        let library = path.contains(".so.") && LIBRARIES.iter().any(inside);
        let expected =
            NODES.contains(&&*path) || FOLDERS.iter().any(inside) || library && !self.loaded;
        // Under whatever name. One that is not there, or not yet, has none but its own.
        let kind = fs::metadata(&path).map(|m| m.file_type());
        let node = kind.is_ok_and(|k| k.is_block_device() || k.is_char_device());
        (!expected || node && !NODES.contains(&&*path)).then(|| format!("open {path}"))
    }

    pub(super) fn number_at(&self, at: u64) -> u64 {
        let bytes = self.bytes(at, 8).try_into();
        bytes.map_or(0, u64::from_ne_bytes)
    }
}
