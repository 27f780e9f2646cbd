//! Fences that stand: volume groups that were proven to be cut off and have not been given back (S6).
//!
//! One file a volume group beside the journal, which only knows the latest fence. It is there from the moment of the proof until the fence is
//! *lifted*: whoever un-fences a volume group on purpose calls [`Standings::lift`] first, before it touches a device, and the guard stops.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, GroupRecord, line};
use crate::fence::Monotonic;
use crate::fence::report::{FenceReport, LocksOutcome};

const FOLDER: &str = "fenced";
/// How often a change is made anew on what somebody else has noted meanwhile.
const TRIES: u32 = 3;

/// What the guard knows of a time when a fence did not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// When it was noticed.
    pub noticed: Monotonic,
    /// The last look before that found it closed, or the proof.
    pub closed_before: Monotonic,
    /// Device-mapper names of the devices that could reach the SAN, bounded.
    pub devices: Vec<String>,
    /// How long it was open at most: from the last look that found it closed to the proof that it is closed again. None: it is still open.
    pub open_at_most: Option<std::time::Duration>,
}

/// A volume group that stands fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The volume group.
    pub group: GroupRecord,
    /// Boot ID of the kernel that it stands fenced in.
    pub boot_id: String,
    /// Name of the request, or of the kill hook's order.
    pub by: String,
    /// UID of it.
    pub uid: String,
    /// Lockspace that the fence met.
    pub lockspace: Option<String>,
    /// This host's id in it.
    pub host_id: Option<u64>,
    /// Generation of that id, when the lock manager told.
    pub generation: Option<u64>,
    /// When it was proven.
    pub proven: Monotonic,
    /// When a fence that came later proved it anew; None while none has. An un-fence that was begun before that has nothing to do with it any more.
    #[serde(default)]
    pub proven_anew: Option<Monotonic>,
    /// What became of the locks.
    pub locks: LocksOutcome,
    /// Whether the order was to keep the locks, so that nobody may release them on its account (`releaseLocks: Never`).
    #[serde(default)]
    pub keep_locks: bool,
    /// The highest [`sequence`](crate::host::System::sequence) of a device that was there before the volume group could have been joined again: one
    /// with a higher number was made later. None while it is not known.
    #[serde(default)]
    pub newest: Option<u64>,
    /// Whether the volume group was seen joined to its lockspace again while devices that the fence left behind are still there.
    #[serde(default)]
    pub joined: bool,
    /// Whether it has been told to people that the kill hook made it.
    #[serde(default)]
    pub told: bool,
    /// How often it did not hold.
    pub openings: u32,
    /// The last time.
    pub last_opening: Option<Opening>,
}

impl Standing {
    /// Reads a file's bytes; None when they make no sense.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_str(line::decode(bytes).next()?).ok()
    }

    /// Those that a proven fence makes: one a volume group.
    #[must_use]
    pub fn of(report: &FenceReport, groups: &[GroupRecord], now: Monotonic) -> Vec<Self> {
        let standing = |(group, told): (&GroupRecord, _)| {
            let told: &crate::fence::report::VolumeGroupReport = told;
            Self {
                group: group.clone(),
                boot_id: report.boot_id.clone(),
                by: report.request.clone(),
                uid: report.uid.clone(),
                lockspace: told.lockspace.clone(),
                host_id: told.host_id,
                generation: told.generation,
                proven: now,
                proven_anew: None,
                locks: report.locks,
                keep_locks: false,
                newest: None,
                joined: false,
                told: false,
                openings: 0,
                last_opening: None,
            }
        };
        groups
            .iter()
            .zip(&report.volume_groups)
            .map(standing)
            .collect()
    }
}

/// All of them, on tmpfs: they outlive the agent and not the kernel.
#[derive(Clone, Debug)]
pub struct Standings {
    folder: PathBuf,
    boot_id: String,
    /// Whether there is such a folder at all: without a journal there is nowhere to note anything.
    kept: bool,
}

impl Standings {
    /// In the state directory. Reads nothing yet.
    #[must_use]
    pub fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            folder: directory.join(FOLDER),
            boot_id: boot_id.to_owned(),
            kept: true,
        }
    }

    /// None, and nowhere to put one.
    #[must_use]
    pub(super) fn nowhere() -> Self {
        Self {
            kept: false,
            ..Self::new(Path::new(""), "")
        }
    }

    /// Every volume group that stands fenced in this kernel, by name.
    ///
    /// # Errors
    /// When the folder cannot be read: whether something stands fenced is not known then. A file that makes no sense is left out; it cannot come
    /// from here, since files appear whole.
    pub fn all(&self) -> Result<Vec<Standing>, Error> {
        if !self.kept {
            return Ok(Vec::new());
        }
        let error = |source| self.error(&self.folder, "read", source);
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(e)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(error)?.path();
            if path.extension().is_some() {
                continue;
            }
            match std::fs::read(&path) {
                Ok(bytes) => {
                    all.extend(Standing::decode(&bytes).filter(|s| s.boot_id == self.boot_id));
                }
                // Lifted meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(error(e)),
            }
        }
        all.sort_by(|a, b| (&a.group.name, &a.group.uuid).cmp(&(&b.group.name, &b.group.uuid)));
        Ok(all)
    }

    /// The one of that volume group.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn of(&self, vg_uuid: &str) -> Result<Option<Standing>, Error> {
        Ok(self.all()?.into_iter().find(|s| s.group.uuid == vg_uuid))
    }

    /// Writes one, in place of what was there of the same volume group.
    ///
    /// # Errors
    /// When it cannot be written: then the volume group is not guarded after the agent has been restarted.
    pub fn put(&self, standing: &Standing) -> Result<(), Error> {
        let path = self.path(&standing.group.uuid);
        self.put_if(standing, || true)
            .map_err(|e| self.error(&path, "written", e))
    }

    /// The same where `still` says so once all but the last is done: nothing is written then where it does not.
    fn put_if(&self, standing: &Standing, still: impl FnOnce() -> bool) -> io::Result<()> {
        if !self.kept {
            return Err(io::Error::other("there is no journal"));
        }
        std::fs::create_dir_all(&self.folder)?;
        let text = serde_json::to_string(standing)?;
        super::appear(&self.path(&standing.group.uuid), |mut file| {
            file.write_all(&line::encode(&text))?;
            if still() {
                Ok(())
            } else {
                Err(io::ErrorKind::ResourceBusy.into())
            }
        })
    }

    /// Changes one that is still there. Whether it was.
    ///
    /// Others change it too: the guard, a fence, an un-fence, the kill hook's process. What one of them has noted meanwhile is taken in, as far as can
    /// be had without a lock that any of them could die or hang with.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn update(&self, vg_uuid: &str, change: impl Fn(&mut Standing)) -> Result<bool, Error> {
        let mut tries = TRIES;
        loop {
            let Some(before) = self.of(vg_uuid)? else {
                return Ok(false);
            };
            let mut standing = before.clone();
            change(&mut standing);
            let now = || self.of(vg_uuid).ok().flatten();
            let same = || now().is_some_and(|now| tries == 0 || now == before);
            match self.put_if(&standing, same) {
                Ok(()) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && tries > 0 => tries -= 1,
                Err(e) => return Err(self.error(&self.path(vg_uuid), "written", e)),
            }
        }
    }

    /// Lifts the fence of a volume group: from now on its devices may come back. Whether one stood.
    ///
    /// To be called by whoever gives a volume group back, before the first device is touched.
    ///
    /// # Errors
    /// When the file cannot be removed: the fence then still stands, and is guarded.
    pub fn lift(&self, vg_uuid: &str) -> Result<bool, Error> {
        if !self.kept {
            return Ok(false);
        }
        let path = self.path(vg_uuid);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.error(&path, "removed", e)),
        }
    }

    /// The UUID's characters are LVM's choice: what is no letter or digit is written as a number.
    fn path(&self, vg_uuid: &str) -> PathBuf {
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_string()
            } else {
                format!("_{:x}", u32::from(c))
            }
        };
        self.folder
            .join(vg_uuid.chars().map(safe).collect::<String>())
    }

    #[expect(clippy::unused_self, reason = "reads as the others do")]
    fn error(&self, path: &Path, what: &'static str, source: io::Error) -> Error {
        Error {
            path: path.to_owned(),
            what,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::DiskMark;

    fn standing(uuid: &str, boot_id: &str) -> Standing {
        Standing {
            group: GroupRecord {
                name: "vg".into(),
                uuid: uuid.into(),
                ..GroupRecord::default()
            },
            boot_id: boot_id.into(),
            by: "r".into(),
            uid: "u".into(),
            lockspace: None,
            host_id: Some(1),
            generation: Some(2),
            proven: Monotonic::from_secs(3),
            proven_anew: None,
            locks: LocksOutcome::Pending,
            keep_locks: false,
            newest: None,
            joined: false,
            told: false,
            openings: 0,
            last_opening: None,
        }
    }

    #[test]
    fn one_stands_until_it_is_lifted_or_the_kernel_is_another() {
        let dir = tempfile::tempdir().expect("tempdir");
        let standings = Standings::new(dir.path(), "boot");
        assert_eq!(standings.all().expect("read"), vec![]);
        let (one, two) = (standing("a#/!", "boot"), standing("b", "boot"));
        standings.put(&one).expect("put");
        standings.put(&two).expect("put");
        standings.put(&standing("c", "before")).expect("put");
        assert_eq!(
            Standings::new(dir.path(), "boot").all().expect("read"),
            vec![one.clone(), two.clone()]
        );
        assert!(standings.update("b", |s| s.openings = 4).expect("update"));
        assert_eq!(
            standings.of("b").expect("read").map(|s| s.openings),
            Some(4)
        );
        assert!(standings.lift("a#/!").expect("lift"));
        assert!(!standings.lift("a#/!").expect("lift"));
        assert!(!standings.update("a#/!", |_| ()).expect("update"));
        assert_eq!(standings.all().expect("read").len(), 1);
    }

    #[test]
    fn what_others_note_meanwhile_is_not_lost() {
        let dir = tempfile::tempdir().expect("tempdir");
        let standings = Standings::new(dir.path(), "boot");
        standings.put(&standing("a", "boot")).expect("put");
        // The fence's end, while the guard is about to note something.
        let released = |s: &mut Standing| s.locks = LocksOutcome::Released;
        let once = std::cell::Cell::new(true);
        let told = |s: &mut Standing| {
            s.told = true;
            if once.take() {
                assert!(standings.update("a", released).expect("update"));
            }
        };
        assert!(standings.update("a", told).expect("update"));
        let now = standings.of("a").expect("read").expect("stands");
        assert_eq!((now.told, now.locks), (true, LocksOutcome::Released));
        // Lifted: it does not come back.
        let lifts = |s: &mut Standing| {
            s.told = false;
            standings.lift("a").expect("lift");
        };
        assert!(!standings.update("a", lifts).expect("update"));
        let left = std::fs::read_dir(dir.path().join(FOLDER)).expect("folder");
        assert_eq!((standings.all().expect("read"), left.count()), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("tempdir");
        let standings = Standings::new(dir.path(), "boot");
        // A directory in the way fails for root too.
        std::fs::create_dir_all(standings.path("a").join("x")).expect("mkdir");
        assert!(standings.put(&standing("a", "boot")).is_err());
        let left = std::fs::read_dir(dir.path().join(FOLDER)).expect("folder");
        assert_eq!(left.count(), 1);
    }

    #[test]
    fn a_journal_that_keeps_nothing_writes_no_standing_fence_anywhere() {
        let standings = super::super::Journal::silent().standings();
        assert!(standings.put(&standing("a", "")).is_err());
        assert_eq!(standings.all().expect("none"), vec![]);
        assert!(!standings.lift("a").expect("none"));
        assert!(!Path::new("/fenced").exists() && !Path::new(FOLDER).exists());
    }

    /// As an agent of before wrote it on a node, and as it is written now.
    #[test]
    fn physical_volumes_are_read_with_their_identities_and_without() {
        let numbers = include_bytes!("../../../fuzz/corpus/journal/trixie-standing");
        let numbers = Standing::decode(numbers).expect("read").group.pvs;
        let none = DiskMark::default();
        let found: Vec<_> = numbers.iter().map(|pv| (pv.dev.minor, &*pv.uuid)).collect();
        assert_eq!(found, [(0, "")]);
        assert_eq!(numbers[0].disk, none);
        let told = include_bytes!("../../../fuzz/corpus/journal/by-hand-standing-on-disks");
        let told = Standing::decode(told).expect("read");
        let [map, disk] = told.group.pvs.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!((&*map.uuid, &map.disk), ("mpath-35000c50015ea71a0", &none));
        assert_eq!(
            (disk.disk.sequence, disk.disk.partition),
            (Some(12), Some(1))
        );
        let again = line::encode(&serde_json::to_string(&told).expect("written"));
        assert_eq!(Standing::decode(&again), Some(told));
    }

    #[test]
    fn a_torn_or_foreign_file_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let standings = Standings::new(dir.path(), "boot");
        standings.put(&standing("a", "boot")).expect("put");
        let path = dir.path().join(FOLDER).join("a");
        let bytes = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes[..bytes.len() - 2]).expect("write");
        std::fs::write(dir.path().join(FOLDER).join("b"), "garbage").expect("write");
        assert_eq!(standings.all().expect("read"), vec![]);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join(FOLDER), "a file").expect("write");
        let standings = Standings::new(dir.path(), "boot");
        assert!(standings.all().is_err());
        assert!(standings.put(&standing("a", "boot")).is_err());
    }
}
