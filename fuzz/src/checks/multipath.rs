//! Lines of a multipath target, and what multipathd answers.

use std::fmt::Write as _;

use super::Values;
use crate::fence::DevNo;
use crate::host::multipath::{Table, answer_length, parse_status, parse_table, read_answer};

/// Lines, as device mapper's buffers hold them.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    made(&mut Values(data));
    for line in String::from_utf8_lossy(data).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        table(&words);
        status(&words);
    }
    answer(data);
}

/// Lines with several groups, and with arguments behind each path, as the path selectors print them.
fn made(values: &mut Values<'_>) {
    let queueing = values.flag();
    let arguments = values.few(3);
    let more = " 1".repeat(arguments);
    let groups: Vec<Vec<(DevNo, bool)>> = (0..values.few(3))
        .map(|_| {
            (0..values.few(3))
                .map(|_| (values.dev(), values.flag()))
                .collect()
        })
        .collect();
    let features = if queueing {
        "3 queue_if_no_path pg_init_retries 50"
    } else {
        "0"
    };
    let mut table_line = format!("{features} 1 alua {} 1", groups.len());
    let mut status_line = format!("2 0 1 0 {} 1", groups.len());
    for group in &groups {
        let _ = write!(table_line, " service-time 0 {} {arguments}", group.len());
        let _ = write!(status_line, " A 0 {} {arguments}", group.len());
        for (dev, active) in group {
            let _ = write!(table_line, " {dev}{more}");
            let _ = write!(
                status_line,
                " {dev} {} 3{more}",
                if *active { 'A' } else { 'F' }
            );
        }
    }
    let all: Vec<(DevNo, bool)> = groups.concat();
    let paths = all.iter().map(|(dev, _)| *dev).collect();
    assert_eq!(parse_table(&table_line), Ok(Table { queueing, paths }));
    assert_eq!(parse_status(&status_line), Ok(all));
}

/// Every beginning of a line that is shorter by whole words: refused, or the same.
fn beginnings<'a>(words: &'a [&'a str]) -> impl Iterator<Item = String> + 'a {
    let some = (0..words.len()).rev().take(24);
    some.map(|n| words.get(..n).unwrap_or_default().join(" "))
}

fn table(words: &[&str]) {
    let line = words.join(" ");
    let Ok(table) = parse_table(&line) else {
        return;
    };
    assert!(table.paths.len() <= words.len());
    assert!(!table.queueing || words.contains(&"queue_if_no_path"));
    let features = if table.queueing {
        "1 queue_if_no_path"
    } else {
        "0"
    };
    let mut again = format!("{features} 0 1 1 service-time 0 {} 0", table.paths.len());
    for dev in &table.paths {
        let _ = write!(again, " {dev}");
    }
    assert_eq!(parse_table(&again).as_ref(), Ok(&table));
    assert_eq!(parse_table(&format!("{line} 1 more")).as_ref(), Ok(&table));
    for short in beginnings(words) {
        let read = parse_table(&short).unwrap_or_else(|_| Table::clone(&table));
        assert_eq!(read, table, "{short:?}");
    }
}

fn status(words: &[&str]) {
    let line = words.join(" ");
    let Ok(paths) = parse_status(&line) else {
        return;
    };
    let active = paths.iter().filter(|(_, active)| *active).count();
    assert!(active <= words.iter().filter(|w| **w == "A").count());
    assert!(paths.len() - active <= words.iter().filter(|w| **w == "F").count());
    let mut again = format!("2 0 0 0 1 1 A 0 {} 0", paths.len());
    for (dev, active) in &paths {
        let _ = write!(again, " {dev} {} 7", if *active { 'A' } else { 'F' });
    }
    assert_eq!(parse_status(&again).as_ref(), Ok(&paths));
    assert_eq!(parse_status(&format!("{line} E")).as_ref(), Ok(&paths));
    for short in beginnings(words) {
        // A path that failed must not get lost, or all of them would seem to work.
        let read = parse_status(&short).unwrap_or_else(|_| paths.clone());
        assert_eq!(read, paths, "{short:?}");
    }
}

/// Eight bytes of length, then that many.
fn answer(data: &[u8]) {
    let Some((length, text)) = data.split_at_checked(8) else {
        return;
    };
    let told = u64::from_ne_bytes(length.try_into().expect("eight bytes"));
    match answer_length(length) {
        Some(n) => assert!(u64::try_from(n) == Ok(told) && (1..=64 * 1024).contains(&n)),
        None => assert!(told == 0 || told > 64 * 1024),
    }
    assert_eq!(answer_length(text.get(..7).unwrap_or_default()), None);
    // No other word than that one, with blanks around it, is success. A vertical tab is a blank too.
    let plain: String = String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '\0')
        .collect();
    match read_answer(text) {
        Ok(()) => assert_eq!(plain, "ok"),
        Err(said) => assert!(said.chars().count() <= 200 && said != "ok"),
    }
}
