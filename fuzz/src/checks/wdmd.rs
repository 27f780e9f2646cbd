//! wdmd's answer: the text of its dump, then a header.

use std::fmt::Write as _;

use super::{Values, cuts};
use crate::fence::{Monotonic, Watchdog};
use crate::host::wdmd::{parse_dump, split_answer};

/// Size of `struct wdmd_header`.
const HEADER: usize = 176;

/// One answer.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    made(&mut Values(data));
    if let Some((text, fire)) = split_answer(data) {
        assert_eq!(text.len() + HEADER, data.len());
        assert!(data.starts_with(text) && !text.contains(&0));
        let at = text.len() + 20;
        assert_eq!(data[at..at + 4], fire.to_ne_bytes());
        // A dump ends in a line feed and a header begins with zeros: read byte by byte, nothing before the end looks like it.
        if text.ends_with(b"\n") && data[text.len()..text.len() + 4] == [0; 4] {
            for cut in (0..data.len()).rev().take(2 * HEADER) {
                assert_eq!(split_answer(&data[..cut]), None, "{cut} of {}", data.len());
            }
        }
        dump(&String::from_utf8_lossy(text), fire);
    }
    if !data.contains(&0) {
        dump(&String::from_utf8_lossy(data), 60);
    }
}

/// What a daemon may say is read as it was meant, and no beginning of it is taken for all.
fn made(values: &mut Values<'_>) {
    let client = |values: &mut Values<'_>| (values.word(60), Monotonic::from_secs(values.number()));
    let watchdog = Watchdog {
        known: true,
        problem: None,
        fire_timeout: values.small(),
        clients: (0..values.few(4)).map(|_| client(values)).collect(),
    };
    let text = printed(&watchdog);
    let mut answer = text.clone().into_bytes();
    let mut header = [0; HEADER];
    header[4] = 5;
    header[20..24].copy_from_slice(&watchdog.fire_timeout.to_ne_bytes());
    answer.extend(header);
    let (told, fire) = split_answer(&answer).expect("a whole answer");
    assert_eq!((told, fire), (text.as_bytes(), watchdog.fire_timeout));
    assert_eq!(parse_dump(&text, fire).as_ref(), Ok(&watchdog));
}

fn dump(text: &str, fire: u32) {
    let Ok(watchdog) = parse_dump(text, fire) else {
        return;
    };
    assert!(watchdog.known && watchdog.problem.is_none() && watchdog.fire_timeout == fire);
    let lines = text.lines().filter(|l| l.starts_with("client "));
    assert!(watchdog.clients.len() <= lines.count());
    assert_eq!(
        parse_dump(&printed(&watchdog), fire).as_ref(),
        Ok(&watchdog)
    );
    for cut in cuts(text.as_bytes(), text.len()) {
        if let Some(Ok(short)) = text.get(..cut).map(|t| parse_dump(t, fire)) {
            // Only where a line ends; and whoever is told is there.
            assert_eq!(text.as_bytes().get(cut - 1), Some(&b'\n'));
            assert!(watchdog.clients.starts_with(&short.clients));
        }
    }
}

/// As wdmd's `dump_debug` prints it.
fn printed(watchdog: &Watchdog) -> String {
    let mut text = String::from("wdmd 1 socket_gid 0\n");
    for (i, (name, expire)) in watchdog.clients.iter().enumerate() {
        let expire = expire.0.as_secs();
        let _ = writeln!(
            text,
            "client {i} name {name} pid 1 fd 8 dead 0 ref 1 now 2 renewal 1 expire {expire}"
        );
    }
    text
}
