//! Boot ID, clock, disks, and threads.

use super::{COUNTS, Simulation, build, die_if_killed};
use crate::fence::{DevNo, DiskMark, Monotonic};
use crate::host::{Bell, DiskInfo, Result, System};

impl System for Simulation {
    fn boot_id(&self) -> Result<String> {
        std::mem::drop(self.enter());
        Ok(build::BOOT_ID.to_owned())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(die_if_killed(self.lock()).now)
    }

    fn disk(&self, dev: DevNo) -> Option<DiskInfo> {
        let state = self.lock();
        if state.gone_disks.contains(&dev) {
            return None;
        }
        let runs = !state.dead_disks.contains(&dev);
        Some(DiskInfo {
            name: format!("sd{}", dev.minor),
            state: if runs { "running" } else { "offline" }.into(),
            io: None,
        })
    }

    fn sequence(&self, dev: DevNo) -> Option<u64> {
        let state = self.enter();
        let told = state.devices.get(&dev).filter(|_| state.tells_sequence);
        told.map(|d| d.sequence)
    }

    fn mark(&self, dev: DevNo) -> DiskMark {
        let mut state = self.enter();
        state.marks_read += 1;
        state.marks.get(&dev).cloned().unwrap_or_default()
    }

    fn disks_of(&self, mark: &DiskMark) -> Vec<DevNo> {
        let state = self.enter();
        let is = |m: &DiskMark| {
            m.wwid.is_some() && (&m.wwid, m.partition) == (&mark.wwid, mark.partition)
        };
        let all = state.marks.iter().filter(|(_, m)| is(m));
        all.map(|(dev, _)| *dev).collect()
    }

    fn rcu_expedited(&self) -> Result<u32> {
        Ok(self.enter().rcu_expedited)
    }

    fn set_rcu_expedited(&self, value: u32) -> Result<()> {
        let mut state = self.enter();
        state.rcu_expedited = value;
        state.log.push(format!("rcu_expedited {value}"));
        self.leave(state);
        Ok(())
    }

    fn wait(&self, bell: &Bell, seen: u64, until: Monotonic) {
        let state = self.wait_until(Some(until.0), Some((bell.clone(), seen)), None);
        std::mem::drop(state);
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        {
            let mut state = self.enter();
            if let Some((_, left)) = state
                .no_thread
                .as_mut()
                .filter(|(n, left)| n == name && *left > 0)
            {
                *left -= 1;
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            state.running += 1;
            state.threads += 1;
        }
        let me = self.clone();
        let run = move || {
            COUNTS.set(true);
            // Killed, or done: nobody asks.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let mut state = me.lock();
            state.running = state.running.saturating_sub(1);
            state.threads -= 1;
            me.0.wake.notify_all();
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map(std::mem::drop)
            .inspect_err(|_| {
                let mut state = self.lock();
                state.running -= 1;
                state.threads -= 1;
            })
    }
}
