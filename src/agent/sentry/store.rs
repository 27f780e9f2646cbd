//! What the agent keeps by itself, in files next to the journal: on tmpfs, so that they outlive the agent but not the kernel, and never on the SAN.
//!
//! A file is replaced whole, by a rename: whoever reads it finds the old one or the new one. One that cannot be written stops nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A folder of such files.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    boot_id: String,
}

/// What stands in a file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept<T> {
    boot_id: String,
    content: T,
}

impl Store {
    /// Files of that boot in that folder.
    #[must_use]
    pub fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            boot_id: boot_id.to_owned(),
        }
    }

    /// Boot that the files are about.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What an earlier agent of this boot kept. A damaged file is as good as none: what it held is known anew once the API server is there.
    #[must_use]
    pub fn load<T: DeserializeOwned + Default>(&self, name: &str) -> T {
        let path = self.directory.join(name);
        let read =
            std::fs::read(&path).map_err(|e| (e.kind() == io::ErrorKind::NotFound, e.to_string()));
        let kept = read.and_then(|bytes| {
            serde_json::from_slice::<Kept<T>>(&bytes).map_err(|e| (false, e.to_string()))
        });
        match kept {
            Ok(kept) if kept.boot_id == self.boot_id => kept.content,
            Ok(_) | Err((true, _)) => T::default(),
            Err((false, why)) => {
                tracing::error!(file = %path.display(), why, "a file of an earlier agent cannot be read; it is begun anew");
                T::default()
            }
        }
    }

    /// Keeps it.
    pub fn save<T: Serialize>(&self, name: &str, content: &T) {
        let path = self.directory.join(name);
        let new = self.directory.join(format!("{name}.new"));
        let kept = Kept {
            boot_id: self.boot_id.clone(),
            content,
        };
        let written = serde_json::to_vec(&kept)
            .map_err(io::Error::from)
            .and_then(|bytes| std::fs::write(&new, bytes))
            .and_then(|()| std::fs::rename(&new, &path));
        if let Err(error) = written {
            // Room that others can use.
            let _ = std::fs::remove_file(&new);
            tracing::error!(
                file = %path.display(), %error,
                "not kept: an agent that is started anew while the API server is away would not know it. Is there space on the tmpfs?"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_by_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "boot-1");
        assert_eq!(store.load::<Vec<String>>("x.json"), Vec::<String>::new());
        store.save("x.json", &vec!["a".to_owned()]);
        assert_eq!(store.load::<Vec<String>>("x.json"), ["a"]);
        let other = Store::new(dir.path(), "boot-2");
        assert_eq!(other.load::<Vec<String>>("x.json"), Vec::<String>::new());
        assert!(!dir.path().join("x.json.new").exists());
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none_and_no_place_to_write_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), "boot-1");
        store.save("x.json", &vec![1]);
        let whole = std::fs::read(dir.path().join("x.json")).unwrap();
        for end in 0..whole.len() {
            std::fs::write(dir.path().join("x.json"), &whole[..end]).unwrap();
            assert_eq!(store.load::<Vec<i32>>("x.json"), Vec::<i32>::new(), "{end}");
        }
        Store::new(&dir.path().join("nowhere"), "b").save("x.json", &1);
    }
}
