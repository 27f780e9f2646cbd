//! Grace periods of the kernel, hurried along while tables are swapped.
//!
//! A swap is hardly more than waiting for them: `dm_suspend` and `__bind` in drivers/md/dm.c call `synchronize_srcu` once or twice each, and
//! with `/sys/kernel/rcu_expedited` above 0 (kernel/ksysfs.c) the kernel asks its cores instead of waiting until they come by. That holds for the
//! whole kernel and costs every core some interrupts, so it is raised for the span of a swap only. What it was is noted first: whoever comes
//! after a killed fence gives it back ([`give_back`]).

use crate::agent::journal::{Expedited as Note, Journal};
use crate::host::Host;

/// Raised, until it is dropped.
pub(super) struct Expedited<'a> {
    host: &'a Host,
    note: Note,
    before: u32,
}

impl<'a> Expedited<'a> {
    /// Raises it. None where that is not possible, or not needed: then a fence takes longer, and nothing else.
    pub(super) fn raise(host: &'a Host, journal: &Journal) -> Option<Self> {
        let note = journal.expedited()?;
        let raise = || -> Result<Option<u32>, Box<dyn std::error::Error>> {
            // Somebody who was killed has raised it, and noted what it was.
            let left = note.left()?;
            let now = host.system.rcu_expedited()?;
            let before = left.unwrap_or(now);
            if left.is_none() {
                if now > 0 {
                    return Ok(None);
                }
                note.put(before)?;
            }
            host.system.set_rcu_expedited(1)?;
            Ok(Some(before))
        };
        match raise() {
            Ok(before) => before.map(|before| Self { host, note, before }),
            Err(e) => {
                tracing::debug!(
                    "RCU's grace periods are not expedited, so the swap takes longer: {e}"
                );
                None
            }
        }
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        // A thread that dies on the way, as if it had been killed, leaves it to its successor.
        if !std::thread::panicking() {
            lower(self.host, &self.note, self.before);
        }
    }
}

/// Gives back what a fence that was killed has raised.
pub fn give_back(host: &Host, journal: &Journal) {
    let Some(note) = journal.expedited() else {
        return;
    };
    match note.left() {
        Ok(Some(before)) => lower(host, &note, before),
        Ok(None) => {}
        Err(e) => {
            tracing::warn!("whether RCU's grace periods were left expedited is not known: {e}");
        }
    }
}

fn lower(host: &Host, note: &Note, before: u32) {
    if let Err(e) = host.system.set_rcu_expedited(before) {
        tracing::warn!(
            "RCU's grace periods stay expedited, which costs each core some interrupts: {e}. Give it back by `echo {before} >/sys/kernel/rcu_expedited`"
        );
        return;
    }
    if let Err(e) = note.remove() {
        tracing::debug!("{e}");
    }
}
