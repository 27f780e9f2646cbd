//! The agent's files: all that it leaves to its successor.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::host::VGS;
use crate::agent::journal::Standing;
use crate::host::simulated::uuid_of;

/// The journal...
const JOURNAL: &str = "journal";
/// ...and which fences stand.
const STANDING: &str = "fenced";

/// What stands in the files of a state directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    contents: Arc<BTreeMap<String, Vec<u8>>>,
    digest: u64,
    /// By what a change of the journal is noticed.
    mark: Vec<(u64, u64)>,
}

fn paths(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let standing = fs::read_dir(directory.join(STANDING));
    let standing = standing.into_iter().flatten().flatten().map(|e| e.path());
    std::iter::once(directory.join(JOURNAL)).chain(standing)
}

impl Hash for Files {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl Files {
    fn of(contents: BTreeMap<String, Vec<u8>>, mark: Vec<(u64, u64)>) -> Self {
        let mut hasher = DefaultHasher::new();
        contents.hash(&mut hasher);
        Self {
            digest: hasher.finish(),
            contents: Arc::new(contents),
            mark,
        }
    }

    /// Reads them, if they look as though they had changed. Whether they have.
    pub(super) fn read(&mut self, directory: &Path) -> bool {
        let mark: Vec<(u64, u64)> = paths(directory)
            .filter_map(|path| fs::metadata(path).ok())
            .map(|m| (m.ino(), m.len()))
            .collect();
        if mark == self.mark {
            return false;
        }
        let mut contents = BTreeMap::new();
        for path in paths(directory) {
            let name = path.strip_prefix(directory).expect("in the directory");
            if let Ok(bytes) = fs::read(&path) {
                contents.insert(name.display().to_string(), bytes);
            }
        }
        let before = self.digest;
        *self = Self::of(contents, mark);
        self.digest != before
    }

    /// Writes them into an empty directory.
    pub(super) fn write(&self, directory: &Path) {
        for (name, bytes) in self.contents.as_ref() {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, bytes).expect("a file");
        }
    }

    /// The same without the journal.
    pub(super) fn without_journal(&self) -> Self {
        let mut contents = (*self.contents).clone();
        contents.remove(JOURNAL);
        Self::of(contents, Vec::new())
    }

    /// The same with a journal whose last line was written in part.
    pub(super) fn torn(&self) -> Self {
        let mut contents = (*self.contents).clone();
        if let Some(bytes) = contents.get_mut(JOURNAL) {
            bytes.truncate(bytes.len().saturating_sub(7));
        }
        Self::of(contents, Vec::new())
    }

    /// The generation that a fence of that volume group was about, if one is noted to stand.
    pub(super) fn stands(&self, group: usize) -> Option<u64> {
        let name = format!("{STANDING}/{}", uuid_of(VGS[group]));
        Standing::decode(self.contents.get(&name)?)?.generation
    }
}
