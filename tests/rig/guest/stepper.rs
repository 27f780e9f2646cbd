//! Runs a program, stops it at some of the system calls by which it changes anything, and does something about it there: kills it, or runs a
//! command while it is held. So a scenario can go through every point at which a process can die, one after the other, and never by the clock;
//! and do there by hand what races with it.
//!
//! Only calls that leave a trace outside the process count (device-mapper commands, requests to daemons that are no mere questions, files):
//! between two of them a death leaves what it leaves right before the second.
//!
//! It also tells what the program did that a fence has no business to do.

mod bounds;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::harness::{Context, Result};

/// What came of it: the last line on standard output.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Steps {
    /// Every call that counts, as far as the program got.
    pub calls: Vec<String>,
    /// Every call by which it used what a fence has no business with: a device, a file that may lie on one, another program, the network. Each once.
    pub out_of_bounds: Vec<String>,
    /// Index of the one at which the first deed was done.
    pub at: Option<usize>,
    /// How many deeds were done.
    pub done: usize,
    /// How the program ended; 128 + n when signal n ended it.
    pub code: i32,
    /// What it said on standard error: told beside this, not in it.
    #[serde(skip)]
    pub err: String,
}

/// Where to do what, once.
struct Point {
    after: bool,
    /// A number, from 1; `NUMBER once FILE`, which counts from when there is that file; `NUMBER of WORDS`, which counts the steps that have these
    /// words in their description; or the words alone: the first of them.
    which: String,
    deed: String,
    done: bool,
    /// Index of the first step that counts.
    from: Option<usize>,
    /// How many steps with its words there were.
    seen: usize,
}

impl Point {
    fn new(order: &str, which: &str, deed: &str) -> Result<Self> {
        Ok(Self {
            after: match order {
                "before" => false,
                "after" => true,
                other => return Err(format!("{other} is neither before nor after").into()),
            },
            which: which.to_owned(),
            deed: deed.to_owned(),
            done: false,
            from: None,
            seen: 0,
        })
    }

    /// Whether it is this step, which has just begun.
    fn begins(&mut self, index: usize, step: &str) -> bool {
        if let Some((number, words)) = self.which.split_once(" of ") {
            self.seen += usize::from(step.contains(words));
            return step.contains(words) && number.parse() == Ok(self.seen);
        }
        let (number, file) = match self.which.split_once(" once ") {
            Some((number, file)) => (number, Some(file)),
            None => (self.which.as_str(), None),
        };
        let Ok(wanted) = number.parse::<usize>() else {
            return step.contains(&self.which);
        };
        if self.from.is_none() && file.is_none_or(|file| std::fs::exists(file).unwrap_or(false)) {
            self.from = Some(file.map_or(0, |_| index));
        }
        self.from.is_some_and(|from| from + wanted == index + 1)
    }
}

/// Waits for a line until it is watched, and becomes the program.
const START: &str = "read go; exec \"$@\" </dev/null";

/// `args` are the points, each `before` or `after`, a step, and `kill` or a command that runs with the program's number in `$PID` and its
/// steps up to that one in `$CALLS`; and the program.
pub fn run(args: &[String]) -> Result {
    let mut points = Vec::new();
    let mut program = args;
    while let [order, which, deed, rest @ ..] = program
        && matches!(order.as_str(), "before" | "after")
    {
        points.push(Point::new(order, which, deed)?);
        program = rest;
    }
    let mut child = Command::new("/bin/sh")
        .args(["-c", START, "sh"])
        .args(program)
        .stdin(Stdio::piped())
        .spawn()
        .context("starting the program")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).context("watching the program")?;
    ptrace::interrupt(pid).context("stopping the program")?;
    let mut go = child.stdin.take().context("its standard input")?;
    go.write_all(b"\n")?;
    drop(go);
    let steps = Watch::new(pid, points)?.watch()?;
    println!("{}", serde_json::to_string(&steps)?);
    Ok(())
}

/// Everybody who has stopped or ended, once there is anybody; nobody when all are gone. All of them before one goes on: the kernel tells of the main
/// thread first and of the youngest next, and as they run before us and stop again at once, the others would never have their turn.
fn stopped() -> Result<VecDeque<WaitStatus>> {
    let mut all = VecDeque::new();
    loop {
        let mut flags = WaitPidFlag::__WALL;
        flags.set(WaitPidFlag::WNOHANG, !all.is_empty());
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(all),
            Ok(status) => all.push_back(status),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("waiting"),
        }
    }
}

struct Watch {
    pid: Pid,
    points: Vec<Point>,
    memory: File,
    /// The shell before it: nothing of that counts.
    begun: bool,
    /// Whether its libraries are there.
    loaded: bool,
    /// Threads inside a call that counts, and the points that are reached when it is done.
    inside: HashMap<Pid, Vec<(usize, usize)>>,
    /// Whom a socket was connected to.
    peers: HashMap<u64, String>,
    result: Steps,
}

impl Watch {
    fn new(pid: Pid, points: Vec<Point>) -> Result<Self> {
        Ok(Self {
            pid,
            result: Steps::default(),
            points,
            memory: File::open(format!("/proc/{pid}/mem")).context("reading its memory")?,
            begun: false,
            loaded: false,
            inside: HashMap::new(),
            peers: HashMap::new(),
        })
    }

    /// Until the last thread is gone.
    fn watch(mut self) -> Result<Steps> {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                waiting = stopped()?;
            }
            let Some(status) = waiting.pop_front() else {
                return Ok(self.result);
            };
            let (thread, signal) = match status {
                WaitStatus::Exited(thread, code) => {
                    self.ended(thread, code);
                    continue;
                }
                WaitStatus::Signaled(thread, signal, _) => {
                    self.ended(thread, 128 + signal as i32);
                    continue;
                }
                WaitStatus::PtraceSyscall(thread) => {
                    // A thread that was killed meanwhile cannot be asked any more.
                    match self.call(thread) {
                        Ok(()) => {}
                        Err(error) if error.to_string().contains("ESRCH") => {}
                        Err(error) => return Err(error),
                    }
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, _, event) => {
                    if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
                        // The shell's own beginning may still be seen.
                        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid))?;
                        self.begun |= !line.split(|b| *b == 0).any(|a| a == START.as_bytes());
                        self.loaded = false;
                        self.memory = File::open(format!("/proc/{}/mem", self.pid))?;
                    }
                    (thread, None)
                }
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                _ => continue,
            };
            match ptrace::syscall(thread, signal) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error).context("going on"),
            }
        }
    }

    fn ended(&mut self, thread: Pid, code: i32) {
        if thread == self.pid {
            self.result.code = code;
        }
    }

    /// A thread enters or leaves a call.
    fn call(&mut self, thread: Pid) -> Result {
        if !self.begun {
            return Ok(());
        }
        let info = ptrace::syscall_info(thread).map_err(|e| format!("{e:?}"))?;
        if info.op == ENTRY {
            let registers = ptrace::getregs(thread).map_err(|e| format!("{e:?}"))?;
            self.loaded |= registers.orig_rax == bounds::LOADED;
            let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10];
            if let Some(told) = self.out_of_bounds(registers.orig_rax, args)
                && !self.result.out_of_bounds.contains(&told)
            {
                self.result.out_of_bounds.push(told);
            }
            let Some(step) = self.describe(registers.orig_rax, args) else {
                return Ok(());
            };
            let index = self.result.calls.len();
            let mut later = Vec::new();
            let mut now = Vec::new();
            for (at, point) in self.points.iter_mut().enumerate() {
                if !point.done && point.begins(index, &step) {
                    point.done = true;
                    let when = if point.after { &mut later } else { &mut now };
                    when.push((at, index));
                }
            }
            self.result.calls.push(step);
            self.inside.insert(thread, later);
            self.reached(&now)
        } else {
            let later = self.inside.remove(&thread).unwrap_or_default();
            self.reached(&later)
        }
    }

    fn reached(&mut self, points: &[(usize, usize)]) -> Result {
        for (at, index) in points {
            self.result.at.get_or_insert(*index);
            self.result.done += 1;
            let deed = &self.points[*at].deed;
            if deed == "kill" {
                kill(self.pid, Signal::SIGKILL).context("killing it")?;
                continue;
            }
            // The last of them is the step itself.
            let calls = self.result.calls.get(..=*index).unwrap_or_default();
            let status = Command::new("/bin/bash")
                .args(["-c", deed])
                .env("PID", self.pid.to_string())
                .env("CALLS", calls.join("\n"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .context("running the deed")?;
            if !status.success() {
                return Err(format!("`{deed}` ended with {status}").into());
            }
        }
        Ok(())
    }

    fn bytes(&self, at: u64, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; most];
        let read = self.memory.read_at(&mut bytes, at).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// Up to the first zero byte.
    fn text(&self, at: u64, most: usize) -> String {
        let bytes = self.bytes(at, most);
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// In words, if it counts.
    fn describe(&mut self, number: u64, args: [u64; 4]) -> Option<String> {
        // What is kept each second of an outage, and that a hook is told to wait, is no step of a fence.
        let counts = |step: &String| !step.contains("outages.json") && !step.ends_with(": working");
        self.words(number, args).filter(counts)
    }

    /// The numbers are those of x86-64.
    fn words(&mut self, number: u64, args: [u64; 4]) -> Option<String> {
        const AT: u64 = 0xffff_ff9c; // AT_FDCWD
        match number {
            // close: its number may be another's next.
            3 => {
                self.peers.remove(&args[0]);
                None
            }
            // write, pwrite64, sendto
            1 | 18 | 44 => self.written(
                args[0],
                &self.bytes(args[1], usize::try_from(args[2]).ok()?.min(512)),
            ),
            // writev, sendmsg
            20 | 46 => self.written(args[0], b""),
            16 => self.device_mapper(args[1], args[2]),
            // clone, clone3: with CLONE_VFORK, as a child that becomes another program is made
            56 => (args[0] & VFORK != 0).then(|| STARTS.to_owned()),
            435 => (self.number_at(args[0]) & VFORK != 0).then(|| STARTS.to_owned()),
            // What goes over the network changes nothing on the node.
            42 if self.bytes(args[1], 2) != UNIX.to_ne_bytes() => {
                self.peers.insert(args[0], NETWORK.to_owned());
                None
            }
            42 => {
                let name = self.bytes(
                    args[1] + 2,
                    usize::try_from(args[2]).ok()?.saturating_sub(2),
                );
                let name = String::from_utf8_lossy(&name).replace('\0', "");
                let last = name.rsplit('/').next().unwrap_or_default();
                self.peers.insert(args[0], last.to_owned());
                None
            }
            // openat that may make a file
            257 if args[2] & 0o100 != 0 => Some(format!("create {}", self.text(args[1], 256))),
            73 => Some("flock".to_owned()),
            77 => Some(format!("truncate {}", self.name_of(args[0]))),
            82 => Some(format!("rename to {}", self.text(args[1], 256))),
            264 | 316 => Some(format!("rename to {}", self.text(args[3], 256))),
            83 => Some(format!("mkdir {}", self.text(args[0], 256))),
            258 => Some(format!("mkdir {}", self.text(args[1], 256))),
            87 => Some(format!("remove {}", self.text(args[0], 256))),
            263 if args[0] & AT == AT => Some(format!("remove {}", self.text(args[1], 256))),
            _ => None,
        }
    }

    fn name_of(&self, fd: u64) -> String {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", self.pid))
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    }

    fn written(&self, fd: u64, bytes: &[u8]) -> Option<String> {
        let to = self.name_of(fd);
        if fd <= 2 {
            return None;
        }
        if !to.starts_with("socket:") {
            // What is said to the kernel's log is no step either.
            return (to.starts_with('/') && to != "/dev/kmsg").then(|| format!("write {to}"));
        }
        let peer = self.peers.get(&fd).cloned().unwrap_or_default();
        let text: String = String::from_utf8_lossy(bytes)
            .chars()
            .filter(|c| !c.is_control())
            .take(60)
            .collect();
        // Questions change nothing: wdmd and sanlock are only ever asked for their state.
        let asked = peer == NETWORK
            || peer == "wdmd.sock"
            || peer == "sanlock.sock"
            || text.contains("\"info\"");
        (!asked).then(|| format!("send {peer}: {text}"))
    }

    fn device_mapper(&self, request: u64, argument: u64) -> Option<String> {
        if request >> 8 & 0xff != 0xfd {
            return None;
        }
        let what = match request & 0xff {
            3 => "create",
            4 => "remove",
            5 => "rename",
            6 => "swap",
            9 => "load",
            10 => "clear",
            14 => "message",
            _ => return None,
        };
        // struct dm_ioctl: dev at 40, name at 48, uuid at 176.
        let number = u64::from_ne_bytes(self.bytes(argument + 40, 8).try_into().ok()?);
        let (major, minor) = (
            number >> 8 & 0xfff,
            (number & 0xff) | (number >> 12 & 0xf_ff00),
        );
        let known = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name"));
        let name = self.text(argument + 48, 128) + &self.text(argument + 176, 129);
        let name = if name.is_empty() {
            known.unwrap_or_default().trim().to_owned()
        } else {
            name
        };
        Some(format!("dm {what} {name}"))
    }
}

/// `CLONE_VFORK` of linux/sched.h.
const VFORK: u64 = 0x4000;
/// What the call is called by which a program begins to start another one.
pub const STARTS: &str = "start a program";
/// `AF_UNIX` of linux/socket.h.
const UNIX: u16 = 1;
/// Peer of every other socket.
const NETWORK: &str = "the network";
/// `PTRACE_SYSCALL_INFO_ENTRY` of linux/ptrace.h.
const ENTRY: u8 = 1;
