//! One record a line: `LENGTH CRC TEXT\n`, both numbers in hexadecimal.

use serde::Serialize;

/// Length of what comes before the text.
const HEADER: usize = "LENGTH__ CHECKSUM ".len();

/// CRC-32 as in zlib. By a table: the line that a fence of thousands of devices begins with has megabytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ OF_BYTE[usize::from(low ^ byte)]
    })
}

/// What each byte does to a checksum.
const OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        let (mut crc, mut bit) = (byte, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

/// The line of `text`, which must not hold a line feed (JSON escapes them).
#[must_use]
pub fn encode(text: &str) -> Vec<u8> {
    let mut lines = Vec::with_capacity(HEADER + text.len() + 1);
    append(&mut lines, |to| to.extend(text.as_bytes()));
    lines
}

/// Appends the line of something as JSON, without a copy of it in between: it may have megabytes.
///
/// # Errors
/// When it is nothing that JSON has words for; `lines` is as it was then.
pub fn append_json(lines: &mut Vec<u8>, it: &impl Serialize) -> serde_json::Result<()> {
    let before = lines.len();
    let mut written = Ok(());
    append(lines, |to| written = serde_json::to_writer(to, it));
    if written.is_err() {
        lines.truncate(before);
    }
    written
}

fn append(lines: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = lines.len();
    lines.resize(begin + HEADER, b' ');
    write(lines);
    let (header, text) = lines.split_at_mut(begin + HEADER);
    let told = format!("{:08x} {:08x} ", text.len(), crc32(text));
    if let Some(header) = header.get_mut(begin..) {
        header.copy_from_slice(told.as_bytes());
    }
    lines.push(b'\n');
}

/// The texts of all whole lines, up to the first that is not.
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        whole(line)
    })
}

/// The text of a line that is, to the byte, what was written: numbers in another spelling are damage, too.
fn whole(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line.get(HEADER..)?).ok()?;
    (encode(text).strip_suffix(b"\n") == Some(line)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_that_others_know() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_line_is_read_only_as_it_was_written() {
        // Length and checksum both have letters among their digits.
        let text = "x".repeat(0xab);
        let line = encode(&text);
        assert_eq!(decode(&line).collect::<Vec<_>>(), [text.as_str()]);
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut damaged = line.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(decode(&damaged).next(), None, "bit {bit} of byte {at}");
            }
            assert_eq!(decode(&line[..at]).next(), None, "cut at {at}");
        }
        let spelled = String::from_utf8(line).unwrap().replacen('0', "+", 1);
        assert_eq!(decode(spelled.as_bytes()).next(), None);
    }
}
