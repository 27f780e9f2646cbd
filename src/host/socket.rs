//! One conversation with a daemon over a UNIX socket: every wait ends at one deadline, every answer has a size limit.
//!
//! Some of these daemons serve all clients from one thread, and read a request with blocking calls: a request goes out in one write, or they
//! would wait for its rest and serve nobody.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::{Error, Result};

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// A file.
    Path(PathBuf),
    /// A name without a file; such names belong to the network namespace.
    Abstract(String),
}

impl Address {
    fn resolve(&self) -> nix::Result<UnixAddr> {
        match self {
            Self::Path(path) => UnixAddr::new(path),
            Self::Abstract(name) => UnixAddr::new_abstract(name.as_bytes()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// Who is spoken to, and what to do when it does not answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// Its name.
    pub name: &'static str,
    /// What to do when it is not there.
    pub absent: &'static str,
    /// What to do when it is silent.
    pub silent: &'static str,
}

impl Peer {
    /// Who is asked what, and where: how errors begin.
    pub fn asked(&self, address: &Address, about: &str) -> String {
        format!("{} at {address}, {about}", self.name)
    }
}

/// An answer that is not in the protocol. `what` is from [`Peer::asked`].
pub(super) fn malformed(what: String, detail: &str) -> Error {
    Error::Protocol {
        what,
        detail: format!(
            "{detail}. Does somebody else listen there, or another version (`ss -xlp`)?"
        ),
    }
}

/// An open conversation.
pub(super) struct Conversation {
    stream: UnixStream,
    what: String,
    peer: Peer,
    limit: Duration,
    deadline: Instant,
}

impl Conversation {
    /// Connects. `about` is what is asked, for error messages.
    pub fn open(peer: Peer, about: &str, address: &Address, limit: Duration) -> Result<Self> {
        let what = peer.asked(address, about);
        let deadline = Instant::now() + limit;
        let stream = Self::connect(address, limit).map_err(|source| {
            if would_block(source.kind()) {
                return Error::TimedOut {
                    what: what.clone(),
                    limit,
                    hint: peer.silent,
                };
            }
            Error::Unavailable {
                what: what.clone(),
                source,
                hint: peer.absent,
            }
        })?;
        Ok(Self {
            stream,
            what,
            peer,
            limit,
            deadline,
        })
    }

    fn connect(address: &Address, limit: Duration) -> io::Result<UnixStream> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // A full backlog would block connect() without limit; it keeps to the time-out for sending. Zero would mean none.
        let limit = limit.max(Duration::from_millis(1));
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        setsockopt(
            &fd,
            sockopt::SendTimeout,
            &TimeVal::new(seconds, i64::from(limit.subsec_micros())),
        )?;
        connect(fd.as_raw_fd(), &address.resolve()?)?;
        Ok(UnixStream::from(fd))
    }

    /// Time left; an error when none is.
    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(self.timed_out())
        } else {
            Ok(left)
        }
    }

    fn timed_out(&self) -> Error {
        Error::TimedOut {
            what: self.what.clone(),
            limit: self.limit,
            hint: self.peer.silent,
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        if would_block(source.kind()) {
            return self.timed_out();
        }
        Error::Unavailable {
            what: self.what.clone(),
            source,
            hint: self.peer.absent,
        }
    }

    /// An answer that is not in the protocol.
    pub fn malformed(&self, detail: impl Into<String>) -> Error {
        malformed(self.what.clone(), &detail.into())
    }

    /// An answer that says no.
    pub fn refused(&self, detail: impl Into<String>) -> Error {
        Error::Refused {
            what: self.what.clone(),
            detail: detail.into(),
        }
    }

    /// Sends a whole request, in one write as long as the kernel takes it.
    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        let left = self.left()?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(request))
            .map_err(|e| self.failed(e))
    }

    /// Waits until something is there, or the end, for so long at most.
    pub fn wait_for_an_answer(&self, limit: Duration) {
        let until = self.deadline.min(Instant::now() + limit);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut there = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            if poll(&mut there, left) != Err(nix::errno::Errno::EINTR) {
                return;
            }
        }
    }

    /// Reads what is there; 0 at the end.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let left = self.left()?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(buffer));
            match read {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(|e| self.failed(e)),
            }
        }
    }

    /// Reads until `done` says so of everything read so far, or the peer closes; more than `most` bytes are not believed. Whether the peer
    /// closed comes with it.
    pub fn receive_until(
        &mut self,
        most: usize,
        mut done: impl FnMut(&[u8]) -> bool,
    ) -> Result<(Vec<u8>, bool)> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            if done(&all) {
                return Ok((all, false));
            }
            let n = self.receive(&mut chunk)?;
            if n == 0 {
                return Ok((all, true));
            }
            all.extend_from_slice(chunk.get(..n).unwrap_or_default());
            if all.len() > most {
                return Err(self.malformed(format!("more than {most} bytes")));
            }
        }
    }

    /// Reads exactly that many bytes.
    pub fn receive_exactly(&mut self, n: usize) -> Result<Vec<u8>> {
        let mut all = vec![0; n];
        let mut have = 0;
        while have < n {
            let rest = all.get_mut(have..).unwrap_or_default();
            match self.receive(rest)? {
                0 => return Err(self.malformed(format!("closed after {have} of {n} bytes"))),
                more => have += more,
            }
        }
        Ok(all)
    }
}

/// What a socket's time-out looks like.
fn would_block(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
pub(super) mod testing {
    //! A daemon of a test: serves one connection after another with what it is told.

    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::thread;

    /// Listens on that path, and serves each of `connections` connections with `serve`.
    pub fn serve(path: &Path, connections: usize, serve: impl Fn(UnixStream) + Send + 'static) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for _ in 0..connections {
                let Ok((stream, _)) = listener.accept() else {
                    return;
                };
                serve(stream);
            }
        });
    }

    /// Serves one connection badly.
    pub type Misbehaviour = fn(UnixStream);

    /// What a broken or hostile daemon does with a connection. Each has to end in an error of ours, in time.
    pub fn misbehaviours() -> Vec<(&'static str, Misbehaviour)> {
        use std::io::{Read, Write};
        /// Until the client has had enough.
        fn wait(mut stream: UnixStream) {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        vec![
            ("closes at once", |s| drop(s)),
            ("is silent", wait),
            ("sends half a message and closes", |mut s| {
                let _ = s.write_all(&[5, 0, 0]);
            }),
            ("sends half a message and is silent", |mut s| {
                let _ = s.write_all(&[5, 0, 0]);
                wait(s);
            }),
            ("sends garbage", |mut s| {
                let garbage: Vec<u8> = (0..5000u32)
                    .map(|i| i.wrapping_mul(2_654_435_761).to_ne_bytes()[1])
                    .collect();
                let _ = s.write_all(&garbage);
            }),
            ("sends ones", |mut s| {
                let _ = s.write_all(&[0xff; 4096]);
            }),
            ("sends without end", |mut s| {
                while s.write_all(&[b'x'; 8192]).is_ok() {}
            }),
            ("sends zeros without end", |mut s| {
                while s.write_all(&[0; 8192]).is_ok() {}
            }),
            ("drips", |mut s| {
                while s.write_all(b"a").is_ok() {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const PEER: Peer = Peer {
        name: "testd",
        absent: "Start it",
        silent: "Look at it",
    };

    #[test]
    fn a_full_backlog_ends_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // One that nobody accepts: with a backlog of 0 the second connection has to wait.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let limit = Duration::from_millis(200);
        let begin = Instant::now();
        let open = || Conversation::open(PEER, "x", &Address::Path(path.clone()), limit);
        let kept: Vec<_> = (0..3).map(|_| open()).collect();
        let last = kept.last().unwrap().as_ref().err().unwrap();
        assert!(matches!(last, Error::TimedOut { .. }), "{last}");
        assert!(begin.elapsed() >= limit);
    }

    #[test]
    fn nobody_there_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Path(dir.path().join("none"));
        let error = Conversation::open(PEER, "x", &address, Duration::from_secs(1))
            .err()
            .unwrap();
        assert!(error.to_string().contains("Start it"), "{error}");
        let address = Address::Path(PathBuf::from("x".repeat(300)));
        assert!(Conversation::open(PEER, "x", &address, Duration::from_secs(1)).is_err());
    }
}
