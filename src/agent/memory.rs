//! Keeps the agent in memory, and alive when there is none: when it is needed, the disk that its pages would be read from may be what is gone (S3).

use std::io;
use std::path::Path;

use nix::sys::mman::{MlockAllFlags, mlockall};

/// `MCL_ONFAULT` of mlockall(2), which nix does not name.
const ONFAULT: MlockAllFlags = MlockAllFlags::from_bits_retain(4);

/// Locks everything that is mapped now, the program's text above all, which is read in for that. What is mapped later (stacks, heap) is locked
/// page by page when it is first touched: it comes from no disk, and a stack would cost all of its size at once.
///
/// # Errors
/// When the process may not: it needs `CAP_IPC_LOCK` or a large `RLIMIT_MEMLOCK`.
pub fn lock() -> nix::Result<()> {
    mlockall(MlockAllFlags::MCL_CURRENT)?;
    // Without MCL_CURRENT this changes nothing about what is locked already (mm/mlock.c, apply_mlockall_flags).
    mlockall(MlockAllFlags::MCL_FUTURE | ONFAULT)
}

/// Never (proc(5)). Not a little less: the lock manager has to be spared just as well (docs/install.md), and then the last in turn would be this one.
const NEVER: &str = "-1000";

/// Has the kernel end others when it runs out of memory. An outage brings that about: what is dirty for the SAN cannot be written, and so not
/// be freed, until the fence fails it. `proc` is where procfs is mounted.
///
/// # Errors
/// When the process may not: it needs `CAP_SYS_RESOURCE` (proc(5), `oom_score_adj`).
pub fn spare(proc: &Path) -> io::Result<()> {
    std::fs::write(proc.join("self/oom_score_adj"), NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_spared_or_says_why_not() {
        let proc = tempfile::tempdir().expect("tempdir");
        let file = proc.path().join("self/oom_score_adj");
        assert!(spare(proc.path()).is_err());
        std::fs::create_dir(proc.path().join("self")).expect("mkdir");
        spare(proc.path()).expect("spare");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "-1000");
    }
}
