//! Multipath: what the kernel's map says of itself, and multipathd's socket.
//!
//! The lines are those of `multipath_status` in Linux `drivers/md/dm-mpath.c`. Whether a map queues is visible in its table only; which paths
//! have failed, in its status only.

use std::time::Duration;

use super::socket::{Address, Conversation, Peer};
use super::{Error, Multipathd, Paths, Result};
use crate::fence::DevNo;

/// A line that does not read like a multipath target's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("word {at} of a multipath {line}: {what}")]
pub struct Malformed {
    /// `table` or `status`.
    pub line: &'static str,
    /// Which word, counted from 0.
    pub at: usize,
    /// What was expected there.
    pub what: &'static str,
}

/// A multipath target's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// `queue_if_no_path` among the features.
    pub queueing: bool,
    /// Every path of every group.
    pub paths: Vec<DevNo>,
}

struct Words<'a> {
    line: &'static str,
    rest: std::str::SplitWhitespace<'a>,
    at: usize,
}

impl<'a> Words<'a> {
    fn new(line: &'static str, text: &'a str) -> Self {
        Self {
            line,
            rest: text.split_whitespace(),
            at: 0,
        }
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed {
            line: self.line,
            at: self.at.saturating_sub(1),
            what,
        }
    }

    fn word(&mut self, what: &'static str) -> std::result::Result<&'a str, Malformed> {
        self.at += 1;
        self.rest.next().ok_or_else(|| self.malformed(what))
    }

    fn number(&mut self, what: &'static str) -> std::result::Result<usize, Malformed> {
        let word = self.word(what)?;
        word.parse().map_err(|_| self.malformed(what))
    }

    /// A count and that many words; whether `wanted` is among them.
    fn counted(
        &mut self,
        what: &'static str,
        wanted: &str,
    ) -> std::result::Result<bool, Malformed> {
        let mut found = false;
        for _ in 0..self.number(what)? {
            found |= self.word(what)? == wanted;
        }
        Ok(found)
    }

    fn skip(&mut self, n: usize, what: &'static str) -> std::result::Result<(), Malformed> {
        for _ in 0..n {
            self.word(what)?;
        }
        Ok(())
    }

    fn dev(&mut self) -> std::result::Result<DevNo, Malformed> {
        let what = "a path's MAJOR:MINOR";
        let word = self.word(what)?;
        let dev = word.split_once(':').and_then(|(major, minor)| {
            Some(DevNo {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        });
        dev.ok_or_else(|| self.malformed(what))
    }
}

/// Reads the parameters of a multipath target in a table.
///
/// # Errors
/// When a word is missing or is not what has to stand there.
pub fn parse_table(params: &str) -> std::result::Result<Table, Malformed> {
    let mut words = Words::new("table", params);
    let queueing = words.counted("features", "queue_if_no_path")?;
    words.counted("the hardware handler", "")?;
    let groups = words.number("the number of groups")?;
    words.number("the first group")?;
    let mut paths = Vec::new();
    for _ in 0..groups {
        words.word("a path selector")?;
        words.counted("the selector's arguments", "")?;
        let count = words.number("the number of paths")?;
        let arguments = words.number("the number of a path's arguments")?;
        for _ in 0..count {
            paths.push(words.dev()?);
            words.skip(arguments, "a path's arguments")?;
        }
    }
    Ok(Table { queueing, paths })
}

/// Reads a multipath target's status: its paths, and whether each is active (`A`) or failed (`F`).
///
/// # Errors
/// When a word is missing or is not what has to stand there.
pub fn parse_status(status: &str) -> std::result::Result<Vec<(DevNo, bool)>, Malformed> {
    let mut words = Words::new("status", status);
    words.counted("features", "")?;
    words.counted("the hardware handler", "")?;
    let groups = words.number("the number of groups")?;
    words.number("the current group")?;
    let mut paths = Vec::new();
    for _ in 0..groups {
        words.word("a group's state")?;
        words.counted("the selector's status", "")?;
        let count = words.number("the number of paths")?;
        let arguments = words.number("the number of a path's figures")?;
        for _ in 0..count {
            let dev = words.dev()?;
            let active = match words.word("A or F")? {
                "A" => true,
                "F" => false,
                _ => return Err(words.malformed("A or F")),
            };
            words.number("how often it failed")?;
            words.skip(arguments, "a path's figures")?;
            paths.push((dev, active));
        }
    }
    Ok(paths)
}

const PEER: Peer = Peer {
    name: "multipathd",
    absent: "Start it (`systemctl start multipathd`); in a pod, mount the host's /run and use the host's network",
    silent: "It may be stuck on dead paths; the kernel's maps have been told directly, it is asked again",
};
/// Since multipath-tools 0.12, below /run.
const SOCKET: &str = "multipathd.socket";
/// Before that.
const ABSTRACT: &str = "/org/kernel/linux/storage/multipathd";
/// No answer to our commands is longer.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Reads the length that comes before an answer: 8 bytes of the machine's order. None for one that no answer has.
#[must_use]
pub fn answer_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.try_into().map(u64::from_ne_bytes).ok()?;
    let length = usize::try_from(length).ok()?;
    (1..=ANSWER_LIMIT).contains(&length).then_some(length)
}

/// Reads an answer, its NUL included.
///
/// # Errors
/// What it says, when that is not `ok`.
pub fn read_answer(answer: &[u8]) -> std::result::Result<(), String> {
    let answer = String::from_utf8_lossy(answer);
    match answer.trim_end_matches('\0').trim() {
        "ok" => Ok(()),
        other => Err(other.chars().take(200).collect()),
    }
}

/// The real multipathd.
#[derive(Clone, Debug)]
pub struct Socket {
    addresses: Vec<Address>,
    limit: Duration,
}

impl Socket {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        // Its own time-out for a client is 4 s; a command may have to wait for its checkers.
        Self {
            addresses: vec![
                Address::Path(paths.run.join(SOCKET)),
                Address::Abstract(ABSTRACT.to_owned()),
            ],
            limit: Duration::from_secs(5),
        }
    }

    /// The first address where somebody listens.
    fn open(&self, command: &str) -> Result<Conversation> {
        let mut problem = None;
        for address in &self.addresses {
            match Conversation::open(PEER, command, address, self.limit) {
                Err(e @ Error::Unavailable { .. }) => problem = problem.or(Some(e)),
                other => return other,
            }
        }
        Err(problem.unwrap_or_else(|| Error::NoSuchDevice {
            what: PEER.name.to_owned(),
        }))
    }

    /// Sends a command, expects `ok`. A message is its length, NUL included, in 8 bytes of the machine's order, then the text.
    fn command(&self, verb: &str, map: &str) -> Result<()> {
        let map = &plain(map);
        let command = format!("{verb} map {map}");
        if map.is_empty()
            || !map
                .chars()
                // Quotes, comments and words of their own to its parser (`alloc_strvec`): the rest would not be part of the name.
                .all(|c| c.is_ascii_graphic() && !"\"'!#{}".contains(c))
        {
            return Err(Error::Refused {
                what: format!("{}, {verb}", PEER.name),
                detail: format!("{map:?} cannot be a map's name in its language; rename the map"),
            });
        }
        let mut conversation = self.open(&command)?;
        let mut request = u64::try_from(command.len() + 1)
            .unwrap_or_default()
            .to_ne_bytes()
            .to_vec();
        request.extend(command.bytes());
        request.push(0);
        conversation.send(&request)?;
        let Some(length) = answer_length(&conversation.receive_exactly(8)?) else {
            return Err(conversation.malformed("a length that no answer has"));
        };
        let answer = conversation.receive_exactly(length)?;
        read_answer(&answer).map_err(|said| conversation.refused(said))
    }
}

/// A map's name as multipathd has it: in the kernel's, libdm writes what is neither letter, digit nor one of `#+-.:=@_` as `\xNN` (`dm_task_set_name`).
fn plain(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let (Some(code), Some(rest)) = (code.filter(u8::is_ascii), part.get(2..)) {
            plain.push(char::from(code));
            plain.push_str(rest);
        } else {
            plain.push_str("\\x");
            plain.push_str(part);
        }
    }
    plain
}

impl Multipathd for Socket {
    fn disable_queueing(&self, map: &str) -> Result<()> {
        self.command("disablequeueing", map)
    }

    fn restore_queueing(&self, map: &str) -> Result<()> {
        self.command("restorequeueing", map)
    }
}

#[cfg(test)]
#[path = "multipath_tests.rs"]
mod tests;
