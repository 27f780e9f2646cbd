//! What hook and agent say to each other: one line asks, lines answer. Both sides bound lengths and times; what is not understood ends it.

/// Longest line, without its end.
pub const LINE: usize = 2048;
/// The agent says that it is at work at least this often.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(1);
const ASK: &str = "storage-fence 1 fence ";
/// LVM's own limit for names.
const NAME: usize = 127;

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The fence goes on, or waits for its turn. More answers follow.
    Working,
    /// It is proven. The last answer.
    Proven,
    /// It is not, and will not be tried further. The last answer.
    Unproven(String),
}

impl Answer {
    /// The line, with its end.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Working => "working\n".into(),
            Self::Proven => "proven\n".into(),
            Self::Unproven(why) => {
                // In one line, and not too long for the other side.
                let plain = why.chars().map(|c| if c.is_control() { ' ' } else { c });
                let mut text: String = plain.collect();
                let mut end = text.len().min(LINE - 100);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                format!("unproven {text}\n")
            }
        }
    }

    /// Understands a line without its end.
    #[must_use]
    pub fn decode(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        match line {
            "working" => Some(Self::Working),
            "proven" => Some(Self::Proven),
            other => other
                .strip_prefix("unproven ")
                .map(|why| Self::Unproven(why.to_owned())),
        }
    }
}

/// The question, with its end.
#[must_use]
pub fn encode_question(vg: &str) -> String {
    format!("{ASK}{vg}\n")
}

/// The volume group that a question, without its end, is about.
#[must_use]
pub fn decode_question(line: &[u8]) -> Option<&str> {
    let vg = std::str::from_utf8(line).ok()?.strip_prefix(ASK)?;
    is_name(vg).then_some(vg)
}

/// Whether LVM would let a volume group have that name.
#[must_use]
pub fn is_name(vg: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    !vg.is_empty()
        && vg.len() <= NAME
        && vg.chars().all(legal)
        && !vg.starts_with('-')
        && !matches!(vg, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let long = "\u{fc}".repeat(LINE);
        for answer in [
            Answer::Working,
            Answer::Proven,
            Answer::Unproven("one two".into()),
        ] {
            let line = answer.encode();
            assert_eq!(
                Answer::decode(line.trim_end_matches('\n').as_bytes()),
                Some(answer)
            );
        }
        let line = Answer::Unproven(format!("a\nb{long}")).encode();
        assert!(line.len() <= LINE && line.matches('\n').count() == 1);
        assert!(matches!(
            Answer::decode(line.trim_end().as_bytes()),
            Some(Answer::Unproven(why)) if why.starts_with("a b")
        ));
        let question = encode_question("vg-a.b_c+d");
        assert_eq!(
            decode_question(question.trim_end().as_bytes()),
            Some("vg-a.b_c+d")
        );
    }

    #[test]
    fn what_is_not_is_not() {
        for line in [
            "",
            "proven ",
            "provenx",
            "Proven",
            "unproven",
            "working\n",
            "\u{0}",
        ] {
            assert_eq!(Answer::decode(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Answer::decode(&[0xff, 0xfe]), None);
        for vg in [
            "",
            ".",
            "..",
            "-a",
            "a b",
            "a/b",
            "a\nb",
            "\u{fc}",
            &*"x".repeat(128),
        ] {
            let question = format!("{ASK}{vg}");
            assert_eq!(decode_question(question.as_bytes()), None, "{vg:?}");
        }
        assert_eq!(decode_question(b"storage-fence 2 fence vg"), None);
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_never_proof(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40)) {
            let proof = Answer::decode(&bytes) == Some(Answer::Proven);
            proptest::prop_assert_eq!(proof, bytes == b"proven");
        }
    }
}
