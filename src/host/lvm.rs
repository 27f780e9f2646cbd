//! The host's own LVM tools. Nothing that a fence uses: they fork, wait for udev, and read the SAN. Giving a node its storage back may do all of
//! that, within a time limit, since by then the SAN works.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Error, Lvm, Paths, Result};

/// The subcommand of this program that becomes a program of the host's.
pub const HOST_EXEC: &str = "host-exec";
/// Of what a tool prints, so much is kept: the end, which says why it failed.
const KEPT: usize = 2048;
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(50);
/// What was printed may come a little after the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The real ones.
#[derive(Clone, Debug)]
pub struct Tools {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Tools {
    /// Runs nothing yet.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self {
            program: paths.proc.join("self/exe"),
            arguments: vec![HOST_EXEC.into(), "--".into()],
        }
    }

    fn run(&self, words: &[&str], limit: Duration) -> Result<()> {
        let what = || format!("{} on the host", words.join(" "));
        #[expect(clippy::disallowed_methods, reason = "no fence comes here")]
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Unavailable {
                what: what(),
                source,
                hint: "The agent cannot start a process; look at its limits",
            })?;
        let said = [
            child.stdout.take().map(listen),
            child.stderr.take().map(listen),
        ];
        match wait(&mut child, limit) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(Error::Refused {
                what: what(),
                detail: failure(status, &words_of(&said)),
            }),
            Ok(None) => {
                let _ = child.kill();
                // It may not even die now, if it waits for a disk: somebody has to stay for its end.
                let _ = thread::Builder::new()
                    .stack_size(64 * 1024)
                    .spawn(move || child.wait());
                Err(Error::TimedOut {
                    what: what(),
                    limit,
                    hint: "It was killed. Is the SAN slow, or does another command hold the volume group's lock? Try it by hand",
                })
            }
            Err(source) => Err(Error::Unavailable {
                what: what(),
                source,
                hint: "Its end cannot be waited for",
            }),
        }
    }
}

impl Lvm for Tools {
    fn start_lockspace(&self, vg: &str, limit: Duration) -> Result<()> {
        self.run(&["vgchange", "--lockstart", vg], limit)
    }
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// What a tool printed so far, and whether that is all.
type Said = Arc<Mutex<(Vec<u8>, bool)>>;

/// A pipe that nobody empties would stop the tool.
fn listen(mut pipe: impl Read + Send + 'static) -> Said {
    let said = Said::default();
    let keep = Arc::clone(&said);
    let work = move || {
        let mut chunk = [0; 1024];
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
            kept.0.extend_from_slice(&chunk[..n]);
            let surplus = kept.0.len().saturating_sub(KEPT);
            kept.0.drain(..surplus);
        }
        keep.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    };
    if thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(work)
        .is_err()
    {
        // The pipe is closed with the thread that was not to be had; the tool goes on without being heard.
        said.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    }
    said
}

fn words_of(said: &[Option<Said>]) -> String {
    let began = Instant::now();
    let all_said = || {
        said.iter()
            .flatten()
            .all(|s| s.lock().unwrap_or_else(PoisonError::into_inner).1)
    };
    while !all_said() && began.elapsed() < LAST_WORDS {
        thread::sleep(LOOK);
    }
    let lines: Vec<String> = said
        .iter()
        .flatten()
        .flat_map(|s| {
            let bytes = &s.lock().unwrap_or_else(PoisonError::into_inner).0;
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.lines()
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

fn failure(status: ExitStatus, words: &str) -> String {
    if words.is_empty() {
        format!("it ended with {status} and said nothing")
    } else {
        format!("it ended with {status} and said: {words}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in the place of the program that becomes one of the host's.
    fn shell(script: &str) -> Tools {
        Tools {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_volume_group_is_named_and_success_is_success() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("words");
        let tools = shell(&format!("echo \"$0 $1 $2\" > {}", out.display()));
        tools.start_lockspace("vg1", LONG).unwrap();
        assert_eq!(
            std::fs::read_to_string(out).unwrap(),
            "vgchange --lockstart vg1\n"
        );
    }

    #[test]
    fn a_failure_tells_what_the_tool_said() {
        let tools = shell(
            "i=0; while [ $i -lt 2000 ]; do echo noise noise noise; i=$((i+1)); done; echo '  VG vg1 start failed: -214' >&2; exit 5",
        );
        let error = tools.start_lockspace("vg1", LONG).unwrap_err().to_string();
        assert!(error.contains("vgchange --lockstart vg1"), "{error}");
        assert!(
            error.contains("exit status: 5") && error.contains("VG vg1 start failed: -214"),
            "{error}"
        );
        assert!(error.len() < 2 * KEPT + 500, "{}", error.len());
        let silent = shell("exit 3").start_lockspace("vg1", LONG).unwrap_err();
        assert!(silent.to_string().contains("said nothing"), "{silent}");
    }

    #[test]
    fn one_that_does_not_end_is_killed_in_time() {
        let began = Instant::now();
        let limit = Duration::from_millis(200);
        let error = shell("exec sleep 60").start_lockspace("vg1", limit);
        assert!(matches!(error, Err(Error::TimedOut { .. })), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let tools = Tools {
            program: "/nowhere/at/all".into(),
            arguments: Vec::new(),
        };
        let error = tools.start_lockspace("vg1", LONG);
        assert!(matches!(error, Err(Error::Unavailable { .. })), "{error:?}");
    }
}
