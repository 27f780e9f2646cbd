//! lvm.conf, in which the kill hook is set.

use super::cuts;
use crate::agent::hook::conf::{LONGEST, set, unset, value};

const OURS: &str = "/usr/local/sbin/storage-fence kill-hook";

/// One text.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let before = value(text);
    let after = set(text, OURS);
    if before.is_err() {
        assert!(after.is_err() && unset(text, |_| true).is_err());
        return;
    }
    if let Ok(new) = after {
        assert_eq!(value(&new), Ok(Some(OURS.to_owned())));
        assert_eq!(set(&new, OURS).as_ref(), Ok(&new), "set twice");
        let gone = unset(&new, |v| v == OURS).expect("what can be set can be unset");
        let left = value(&gone).expect("a configuration");
        assert!(left.is_none() || left.as_deref() == Some(""), "{gone:?}");
        if before == Ok(None) {
            // Without a trace; but for one line end where a whole section stands in one line, and an empty section at the end, which is taken for
            // the one that is added where there is none.
            let one_line = without_blanks(&gone) == without_blanks(text);
            let one_line = one_line && gone.len() == text.len() + 1;
            let empty = text.strip_suffix("\nglobal {\n}\n") == Some(gone.as_str());
            assert!(gone == text || one_line || empty, "{new:?}");
            assert_eq!(left, None);
        }
    }
    // What is nobody's of ours stays as it is.
    assert_eq!(unset(text, |_| false).as_deref(), Ok(text));
    let all_gone = unset(text, |_| true).expect("a configuration");
    let left = value(&all_gone).expect("a configuration");
    assert!(
        left.is_none() || left.as_deref() == Some(""),
        "{all_gone:?}"
    );

    // Any value that is taken is the one that is read.
    for cut in cuts(data, text.len()) {
        let Some(word) = text.get(cut..).map(|t| t.get(..t.len().min(LONGEST + 1))) else {
            continue;
        };
        if let Some(word) = word
            && let Ok(new) = set("", word)
        {
            assert_eq!(value(&new), Ok(Some(word.to_owned())));
        }
    }
}

fn without_blanks(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
