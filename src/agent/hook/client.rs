//! The hook's side of the conversation with the agent.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::protocol::{Answer, LINE, encode_question};

/// An agent that says nothing for so long hangs.
pub const SILENCE: Duration = Duration::from_secs(4);

/// How asking the agent came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It says that the volume group is fenced. To be looked at, not to be believed.
    Proven,
    /// It could not, for this reason.
    Unproven(String),
    /// There is no agent, or it does not do what an agent does: why.
    NoAgent(String),
}

/// Has the agent at that socket fence a volume group. Waits as long as it says that it works, at most `patience`.
#[must_use]
pub fn ask(socket: &Path, vg: &str, patience: Duration) -> Asked {
    let until = Instant::now() + patience;
    match converse(socket, vg, until) {
        Ok(asked) => asked,
        Err(e) => Asked::NoAgent(e.to_string()),
    }
}

fn converse(socket: &Path, vg: &str, until: Instant) -> std::io::Result<Asked> {
    // A socket in a file connects at once or not at all, unless its backlog is full: then whoever listens has not accepted for long.
    let mut stream = connect(socket)?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(encode_question(vg).as_bytes())?;
    let mut heard = Vec::new();
    let mut silent_until = Instant::now() + SILENCE;
    loop {
        while let Some(end) = heard.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            match Answer::decode(line.trim_ascii_end()) {
                Some(Answer::Working) => silent_until = Instant::now() + SILENCE,
                Some(Answer::Proven) => return Ok(Asked::Proven),
                Some(Answer::Unproven(why)) => return Ok(Asked::Unproven(why)),
                None => return Ok(no("it answered what is not in the protocol")),
            }
        }
        if heard.len() > LINE {
            return Ok(no("it answered a line without end"));
        }
        let now = Instant::now();
        if now >= until {
            return Ok(no("it did not get it done in time"));
        }
        let left = silent_until.min(until).saturating_duration_since(now);
        if left.is_zero() {
            return Ok(no("it does not move"));
        }
        stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 512];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(no("it ended")),
            Ok(n) => heard.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
    }
}

/// With a time limit: on a thread, since a full backlog blocks for as long as nobody accepts.
fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let (tell, told) = std::sync::mpsc::channel();
    let path = socket.to_owned();
    std::thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || tell.send(UnixStream::connect(path)))?;
    told.recv_timeout(SILENCE)
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
}

fn no(why: &str) -> Asked {
    Asked::NoAgent(why.to_owned())
}
