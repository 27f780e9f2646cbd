//! Carries a fence out: freezes the locks, stops the queueing, swaps the tables, proves it, and only then has the locks released.

use crate::agent::journal::{Journal, Record};
use crate::fence::report::{FenceReport, LocksOutcome, Outcome};
use crate::fence::{Inventory, Order, selection};
use crate::host::Host;

/// Fences what `order` means, from an inventory taken just now. Blocks; made for a thread of its own.
///
/// `cancel` is asked until the locks are frozen, the first thing that leaves a trace; it may block for no time. `progress` is called whenever
/// the report has changed for good, at least at the end of each step; it may block for no time either.
pub fn run(
    host: &Host,
    journal: &mut Journal,
    order: &Order,
    inventory: Inventory,
    cancel: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&FenceReport),
) -> FenceReport {
    let _ = (host, journal, cancel);
    let mut report = FenceReport {
        request: order.name.clone(),
        uid: order.uid.clone(),
        generation: order.generation,
        boot_id: inventory.boot_id.clone(),
        ..FenceReport::default()
    };
    match selection::select(&inventory, order) {
        Ok(_) => report.outcome = Outcome::NotProven,
        Err(refusal) => {
            report.outcome = Outcome::Refused(refusal.reason);
            report.message = refusal.message;
        }
    }
    report.locks = LocksOutcome::Kept;
    progress(&report);
    report
}

/// Completes a fence whose agent was killed: goes on from what the kernel says. For records that are [`Record::unfinished`].
pub fn resume(
    host: &Host,
    journal: &mut Journal,
    record: Record,
    progress: &mut dyn FnMut(&FenceReport),
) -> FenceReport {
    let _ = (host, journal);
    progress(&record.begun.report);
    record.begun.report
}
