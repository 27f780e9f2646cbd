//! Keeps the agent in memory: when it is needed, the disk that its pages would be read from may be what is gone (S3).

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
