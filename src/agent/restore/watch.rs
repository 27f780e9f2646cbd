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

fn put_back(host: &Host, journal: &Journal) -> Result<(), Error> {
    let standings = journal.standings();
    let mut lifted = Vec::new();
    for standing in journal.half_way()?.into_iter().flat_map(|l| l.lifted) {
        if standings.of(&standing.group.uuid)?.is_none() {
            lifted.push(standing);
        }
    }
    if lifted.is_empty() {
        return Ok(());
    }
    let list = limited::call(host, "listing the devices", ASK, |h| {
        h.device_mapper.devices()
    });
    let Ok(list) = list else { return Ok(()) };
    for standing in lifted.iter().filter(|s| is_left(host, s, &list)) {
        standings.put(standing)?;
    }
    Ok(())
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
