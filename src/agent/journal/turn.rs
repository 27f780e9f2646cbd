//! Whose turn it is: one fence at a time on a node, by the agent or by the kill hook, which are different processes.
//!
//! The lock is the kernel's (flock), so that it dies with its holder. A holder that lives but hangs is another matter: when it has given no sign
//! ([`Signs`]) for some time the turn is taken from it, by putting a new file in the place of the locked one. Whoever holds a turn asks before each step
//! whether the file is still its own ([`Turn::mine`]), so that one that wakes up late does nothing any more. One that is slow gives signs: whoever took
//! its turn would have to do the same once more, and be no faster.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Signs};

const FILE: &str = "turn";
const UNKNOWN: &str = "an unknown process";
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long others that take a turn away are waited for.
const TAKING: Duration = Duration::from_millis(500);

/// The right to fence. Given back when dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    file: Arc<File>,
    pub(super) signs: Signs,
    /// Who had it, when it was taken from a holder that would not give it back: `NAME PID`.
    pub taken_from: Option<String>,
}

impl Turn {
    fn of(path: &Path, file: File) -> Self {
        let file = Arc::new(file);
        Self {
            path: path.to_owned(),
            signs: Signs::on(&file),
            file,
            taken_from: None,
        }
    }

    /// Takes the turn for `who`. Waits for its holder until that has given no sign for `limit`, and then takes it from it.
    ///
    /// # Errors
    /// When the files cannot be made or locked. Whoever fences then does so without: two fences of one volume group do the same thing.
    pub fn take(directory: &Path, who: &str, limit: Duration) -> Result<Self, Error> {
        Self::take_where(directory, who, limit, &|| true)
    }

    /// The same where the holder may be at something that is not worth waiting for: as long as `worth` says so it has `limit`, whatever it gets done.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_where(
        directory: &Path,
        who: &str,
        limit: Duration,
        worth: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let error = |what, source| Error {
            path: path.clone(),
            what,
            source,
        };
        std::fs::create_dir_all(directory).map_err(|e| error("made", e))?;
        let mut moved = Instant::now();
        let mut until = moved + limit;
        let (mut waits_for, mut seen) = (None, None);
        loop {
            let file = open(&path).map_err(|e| error("opened", e))?;
            let metadata = file.metadata().ok();
            let id = metadata.as_ref().map(|m| (m.dev(), m.ino()));
            let sign = metadata.and_then(|m| m.modified().ok());
            if waits_for != id {
                // Another holder has the whole time again.
                (waits_for, seen) = (id, sign);
                moved = Instant::now();
                until = moved + limit;
            }
            if seen != sign {
                seen = sign;
                moved = Instant::now();
            }
            match file.try_lock() {
                Ok(()) => {
                    let turn = Self::of(&path, file);
                    // While it was waited for, another file may have come into its place.
                    if turn.mine() {
                        return turn.signed(who).map_err(|e| error("written", e));
                    }
                }
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    let later = moved + limit;
                    if later > Instant::now() && worth() {
                        until = later;
                        continue;
                    }
                    let former = Self::of(&path, file);
                    if let Some(turn) = former.replaced(who).map_err(|e| error("replaced", e))? {
                        return Ok(turn);
                    }
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
                Err(TryLockError::Error(e)) => return Err(error("locked", e)),
            }
        }
    }

    /// Whether nobody has taken it away. A file that cannot be looked up counts as one's own: nobody has put another in its place.
    #[must_use]
    pub fn mine(&self) -> bool {
        let Ok(there) = std::fs::metadata(&self.path) else {
            return true;
        };
        self.file
            .metadata()
            .is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    }

    /// Takes it from its holder; None when somebody else was quicker. Those that do this at the same time do it one after another, for as long as
    /// none of them hangs too.
    fn replaced(&self, who: &str) -> io::Result<Option<Self>> {
        let one_at_a_time = open(&self.path.with_extension("taking"))?;
        let until = Instant::now() + TAKING;
        while one_at_a_time.try_lock().is_err() && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
        }
        if !self.mine() {
            return Ok(None);
        }
        let turn = replace(&self.path, who)?;
        Ok(turn.mine().then(|| Self {
            taken_from: Some(read(&self.file)),
            ..turn
        }))
    }

    /// Who has it by now: `NAME PID`.
    pub(super) fn holder(&self) -> String {
        File::open(&self.path).map_or_else(|_| UNKNOWN.to_owned(), |file| read(&file))
    }

    /// Notes who holds it, for whoever has to wait.
    fn signed(self, who: &str) -> io::Result<Self> {
        self.file.set_len(0)?;
        write!(&*self.file, "{who} {}", std::process::id())?;
        Ok(self)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
}

/// A new file, locked before anybody else can see it, in the place of the old one.
fn replace(path: &Path, who: &str) -> io::Result<Turn> {
    let new = super::beside(path);
    let made = || {
        let file = open(&new)?;
        file.lock()?;
        let turn = Turn::of(path, file).signed(who)?;
        std::fs::rename(&new, path)?;
        Ok(turn)
    };
    made().inspect_err(|_| super::discard(&new))
}

fn read(file: &File) -> String {
    let mut text = String::new();
    let holder = file.take(100).read_to_string(&mut text);
    match holder {
        Ok(1..) => text,
        _ => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const SOON: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn one_that_cannot_be_replaced_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("turn");
        std::fs::create_dir_all(path.join("x")).expect("mkdir");
        assert!(replace(&path, "hook").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("folder").count(), 1);
    }

    #[test]
    fn it_is_one_at_a_time_and_given_back_at_the_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = Turn::take(dir.path(), "agent", LONG).expect("take");
        let path = dir.path().to_owned();
        let other = std::thread::spawn(move || Turn::take(&path, "kill-hook", LONG));
        std::thread::sleep(SOON);
        assert!(!other.is_finished() && first.mine());
        drop(first);
        let second = other.join().expect("join").expect("take");
        assert!(second.mine() && second.taken_from.is_none());
    }

    #[test]
    fn it_is_taken_from_a_holder_that_hangs_and_the_holder_sees_that() {
        let dir = tempfile::tempdir().expect("tempdir");
        let hung = Turn::take(dir.path(), "agent", LONG).expect("take");
        let began = Instant::now();
        let taken = Turn::take(dir.path(), "kill-hook", SOON).expect("take");
        assert!(began.elapsed() >= SOON);
        assert_eq!(
            taken.taken_from,
            Some(format!("agent {}", std::process::id()))
        );
        assert!(taken.mine() && !hung.mine());
        // What the former holder gives back is nobody's any more.
        drop(hung);
        assert!(taken.mine());
        let path = dir.path().to_owned();
        let third = std::thread::spawn(move || Turn::take(&path, "agent", LONG));
        std::thread::sleep(SOON);
        assert!(!third.is_finished());
        drop(taken);
        assert!(third.join().expect("join").is_ok_and(|t| t.mine()));
    }

    /// A holder that gets something done every now and then, until it is told not to.
    fn slow(holder: &Turn, until: &AtomicBool) {
        let end = Instant::now() + LONG;
        while !until.load(Ordering::Relaxed) && holder.mine() && Instant::now() < end {
            std::thread::sleep(SOON / 4);
            holder.signs.give();
        }
    }

    #[test]
    fn it_is_not_taken_from_a_holder_that_is_slow_and_soon_from_one_that_hangs_after_that() {
        let dir = tempfile::tempdir().expect("tempdir");
        let limit = SOON * 20;
        let holder = Turn::take(dir.path(), "agent", LONG).expect("take");
        let hangs = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| slow(&holder, &hangs));
            let taker = scope.spawn(|| Turn::take(dir.path(), "kill-hook", limit));
            std::thread::sleep(limit * 2);
            assert!(!taker.is_finished() && holder.mine());
            hangs.store(true, Ordering::Relaxed);
            let taken = taker.join().expect("join").expect("take");
            assert!(taken.taken_from.is_some() && !holder.mine());
            assert!(taken.holder().starts_with("kill-hook "));
        });
    }

    #[test]
    fn what_is_not_worth_waiting_for_is_not_waited_for_longer_whatever_it_gets_done() {
        let dir = tempfile::tempdir().expect("tempdir");
        let holder = Turn::take(dir.path(), "agent", LONG).expect("take");
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| slow(&holder, &ends));
            let taken = Turn::take_where(dir.path(), "kill-hook", SOON, &|| false);
            ends.store(true, Ordering::Relaxed);
            assert!(taken.expect("take").taken_from.is_some() && !holder.mine());
        });
    }

    #[test]
    fn signs_of_a_turn_that_was_given_back_keep_nobody_waiting() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = Turn::take(dir.path(), "agent", LONG).expect("take");
        let signs = first.signs.clone();
        drop(first);
        let second = Turn::take(dir.path(), "kill-hook", Duration::ZERO).expect("take");
        assert_eq!(second.taken_from, None);
        signs.give();
        assert!(second.mine());
    }

    #[test]
    fn many_that_take_it_away_end_up_with_one_holder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let _hung = Turn::take(dir.path(), "agent", LONG).expect("take");
        let holders = std::sync::Arc::new(std::sync::Mutex::new(0));
        let hooks: Vec<_> = (0..8)
            .map(|_| {
                let (path, holders) = (dir.path().to_owned(), holders.clone());
                std::thread::spawn(move || {
                    let turn = Turn::take(&path, "kill-hook", Duration::from_secs(2));
                    let turn = turn.expect("take");
                    let mut held = holders.lock().expect("lock");
                    assert!(turn.mine());
                    *held += 1;
                })
            })
            .collect();
        for hook in hooks {
            hook.join().expect("join");
        }
        assert_eq!(*holders.lock().expect("lock"), 8);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("write");
        let error = Turn::take(&file, "agent", SOON).expect_err("no folder");
        assert!(error.to_string().contains("tmpfs"), "{error}");
    }
}
