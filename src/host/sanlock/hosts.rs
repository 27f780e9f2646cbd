//! `GET_HOSTS` and `SET_HOST`: what sanlock knows of the other hosts of a lockspace, and that one of them is dead.
//!
//! A request is a header, then `struct sanlk_lockspace`, for `SET_HOST` then `struct sanlk_host` (`sanlock_admin.h` of 5.1.1). Both go out in one
//! write.

use super::{HEADER, LOCKSPACE, NAME, answers, header, u32_at, u64_at};
use crate::host::{Death, HostState, LockspaceHost};

const GET_HOSTS: u32 = 23;
const SET_HOST: u32 = 44;
/// `SANLK_SET_HOST_DEAD_EXT`
const DEAD_EXT: u32 = 1;
/// Size of `struct sanlk_host`: id, generation, timestamp, I/O time-out, flags.
pub const HOST: usize = 32;
/// There are no more in a lockspace.
const MOST_HOSTS: u32 = 2000;

/// `sanlk_host.flags`
mod flag {
    /// `SANLK_HOST_MASK`
    pub const STATE: u32 = 0xf;
    /// `SANLK_HOST_DEAD_EXT`
    pub const DEAD_EXT: u32 = 0x10;
}

/// What sanlock answers instead of 0.
mod code {
    pub const NO_LOCKSPACE: i32 = -2;
    pub const NOT_YET: i32 = -11;
    pub const INVALID: i32 = -22;
    pub const IO_TIMEOUT: i32 = -202;
    pub const VERSION_INCOMPATIBLE: i32 = -204;
    pub const WRONG_GENERATION: i32 = -280;
}

/// `struct sanlk_lockspace` with nothing in it but a name and a host id.
fn lockspace(name: &str, host_id: u64) -> Result<[u8; LOCKSPACE], String> {
    let room = NAME.len();
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(format!(
            "no lockspace can be called {name:?}: 1 to {room} bytes"
        ));
    }
    let mut out = [0; LOCKSPACE];
    for (at, byte) in out.iter_mut().zip(name.bytes()) {
        *at = byte;
    }
    if let Some(at) = out.get_mut(room..room + 8) {
        at.copy_from_slice(&host_id.to_ne_bytes());
    }
    Ok(out)
}

/// Asks for one host.
///
/// # Errors
/// When no lockspace can have that name.
pub fn encode_get(name: &str, host_id: u64) -> Result<Vec<u8>, String> {
    let lockspace = lockspace(name, host_id)?;
    let header = header(GET_HOSTS, HEADER + LOCKSPACE, 0);
    Ok([&header[..], &lockspace].concat())
}

/// How many hosts follow, or sanlock's error number.
///
/// # Errors
/// When it is no answer of sanlock to that.
pub fn decode_count(header: &[u8]) -> Result<Result<usize, i32>, String> {
    answers(header, GET_HOSTS)?;
    let result = u32_at(header, 24).cast_signed();
    if result != 0 {
        return Ok(Err(result));
    }
    let count = u32_at(header, 28);
    if count > MOST_HOSTS {
        return Err(format!("{count} hosts"));
    }
    Ok(Ok(usize::try_from(count).unwrap_or_default()))
}

/// The hosts that follow.
pub fn decode(body: &[u8]) -> impl Iterator<Item = LockspaceHost> + '_ {
    body.chunks_exact(HOST).map(|host| {
        let flags = u32_at(host, 28);
        LockspaceHost {
            host_id: u64_at(host, 0),
            generation: u64_at(host, 8),
            state: match flags & flag::STATE {
                2 => HostState::Free,
                3 => HostState::Live,
                4 => HostState::Failing,
                5 => HostState::Dead,
                _ => HostState::Unknown,
            },
            declared_dead: flags & flag::DEAD_EXT != 0,
        }
    })
}

/// Declares a host dead.
///
/// # Errors
/// When it is not said exactly who: without a generation sanlock would take whichever is there.
pub fn encode_death(death: &Death) -> Result<Vec<u8>, String> {
    if [death.own_host_id, death.host_id, death.generation].contains(&0) {
        return Err(format!(
            "host {} generation {}, declared by host {}: none of these may be 0",
            death.host_id, death.generation, death.own_host_id
        ));
    }
    if death.own_host_id == death.host_id {
        return Err(format!("host {} is this host itself", death.host_id));
    }
    let lockspace = lockspace(&death.lockspace, death.own_host_id)?;
    // data2 stays 0: the lockspace's own I/O time-out.
    let header = header(SET_HOST, HEADER + LOCKSPACE + HOST, DEAD_EXT);
    let mut host = [0; HOST];
    let fields = [death.host_id, death.generation];
    for (at, field) in host.chunks_exact_mut(8).zip(fields) {
        at.copy_from_slice(&field.to_ne_bytes());
    }
    Ok([&header[..], &lockspace, &host].concat())
}

/// sanlock's result.
///
/// # Errors
/// When it is no answer of sanlock to that.
pub fn decode_result(header: &[u8]) -> Result<i32, String> {
    answers(header, SET_HOST)?;
    Ok(u32_at(header, 24).cast_signed())
}

/// Why there are no hosts, in words.
pub fn no_hosts(code: i32) -> String {
    match code {
        code::NO_LOCKSPACE => format!("it does not have that lockspace ({code}). Join it"),
        code::NOT_YET => format!("it has not read the leases yet ({code}). Try again"),
        _ => format!("error {code}"),
    }
}

/// Why nobody was declared dead, in words.
pub fn no_death(code: i32, death: &Death) -> String {
    let Death {
        lockspace,
        own_host_id,
        host_id,
        generation,
    } = death;
    match code {
        code::NO_LOCKSPACE => {
            format!("it does not have lockspace {lockspace} (any more) ({code}). Join it")
        }
        code::INVALID => format!(
            "this host is not number {own_host_id} of lockspace {lockspace}, or {host_id} is beyond its last ({code}). Look at `sanlock client status`"
        ),
        code::IO_TIMEOUT => {
            format!("the storage did not answer in time ({code}). Look at this node's paths to it")
        }
        code::VERSION_INCOMPATIBLE => format!(
            "the leases of lockspace {lockspace} are in an older format that has no place for it ({code}): its locks are free when they have run out. \
             Leases that were made by sanlock 4.2 or newer have one, unless its sanlock.conf said create_old_delta_disk_version"
        ),
        code::WRONG_GENERATION => format!(
            "host {host_id} has joined anew since generation {generation} ({code}): that one's locks are free already. Nothing is to be done"
        ),
        _ => {
            format!("error {code}. Look at its log (/var/log/sanlock.log, `journalctl -u sanlock`)")
        }
    }
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
