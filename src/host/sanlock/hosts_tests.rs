//! The structs as `sanlock_admin.h` and `sanlock_sock.h` lay them out, and a daemon of every temper.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::host::socket::testing::{misbehaviours, serve};
use crate::host::{Error, Paths, Sanlock};

const HEAD: usize = HEADER;

fn death() -> Death {
    Death {
        lockspace: "lvm_san".into(),
        own_host_id: 2,
        host_id: 1,
        generation: 9,
    }
}

fn reply(command: u32, data: i32, data2: u32, body: &[u8]) -> Vec<u8> {
    let mut out = header(command, HEAD + body.len(), data.cast_unsigned()).to_vec();
    out[28..32].copy_from_slice(&data2.to_ne_bytes());
    out.extend(body);
    out
}

fn host(host_id: u64, generation: u64, flags: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [host_id, generation, 12345] {
        out.extend(field.to_ne_bytes());
    }
    out.extend(10u32.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out
}

#[test]
fn a_declaration_is_laid_out_as_the_header_says() {
    let bytes = encode_death(&death()).unwrap();
    // sm_header 32, sanlk_lockspace 1104, sanlk_host 32.
    assert_eq!(bytes.len(), 32 + 1104 + 32);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(
        [0, 4, 8, 12, 16, 20, 24, 28].map(word),
        [0x0428_2010, 1, 44, 0, 1168, 0, 1, 0]
    );
    assert_eq!(&bytes[32..40], b"lvm_san\0");
    assert!(bytes[40..80].iter().all(|b| *b == 0), "a name of 48 bytes");
    assert_eq!(long(80), 2, "this host's own id");
    assert!(bytes[88..1136].iter().all(|b| *b == 0), "no disk, no flags");
    assert_eq!((long(1136), long(1144)), (1, 9), "whom, in which life");
    assert!(bytes[1152..].iter().all(|b| *b == 0));
}

#[test]
fn a_question_is_laid_out_as_the_header_says() {
    let name = "x".repeat(48);
    let bytes = encode_get(&name, 7).unwrap();
    assert_eq!(bytes.len(), 32 + 1104);
    assert_eq!((u32_at(&bytes, 8), u32_at(&bytes, 16)), (23, 1136));
    assert_eq!(&bytes[32..80], name.as_bytes());
    assert_eq!(u64_at(&bytes, 80), 7);
    for bad in ["", "a\0b", &"x".repeat(49)] {
        assert!(encode_get(bad, 7).is_err(), "{bad:?}");
    }
}

/// Without a generation sanlock takes whichever is there, and the host itself would be an odd choice.
#[test]
fn who_is_not_said_exactly_is_not_declared_dead() {
    let wrong: [fn(&mut Death); 5] = [
        |d| d.generation = 0,
        |d| d.host_id = 0,
        |d| d.own_host_id = 0,
        |d| d.host_id = d.own_host_id,
        |d| d.lockspace.clear(),
    ];
    for (n, wrong) in wrong.into_iter().enumerate() {
        let mut death = death();
        wrong(&mut death);
        assert!(encode_death(&death).is_err(), "{n}");
    }
}

#[test]
fn hosts_are_read_with_their_flags() {
    let read = |flags: u32| decode(&host(1, 9, flags)).next().unwrap();
    for (flags, state, dead) in [
        (1, HostState::Unknown, false),
        (2, HostState::Free, false),
        (3, HostState::Live, false),
        (4, HostState::Failing, false),
        (5, HostState::Dead, false),
        (0x15, HostState::Dead, true),
        (0x35, HostState::Dead, true),
        (0x41, HostState::Unknown, false),
        (9, HostState::Unknown, false),
    ] {
        let read = read(flags);
        assert_eq!(
            (read.state, read.declared_dead),
            (state, dead),
            "{flags:#x}"
        );
        assert_eq!((read.host_id, read.generation), (1, 9));
    }
    let both = [host(1, 9, 3), host(2, 4, 2)].concat();
    assert_eq!(decode(&both).count(), 2);
}

#[test]
fn errors_say_what_and_what_to_do() {
    for (code, words) in [
        (-204, "older format"),
        (-280, "joined anew since generation 9"),
        (-2, "does not have lockspace lvm_san"),
        (-22, "not number 2"),
        (-202, "paths"),
        (-999, "error -999"),
    ] {
        let text = no_death(code, &death());
        assert!(
            text.contains(words) && text.contains(&code.to_string()),
            "{text}"
        );
    }
}

/// What a daemon was asked and whether it was all in one piece.
fn asked(stream: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A sanlock of that version that answers one question after its status.
fn daemon(
    run: &std::path::Path,
    version: &'static str,
    length: usize,
    answer: Vec<u8>,
) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (tell, heard) = std::sync::mpsc::channel();
    serve(
        &run.join("run/sanlock/sanlock.sock"),
        2,
        move |mut stream| {
            let head = asked(&mut stream, HEAD);
            if u32_at(&head, 8) == 5 {
                let words = format!("version_hex={version}\0");
                let mut status = header(5, HEAD, 0).to_vec();
                let mut record = vec![0; 80];
                record[0] = 1;
                record[72] = words.len().try_into().unwrap();
                status.extend(record);
                status.extend(words.bytes());
                stream.write_all(&status).unwrap();
                return;
            }
            let mut all = head;
            all.extend(asked(&mut stream, length - HEAD));
            tell.send(all).unwrap();
            stream.write_all(&answer).unwrap();
        },
    );
    heard
}

fn socket(run: &std::path::Path) -> super::super::Socket {
    super::super::Socket {
        limit: Duration::from_secs(1),
        ..super::super::Socket::new(&Paths::under(run))
    }
}

#[test]
fn a_daemon_is_told_who_is_dead() {
    let limit = Duration::from_secs(2);
    let dir = tempfile::tempdir().unwrap();
    let heard = daemon(dir.path(), "05010100", 1168, reply(44, 0, 0, &[]));
    socket(dir.path()).declare_dead(&death(), limit).unwrap();
    assert_eq!(heard.recv().unwrap(), encode_death(&death()).unwrap());

    for (code, words) in [(-204, "older format"), (-280, "joined anew")] {
        let dir = tempfile::tempdir().unwrap();
        let _heard = daemon(dir.path(), "04020000", 1168, reply(44, code, 0, &[]));
        let error = socket(dir.path()).declare_dead(&death(), limit);
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// It would hang up on a command that it does not know.
#[test]
fn an_old_sanlock_is_not_even_asked() {
    let dir = tempfile::tempdir().unwrap();
    let heard = daemon(dir.path(), "03090005", 1168, reply(44, 0, 0, &[]));
    let error = socket(dir.path()).declare_dead(&death(), Duration::from_secs(2));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("sanlock 3.9.5") && error.contains("4.2"),
        "{error}"
    );
    assert!(heard.try_recv().is_err());
}

#[test]
fn a_daemon_tells_of_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let heard = daemon(dir.path(), "", 1136, reply(23, 0, 1, &host(7, 3, 0x15)));
    let told = socket(dir.path()).host("lvm_san", 7).unwrap();
    assert_eq!((told.generation, told.declared_dead), (3, true));
    assert_eq!(heard.recv().unwrap(), encode_get("lvm_san", 7).unwrap());

    for (answer, words) in [
        (reply(23, -2, 0, &[]), "Join it"),
        (reply(23, 0, 1, &host(8, 3, 3)), "other hosts"),
        (reply(23, 0, 5000, &[]), "5000 hosts"),
        (reply(44, 0, 1, &host(7, 3, 3)), "command 44"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let _heard = daemon(dir.path(), "", 1136, answer);
        let error = socket(dir.path()).host("lvm_san", 7).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn misbehaviour_ends_in_an_error_in_time() {
    for (what, misbehave) in misbehaviours() {
        let dir = tempfile::tempdir().unwrap();
        serve(&dir.path().join("run/sanlock/sanlock.sock"), 1, misbehave);
        let began = Instant::now();
        let result = socket(dir.path()).host("lvm_san", 7);
        assert!(result.is_err(), "{what}");
        assert!(began.elapsed() < Duration::from_mins(1), "{what}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_count(&bytes);
        let _ = decode_result(&bytes);
        let _ = decode(&bytes).count();
    }
}
