//! A process like a VM's or a database's: it writes by direct I/O and ends at the first error. Each block says whose it is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::harness::{Context, Result};

/// How a writer fares.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Its process.
    pub pid: u32,
    /// Writes that succeeded.
    pub writes: u64,
    /// Longest time from the beginning of one write to the beginning of the next, in ms, less the pause it makes itself.
    pub longest_pause_ms: u64,
    /// Whether it has ended.
    pub ended: bool,
    /// The error number that ended it: 5 is EIO.
    pub errno: Option<i32>,
    /// Seconds since the node's boot when it ended.
    pub ended_at: Option<f64>,
}

/// Direct I/O wants memory at a block's boundary.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

const BLOCK: usize = 4096;
/// It writes round and round in this many blocks.
const BLOCKS: u64 = 256;
/// Between two writes: twenty writers have to leave an emulated CPU some air.
const PAUSE: Duration = Duration::from_millis(20);
const O_DIRECT: i32 = 0o40000;

/// Writes until an error or until FILE.stop appears; keeps `/run/writers/NAME.json` current.
pub fn write(name: &str, target: &str, owner: &str) -> Result {
    let at = |end: &str| PathBuf::from(format!("/run/writers/{name}.{end}"));
    let mut state = State {
        pid: std::process::id(),
        ..State::default()
    };
    let ended = stamp(&mut state, target, owner, &at);
    state.ended = true;
    state.errno = ended
        .as_ref()
        .err()
        .map(|error| error.raw_os_error().unwrap_or(-1));
    let uptime = fs::read_to_string("/proc/uptime")?;
    state.ended_at = uptime
        .split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok());
    tell(&state, &at("json"))?;
    ended.context(format!("writing to {target}"))
}

fn stamp(
    state: &mut State,
    target: &str,
    owner: &str,
    at: &dyn Fn(&str) -> PathBuf,
) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(!target.starts_with("/dev/"))
        .truncate(false)
        .custom_flags(O_DIRECT)
        .open(target)?;
    let mut block = Box::new(Block([0; BLOCK]));
    let mut told = None;
    let mut last: Option<Instant> = None;
    while !at("stop").exists() {
        let begin = Instant::now();
        if at("forget").exists() {
            state.longest_pause_ms = 0;
            last = None;
            fs::remove_file(at("forget"))?;
        }
        if let Some(last) = last {
            let pause = begin.duration_since(last).saturating_sub(PAUSE);
            state.longest_pause_ms = state
                .longest_pause_ms
                .max(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        }
        last = Some(begin);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let text = format!("owner={owner} write={} ms={now}\n", state.writes);
        block.0.fill(0);
        block.0[..text.len()].copy_from_slice(text.as_bytes());
        file.write_all_at(&block.0, state.writes % BLOCKS * BLOCK as u64)?;
        state.writes += 1;
        if told.is_none_or(|told: Instant| told.elapsed() > Duration::from_millis(200)) {
            tell(state, &at("json")).map_err(std::io::Error::other)?;
            told = Some(Instant::now());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// In one step, so that a reader never sees half of it.
fn tell(state: &State, file: &Path) -> Result {
    let half = file.with_extension("half");
    fs::write(&half, serde_json::to_vec(state)?)?;
    fs::rename(half, file)?;
    Ok(())
}
