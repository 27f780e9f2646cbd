//! The setting in `lvm.conf`: found and changed in the text, so that comments and everything else stay as they are. Pure.

/// The setting's place.
pub const KEY: &str = "global/lvmlockctl_kill_command";
const SECTION: &str = "global";
const NAME: &str = "lvmlockctl_kill_command";
const MARK: &str = "# Set by storage-fence install-hook, which takes it out again with --remove.";
/// lvmlockctl reads no more.
pub const LONGEST: usize = 255;

/// Where the setting stands, in bytes of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assignment {
    value: String,
    /// Of the value with its quotes.
    at: std::ops::Range<usize>,
}

#[derive(Debug, Default)]
struct Found {
    assignments: Vec<Assignment>,
    /// Right after the brace that opens the first such section.
    section: Option<usize>,
}

/// What a text sets; the last one counts.
///
/// # Errors
/// When the text is no configuration as LVM reads it.
pub fn value(text: &str) -> Result<Option<String>, String> {
    Ok(scan(text)?.assignments.pop().map(|a| a.value))
}

/// The text with that value.
///
/// # Errors
/// When the text is no configuration as LVM reads it, or the value cannot be one.
pub fn set(text: &str, value: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() || c == ' ';
    if value.len() > LONGEST || !value.chars().all(plain) || value.contains(['"', '\\']) {
        return Err(format!(
            "{value:?} cannot be the value of {KEY}: at most {LONGEST} plain characters"
        ));
    }
    let found = scan(text)?;
    let quoted = format!("\"{value}\"");
    let mut new = text.to_owned();
    if found.assignments.is_empty() {
        let lines = format!("\n\t{MARK}\n\t{NAME} = {quoted}");
        match found.section {
            Some(at) => {
                let rest = text.get(at..).and_then(|t| t.split('\n').next());
                let rest = rest.unwrap_or_default();
                if matches!(rest.trim_start().chars().next(), None | Some('#')) {
                    new.insert_str(at + rest.len(), &lines);
                } else {
                    // The section goes on in the line where it begins: not in ours, or that could not be taken out as a line.
                    new.insert_str(at, &format!("{lines}\n"));
                }
            }
            None => new = format!("{text}\n{SECTION} {{{lines}\n}}\n"),
        }
    }
    // From the end, so that places before stay where they are.
    for one in found.assignments.iter().rev() {
        new.replace_range(one.at.clone(), &quoted);
    }
    // What was written is read back, here too.
    match self::value(&new) {
        Ok(Some(read)) if read == value => Ok(new),
        _ => Err("it would not be read as it is meant".into()),
    }
}

/// The text without the setting, where it has a value that `ours` knows.
///
/// # Errors
/// When the text is no configuration as LVM reads it.
pub fn unset(text: &str, ours: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut new = text.to_owned();
    let found = scan(text)?.assignments;
    for one in found.iter().rev() {
        if !ours(&one.value) {
            continue;
        }
        let begin = text[..one.at.start].rfind('\n').unwrap_or(0);
        let end = text[one.at.end..]
            .find('\n')
            .map_or(text.len(), |n| one.at.end + n);
        let before = text.get(begin..one.at.start).unwrap_or_default();
        let after = text.get(one.at.end..end).unwrap_or_default();
        let alone = before.trim().trim_end_matches('=').trim_end();
        if (alone == NAME || alone == KEY) && after.trim().is_empty() {
            let marked = text[..begin].rfind('\n').unwrap_or(0);
            let mark = text.get(marked..begin).unwrap_or_default();
            let from = if mark.trim() == MARK { marked } else { begin };
            new.replace_range(from..end, "");
        } else {
            // Something else stands in that line: only the value goes.
            new.replace_range(one.at.clone(), "\"\"");
        }
    }
    // A section that was added for it goes with it; one that was empty before stays.
    let empty = format!("\n{SECTION} {{\n}}\n");
    if let Some(last) = found.last()
        && text.ends_with(&format!(
            "\n{SECTION} {{\n\t{MARK}\n\t{NAME} = \"{}\"\n}}\n",
            last.value
        ))
        && let Some(rest) = new.strip_suffix(&empty)
    {
        new.truncate(rest.len());
    }
    Ok(new)
}

/// Reads as LVM does: comments, strings of two kinds, lists, sections in sections, `a/b = c` at the top.
fn scan(text: &str) -> Result<Found, String> {
    let mut found = Found::default();
    let mut sections: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut assigned = false;
    let mut depth = 0_usize;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let line = || text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        match c {
            '#' => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            '"' | '\'' => {
                let mut string = String::new();
                let end = loop {
                    match chars.next() {
                        None => return Err(format!("line {}: a string without end", line())),
                        Some((end, q)) if q == c => break end + 1,
                        Some((_, '\\')) if c == '"' => {
                            string.extend(chars.next().map(|(_, c)| c));
                        }
                        Some((_, other)) => string.push(other),
                    }
                };
                if assigned && depth == 0 {
                    let key = [sections.join("/"), word.clone()].join("/");
                    if key.trim_start_matches('/') == KEY {
                        found.assignments.push(Assignment {
                            value: string,
                            at: at..end,
                        });
                    }
                    assigned = false;
                } else if depth == 0 {
                    word = string;
                }
            }
            '{' | '}' | '=' if assigned && depth == 0 => {
                return Err(format!("line {}: a setting without a value", line()));
            }
            '{' => {
                sections.push(std::mem::take(&mut word));
                if sections == [SECTION] {
                    found.section.get_or_insert(at + 1);
                }
            }
            '}' => {
                if sections.pop().is_none() {
                    return Err(format!(
                        "line {}: a section ends that did not begin",
                        line()
                    ));
                }
            }
            '[' => depth += 1,
            ']' => {
                depth = depth.saturating_sub(1);
                assigned = false;
            }
            '=' => assigned = true,
            c if c.is_whitespace() || c == ',' => {}
            first => {
                let mut token = String::from(first);
                let goes_on = |c: char| !c.is_whitespace() && !"#\"'{}[]=,".contains(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| goes_on(*c)) {
                    token.push(c);
                }
                if depth > 0 {
                } else if assigned {
                    assigned = false;
                } else {
                    word = token;
                }
            }
        }
    }
    if sections.is_empty() && depth == 0 && !assigned {
        Ok(found)
    } else {
        Err("a section, list or setting does not end".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "# comment with { and \" in it\nconfig {\n\tchecks = 1\n}\ndevices {\n\tdir = \"/dev\" # {\n\tfilter = [ \"a|.*|\", 'r|x' ]\n}\nglobal {\n\tumask = 077\n\t# lvmlockctl_kill_command = \"\"\n\t# This configuration option has an automatic default value.\n}\nactivation { checks = 0 }\n";
    const OURS: &str = "/usr/local/sbin/storage-fence kill-hook";

    #[test]
    fn it_is_set_among_comments_and_taken_out_without_a_trace() {
        assert_eq!(value(STOCK), Ok(None));
        let new = set(STOCK, OURS).expect("set");
        assert_eq!(value(&new), Ok(Some(OURS.to_owned())));
        for line in STOCK.lines() {
            assert!(new.lines().any(|l| l == line), "{line} is gone");
        }
        assert_eq!(set(&new, OURS), Ok(new.clone()));
        assert_eq!(unset(&new, |v| v == OURS), Ok(STOCK.to_owned()));
        for text in ["", "a = 1\n", "devices {\n}"] {
            let new = set(text, OURS).expect("set");
            assert_eq!(value(&new), Ok(Some(OURS.to_owned())), "{new}");
            assert_eq!(unset(&new, |v| v == OURS), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_stands_in_the_line_where_the_section_begins_stays_there() {
        for text in [
            "global { # as we like it\n\tumask = 077\n}\n",
            "global {\r\n\tumask = 077\r\n}\r\n",
        ] {
            let new = set(text, OURS).expect("set");
            assert_eq!(unset(&new, |v| v == OURS), Ok(text.to_owned()), "{new}");
        }
        // All of it in one line: a line end is added.
        let new = set("global { umask = 077 }\n", OURS).expect("set");
        let gone = unset(&new, |v| v == OURS).expect("unset");
        assert_eq!(gone, "global {\n umask = 077 }\n", "{new}");
        let text = "global {\n\tumask = 077\n}\n\nglobal {\n}\n";
        let new = set(text, OURS).expect("set");
        assert_eq!(unset(&new, |v| v == OURS), Ok(text.to_owned()), "{new}");
    }

    #[test]
    fn the_last_one_counts_and_every_one_is_set() {
        let text = "global/lvmlockctl_kill_command=\"/a b\"\nglobal {\n x = \"y\"\n lvmlockctl_kill_command = '/c' # why\n}\n";
        assert_eq!(value(text), Ok(Some("/c".into())));
        let new = set(text, OURS).expect("set");
        assert!(!new.contains("/a b") && !new.contains("'/c'") && new.contains("# why"));
        let gone = unset(&new, |v| v == OURS).expect("unset");
        assert_eq!(value(&gone), Ok(Some(String::new())), "{gone}");
        assert!(gone.contains("# why"));
        assert_eq!(unset(text, |v| v == OURS), Ok(text.to_owned()));
    }

    #[test]
    fn of_another_section_or_in_a_list_it_is_another_setting() {
        for text in [
            "local { lvmlockctl_kill_command = \"/x\" }",
            "global { sub { lvmlockctl_kill_command = \"/x\" } }",
            "global { x = [ \"lvmlockctl_kill_command = /x\" ] }",
            "lvmlockctl_kill_command = \"/x\"",
            "global { # lvmlockctl_kill_command = \"/x\"\n }",
            "global { lvmlockctl_kill_command_2 = \"/x\" }",
        ] {
            assert_eq!(value(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_left_alone() {
        for text in [
            "a =",
            "a = = 1",
            "a = {",
            "global {",
            "}",
            "a = \"b",
            "x = [ 1",
            "global { a = 'b }",
        ] {
            assert!(set(text, OURS).is_err(), "{text}");
            assert!(value(text).is_err(), "{text}");
        }
        for value in [
            "/a\"b",
            "/a\nb",
            "/a\\b",
            &format!("/{}", "x".repeat(LONGEST)),
        ] {
            assert!(set(STOCK, value).is_err(), "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_there_what_was_set_is_read(text in "[a-z{}=\"'#\\[\\] \n/]{0,60}") {
            if let Ok(new) = set(&text, OURS) {
                proptest::prop_assert_eq!(value(&new), Ok(Some(OURS.to_owned())), "{}", new);
            }
        }
    }
}
