//! Child processes that cannot outlive the run, and the folder of a run.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Context, Result};

/// The folder of one run, below the system's temporary folder. Removed at the end, however the end comes.
pub struct RunDir {
    path: PathBuf,
    // Its standard input closes when we end, even by SIGKILL, and then it removes the folder.
    janitor: Child,
}

const PREFIX: &str = "sf-run-";

impl RunDir {
    /// Makes the folder of this run. Short, because a UNIX socket's path has 107 bytes at most.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // A run has a cluster after another.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir_all(&path).context(format!("making {}", path.display()))?;
        let janitor = Command::new("sh")
            .args(["-c", "cat >/dev/null; rm -rf \"$1\"", "janitor"])
            .arg(&path)
            .stdin(Stdio::piped())
            // Ctrl-C reaches the whole group of the terminal.
            .process_group(0)
            .spawn()
            .context("starting a shell")?;
        Ok(Self { path, janitor })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Spawns on a thread that lives as long as the run: the kernel's parent-death signal goes out when the *thread* that forked ends.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = channel();
    spawner
        .send((command, answer))
        .context("the spawner thread is gone")?;
    Ok(child.recv().context("the spawner thread is gone")??)
}

/// A child that ends with this value, and with this process however that ends.
pub struct Guarded {
    name: String,
    child: Child,
    stopped: bool,
}

impl Guarded {
    /// Starts `program` with its output in the file `log`.
    pub fn start(
        name: &str,
        program: impl AsRef<Path>,
        args: &[String],
        log: &Path,
    ) -> Result<Self> {
        let program = program.as_ref();
        let out = File::create(log).context(format!("making {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        // QEMU's snapshot overlays are unlinked files there.
        if let Some(dir) = log.parent() {
            command.env("TMPDIR", dir);
        }
        let child = spawn(command).context(format!("starting {name} ({})", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stopped: false,
        })
    }

    /// What it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result {
        if let Some(status) = self.ended() {
            return Err(format!("{signal} to {}: it has ended with {status}", self.name).into());
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)
            .context(format!("{signal} to {}", self.name))?;
        match signal {
            Signal::SIGSTOP => self.stopped = true,
            Signal::SIGCONT => self.stopped = false,
            _ => {}
        }
        Ok(())
    }

    /// Whether it was stopped by a SIGSTOP of ours.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Asks it to end by SIGTERM and waits; kills it after `limit`.
    pub fn terminate(&mut self, limit: Duration) {
        let _ = self.signal(Signal::SIGTERM);
        let begin = Instant::now();
        while self.ended().is_none() && begin.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end();
    }

    /// Kills it and waits for its end.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end();
    }
}

/// The clone's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where slow things are kept, the same as for the scripts of hack/.
pub fn cache_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    set("SFO_CACHE_DIR").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache"))
            .join("storage-fence-operator")
    })
}

/// Runs a command to its end, its messages going to the terminal, and gives what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(format!("running {what}"))?;
    succeeded(&what, &output)
}

/// The text of a command that has to succeed.
pub fn succeeded(what: &str, output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what}: {}\n{text}\n{error}", output.status).into())
}
