//! One record a line: `LENGTH CRC TEXT\n`, both numbers in hexadecimal.

/// CRC-32 as in zlib. Bit by bit: a fence writes a dozen lines.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// The line of `text`, which must not hold a line feed (JSON escapes them).
pub(super) fn encode(text: &str) -> Vec<u8> {
    format!("{:08x} {:08x} {text}\n", text.len(), crc32(text.as_bytes())).into_bytes()
}

/// The texts of all whole lines, up to the first that is not.
pub(super) fn decode(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        whole(line)
    })
}

fn whole(line: &[u8]) -> Option<&str> {
    let mut parts = std::str::from_utf8(line).ok()?.splitn(3, ' ');
    let length = usize::from_str_radix(parts.next()?, 16).ok()?;
    let crc = u32::from_str_radix(parts.next()?, 16).ok()?;
    parts
        .next()
        .filter(|text| text.len() == length && crc32(text.as_bytes()) == crc)
}
