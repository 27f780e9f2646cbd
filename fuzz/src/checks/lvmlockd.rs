//! lvmlockd's replies, and the text of its `info`.

use std::fmt::Write as _;

use super::{Values, cuts};
use crate::fence::{Lockspace, LockspaceState};
use crate::host::lvmlockd::{Reply, Value, encode, parse_info};

/// One message or text.
///
/// # Panics
/// When something does not hold.
pub fn check(data: &[u8]) {
    let values = &mut Values(data);
    let made: Vec<Lockspace> = (0..values.few(4)).map(|_| lockspace(values)).collect();
    assert_eq!(parse_info(&printed(&made)).as_ref(), Ok(&made));
    let text = String::from_utf8_lossy(data);
    reply(&text);
    info(&text);
}

/// What the daemon may tell of one.
fn lockspace(values: &mut Values<'_>) -> Lockspace {
    const STATES: [LockspaceState; 3] = [
        LockspaceState::Adding,
        LockspaceState::Healthy,
        LockspaceState::Removing,
    ];
    Lockspace {
        name: format!("lvm_{}", values.word(40)),
        vg_name: values.word(40),
        vg_uuid: values.word(38).replace('-', "z"),
        host_id: values.number(),
        generation: Some(values.number()).filter(|g| *g != 0),
        state: STATES[values.few(2)],
        frozen: values.flag(),
        lv_locks: u32::from(values.byte()) % 5,
        ..Lockspace::default()
    }
}

fn reply(text: &str) {
    let reply = Reply::decode(text);
    let pairs = || text.lines().filter_map(|line| line.split_once('='));
    for (key, value) in pairs() {
        assert!(reply.text(key.trim()).is_some(), "{key:?}");
        sent(key.trim(), value);
    }
    if pairs().count() == 0 {
        assert_eq!(reply, Reply::default());
    }
}

/// What we send in a message is read as it was meant, and nothing else is.
fn sent(key: &str, value: &str) {
    if key == "number" {
        return;
    }
    let number = i64::try_from(value.len()).unwrap_or_default() - 5;
    let message = encode(&[(key, Value::Text(value)), ("number", Value::Number(number))]);
    let message = String::from_utf8(message).expect("text");
    assert!(message.ends_with("\n##\n") && message.matches('\n').count() == 3);
    // A quote that ended the value early would let it say something else.
    let quoted = message.lines().next().and_then(|l| l.strip_prefix(key));
    let quoted = quoted.and_then(|l| l.strip_prefix(" = \"")?.strip_suffix('"'));
    let plain = quoted.map(|q| q.replace("\\\\", "").replace("\\\"", ""));
    assert!(plain.is_some_and(|p| !p.contains('"')), "{message:?}");
    let read = Reply::decode(&message);
    assert_eq!(read.text(key), Some(value), "{message:?}");
    assert_eq!(read.number("number"), Some(number));
}

/// First word of a line of `info`.
fn kind(line: &str) -> Option<&str> {
    line.strip_prefix("info=")?.split_ascii_whitespace().next()
}

fn info(text: &str) {
    let Ok(lockspaces) = parse_info(text) else {
        return;
    };
    let lines = |wanted: &str| text.lines().filter(|l| kind(l) == Some(wanted)).count();
    assert!(lockspaces.len() <= lines("ls"));
    let locks: u64 = lockspaces.iter().map(|l| u64::from(l.lv_locks)).sum();
    assert!(locks <= u64::try_from(lines("r")).unwrap_or(u64::MAX));
    for l in &lockspaces {
        assert!(!l.vg_uuid.contains('-') && l.generation != Some(0));
    }
    assert_eq!(parse_info(&printed(&lockspaces)).as_ref(), Ok(&lockspaces));
    if !text.is_empty() {
        let one_more = format!("{text}\ninfo=ls ls_name=lvm_x vg_name=x vg_uuid=y create_done=1");
        let more = parse_info(&one_more).expect("one lockspace more");
        assert_eq!(more.len(), lockspaces.len() + 1);
        assert_eq!(more[..lockspaces.len()], lockspaces);
    }
    // A beginning of it has the first lockspaces, the last perhaps with fewer locks.
    for cut in cuts(text.as_bytes(), text.len()) {
        let end = text.as_bytes()[..cut].iter().rposition(|b| *b == b'\n');
        let first = parse_info(&text[..end.map_or(0, |n| n + 1)]).expect("whole lines");
        assert!(first.len() <= lockspaces.len());
        for (i, (short, long)) in first.iter().zip(&lockspaces).enumerate() {
            let last = i + 1 == first.len();
            assert!(short.lv_locks == long.lv_locks || last && short.lv_locks < long.lv_locks);
            let same = Lockspace {
                lv_locks: long.lv_locks,
                ..short.clone()
            };
            assert_eq!(&same, long);
        }
    }
}

/// As lvmlockd prints it.
fn printed(lockspaces: &[Lockspace]) -> String {
    let mut text = String::new();
    for l in lockspaces {
        let (ended, done) = match l.state {
            LockspaceState::Removing => ("REM:", 1),
            LockspaceState::Adding => ("", 0),
            _ => ("", 1),
        };
        let _ = writeln!(
            text,
            "info=ls ls_name={ended}{} vg_name={} vg_uuid={} lm_type=sanlock host_id={} generation={} create_done={done} kill_vg={}",
            l.name,
            l.vg_name,
            l.vg_uuid,
            l.host_id,
            l.generation.unwrap_or_default(),
            u8::from(l.frozen)
        );
        for _ in 0..l.lv_locks {
            text.push_str("info=r name=x type=lv mode=ex sh_count=0 version=0\n");
        }
    }
    text
}
