//! The guest's end of the harness's commands: one thread a command, so that one that hangs hangs alone.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::harness::{Context, Result, lock};
use crate::wire::{Answer, Message, Request, read_frame, write_frame};

/// Serves for ever.
pub fn serve() -> Result {
    let port = find_port()?;
    let mut read = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&port)
        .context(format!("opening {}", port.display()))?;
    let write = Arc::new(Mutex::new(read.try_clone()?));
    write_frame(&mut *lock(&write), &Message::Hello)?;
    loop {
        let request: Request = read_frame(&mut read).context("reading a request")?;
        let write = Arc::clone(&write);
        std::thread::spawn(move || {
            let id = request.id;
            let answer = run(&request).unwrap_or_else(|error| Answer {
                id,
                code: 127,
                out: String::new(),
                err: error.to_string(),
                ms: 0,
            });
            // Without the host there is nobody to tell.
            let _ = write_frame(&mut *lock(&write), &Message::Answer(answer));
        });
    }
}

/// The serial port that the host named `rig`.
fn find_port() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no virtio-serial ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == "rig" {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err("no virtio-serial port is named rig".into())
}

fn run(request: &Request) -> Result<Answer> {
    let begin = Instant::now();
    let limit = Duration::from_millis(request.limit_ms);
    let mut child = Command::new("/bin/bash")
        .args(["-c", &request.command])
        .stdin(Stdio::from(File::open("/dev/null")?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("PATH", "/payload/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .process_group(0)
        .spawn()
        .context("starting bash")?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let out = child.stdout.take().map(collect);
    let err = child.stderr.take().map(collect);
    let (tell, ended) = channel();
    std::thread::spawn(move || {
        let _ = tell.send(child.wait());
    });
    let status = if let Ok(status) = ended.recv_timeout(limit) {
        Some(status?)
    } else {
        let _ = killpg(group, Signal::SIGKILL);
        // In D state it does not even die: then there is only to say so.
        ended.recv_timeout(Duration::from_millis(500)).ok();
        None
    };
    let mut err = text(err);
    if status.is_none() {
        err.push_str("\nrig: it did not end in time and was killed");
    }
    Ok(Answer {
        id: request.id,
        code: status.map_or(-1, exit_code),
        out: text(out),
        err,
        ms: u64::try_from(begin.elapsed().as_millis())?,
    })
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// What was read so far, and the word that the pipe is closed.
type Collected = (Arc<Mutex<Vec<u8>>>, Receiver<()>);

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (tell, done) = channel();
    let shared = Arc::clone(&bytes);
    std::thread::spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            lock(&shared).extend_from_slice(&chunk[..n]);
        }
        let _ = tell.send(());
    });
    (bytes, done)
}

/// A process that the command left in the background may hold the pipe open for ever; what is there after half a second is what is told.
fn text(collected: Option<Collected>) -> String {
    let Some((bytes, done)) = collected else {
        return String::new();
    };
    let _ = done.recv_timeout(Duration::from_millis(500));
    String::from_utf8_lossy(&lock(&bytes)).into_owned()
}
