//! Fences that another went before: the journal holds one, so the records of the others lie here until each goes on (S4).
//!
//! A record that is unfinished leaves the journal only for this file, and this file only for the journal: written here before it is replaced there,
//! and taken out here after it is back there. Killed in between, a successor finds it twice, and never not at all.

use std::path::{Path, PathBuf};

use super::{Error, Record, line};
use crate::fence::Order;

const FILE: &str = "set-aside";

/// The records of such a file, up to the first line that is torn.
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = Record> {
    line::decode(bytes).filter_map(|json| serde_json::from_str(json).ok())
}

/// The file.
#[derive(Debug)]
pub(super) struct Aside {
    path: PathBuf,
    boot_id: String,
}

/// Whether two orders are one request's (or one kill hook's): as it was edited meanwhile, or before and after the API server had the record of what
/// the node began by itself. No UID of an API server has a colon.
fn of_one(a: &Order, b: &Order) -> bool {
    let own = |order: &Order| order.uid.contains(':');
    a.uid == b.uid || (a.name == b.name && (own(a) || own(b)))
}

impl Aside {
    pub(super) fn new(directory: &Path, boot_id: &str) -> Self {
        Self {
            path: directory.join(FILE),
            boot_id: boot_id.to_owned(),
        }
    }

    /// Those of this boot that have to be completed, the oldest first.
    pub(super) fn all(&self) -> Result<Vec<Record>, Error> {
        let bytes = super::read(&self.path)?.unwrap_or_default();
        let ours = |r: &Record| r.begun.report.boot_id == self.boot_id && r.unfinished();
        Ok(decode(&bytes).filter(ours).collect())
    }

    /// Puts one there, as the youngest, in place of what is there of the same order.
    pub(super) fn put(&self, record: &Record) -> Result<(), Error> {
        let mut all = self.all()?;
        all.retain(|r| !of_one(&r.begun.order, &record.begun.order));
        all.push(record.clone());
        self.write(&all)
    }

    /// Takes one out; what is not there is out already.
    pub(super) fn take(&self, order: &Order) -> Result<(), Error> {
        let before = self.all()?;
        let mut all = before.clone();
        all.retain(|r| !of_one(&r.begun.order, order));
        if all.len() == before.len() {
            return Ok(());
        }
        self.write(&all)
    }

    fn write(&self, all: &[Record]) -> Result<(), Error> {
        if all.is_empty() {
            return super::remove(&self.path);
        }
        super::write_lines(&self.path, all)
    }
}

/// The record that stands in the journal, if the fence of that order may not simply take its place.
pub(super) fn to_be_kept(left: Option<Record>, order: &Order) -> Option<Record> {
    left.filter(|r| r.unfinished() && !of_one(&r.begun.order, order))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(name: &str, uid: &str) -> Order {
        Order {
            name: name.into(),
            uid: uid.into(),
            ..Order::default()
        }
    }

    #[test]
    fn what_one_request_orders_is_told_from_what_another_of_its_name_did() {
        for (a, b, one) in [
            (("a", "1"), ("a", "1"), true),
            (("a", "1"), ("b", "1"), true),
            (("a", "1"), ("a", "2"), false),
            (("a", "local:a"), ("a", "2"), true),
            (("a", "local:a"), ("b", "2"), false),
            (
                ("hook of v", "kill-hook:v:1"),
                ("hook of v", "kill-hook:v:2"),
                true,
            ),
        ] {
            let (a, b) = (order(a.0, a.1), order(b.0, b.1));
            assert_eq!(of_one(&a, &b), one, "{a:?} {b:?}");
            assert_eq!(of_one(&b, &a), one, "{a:?} {b:?}");
        }
    }
}
