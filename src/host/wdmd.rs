//! wdmd's socket (sanlock `wdmd/wdmd_sock.h`, `wdmd/main.c`).
//!
//! A request is a fixed header. `DUMP_DEBUG`, which `wdmd -d` asks for, answers with text that has no end mark, on a connection that stays
//! open; `STATUS` answers with a header. So both are asked in one write: the header that comes back is the end of the text. We never register,
//! never pet, never extend (S1).

use std::collections::BTreeMap;
use std::time::Duration;

use super::socket::{Address, Conversation, Peer};
use super::{Paths, Result, Wdmd};
use crate::fence::{Monotonic, Watchdog};

const PEER: Peer = Peer {
    name: "wdmd",
    absent: "Start it (`systemctl start wdmd`); in a pod, mount the host's /run",
    silent: "Look at its log (`journalctl -u wdmd`)",
};
/// Below /run.
const SOCKET: &str = "wdmd/wdmd.sock";

const CMD_STATUS: u32 = 5;
const CMD_DUMP_DEBUG: u32 = 6;
/// Size of `struct wdmd_header`.
const HEADER: usize = 176;
/// Offset of `cmd`.
const CMD_AT: usize = 4;
/// Offset of `fire_timeout`.
const FIRE_AT: usize = 20;
/// wdmd's buffer for the text holds 1 MiB.
const ANSWER_LIMIT: usize = 1024 * 1024 + HEADER;

fn header(command: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[CMD_AT..CMD_AT + 4].copy_from_slice(&command.to_ne_bytes());
    header
}

/// Both requests.
#[must_use]
pub fn encode_request() -> [u8; 2 * HEADER] {
    let mut both = [0; 2 * HEADER];
    both[..HEADER].copy_from_slice(&header(CMD_DUMP_DEBUG));
    both[HEADER..].copy_from_slice(&header(CMD_STATUS));
    both
}

/// Splits an answer into the text and the fire time-out of the header that ends it; None while that has not come.
///
/// Text holds no zero bytes, the number of the command does: so nothing else can look like that header.
#[must_use]
pub fn split_answer(answer: &[u8]) -> Option<(&[u8], u32)> {
    let (text, end) = answer.split_at_checked(answer.len().checked_sub(HEADER)?)?;
    let field = |at: usize| end.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let fire = field(FIRE_AT)?;
    (field(CMD_AT)? == CMD_STATUS && !text.contains(&0)).then_some((text, fire))
}

/// Reads the text of the dump, which is what `wdmd -d` prints.
///
/// # Errors
/// When it is not wdmd's, or a client's line does not say when it expires.
pub fn parse_dump(text: &str, fire_timeout: u32) -> std::result::Result<Watchdog, String> {
    if !text.starts_with("wdmd ") || !text.ends_with('\n') {
        let begin: String = text.chars().take(40).collect();
        return Err(format!(
            "a dump of {} bytes that begins with {begin:?}",
            text.len()
        ));
    }
    let mut clients = Vec::new();
    for line in text.lines().filter(|l| l.starts_with("client ")) {
        let broken = || {
            format!(
                "a client's line reads {:?}",
                line.chars().take(200).collect::<String>()
            )
        };
        // The name may be empty or hold anything, so it is what stands between its word and the next one.
        let (name, rest) = line
            .split_once(" name ")
            .and_then(|(_, r)| r.rsplit_once(" pid "))
            .ok_or_else(broken)?;
        let words: Vec<&str> = rest.split_ascii_whitespace().skip(1).collect();
        let fields: BTreeMap<&str, &str> = words
            .chunks_exact(2)
            .filter_map(|w| Some((*w.first()?, *w.get(1)?)))
            .collect();
        let number = |key: &str| {
            fields
                .get(key)
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or_else(broken)
        };
        let (users, expire) = (number("ref")?, number("expire")?);
        // Neither: a connection that asks for nothing, like ours.
        if users != 0 || expire != 0 {
            clients.push((name.to_owned(), Monotonic::from_secs(expire)));
        }
    }
    Ok(Watchdog {
        known: true,
        problem: None,
        fire_timeout,
        clients,
    })
}

/// The real wdmd.
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

    fn ask(&self) -> Result<Watchdog> {
        let mut conversation = Conversation::open(PEER, "status", &self.address, self.limit)?;
        conversation.send(&encode_request())?;
        let (answer, closed) =
            conversation.receive_until(ANSWER_LIMIT, |all| split_answer(all).is_some())?;
        let Some((text, fire_timeout)) = split_answer(&answer).filter(|_| !closed) else {
            return Err(conversation.malformed(format!(
                "closed after {} bytes, before the end of its answer",
                answer.len()
            )));
        };
        let parsed = parse_dump(&String::from_utf8_lossy(text), fire_timeout);
        parsed.map_err(|detail| conversation.malformed(detail))
    }
}

impl Wdmd for Socket {
    fn status(&self) -> Watchdog {
        self.ask().unwrap_or_else(|e| Watchdog {
            known: false,
            problem: Some(e.to_string()),
            ..Watchdog::default()
        })
    }
}

#[cfg(test)]
#[path = "wdmd_tests.rs"]
mod tests;
