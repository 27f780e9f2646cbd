//! What a process that fences asks of the kernel before all else, and before it has threads: what they need is locked as they touch it then, and all
//! of them go before ordinary work.

use super::memory;
use crate::host::{Paths, urgency};

/// Asks for it. Returns what was not given, each with what comes of it: it goes on without.
#[must_use]
pub fn prepare(paths: &Paths) -> Vec<String> {
    let locked = memory::lock().map_err(|e| {
        format!("memory not locked: in an outage it may wait for a disk. It needs CAP_IPC_LOCK or RLIMIT_MEMLOCK: {e}")
    });
    let spared = memory::spare(&paths.proc).map_err(|e| {
        format!("the kernel may end it when memory runs out. It needs CAP_SYS_RESOURCE: {e}")
    });
    let urgent = urgency::urgent().map_err(|e| {
        format!("not scheduled before other work: on a busy node it may come too late. It needs CAP_SYS_NICE: {e}")
    });
    [locked, spared, urgent]
        .into_iter()
        .filter_map(Result::err)
        .collect()
}
