//! What a fence has done so far, in a file on tmpfs: the successor of a killed agent goes on from here (S4).
//!
//! One record a line, each with its length and checksum, each written at once: a line that was torn by the writer's death is recognised
//! and left out, and with it whatever follows. Nothing is flushed to a disk: the file is to survive the agent, not the kernel, and a fence must
//! not wait for a disk. It says what was tried, never what is: whoever resumes asks the kernel.

pub mod aside;
pub mod expedited;
pub mod given_back;
mod lifts;
pub mod line;
mod record;
mod signs;
mod standing;
#[cfg(test)]
mod tests;
mod turn;
mod wanted;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::fence::budget::ResetWindow;
use crate::fence::report::{FenceReport, StepReport};
use crate::fence::unfence::UnfenceReport;
use crate::fence::{Monotonic, Order};

use aside::{Aside, to_be_kept};
pub use expedited::Expedited;
pub use given_back::GivenBack;
pub use lifts::{Lift, Lifts};
use record::Entry;
pub use record::Record;
pub use signs::Signs;
pub use standing::{Opening, Standing, Standings};
pub use turn::Turn;
pub use wanted::{Waits, Wanted};

/// Where the journal is kept unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/run/storage-fence";
const FILE: &str = "journal";

/// What went wrong with the journal.
#[derive(Debug, thiserror::Error)]
#[error(
    "the journal {path} cannot be {what}: {source}. Check that it lies on a tmpfs with free space that the agent may write to"
)]
pub struct Error {
    /// File or directory.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl Error {
    fn of(path: &Path, what: &'static str, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            what,
            source,
        }
    }
}

/// A multipath map as the fence met it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Device-mapper UUID: its number may be another's by the time a successor looks.
    pub uuid: String,
    /// What multipathd calls it.
    pub name: String,
}

/// What a successor needs to know of a volume group, beyond the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Name, as the order has it.
    pub name: String,
    /// What lvmlockd calls it, where it was renamed before its locks were frozen.
    #[serde(default)]
    pub called: Option<String>,
    /// UUID.
    pub uuid: String,
    /// UUID of the `lvmlock` volume, which is left alone.
    pub lvmlock: Option<String>,
    /// Its physical volumes.
    pub pvs: Vec<crate::fence::PvRecord>,
    /// Its multipath maps.
    pub maps: Vec<MapRecord>,
}

impl GroupRecord {
    /// What lvmlockd calls it.
    #[must_use]
    pub fn vg(&self) -> &str {
        self.called.as_ref().unwrap_or(&self.name)
    }
}

/// How a fence began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The order.
    pub order: Order,
    /// Volume groups, in the order of the report's.
    pub groups: Vec<GroupRecord>,
    /// When the watchdog may reset the host, as known then.
    pub reset: Option<ResetWindow>,
    /// The report before the first step: lockspaces with host ids and generations, devices, steps.
    pub report: FenceReport,
}

/// The journal of this node's agent: one fence at a time.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot_id: String,
    file: Option<File>,
    turn: Option<Turn>,
    wanted: Arc<Wanted>,
    gave_way: Option<Record>,
    silent: bool,
}

impl Journal {
    /// Opens the journal in `directory`, which is made if need be, and reads what an earlier agent left in it. A record of another boot is not
    /// left over but void: the kernel that it speaks of is gone.
    ///
    /// # Errors
    /// When the directory cannot be made or the file cannot be read. A damaged file is no error: it tells what can be made out.
    pub fn open(directory: &Path, boot_id: &str) -> Result<(Self, Option<Record>), Error> {
        let fail = |path: &Path, what, source| Error {
            path: path.to_owned(),
            what,
            source,
        };
        std::fs::create_dir_all(directory).map_err(|e| fail(directory, "made", e))?;
        let journal = Self {
            path: directory.join(FILE),
            boot_id: boot_id.to_owned(),
            file: None,
            turn: None,
            wanted: Arc::default(),
            gave_way: None,
            silent: false,
        };
        let left = journal.left()?;
        Ok((journal, left))
    }

    /// One that keeps nothing: for what a successor finds out by itself.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            path: PathBuf::new(),
            boot_id: String::new(),
            file: None,
            turn: None,
            wanted: Arc::default(),
            gave_way: None,
            silent: true,
        }
    }

    /// What stands in the journal now, whoever wrote it. Not a fence that did not come to its end and whose volume groups were given back since.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn left(&self) -> Result<Option<Record>, Error> {
        let record = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.and_then(|file| Record::read(BufReader::new(file))),
        };
        let record = record.map_err(|e| self.error("read", e))?;
        let ours = record.filter(|r| r.begun.report.boot_id == self.boot_id);
        Ok(ours.filter(|r| !r.unfinished() || !self.given_back().covers(r)))
    }

    /// When volume groups were given back.
    #[must_use]
    pub fn given_back(&self) -> GivenBack {
        GivenBack::new(self.directory(), &self.boot_id)
    }

    /// The folder that it lies in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The fences that stand in this kernel.
    #[must_use]
    pub fn standings(&self) -> Standings {
        if self.silent {
            return Standings::nowhere();
        }
        Standings::new(self.directory(), &self.boot_id)
    }

    /// The un-fence that is going on in this kernel.
    #[must_use]
    pub fn lifts(&self) -> Lifts {
        Lifts::new(self.directory(), &self.boot_id)
    }

    /// The un-fences that were begun in this kernel and have not ended, the one that was at work last comes last: but for volume groups that were
    /// fenced anew since. Whoever asked to have the former fence lifted has not asked for that one (S7), and nothing of the former is left to be done.
    ///
    /// # Errors
    /// When one of the files cannot be read.
    pub fn half_way(&self) -> Result<Vec<Lift>, Error> {
        let mut all = self.lifts().all()?;
        if !all.is_empty() {
            let fences = self.fences()?;
            all = all
                .into_iter()
                .filter_map(|lift| lift.before(&fences))
                .collect();
        }
        Ok(all)
    }

    /// Whether a volume group of an un-fence was fenced anew since that had begun.
    ///
    /// # Errors
    /// As [`Self::half_way`].
    pub fn fenced_since(&self, unfence: &UnfenceReport) -> Result<bool, Error> {
        Ok(unfence.started.is_some() && lifts::any_since(unfence, &self.fences()?))
    }

    /// Volume groups that were fenced in this kernel, and when, as far as files tell: they stand so, or a fence of them has touched something.
    fn fences(&self) -> Result<Vec<(String, Monotonic)>, Error> {
        let stands = self.standings().all()?.into_iter();
        // By the last that had it fenced: the journal may tell of another volume group's by now.
        let last = |s: Standing| (s.group.uuid, s.proven_anew.unwrap_or(s.proven));
        let mut all: Vec<_> = stands.map(last).collect();
        let records = self.left()?.into_iter().chain(self.set_aside()?);
        for Record { begun, .. } in records.filter(Record::touched) {
            let at = begun.report.started;
            all.extend(begun.groups.into_iter().map(|g| (g.uuid, at)));
        }
        Ok(all)
    }

    /// What RCU's grace periods were before a fence had them expedited; None where nothing is kept.
    #[must_use]
    pub fn expedited(&self) -> Option<Expedited> {
        (!self.silent).then(|| Expedited::new(self.directory(), &self.boot_id))
    }

    /// Writes from now on as long as it is this turn, and no longer.
    pub fn hold(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }

    /// Gives the turn back, if there was one.
    pub fn give_back(&mut self) {
        self.turn = None;
        self.wanted = Arc::default();
    }

    /// There is told who waits for the turn, as long as this process has it.
    pub fn ask(&mut self, wanted: Arc<Wanted>) {
        self.wanted = wanted;
    }

    /// Who waits for the turn.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.wanted.waits()
    }

    /// Fences that another went before, each to be resumed when it is its turn: the oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn set_aside(&self) -> Result<Vec<Record>, Error> {
        if self.silent {
            return Ok(Vec::new());
        }
        let given_back = self.given_back();
        let mut all = self.aside().all()?;
        all.retain(|r| !given_back.covers(r));
        Ok(all)
    }

    /// A fence gives way to another: its record is put aside, as it is now.
    ///
    /// # Errors
    /// When it cannot be written. [`Self::gave_way`] gives it all the same.
    pub fn give_way(&mut self, record: Record) -> Result<(), Error> {
        let written = self.in_turn().and_then(|()| self.aside().put(&record));
        self.gave_way = Some(record);
        written
    }

    /// The record of the fence that gave way just now, once.
    pub const fn gave_way(&mut self) -> Option<Record> {
        self.gave_way.take()
    }

    fn aside(&self) -> Aside {
        Aside::new(self.directory(), &self.boot_id)
    }

    /// Whether another process has taken the turn away.
    #[must_use]
    pub fn taken_away(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| !turn.mine())
    }

    /// Begins the journal of a new fence, in place of the former one. The record of another that is unfinished is put aside.
    ///
    /// # Errors
    /// When it cannot be written; the former one is then still there.
    pub fn begin(&mut self, begun: Begun) -> Result<(), Error> {
        let order = begun.order.clone();
        self.replace(&order, &[Entry::Begun(Box::new(begun))])
    }

    /// Goes on with a fence whose writer died, or that gave way: rewritten whole, so that a torn line in the middle does not hide what comes after.
    ///
    /// # Errors
    /// When it cannot be written; the former one is then still there.
    pub fn resume(&mut self, record: &Record) -> Result<(), Error> {
        let mut entries = vec![Entry::Begun(Box::new(record.begun.clone()))];
        entries.extend(
            record
                .steps
                .iter()
                .cloned()
                .enumerate()
                .map(|(i, s)| Entry::Step(i, s)),
        );
        entries.extend(record.finished.clone().map(Box::new).map(Entry::Finished));
        self.replace(&record.begun.order, &entries)
    }

    /// Notes how the step at `index` of the report stands.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn step(&mut self, index: usize, step: &StepReport) -> Result<(), Error> {
        self.append(&Entry::Step(index, step.clone()))
    }

    /// Notes how the fence ended, or that it was not proven by its deadline.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&mut self, report: &FenceReport) -> Result<(), Error> {
        self.append(&Entry::Finished(Box::new(report.clone())))
    }

    fn error(&self, what: &'static str, source: io::Error) -> Error {
        Error {
            path: self.path.clone(),
            what,
            source,
        }
    }

    fn in_turn(&self) -> Result<(), Error> {
        if self.taken_away() {
            let why = "another process fences instead of this one";
            return Err(self.error("written", io::Error::other(why)));
        }
        Ok(())
    }

    fn replace(&mut self, order: &Order, entries: &[Entry]) -> Result<(), Error> {
        self.in_turn()?;
        if self.silent {
            return Err(self.error("written", io::Error::other("nothing is kept")));
        }
        // Whatever fails: what is noted from now on is not about the former one.
        self.file = None;
        // Before it is overwritten. One that cannot be read is none.
        if let Some(other) = to_be_kept(self.left().unwrap_or_default(), order) {
            self.aside().put(&other)?;
        }
        let new = self.path.with_extension("new");
        let write = || -> io::Result<File> {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .open(&new)?;
            line::write_json(&file, entries)?;
            std::fs::rename(&new, &self.path)?;
            Ok(file)
        };
        let file = write().inspect_err(|_| discard(&new));
        self.file = Some(file.map_err(|e| self.error("written", e))?);
        if let Err(e) = self.aside().take(order) {
            tracing::debug!("a fence that stands in the journal again is resumed once more: {e}");
        }
        Ok(())
    }

    fn append<T: Serialize>(&mut self, entry: &T) -> Result<(), Error> {
        if self.silent {
            return Ok(());
        }
        self.in_turn()?;
        let Some(mut file) = self.file.as_ref() else {
            return Err(self.error(
                "written",
                io::Error::other("it was never begun, or ends in a torn line"),
            ));
        };
        let end = file.stream_position();
        let written = line::write_json(file, [entry]);
        if written.is_err() {
            // A part of a line hides all that comes after it, which may fit again.
            let cut = end.and_then(|end| {
                file.set_len(end)
                    .and_then(|()| file.seek(SeekFrom::Start(end)))
            });
            if cut.is_err() {
                self.file = None;
            }
        }
        written.map_err(|e| self.error("written", e))
    }
}

/// The bytes of a file; None when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|e| Error::of(path, "read", e)),
    }
}

/// Writes a file of checked lines, one for each, in place of what is there: it appears whole.
fn write_lines<'a, T: Serialize + 'a>(
    path: &Path,
    all: impl IntoIterator<Item = &'a T>,
) -> Result<(), Error> {
    appear(path, |file| line::write_json(file, all)).map_err(|e| Error::of(path, "written", e))
}

/// Has a file appear whole in place of what is there.
fn appear(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let new = beside(path);
    let written = File::create(&new).and_then(|file| write(&file));
    let there = written.and_then(|()| std::fs::rename(&new, path));
    there.inspect_err(|_| discard(&new))
}

/// Takes away what could not be written whole: a tmpfs that is full for that has room for smaller files then, and who tries again leaves one behind
/// at a time.
fn discard(new: &Path) {
    if let Err(error) = std::fs::remove_file(new)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(file = %new.display(), %error, "is left behind");
    }
}

/// Removes a file, if there is one.
fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::of(path, "removed", e)),
        _ => Ok(()),
    }
}

/// A name beside `path` that no other thread or process uses at this time. Processes in containers may have the same number.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = now.unwrap_or_default().as_nanos();
    path.with_extension(format!("{}-{count}-{nanos}.new", std::process::id()))
}
