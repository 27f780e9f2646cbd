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

    /// Runs it to its end, however it ends.
    fn run(&self, words: &[&str], limit: Duration) -> Result<Ended> {
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
            Ok(Some(status)) => {
                let [out, err] = words_of(&said);
                Ok(Ended {
                    what: what(),
                    status,
                    out,
                    err,
                })
            }
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

/// How a tool ended, and the lines that it printed.
struct Ended {
    what: String,
    status: ExitStatus,
    out: Vec<String>,
    err: Vec<String>,
}

impl Ended {
    fn well(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let words: Vec<&str> = self
            .out
            .iter()
            .chain(&self.err)
            .map(AsRef::as_ref)
            .collect();
        Err(Error::Refused {
            detail: failure(self.status, &words.join("; ")),
            what: self.what,
        })
    }

    /// The names that `vgs` printed. Where physical volumes disagree about the name it prints one of them, and warns of both: "fix duplicate VGID U
    /// for VGs A and B" (2.03.31).
    fn names(&self) -> Vec<String> {
        let warned = self.err.iter().filter_map(|line| {
            let (_, names) = line
                .split_once("duplicate VGID ")?
                .1
                .split_once(" for VGs ")?;
            let mut words = names.split_ascii_whitespace();
            Some([words.next()?, words.nth(1)?])
        });
        let mut names: Vec<String> = self.out.clone();
        names.extend(warned.flatten().map(str::to_owned));
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// A UUID as LVM prints it, and wants it: without the dashes it finds none.
#[must_use]
pub fn dashed(plain: &str) -> String {
    let mut rest = plain;
    let mut parts = Vec::new();
    for length in [6, 4, 4, 4, 4, 4] {
        let (part, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts.join("-")
}

fn of_uuid(plain: &str) -> String {
    format!("vg_uuid={}", dashed(plain))
}

impl Lvm for Tools {
    fn names_of(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<Vec<String>> {
        let began = Instant::now();
        let select = of_uuid(vg_uuid);
        // No lock is waited for: there is no lockspace to have it in, and a name that changes right now is asked for again.
        let mut words = vec![
            "vgs",
            "--nolocking",
            "--noheadings",
            "-o",
            "vg_name",
            "--select",
            &select,
        ];
        words.push(vg);
        // It fails when there is none of that name, and prints nothing when it is another one's.
        let by_name = self.run(&words, limit)?.names();
        if !by_name.is_empty() {
            return Ok(by_name);
        }
        words.pop();
        let all = self.run(&words, limit.saturating_sub(began.elapsed()))?;
        let names = all.names();
        if names.is_empty() {
            // It also fails over another volume group's disks; that one has nothing to do with it.
            all.well()?;
        }
        Ok(names)
    }

    fn start_lockspace(&self, vg_uuid: &str, vg: &str, limit: Duration) -> Result<()> {
        let select = of_uuid(vg_uuid);
        let words = ["vgchange", "--lockstart", "--select", &select, vg];
        self.run(&words, limit)?.well().map(drop)
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

fn words_of(said: &[Option<Said>; 2]) -> [Vec<String>; 2] {
    let began = Instant::now();
    let all_said = || {
        said.iter()
            .flatten()
            .all(|s| s.lock().unwrap_or_else(PoisonError::into_inner).1)
    };
    while !all_said() && began.elapsed() < LAST_WORDS {
        thread::sleep(LOOK);
    }
    let lines = |said: &Option<Said>| -> Vec<String> {
        let Some(said) = said else {
            return Vec::new();
        };
        let bytes = &said.lock().unwrap_or_else(PoisonError::into_inner).0;
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    };
    said.each_ref().map(lines)
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

    /// As in a device's UUID, and as LVM prints it.
    const UUID: &str = "OWnOHAOecIxchOPIiylBi3ZC3OzlVzvt";
    const SELECT: &str = "vg_uuid=OWnOHA-OecI-xchO-PIiy-lBi3-ZC3O-zlVzvt";

    #[test]
    fn the_volume_group_is_named_and_success_is_success() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("words");
        let tools = shell(&format!("echo \"$0 $*\" > {}", out.display()));
        tools.start_lockspace(UUID, "vg1", LONG).unwrap();
        assert_eq!(
            std::fs::read_to_string(out).unwrap(),
            format!("vgchange --lockstart --select {SELECT} vg1\n")
        );
    }

    /// A `vgs` of 2.03.31, by what it printed and how it ended: for the name `vg1`, and for all volume groups.
    fn vgs(by_name: &str, all: &str) -> Tools {
        shell(&format!(
            "[ \"$0 $*\" = \"vgs --nolocking --noheadings -o vg_name --select {SELECT}${{7:+ vg1}}\" ] || exit 99\n\
             if [ -n \"$7\" ]; then {by_name}\nelse {all}\nfi"
        ))
    }

    #[test]
    fn the_name_of_today_is_found_by_the_uuid() {
        const NOT_FOUND: &str = "echo '  Volume group \"vg1\" not found' >&2; echo '  Cannot process volume group vg1' >&2; exit 5";
        const WARNS: &str = "echo 'File descriptor 10 (/dev/null) leaked on vgs invocation.' >&2";
        const NEW: &str = "echo '  new'";
        const DISAGREE: &str = "echo '  WARNING: fix duplicate VGID OWnOHA-OecI-xchO-PIiy-lBi3-ZC3O-zlVzvt for VGs new and newer (see vgchange -u).' >&2; \
             echo '  new'";
        let failed = "echo '  new'; echo '  Cannot process volume group broken' >&2; exit 5";
        for (by_name, all, names) in [
            // The others' disks are left alone.
            (&*format!("{WARNS}; echo '  vg1'"), "exit 98", &["vg1"][..]),
            (NOT_FOUND, NEW, &["new"]),
            // Another one is called so by now.
            (WARNS, NEW, &["new"]),
            (NOT_FOUND, failed, &["new"]),
            (NOT_FOUND, DISAGREE, &["new", "newer"]),
            (NOT_FOUND, "printf '  new\\n  newer\\n'", &["new", "newer"]),
            (NOT_FOUND, WARNS, &[]),
        ] {
            let found = vgs(by_name, all).names_of(UUID, "vg1", LONG);
            assert_eq!(found.unwrap(), names, "{by_name} {all}");
        }
        let error =
            vgs(NOT_FOUND, "echo '  no disk answers' >&2; exit 5").names_of(UUID, "vg1", LONG);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no disk answers"), "{error}");
    }

    #[test]
    fn what_is_no_uuid_is_asked_for_all_the_same() {
        assert_eq!(of_uuid("short"), "vg_uuid=short------");
    }

    #[test]
    fn a_failure_tells_what_the_tool_said() {
        let tools = shell(
            "i=0; while [ $i -lt 2000 ]; do echo noise noise noise; i=$((i+1)); done; echo '  VG vg1 start failed: -214' >&2; exit 5",
        );
        let error = tools
            .start_lockspace(UUID, "vg1", LONG)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("vgchange --lockstart --select vg_uuid="),
            "{error}"
        );
        assert!(
            error.contains("exit status: 5") && error.contains("VG vg1 start failed: -214"),
            "{error}"
        );
        assert!(error.len() < 2 * KEPT + 500, "{}", error.len());
        let silent = shell("exit 3")
            .start_lockspace(UUID, "vg1", LONG)
            .unwrap_err();
        assert!(silent.to_string().contains("said nothing"), "{silent}");
    }

    #[test]
    fn one_that_does_not_end_is_killed_in_time() {
        let began = Instant::now();
        let limit = Duration::from_millis(200);
        let error = shell("exec sleep 60").start_lockspace(UUID, "vg1", limit);
        assert!(matches!(error, Err(Error::TimedOut { .. })), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let tools = Tools {
            program: "/nowhere/at/all".into(),
            arguments: Vec::new(),
        };
        let error = tools.start_lockspace(UUID, "vg1", LONG);
        assert!(matches!(error, Err(Error::Unavailable { .. })), "{error:?}");
    }
}
