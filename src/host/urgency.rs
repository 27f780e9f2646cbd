//! Going before ordinary work of the node, as sanlock, wdmd and multipathd do.
//!
//! A pod gets of busy cores what it requests, which is next to nothing, and an outage does not wait for its turn: not the look that notices it, nor
//! the fence. So the whole process is scheduled under `SCHED_RR` of sched(7), below those three. It waits more than it computes; should it ever
//! not, the kernel ends it.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use preempt_rt::sched::{Pid, PreemptRtError, Scheduler, SchedulerParams, set_scheduler};

/// The lowest that there is: those of the lock manager are at 99.
const PRIORITY: i32 = 1;
/// Microseconds that a thread may compute without waiting for anything once (getrlimit(2), `RLIMIT_RTTIME`): far beyond what ten thousand devices
/// take. Whoever is at it for longer is out of its mind, and would keep others from their work for ever.
const RUNAWAY: u64 = 30_000_000;

/// For longer than that nobody rests.
const REST: Duration = Duration::from_secs(1);

/// How long who is urgent leaves the node to others after having worked for so long, whoever waits for the next time: as long, up to a second.
#[must_use]
pub fn rest_after(work: Duration) -> Duration {
    work.min(REST)
}

/// From now on the calling thread, and every one that it starts, goes before all ordinary ones: to be called before there are others.
///
/// # Errors
/// Without `CAP_SYS_NICE`, or where the kernel keeps real time from the pod's control group (`CONFIG_RT_GROUP_SCHED`).
pub fn urgent() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_RTTIME, RUNAWAY, RUNAWAY)?;
    schedule(Scheduler::SCHED_RR, PRIORITY)
}

/// For a process that becomes a program of the host: it is one like any other, also for who has to die when memory runs out. `proc` is where procfs
/// is mounted.
///
/// # Errors
/// When the kernel does not let it.
pub fn ordinary(proc: &Path) -> io::Result<()> {
    let scheduled = ordinary_thread();
    std::fs::write(proc.join("self/oom_score_adj"), "0")?;
    scheduled
}

/// For a thread that does what can wait and grows with the node: from now on it is one like any other.
///
/// # Errors
/// When the kernel does not let it.
pub fn ordinary_thread() -> io::Result<()> {
    schedule(Scheduler::SCHED_NORMAL, 0)
}

fn schedule(policy: Scheduler, priority: i32) -> io::Result<()> {
    let params = SchedulerParams { priority };
    set_scheduler(Pid::current_thread(), policy, params).map_err(|e| match e {
        PreemptRtError::Errno(errno) => io::Error::from_raw_os_error(errno),
        e => io::Error::other(e),
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use preempt_rt::sched::get_scheduler;

    use super::*;

    #[test]
    fn who_is_urgent_goes_first_and_so_do_the_threads_that_it_starts_until_one_is_ordinary() {
        let now = || get_scheduler(Pid::current_thread()).unwrap();
        let all = thread::spawn(move || {
            let made = schedule(Scheduler::SCHED_RR, PRIORITY);
            let inherited = thread::spawn(now).join().unwrap();
            let theirs = now();
            ordinary_thread().unwrap();
            (made, [theirs, inherited], now())
        });
        let (made, urgent, ordinary) = all.join().unwrap();
        match made {
            Ok(()) => assert_eq!(urgent, [Scheduler::SCHED_RR; 2]),
            // Not everybody may.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied, "{e}"),
        }
        assert_eq!(ordinary, Scheduler::SCHED_NORMAL);
        assert_ne!(now(), Scheduler::SCHED_RR, "whoever started it is not");
    }

    #[test]
    fn a_program_of_the_host_is_not_spared_when_memory_runs_out() {
        let proc = tempfile::tempdir().unwrap();
        assert!(ordinary(proc.path()).is_err());
        std::fs::create_dir(proc.path().join("self")).unwrap();
        ordinary(proc.path()).unwrap();
        let score = std::fs::read_to_string(proc.path().join("self/oom_score_adj"));
        assert_eq!(score.unwrap(), "0");
    }
}
