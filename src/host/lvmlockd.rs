//! lvmlockd's socket (lvm2 `libdaemon/client`, `daemons/lvmlockd/lvmlockd-core.c`).
//!
//! A message is lines of `key = value`, ended by a line `##`. One thread of the daemon serves all clients and blocks in the middle of a
//! message that does not go on: so each request goes out whole, on a connection of its own. A request that it does not know is not answered
//! at all. `info` comes as datagrams to an abstract socket of a fixed name, which the asker has to own before it asks.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};

use super::socket::{Address, Conversation, Peer, malformed};
use super::{Error, Lvmlockd, Paths, Result};
use crate::fence::{Lockspace, LockspaceState};

const PEER: Peer = Peer {
    name: "lvmlockd",
    absent: "Unless the SAN is away, start it (`systemctl start lvmlockd`; docs/bad-night.md); in a pod, mount the host's /run",
    silent: "Look at its log (`journalctl -u lvmlockd`); one stuck client blocks all others. Do not start it anew while the SAN is away (docs/bad-night.md)",
};
/// Below /run.
const SOCKET: &str = "lvm/lvmlockd.socket";
/// Where `info` is sent to.
const DUMP: &str = "lvmlockd-dump.sock";
/// End of a message.
const END: &[u8] = b"\n##\n";
/// No reply is longer: a few fields.
const REPLY_LIMIT: usize = 64 * 1024;
/// The daemon's own buffer for `info` holds 1 MiB, 4 MiB from 2.03.26 on (`DUMP_BUF_SIZE`).
const DUMP_LIMIT: usize = 16 * 1024 * 1024;
/// Its datagrams have at most this size.
const DATAGRAM: usize = 64 * 1024;
/// How often the name for the dump is tried for, while another program (`lvmlockctl --info`) has it.
const RETRY: Duration = Duration::from_millis(20);
/// For so long at most others are kept from asking while a lockspace is dropped: whoever of us asks waits for a second at least (lvmlockctl does not, and
/// says `socket error`).
pub(super) const QUIET: Duration = Duration::from_millis(800);
/// A drop waits no longer than this for others to have their answer.
const QUIETEN: Duration = Duration::from_millis(500);
/// How often `info` is asked for that comes out too long: it does where a lock is given back just then (see [`Socket::quiet`]).
const TOO_LONG: u32 = 3;
/// What an answer that does not fit into the daemon's buffer has as its result (ENOSPC).
const NO_SPACE: i64 = -28;

/// A value in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Printed in quotes.
    Text(&'a str),
    /// Printed bare.
    Number(i64),
}

/// A message of those fields, its end included.
#[must_use]
pub fn encode(fields: &[(&str, Value<'_>)]) -> Vec<u8> {
    let lines: Vec<String> = fields
        .iter()
        .map(|(key, value)| match value {
            Value::Text(text) => {
                let text = text.replace('\\', "\\\\").replace('"', "\\\"");
                format!("{key} = \"{text}\"")
            }
            Value::Number(number) => format!("{key} = {number}"),
        })
        .collect();
    [lines.join("\n").as_bytes(), END].concat()
}

/// A reply: its fields, quotes removed. What is no field is left out: newer versions may say more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply(BTreeMap<String, String>);

impl Reply {
    /// Reads a reply.
    #[must_use]
    pub fn decode(message: &str) -> Self {
        let fields = message.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            let value = quoted.map_or_else(
                || value.to_owned(),
                |v| v.replace("\\\"", "\"").replace("\\\\", "\\"),
            );
            Some((key.trim().to_owned(), value))
        });
        Self(fields.collect())
    }

    /// A field.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A field that is a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i64> {
        self.text(key)?.parse().ok()
    }
}

/// What an `op_result` means (lvm2 `daemons/lvmlockd/lvmlockd-client.h`).
fn meaning(result: i64) -> &'static str {
    match result {
        -210 => "it has no lockspace of that volume group",
        -211 => "the lockspace is still starting",
        -214 => "the lock manager failed",
        -217 => "the volume group has been killed already",
        -116 => "the lockspace is stopping",
        -115 => "it is in progress",
        -16 => "locks are held",
        // A lock takes 136 bytes of it (dump_info in lvmlockd-core.c).
        NO_SPACE => {
            "its own list of lockspaces and locks is too long for its buffer (1 MiB, 4 MiB from lvm2 2.03.26 on): deactivate volumes, or move some to another node"
        }
        _ => "see lvmlockd-client.h of lvm2",
    }
}

/// Reads the text of `info`. Keys are looked up by name: their order and number differ between versions.
///
/// Lockspaces of other lock managers than sanlock are left out: they have no lease on the storage and no part in the watchdog.
///
/// # Errors
/// When it does not look like `info` at all.
pub fn parse_info(text: &str) -> std::result::Result<Vec<Lockspace>, String> {
    let mut lockspaces: Vec<Lockspace> = Vec::new();
    let mut current: Option<Lockspace> = None;
    for (n, line) in text.lines().enumerate() {
        let Some(rest) = line.strip_prefix("info=") else {
            // The daemon cuts off names of clients that hold line ends nowhere; only the very first line must be its own.
            if n == 0 {
                return Err(format!(
                    "it begins with {:?}",
                    line.chars().take(40).collect::<String>()
                ));
            }
            continue;
        };
        let mut words = rest.split_ascii_whitespace();
        let kind = words.next().unwrap_or_default();
        let fields: BTreeMap<&str, &str> = words.filter_map(|w| w.split_once('=')).collect();
        match kind {
            "ls" => {
                lockspaces.extend(current.take());
                current = lockspace(&fields)?;
            }
            "r" if fields.get("type") == Some(&"lv")
                && matches!(fields.get("mode"), Some(&"ex" | &"sh")) =>
            {
                if let Some(l) = current.as_mut() {
                    l.lv_locks += 1;
                }
            }
            _ => {}
        }
    }
    lockspaces.extend(current);
    Ok(lockspaces)
}

/// One `info=ls` line; None for those of other lock managers.
fn lockspace(fields: &BTreeMap<&str, &str>) -> std::result::Result<Option<Lockspace>, String> {
    if fields.get("lm_type").is_some_and(|t| *t != "sanlock") {
        return Ok(None);
    }
    let need = |key: &str| {
        fields
            .get(key)
            .copied()
            .ok_or_else(|| format!("a lockspace without {key}"))
    };
    let number = |key: &str| {
        fields
            .get(key)
            .and_then(|v| v.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let told = need("ls_name")?;
    let name = told.strip_prefix("REM:").unwrap_or(told);
    let ended = name != told || number("thread_stop") != 0 || number("thread_done") != 0;
    let starting = number("create_done") == 0;
    Ok(Some(Lockspace {
        name: name.to_owned(),
        vg_name: need("vg_name")?.to_owned(),
        vg_uuid: need("vg_uuid")?.replace('-', ""),
        host_id: number("host_id"),
        // From 2.03.34; 0 while it is not known yet.
        generation: Some(number("generation")).filter(|g| *g != 0),
        state: match (ended, starting) {
            (true, _) => LockspaceState::Removing,
            (false, true) => LockspaceState::Adding,
            (false, false) => LockspaceState::Healthy,
        },
        frozen: number("kill_vg") != 0,
        ..Lockspace::default()
    }))
}

/// The real lvmlockd.
#[derive(Clone, Debug)]
pub struct Socket {
    address: Address,
    dump: String,
    /// Whose datagrams are believed, besides root's: anybody may send to an abstract name.
    trusted_uid: u32,
    limit: Duration,
    /// The name for the dump, while drops of this process keep it from others.
    quiet: Arc<Mutex<Weak<UnixDatagram>>>,
}

impl Socket {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            address: Address::Path(paths.run.join(SOCKET)),
            dump: DUMP.to_owned(),
            trusted_uid: 0,
            limit: Duration::from_secs(5),
            quiet: Arc::default(),
        }
    }

    fn asked(&self, about: &str) -> String {
        PEER.asked(&self.address, about)
    }

    /// One request, one reply, one connection.
    fn ask(&self, request: &'static str, vg: Option<&str>, limit: Duration) -> Result<Reply> {
        self.request(request, vg, limit).and_then(reply)
    }

    /// Sends a request.
    fn request(
        &self,
        request: &'static str,
        vg: Option<&str>,
        limit: Duration,
    ) -> Result<Conversation> {
        let about = vg.map_or_else(|| request.to_owned(), |vg| format!("{request} of {vg}"));
        if let Some(vg) = vg.filter(|vg| !is_vg_name(vg)) {
            return Err(Error::Refused {
                what: self.asked(request),
                detail: format!("{vg:?} cannot be the name of a volume group"),
            });
        }
        let mut fields = vec![
            ("request", Value::Text(request)),
            ("cmd", Value::Text("storage-fence")),
            ("pid", Value::Number(i64::from(std::process::id()))),
        ];
        fields.extend(vg.map(|vg| ("vg_name", Value::Text(vg))));
        let mut conversation = Conversation::open(PEER, &about, &self.address, limit)?;
        conversation.send(&encode(&fields))?;
        Ok(conversation)
    }

    /// Keeps all others from asking for `info`, those of other processes and lvmlockctl included: only who owns the name for the dump can.
    ///
    /// lvmlockd walks through all its locks then, while another thread of it takes out and frees what is unlocked without keeping it from that
    /// (`dump_info`, `res_process` and `clear_locks` of lvmlockd-core.c, up to 2.03.39 at least). A walk that meets a lock that is being given back goes
    /// astray: either the answer is too long for its buffer, or lvmlockd crashes. A drop gives all of them back; and one that crashes lvmlockd in its
    /// middle has nobody left to end it.
    ///
    /// None: somebody has it for longer than a drop may wait.
    fn quiet(&self) -> Option<Arc<UnixDatagram>> {
        // However many drops wait for the same one.
        let until = Instant::now() + QUIETEN;
        let mut kept = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        // Several drops at a time keep it together.
        if let Some(socket) = kept.upgrade() {
            return Some(socket);
        }
        let socket = self.own_dump_socket(until);
        let socket = socket.inspect_err(|error| {
            tracing::warn!(%error, "somebody asks lvmlockd for its locks while one of its lockspaces is dropped, which may make it crash");
        });
        let socket = Arc::new(socket.ok()?);
        *kept = Arc::downgrade(&socket);
        Some(socket)
    }

    /// The text of `info`.
    fn info(&self) -> Result<String> {
        let deadline = Instant::now() + self.limit;
        let mut tried = 1;
        let (socket, reply) = loop {
            let socket = self.own_dump_socket(deadline)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let reply = self.ask("info", None, left)?;
            if tried >= TOO_LONG || reply.number("result") != Some(NO_SPACE) {
                break (socket, reply);
            }
            // What did not fit comes as well, and is not to be taken for the next answer: it goes with the socket.
            drop(socket);
            std::thread::sleep(RETRY);
            tried += 1;
        };
        if let Some(result) = reply.number("result").filter(|r| *r < 0) {
            return Err(Error::Refused {
                what: self.asked("info"),
                detail: format!("result {result}: {}", meaning(result)),
            });
        }
        let length = reply
            .number("dump_len")
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n <= DUMP_LIMIT);
        let Some(length) = length else {
            return Err(malformed(self.asked("info"), "no believable dump_len"));
        };
        let mut text = Vec::new();
        while text.len() < length {
            text.extend(self.datagram(&socket, deadline)?);
        }
        if text.len() > length {
            let detail = format!("{} bytes of info, {length} were promised", text.len());
            return Err(malformed(self.asked("info"), &detail));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn own_dump_socket(&self, deadline: Instant) -> Result<UnixDatagram> {
        let failed = |source: io::Error| Error::Unavailable {
            what: format!("the socket @{} for {}'s info", self.dump, PEER.name),
            source,
            hint: "Only one program can ask at a time: see who holds it with `ss -xlp`",
        };
        let address = SocketAddr::from_abstract_name(&self.dump).map_err(failed)?;
        loop {
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => {
                    setsockopt(&socket, sockopt::PassCred, &true).map_err(|e| failed(e.into()))?;
                    return Ok(socket);
                }
                Err(e)
                    if e.kind() == io::ErrorKind::AddrInUse
                        && Instant::now() + RETRY < deadline =>
                {
                    std::thread::sleep(RETRY);
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// The next datagram of the daemon's; those of others are passed over.
    fn datagram(&self, socket: &UnixDatagram, deadline: Instant) -> Result<Vec<u8>> {
        let what = self.asked("info");
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timed_out = || Error::TimedOut {
                what: what.clone(),
                limit: self.limit,
                hint: PEER.silent,
            };
            if left.is_zero() {
                return Err(timed_out());
            }
            let failed = |source| Error::Unavailable {
                what: what.clone(),
                source,
                hint: PEER.absent,
            };
            socket.set_read_timeout(Some(left)).map_err(failed)?;
            let mut space = nix::cmsg_space!(UnixCredentials);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<()>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::empty(),
            );
            let (bytes, sender) = match message {
                Ok(m) => {
                    let sender = m.cmsgs().ok().and_then(|mut c| {
                        c.find_map(|c| match c {
                            ControlMessageOwned::ScmCredentials(who) => Some(who.uid()),
                            _ => None,
                        })
                    });
                    (m.bytes, sender)
                }
                Err(nix::errno::Errno::EAGAIN) => return Err(timed_out()),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(failed(e.into())),
            };
            if sender.is_some_and(|uid| uid == 0 || uid == self.trusted_uid) {
                buffer.truncate(bytes);
                return Ok(buffer);
            }
        }
    }
}

/// LVM's own rule for names (`lib/misc/lvm-string.c`).
fn is_vg_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    (1..=127).contains(&name.len())
        && !name.starts_with('-')
        && name != "."
        && name != ".."
        && name.bytes().all(legal)
}

impl Lvmlockd for Socket {
    fn lockspaces(&self) -> Result<Vec<Lockspace>> {
        let text = self.info()?;
        parse_info(&text).map_err(|detail| malformed(self.asked("info"), &detail))
    }

    fn kill_vg(&self, vg: &str) -> Result<()> {
        let reply = self.ask("kill_vg", Some(vg), self.limit)?;
        let what = self.asked(&format!("kill_vg of {vg}"));
        match reply.number("op_result") {
            Some(0) => Ok(()),
            Some(n) => Err(Error::Refused {
                what,
                detail: format!("{n}: {}", meaning(n)),
            }),
            None => Err(malformed(what, "a reply without op_result")),
        }
    }

    fn drop_vg(&self, vg: &str, limit: Duration) -> Result<()> {
        // Whatever op_result says, 0 included, is no proof and no reason to stop: a lockspace that is gone, or going, answers with errors.
        let quiet = self.quiet();
        let conversation = self.request("drop_vg", Some(vg), limit)?;
        // The locks are given back first.
        conversation.wait_for_an_answer(QUIET);
        drop(quiet);
        reply(conversation).map(|_| ())
    }
}

/// The reply to what was requested.
fn reply(mut conversation: Conversation) -> Result<Reply> {
    let (message, closed) = conversation.receive_until(REPLY_LIMIT, |all| all.ends_with(END))?;
    if closed {
        return Err(conversation.malformed(format!(
            "closed after {} bytes, before the end of its reply",
            message.len()
        )));
    }
    let reply = Reply::decode(&String::from_utf8_lossy(&message));
    match reply.text("response") {
        Some("OK") => Ok(reply),
        Some(other) => Err(conversation.refused(other.chars().take(100).collect::<String>())),
        None => Err(conversation.malformed("a reply without a response")),
    }
}

#[cfg(test)]
#[path = "lvmlockd_tests.rs"]
mod tests;
