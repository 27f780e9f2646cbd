//! Lines for the kernel's log: `dmesg` and the console have them even when no log daemon can write any more.

use std::fs::OpenOptions;
use std::io::Write as _;

use super::Paths;

/// The kernel takes no more of one line.
const LINE: usize = 900;

/// Writes one line, as a warning. Without a log nothing is done about it: it must not hold anything up.
pub fn tell(paths: &Paths, line: &str) {
    let mut end = line.len().min(LINE);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let line = line.get(..end).unwrap_or_default().replace('\n', " ");
    // One write is one line.
    let text = format!("<4>storage-fence: {line}\n");
    if let Ok(mut log) = OpenOptions::new().write(true).open(paths.dev.join("kmsg")) {
        let _ = log.write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_at_most_as_long_as_the_kernel_takes() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        tell(&paths, "nobody there");
        std::fs::create_dir_all(&paths.dev).unwrap();
        std::fs::write(paths.dev.join("kmsg"), "").unwrap();
        tell(&paths, &format!("a\nb{}", "\u{fc}".repeat(900)));
        let log = std::fs::read_to_string(paths.dev.join("kmsg")).unwrap();
        assert!(log.starts_with("<4>storage-fence: a b\u{fc}") && log.len() < 980);
        assert_eq!(log.matches('\n').count(), 1);
    }
}
