//! The guard goes on with what it had watched when an un-fence is not carried on at once.

use super::ASK;
use crate::agent::executor::{limited, own_devices};
use crate::agent::journal::{Error, Journal, Standing};
use crate::fence::DmDevice;
use crate::host::Host;

/// Of un-fences that were killed half-way, what they had lifted stands again, if devices of it are left: whether it is given back now is not known
/// before a complete look, and that may be far away.
pub fn watch_again(host: &Host, journal: &Journal) {
    if let Err(error) = put_back(host, journal) {
        tracing::error!(%error, "what an un-fence has left half-way may not be watched over");
    }
}

/// An un-fence that was left half-way is not to be gone on with, by this agent or the next: what stays fenced of it is watched over first. Whether that
/// is done. Not where it is not known what devices are left: its line is all that tells of them.
#[must_use]
pub fn let_go(host: &Host, journal: &Journal, uid: &str) -> bool {
    end(host, journal, uid).unwrap_or_else(|error| {
        tracing::error!(%error, "what an un-fence has left half-way is not let go of yet");
        false
    })
}

fn end(host: &Host, journal: &Journal, uid: &str) -> Result<bool, Error> {
    let lifts = journal.lifts();
    let mut of_it = lifts.all()?;
    of_it.retain(|l| l.report.order.uid == uid);
    if of_it.is_empty() {
        return Ok(true);
    }
    if !put_back(host, journal)? {
        return Ok(false);
    }
    let groups = of_it.iter().flat_map(|l| &l.report.groups);
    lifts.end(groups.map(|g| g.standing.uuid.as_str()))?;
    Ok(true)
}

/// Whether it is known what is left.
fn put_back(host: &Host, journal: &Journal) -> Result<bool, Error> {
    let standings = journal.standings();
    let mut lifted = Vec::new();
    for standing in journal.half_way()?.into_iter().flat_map(|l| l.lifted) {
        if standings.of(&standing.group.uuid)?.is_none() {
            lifted.push(standing);
        }
    }
    if lifted.is_empty() {
        return Ok(true);
    }
    let list = limited::call(host, "listing the devices", ASK, |h| {
        h.device_mapper.devices()
    });
    let Ok(list) = list else { return Ok(false) };
    for standing in lifted.iter().filter(|s| is_left(host, s, &list)) {
        standings.put(standing)?;
    }
    Ok(true)
}

/// Whether a device of the fence is left. One that was made since is in use anew: before the volume group was joined all of the fence's were gone.
fn is_left(host: &Host, standing: &Standing, list: &[DmDevice]) -> bool {
    own_devices(list, &standing.group).any(|d| {
        let made = host.system.sequence(d.dev);
        let before = made
            .zip(standing.newest)
            .is_some_and(|(made, newest)| made <= newest);
        d.is_error_only() || before
    })
}
