//! Commands in a node: the host's end of the guest agent. Every command has a number of its own, so that many can be under way and one that
//! hangs (in D state, say) hangs alone.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::wire::{Answer, Message, Request, read_frame, write_frame};

use super::{Context, Result, lock};

type Waiting = Arc<Mutex<HashMap<u64, Sender<Answer>>>>;

/// The connection to one node's agent.
pub struct Agent {
    node: String,
    write: Mutex<UnixStream>,
    waiting: Waiting,
    next: AtomicU64,
    hello: Mutex<Receiver<()>>,
}

/// A command under way.
pub struct Pending {
    what: String,
    answer: Receiver<Answer>,
}

impl Agent {
    /// Connects to the port's socket; [`Agent::ready`] waits for the guest's end.
    pub fn connect(node: &str, socket: &Path) -> Result<Self> {
        let write =
            UnixStream::connect(socket).context(format!("connecting to {}", socket.display()))?;
        let mut read = write.try_clone()?;
        let waiting = Waiting::default();
        let (tell, hello) = channel();
        let shared = Arc::clone(&waiting);
        std::thread::spawn(move || {
            while let Ok(message) = read_frame::<Message>(&mut read) {
                match message {
                    Message::Hello => {
                        let _ = tell.send(());
                    }
                    Message::Answer(answer) => {
                        if let Some(asker) = lock(&shared).remove(&answer.id) {
                            // It may have stopped waiting.
                            let _ = asker.send(answer);
                        }
                    }
                }
            }
            // The node is gone: whoever waits sees a closed channel.
            lock(&shared).clear();
        });
        Ok(Self {
            node: node.to_owned(),
            write: Mutex::new(write),
            waiting,
            next: AtomicU64::new(1),
            hello: Mutex::new(hello),
        })
    }

    /// Whether the guest's end has reported within `limit`.
    pub fn ready(&self, limit: Duration) -> bool {
        lock(&self.hello).recv_timeout(limit).is_ok()
    }

    /// Starts a shell command; the guest kills it after `limit` (and says so even if it cannot die).
    pub fn start(&self, command: &str, limit: Duration) -> Result<Pending> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, answer) = channel();
        lock(&self.waiting).insert(id, tell);
        let request = Request {
            id,
            command: command.to_owned(),
            limit_ms: u64::try_from(limit.as_millis())?,
        };
        write_frame(&mut *lock(&self.write), &request)
            .context(format!("{} does not take commands", self.node))?;
        Ok(Pending {
            what: format!("{}: `{command}`", self.node),
            answer,
        })
    }
}

impl Pending {
    /// Its answer, or `None` when it is still under way after `limit`.
    pub fn poll(&self, limit: Duration) -> Result<Option<Answer>> {
        match self.answer.recv_timeout(limit) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("{}: the node went away", self.what).into())
            }
        }
    }

    /// Its answer, which has to come within `limit`.
    pub fn wait(&self, limit: Duration) -> Result<Answer> {
        self.poll(limit)?.context(format!(
            "{}: no answer within {} s",
            self.what,
            limit.as_secs()
        ))
    }
}
