//! One record a line: `LENGTH CRC TEXT\n`, both numbers in hexadecimal.

use std::io::{self, BufRead, BufWriter, Write};

use serde::Serialize;

/// Length of what comes before the text.
const HEADER: usize = "LENGTH__ CHECKSUM ".len();

/// So many bytes are written at a time: of nearly every line all.
const AT_A_TIME: usize = 64 << 10;

/// Length and CRC-32 (as in zlib) of a text that is only counted.
struct Sum {
    length: usize,
    crc: u32,
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            length: 0,
            crc: !0_u32,
        }
    }
}

impl Sum {
    fn of(text: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(text);
        sum
    }

    /// By a table: the line that a fence of thousands of devices begins with has megabytes.
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        self.crc = bytes.iter().fold(self.crc, |crc, byte| {
            let [low, ..] = crc.to_le_bytes();
            (crc >> 8) ^ OF_BYTE[usize::from(low ^ byte)]
        });
    }

    /// What comes before the text.
    fn header(&self) -> String {
        format!("{:08x} {:08x} ", self.length, !self.crc)
    }
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    [&Sum::of(text.as_bytes()).header(), text, "\n"]
        .concat()
        .into_bytes()
}

/// Writes a line of JSON for each. No line is held as a whole, which may have megabytes: so it is made twice, first to know its length and checksum.
///
/// # Errors
/// When one is nothing that JSON has words for, of which nothing is written then; or when not all can be written: the rest is missing.
pub fn write_json<'a, T: Serialize + 'a>(
    to: impl Write,
    all: impl IntoIterator<Item = &'a T>,
) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(AT_A_TIME, to);
    let written = all.into_iter().try_for_each(|one| {
        let mut sum = Sum::default();
        serde_json::to_writer(&mut sum, one)?;
        to.write_all(sum.header().as_bytes())?;
        serde_json::to_writer(&mut to, one)?;
        to.write_all(b"\n")
    });
    let written = written.and_then(|()| to.flush());
    // What could not be written is not tried once more on the way out: it would stand behind a gap.
    let _ = to.into_parts();
    written
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

/// Hands on the texts of all whole lines, up to the first that is not, or of which that is said. One line at a time is held.
///
/// # Errors
/// When it cannot be read.
pub fn read(mut lines: impl BufRead, mut take: impl FnMut(&str) -> bool) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line)?;
        let goes_on = line
            .strip_suffix(b"\n")
            .and_then(whole)
            .is_some_and(&mut take);
        if !goes_on {
            return Ok(());
        }
    }
}

/// The text of a line that is, to the byte, what was written: numbers in another spelling are damage, too.
fn whole(line: &[u8]) -> Option<&str> {
    let (header, text) = line.split_at_checked(HEADER)?;
    let as_written = Sum::of(text).header();
    let text = std::str::from_utf8(text).ok()?;
    (as_written.as_bytes() == header).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_that_others_know() {
        assert_eq!(Sum::of(b"123456789").header(), "00000009 cbf43926 ");
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

    /// Takes so many bytes a time; all but one of the calls work.
    struct Fails {
        taken: Vec<u8>,
        calls: usize,
        at: usize,
    }

    impl Write for &mut Fails {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls == self.at {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn long_lines_are_written_and_read_as_short_ones_are() {
        let texts = ["short", &"long".repeat(AT_A_TIME), "last"].map(str::to_owned);
        let mut bytes = Vec::new();
        write_json(&mut bytes, &texts).unwrap();
        let json = texts.map(|text| format!("{text:?}"));
        assert_eq!(bytes, json.clone().map(|text| encode(&text)).concat());
        assert_eq!(decode(&bytes).collect::<Vec<_>>(), json);
        for (cut, whole) in [(0, 3), (1, 2), (30, 1), (bytes.len() - 3, 0)] {
            let cut = bytes.get(..bytes.len() - cut).unwrap();
            let mut found = Vec::new();
            read(io::BufReader::with_capacity(100, cut), |text| {
                found.push(text.to_owned());
                true
            })
            .unwrap();
            assert_eq!(found, json[..whole]);
        }
    }

    #[test]
    fn nothing_is_written_behind_what_could_not_be() {
        let texts = [
            "before".to_owned(),
            "long".repeat(AT_A_TIME),
            "after".into(),
        ];
        let mut whole = Vec::new();
        write_json(&mut whole, &texts).unwrap();
        for at in 1..=3 {
            let mut to = Fails {
                taken: Vec::new(),
                calls: 0,
                at,
            };
            let error = write_json(&mut to, &texts).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(to.calls, at, "it is not tried once more");
            assert!(whole.starts_with(&to.taken));
        }
    }
}
