//! sanlock's socket, its `STATUS` (sanlock `src/sanlock_sock.h`, `src/cmd.c`); what is asked about other hosts is in [`hosts`].
//!
//! The main thread, the one that watches the leases, answers: a request goes out whole, the answer is read at once. It is a header and then
//! records until the daemon closes. Nothing but a declaration of death makes sanlock touch the storage.

mod hosts;

use std::collections::BTreeMap;
use std::time::Duration;

use super::socket::{Address, Conversation, Peer};
use super::{Death, LockspaceHost, Paths, Result, Sanlock, SanlockLockspace, SanlockStatus};
use crate::fence::preflight::{can_declare_dead, dotted};
use crate::fence::{LockspaceState, Monotonic};

const PEER: Peer = Peer {
    name: "sanlock",
    absent: "Start it (`systemctl start sanlock`); in a pod, mount the host's /run",
    silent: "Look at its log (/var/log/sanlock.log, `journalctl -u sanlock`)",
};
/// Below /run.
const SOCKET: &str = "sanlock/sanlock.sock";

const MAGIC: u32 = 0x0428_2010;
const VERSION: u32 = 1;
const CMD_STATUS: u32 = 5;
/// Size of `struct sm_header`.
const HEADER: usize = 32;
/// Size of `struct sanlk_state`, its text aside.
const STATE: usize = 80;
/// Size of `struct sanlk_lockspace`, which follows a lockspace's record.
const LOCKSPACE: usize = 1104;
/// `SANLK_STATE_MAXSTR`
const TEXT_LIMIT: usize = 4096;
const NAME: std::ops::Range<usize> = 24..72;
/// 2,000 clients and 250 lockspaces stay below it.
const ANSWER_LIMIT: usize = 8 * 1024 * 1024;

/// Types of records.
mod record {
    pub const DAEMON: u32 = 1;
    pub const CLIENT: u32 = 2;
    pub const LOCKSPACE: u32 = 3;
    /// The first type after resources, which are the only others that more than text follows.
    pub const HOST: u32 = 5;
    /// Versions add types (5.1.1 has 7 and 8); what is beyond this is no type but a record read at the wrong place.
    pub const LAST_PLAUSIBLE: u32 = 32;
}

/// The request: everything up to the lockspaces. Resources come after those, one for each lock, and are not needed.
#[must_use]
pub fn encode_status() -> [u8; HEADER] {
    header(CMD_STATUS, HEADER, record::LOCKSPACE)
}

/// A request's header; `length` is that of the whole request.
fn header(command: u32, length: usize, data: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let length = u32::try_from(length).unwrap_or_default();
    let fields = [MAGIC, VERSION, command, 0, length, 0, data, 0];
    for (at, field) in header.chunks_exact_mut(4).zip(fields) {
        at.copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Whether it is the header of an answer to that command.
fn answers(header: &[u8], command: u32) -> std::result::Result<(), String> {
    if u32_at(header, 0) != MAGIC {
        return Err(format!("its magic number is {:#x}", u32_at(header, 0)));
    }
    if u32_at(header, 4) >> 16 != VERSION >> 16 || u32_at(header, 8) != command {
        return Err(format!(
            "version {:#x}, command {}",
            u32_at(header, 4),
            u32_at(header, 8)
        ));
    }
    Ok(())
}

struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize, what: &str) -> std::result::Result<&'a [u8], String> {
        let end = self.at.checked_add(n);
        let cut = end.and_then(|end| self.all.get(self.at..end));
        let cut = cut.ok_or_else(|| {
            format!(
                "it ends within {what}, at byte {} of {}",
                self.at,
                self.all.len()
            )
        })?;
        self.at += n;
        Ok(cut)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

/// Text up to its NUL, or all of it.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// Reads a whole answer.
///
/// # Errors
/// When a record is cut short, too long or unknown, or when the daemon's own record is missing: an answer that was cut off must never read
/// like "no lockspaces".
pub fn decode_status(answer: &[u8]) -> std::result::Result<SanlockStatus, String> {
    let mut bytes = Bytes { all: answer, at: 0 };
    let header = bytes.take(HEADER, "the header")?;
    answers(header, CMD_STATUS)?;
    let mut status = SanlockStatus::default();
    let mut daemon_seen = false;
    while bytes.at < answer.len() {
        let state = bytes.take(STATE, "a record")?;
        let length = usize::try_from(u32_at(state, 72)).unwrap_or(usize::MAX);
        if length > TEXT_LIMIT {
            return Err(format!("a record with a text of {length} bytes"));
        }
        let words = text(bytes.take(length, "a record's text")?);
        let fields: BTreeMap<&str, &str> = words
            .split_ascii_whitespace()
            .filter_map(|w| w.split_once('='))
            .collect();
        match u32_at(state, 0) {
            record::DAEMON => {
                daemon_seen = true;
                status.version = fields
                    .get("version_hex")
                    .and_then(|v| u32::from_str_radix(v, 16).ok());
                let name = fields.get("our_host_name").copied();
                name.unwrap_or_default().clone_into(&mut status.host_name);
                status.fire_timeout = fields
                    .get("watchdog_fire_timeout")
                    .and_then(|v| v.parse().ok());
            }
            record::LOCKSPACE => {
                bytes.take(LOCKSPACE, "a lockspace")?;
                let name = text(state.get(NAME).unwrap_or_default());
                status
                    .lockspaces
                    .push(lockspace(name, u64_at(state, 16), &fields)?);
            }
            // Clients; from 4.0 also worker threads. Text alone, which does not matter here.
            record::CLIENT | record::HOST..=record::LAST_PLAUSIBLE => {}
            other => return Err(format!("a record of type {other}")),
        }
    }
    if daemon_seen {
        Ok(status)
    } else {
        Err("no record of the daemon itself".to_owned())
    }
}

fn lockspace(
    name: String,
    host_id: u64,
    fields: &BTreeMap<&str, &str>,
) -> std::result::Result<SanlockLockspace, String> {
    /// `SANLK_OK`
    const GOOD: i64 = 1;
    let number = |key: &str| fields.get(key).and_then(|v| v.parse::<i64>().ok());
    let unsigned = |key: &str| fields.get(key).and_then(|v| v.parse::<u64>().ok());
    let set = |key: &str| number(key).is_some_and(|n| n != 0);
    let needed = |key: &str| format!("lockspace {name} without {key}");
    let io_timeout = unsigned("io_timeout")
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| needed("io_timeout"))?;
    let last_result = number("renewal_last_result").ok_or_else(|| needed("renewal_last_result"))?;
    let state = match fields.get("list").copied() {
        Some("add") => LockspaceState::Adding,
        Some("rem") => LockspaceState::Removing,
        Some("spaces") if set("space_dead") || set("killing_pids") => LockspaceState::Expired,
        Some("spaces") if set("renew_fail") || last_result != GOOD => {
            LockspaceState::RenewalFailing
        }
        Some("spaces") => LockspaceState::Healthy,
        other => return Err(format!("lockspace {name} in list {other:?}")),
    };
    Ok(SanlockLockspace {
        host_id,
        generation: unsigned("host_generation").filter(|g| *g != 0),
        io_timeout,
        last_renewal: unsigned("renewal_last_success")
            .filter(|t| *t != 0)
            .map(Monotonic::from_secs),
        last_result,
        state,
        name,
    })
}

/// The real sanlock.
#[derive(Clone, Debug)]
pub struct Socket {
    address: Address,
    limit: Duration,
}

impl Socket {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            address: Address::Path(paths.run.join(SOCKET)),
            limit: Duration::from_secs(3),
        }
    }
}

impl Sanlock for Socket {
    fn status(&self) -> Result<SanlockStatus> {
        let mut conversation = Conversation::open(PEER, "status", &self.address, self.limit)?;
        conversation.send(&encode_status())?;
        let (answer, _) = conversation.receive_until(ANSWER_LIMIT, |_| false)?;
        decode_status(&answer).map_err(|detail| conversation.malformed(detail))
    }

    fn host(&self, lockspace: &str, host_id: u64) -> Result<LockspaceHost> {
        let about = format!("host {host_id} of lockspace {lockspace}");
        let mut conversation = Conversation::open(PEER, &about, &self.address, self.limit)?;
        let request = hosts::encode_get(lockspace, host_id);
        conversation.send(&request.map_err(|why| conversation.refused(why))?)?;
        let head = conversation.receive_exactly(HEADER)?;
        let told = hosts::decode_count(&head);
        let count = told.map_err(|detail| conversation.malformed(detail))?;
        let count = count.map_err(|code| conversation.refused(hosts::no_hosts(code)))?;
        let body = conversation.receive_exactly(count * hosts::HOST)?;
        let host = hosts::decode(&body).find(|h| h.host_id == host_id);
        host.ok_or_else(|| conversation.malformed("it tells of other hosts only"))
    }

    fn declare_dead(&self, death: &Death, limit: Duration) -> Result<()> {
        // One that does not know the command hangs up without a word.
        let version = self.status()?.version;
        let about = format!(
            "declare host {} generation {} of lockspace {} dead",
            death.host_id, death.generation, death.lockspace
        );
        let mut conversation = Conversation::open(PEER, &about, &self.address, limit)?;
        if !can_declare_dead(version) {
            let is = version.map_or_else(|| "of an unknown version".to_owned(), dotted);
            return Err(conversation.refused(format!(
                "sanlock {is} cannot do that. Update it on this node to 4.2 or newer"
            )));
        }
        let request = hosts::encode_death(death);
        conversation.send(&request.map_err(|why| conversation.refused(why))?)?;
        let head = conversation.receive_exactly(HEADER)?;
        let told = hosts::decode_result(&head);
        match told.map_err(|detail| conversation.malformed(detail))? {
            0 => Ok(()),
            code => Err(conversation.refused(hosts::no_death(code, death))),
        }
    }
}

#[cfg(test)]
#[path = "sanlock_tests.rs"]
mod tests;
