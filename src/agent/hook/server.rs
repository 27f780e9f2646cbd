//! The agent's side: a socket in the state directory, for root only. What comes in is a wish; whether and how it is fenced is the desk's matter.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::SOCKET;
use super::protocol::{Answer, BEAT, LINE, decode_question};

/// Conversations at a time. sanlock runs one hook for each volume group.
const CONVERSATIONS: usize = 64;
/// How long one may take to say what it wants, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A hook that waits to be answered.
#[derive(Debug)]
pub struct Call {
    /// Name of the volume group.
    pub vg: String,
    /// To answer with, once. Closed when the hook no longer waits.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// The listening socket. Its file stays when the agent dies: connecting to it fails then, which is an answer too.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens, in place of whoever did before. For root only from the first moment on.
    ///
    /// # Errors
    /// When the socket cannot be made in that directory.
    pub fn bind(directory: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(SOCKET);
        let new = directory.join(format!("{SOCKET}.{}.new", std::process::id()));
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Nobody knows that name yet while its mode is what the umask makes it.
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, &path)?;
        Ok(Self { listener, path })
    }

    /// Serves for ever. `calls` go to the desk.
    pub async fn serve(self, calls: mpsc::UnboundedSender<Call>) {
        let places = Arc::new(Semaphore::new(CONVERSATIONS));
        loop {
            // In this order: who finds no place waits in the backlog.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &calls).await {
                            tracing::debug!(%error, "a conversation on the kill hook's socket ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, socket = %self.path.display(), "the kill hook's socket does not accept; trying again");
                    tokio::time::sleep(BEAT).await;
                }
            }
        }
    }
}

async fn converse(
    mut stream: UnixStream,
    calls: &mpsc::UnboundedSender<Call>,
) -> std::io::Result<()> {
    let question = tokio::time::timeout(PATIENCE, line(&mut stream)).await??;
    let Some(vg) = decode_question(&question) else {
        let why = "no such request: it is `storage-fence 1 fence VG`";
        return say(&mut stream, &Answer::Unproven(why.into())).await;
    };
    tracing::warn!(
        volume_group = vg,
        "the kill hook asks to fence: its lease is lost"
    );
    let (answer, mut answered) = oneshot::channel();
    let call = Call {
        vg: vg.to_owned(),
        answer,
    };
    if calls.send(call).is_err() {
        let why = "the agent is ending";
        return say(&mut stream, &Answer::Unproven(why.into())).await;
    }
    loop {
        // First of all that somebody listens: a hook goes on by itself when it hears nothing.
        say(&mut stream, &Answer::Working).await?;
        match tokio::time::timeout(BEAT, &mut answered).await {
            Err(_) => {}
            Ok(Ok(Ok(()))) => return say(&mut stream, &Answer::Proven).await,
            Ok(Ok(Err(why))) => return say(&mut stream, &Answer::Unproven(why)).await,
            // The desk is gone: so is the conversation, and the hook sees that.
            Ok(Err(_)) => return Ok(()),
        }
    }
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    let text = answer.encode();
    let write = async {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, write).await?
}

/// One line without its end. Nothing more is expected after it.
async fn line(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    let mut chunk = [0; 256];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => heard.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if let Some(end) = heard.iter().position(|b| *b == b'\n') {
            heard.truncate(end);
            return Ok(heard);
        }
        if heard.len() > LINE {
            return Err(std::io::Error::other("a line without end"));
        }
    }
}
