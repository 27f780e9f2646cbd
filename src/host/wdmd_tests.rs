//! wdmd as `wdmd/main.c` writes it, and of every temper.

use std::io::{Read, Write};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::host::socket::testing::{misbehaviours, serve};

const DUMP: &str = "wdmd 771 socket_gid 0 high_priority 1 now 1204 last_keepalive 1200 last_closeunclean 0 allow_scripts 0 kill_script_sec 0 fire_timeout 60
script 0 name check.sh pid 0 now 1204 start 1100 last_result 0 run 3 fail 0 good 3 kill 0 long 0
client 0 name  pid 0 fd 3 dead 0 ref 0 now 1204 renewal 0 expire 0
client 1 name dump pid 0 fd 7 dead 0 ref 0 now 1204 renewal 0 expire 0
client 2 name sanlock_lvm_san-a:7 pid 790 fd 8 dead 0 ref 1 now 1204 renewal 1200 expire 1280
client 3 name sanlock_lvm_old:7 pid 790 fd 9 dead 0 ref 0 now 1204 renewal 0 expire 0
client 4 name sanlock_dead one:2 pid 600 fd -1 dead 1 ref 1 now 1204 renewal 1100 expire 1180
";

fn reply(fire: u32) -> Vec<u8> {
    let mut out = header(CMD_STATUS).to_vec();
    out[16..20].copy_from_slice(&10u32.to_ne_bytes());
    out[20..24].copy_from_slice(&fire.to_ne_bytes());
    out
}

#[test]
fn clients_that_keep_it_armed_are_listed() {
    let watchdog = parse_dump(DUMP, 60).unwrap();
    assert!(watchdog.known && watchdog.problem.is_none());
    assert_eq!(watchdog.fire_timeout, 60);
    assert_eq!(
        watchdog.clients,
        [
            ("sanlock_lvm_san-a:7".to_owned(), Monotonic::from_secs(1280)),
            ("sanlock_dead one:2".to_owned(), Monotonic::from_secs(1180)),
        ]
    );
}

#[test]
fn what_is_not_wdmds_is_refused() {
    assert!(parse_dump("", 60).is_err());
    assert!(parse_dump("hello\n", 60).is_err());
    // Cut within a line: a client might be missing.
    assert!(parse_dump(&DUMP[..DUMP.len() - 3], 60).is_err());
    assert!(parse_dump("wdmd 1\nclient 1 name x pid 3 fd 4\n", 60).is_err());
    assert!(parse_dump("wdmd 1\nclient 1\n", 60).is_err());
}

#[test]
fn the_end_is_our_own_header() {
    let mut answer = DUMP.as_bytes().to_vec();
    assert_eq!(split_answer(&answer), None);
    answer.extend(reply(10));
    assert_eq!(split_answer(&answer), Some((DUMP.as_bytes(), 10)));
    assert_eq!(split_answer(&answer[..answer.len() - 1]), None);
    assert_eq!(split_answer(&[]), None);
    assert_eq!(split_answer(&reply(60)), Some((&[][..], 60)));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), lines in prop::collection::vec("client( (name|pid|ref|expire|[a-z]{0,3})( [0-9a-z]{0,4})?){0,8}", 0..5)) {
        let _ = parse_dump(&text, 0);
        let _ = parse_dump(&format!("wdmd 1\n{}\n", lines.join("\n")), 0);
    }

    #[test]
    fn any_bytes_are_split_or_not(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = split_answer(&bytes);
    }
}

fn quick(root: &std::path::Path) -> Socket {
    Socket {
        limit: Duration::from_millis(300),
        ..Socket::new(&Paths::under(root))
    }
}

/// For answers that come: a busy machine may take its time.
fn patient(root: &std::path::Path) -> Socket {
    Socket {
        limit: Duration::from_mins(1),
        ..quick(root)
    }
}

#[test]
fn both_answers_are_read_from_a_connection_that_stays_open() {
    let root = tempfile::tempdir().unwrap();
    serve(&root.path().join("run").join(SOCKET), 1, |mut s| {
        let mut request = [0; 2 * HEADER];
        s.read_exact(&mut request).unwrap();
        assert_eq!(request[4..8], 6u32.to_ne_bytes());
        assert_eq!(request[HEADER + 4..HEADER + 8], 5u32.to_ne_bytes());
        // One send each; the reader may see them in any pieces.
        for part in DUMP.as_bytes().chunks(300) {
            s.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        // What comes back is the request's own header, filled in.
        let mut header = request[HEADER..].to_vec();
        header[20..24].copy_from_slice(&60u32.to_ne_bytes());
        s.write_all(&header).unwrap();
        let _ = s.read(&mut [0]);
    });
    let watchdog = patient(root.path()).status();
    assert!(watchdog.known, "{watchdog:?}");
    assert_eq!((watchdog.fire_timeout, watchdog.clients.len()), (60, 2));
}

#[test]
fn no_daemon_is_unknown_and_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let watchdog = quick(root.path()).status();
    assert!(!watchdog.known);
    assert!(watchdog.problem.unwrap().contains("systemctl start wdmd"));
}

#[test]
fn misbehaviour_is_unknown_in_time() {
    for (how, misbehave) in misbehaviours() {
        let root = tempfile::tempdir().unwrap();
        serve(&root.path().join("run").join(SOCKET), 1, misbehave);
        let begin = Instant::now();
        let watchdog = quick(root.path()).status();
        assert!(!watchdog.known && watchdog.problem.is_some(), "{how}");
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{how}: {:?}",
            begin.elapsed()
        );
    }
}
