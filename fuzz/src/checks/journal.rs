//! Files of the agent's state directory: the journal, records set aside, standing fences, the un-fence that is going on, what was given back, and what
//! RCU's grace periods were.

use serde::Serialize;

use super::cuts;
use crate::agent::journal::{Lift, Record, Standing, aside, expedited, given_back, line};
use crate::fence::unfence::UnfenceReport;

/// One file.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    file(data);
    // No byte can be changed without the checksum noticing, so most inputs would end there.
    let repaired = repaired(data);
    if repaired != data {
        file(&repaired);
    }
}

/// The same lines with the lengths and checksums that belong to them.
fn repaired(data: &[u8]) -> Vec<u8> {
    let lines = data.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let texts = lines.map(|l| {
        let text = l.splitn(3, |b| *b == b' ').nth(2).unwrap_or(l);
        line::encode(&String::from_utf8_lossy(text))
    });
    texts.collect::<Vec<_>>().concat()
}

fn file(bytes: &[u8]) {
    let texts: Vec<&str> = line::decode(bytes).collect();
    // What is taken for whole is, to the byte, what was written.
    let written: Vec<u8> = texts.iter().flat_map(|t| line::encode(t)).collect();
    assert!(bytes.starts_with(&written), "{texts:?}");
    let mut read = Vec::new();
    let whole = line::read(bytes, |text| {
        read.push(text.to_owned());
        true
    });
    assert!(whole.is_ok() && read == texts, "as it is read from a file");
    let record = Record::decode(bytes);
    assert_eq!(record, Record::decode(&written), "nothing of what is torn");
    if let Some(record) = &record {
        assert!(!texts.is_empty());
        assert_eq!(record.steps.len(), record.begun.report.steps.len());
        let json = serde_json::to_string(&record.begun).expect("JSON");
        assert_eq!(
            serde_json::from_str(&json).ok().as_ref(),
            Some(&record.begun)
        );
    }
    if let Some(standing) = Standing::decode(bytes) {
        assert_eq!(Standing::decode(&encoded(&standing)), Some(standing));
    }
    if let Some(lift) = Lift::decode(bytes) {
        assert_eq!(Lift::decode(&encoded(&lift)), Some(lift));
    }
    of_several(bytes);
    if let Some((value, boot_id)) = expedited::decode(bytes) {
        let encoded = expedited::encode(value, boot_id);
        assert_eq!(expedited::decode(&encoded), Some((value, boot_id)));
    }
    // Any text in it is one line of the file.
    let lift = Lift {
        lifted: Standing::decode(bytes).into_iter().collect(),
        report: UnfenceReport {
            message: String::from_utf8_lossy(bytes).into_owned(),
            ..UnfenceReport::default()
        },
    };
    assert_eq!(Lift::decode(&encoded(&lift)), Some(lift));
    // A journal of 10 KB takes a millisecond to check.
    let some = if bytes.len() < 1024 { 7 } else { 1 };
    for cut in cuts(bytes, bytes.len()).take(some) {
        torn(bytes, cut);
        damaged(bytes, cut, &texts);
    }
}

/// Files of one record a line are read, as they are written again, to what they were.
fn of_several(bytes: &[u8]) {
    let records: Vec<Record> = aside::decode(bytes).collect();
    let again: Vec<u8> = records.iter().flat_map(encoded).collect();
    assert_eq!(aside::decode(&again).collect::<Vec<_>>(), records);
    let entries: Vec<_> = given_back::decode(bytes).collect();
    let again: Vec<u8> = entries.iter().flat_map(encoded).collect();
    assert_eq!(given_back::decode(&again).collect::<Vec<_>>(), entries);
}

fn encoded(it: &impl Serialize) -> Vec<u8> {
    line::encode(&serde_json::to_string(it).expect("JSON"))
}

/// The writer died within a line: what is read is what the lines before it say.
fn torn(bytes: &[u8], cut: usize) {
    let short = &bytes[..cut];
    let whole = short.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    assert_eq!(Record::decode(short), Record::decode(&bytes[..whole]));
    let once = |b: &[u8]| line::decode(b).next().map(str::to_owned);
    assert_eq!(once(short), once(&bytes[..whole]));
    assert_eq!(Standing::decode(short), Standing::decode(&bytes[..whole]));
    assert_eq!(Lift::decode(short), Lift::decode(&bytes[..whole]));
    assert_eq!(expedited::decode(short), expedited::decode(&bytes[..whole]));
    // No record that is not whole, and those before it all the same.
    assert!(aside::decode(short).eq(aside::decode(&bytes[..whole])));
    assert!(given_back::decode(short).eq(given_back::decode(&bytes[..whole])));
}

/// One byte is another than was written: its line is not read, nor any after it.
fn damaged(bytes: &[u8], at: usize, texts: &[&str]) {
    let mut bytes = bytes.to_vec();
    let before = bytes[..at].split(|b| *b == b'\n').count() - 1;
    bytes[at] ^= 1 << (at % 8);
    let read: Vec<&str> = line::decode(&bytes).collect();
    assert!(read.len() <= before, "{read:?}");
    assert!(texts.starts_with(&read));
}
