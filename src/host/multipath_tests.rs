//! Lines as kernels print them, and a multipathd of every temper.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::host::socket::testing::{misbehaviours, serve};

fn dev(major: u32, minor: u32) -> DevNo {
    DevNo { major, minor }
}

#[test]
fn tables_are_read() {
    // Two groups of one path, ALUA, queueing; as multipathd builds them for an active/passive array.
    let table = parse_table(
        "2 queue_if_no_path retain_attached_hw_handler 1 alua 2 1 service-time 0 1 2 8:16 1 1 service-time 0 1 2 8:32 1 1",
    );
    assert_eq!(
        table,
        Ok(Table {
            queueing: true,
            paths: vec![dev(8, 16), dev(8, 32)]
        })
    );
    // Queueing is off after fail_if_no_path.
    let table =
        parse_table("1 retain_attached_hw_handler 0 1 1 service-time 0 2 2 8:0 1 1 8:16 1 1");
    assert_eq!(
        table,
        Ok(Table {
            queueing: false,
            paths: vec![dev(8, 0), dev(8, 16)]
        })
    );
    assert_eq!(parse_table("0 0 0 0"), Ok(Table::default()));
    // Features with arguments of their own.
    let table = parse_table(
        "5 queue_if_no_path pg_init_retries 50 queue_mode bio 0 1 1 queue-length 0 1 1 259:3 1",
    );
    assert_eq!(
        table,
        Ok(Table {
            queueing: true,
            paths: vec![dev(259, 3)]
        })
    );
}

#[test]
fn states_are_read() {
    // Read off a kernel with both paths cut.
    let paths = parse_status("2 1 0 0 2 1 E 0 1 2 7:0 F 1 0 1 E 0 1 2 7:1 F 1 0 1");
    assert_eq!(paths, Ok(vec![(dev(7, 0), false), (dev(7, 1), false)]));
    let paths = parse_status("2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1 8:16 F 3 0 1");
    assert_eq!(paths, Ok(vec![(dev(8, 0), true), (dev(8, 16), false)]));
    // round-robin prints no figures, queue-length one.
    assert_eq!(
        parse_status("2 0 0 0 1 1 A 0 1 0 8:0 A 0"),
        Ok(vec![(dev(8, 0), true)])
    );
    assert_eq!(
        parse_status("2 0 0 0 1 1 A 0 1 1 8:0 A 0 5"),
        Ok(vec![(dev(8, 0), true)])
    );
    assert_eq!(parse_status("2 0 0 0 0 0"), Ok(vec![]));
}

#[test]
fn what_is_missing_is_named() {
    assert!(
        parse_table("")
            .unwrap_err()
            .to_string()
            .contains("features")
    );
    assert!(
        parse_status("2 0 0 0 1 1 A 0 1 2 8:0 X 0 0 1")
            .unwrap_err()
            .to_string()
            .contains("A or F")
    );
    assert!(parse_status("2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1").is_err());
    assert!(
        parse_table("0 0 1 1 service-time 0 1 0 sda")
            .unwrap_err()
            .to_string()
            .contains("MAJOR:MINOR")
    );
    assert!(parse_table("99999999999999999999 a").is_err());
    assert!(parse_table("18446744073709551615 a").is_err());
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused(line in "[ 0-9A-Fa-z:_-]{0,200}") {
        let _ = parse_table(&line);
        let _ = parse_status(&line);
    }

    #[test]
    fn a_line_cut_short_never_invents_a_path(cut in 0usize..60) {
        let line = "2 0 0 0 2 1 A 0 1 2 8:0 A 0 0 1 E 0 1 2 8:16 F 3 0 1";
        if let Ok(paths) = parse_status(&line[..cut.min(line.len())]) {
            prop_assert_eq!(paths, vec![(dev(8, 0), true), (dev(8, 16), false)]);
        }
    }

    #[test]
    fn states_survive(paths in prop::collection::vec((0u32..4095, 0u32..1_000_000, any::<bool>(), 0u32..100), 0..20), figures in 0usize..4) {
        let figures_text = " 1".repeat(figures);
        let mut line = format!("2 0 0 1 alua 1 1 A 0 {} {figures}", paths.len());
        for (major, minor, active, failed) in &paths {
            let state = if *active { 'A' } else { 'F' };
            let path = format!(" {major}:{minor} {state} {failed}{figures_text}");
            line += &path;
        }
        let expected: Vec<_> = paths.iter().map(|(a, b, active, _)| (dev(*a, *b), *active)).collect();
        prop_assert_eq!(parse_status(&line).unwrap(), expected);
    }
}

fn quick(root: &std::path::Path) -> Socket {
    let paths = Paths::under(root);
    Socket {
        addresses: vec![Address::Path(paths.run.join(SOCKET))],
        limit: Duration::from_millis(300),
    }
}

/// For answers that come: a busy machine may take its time.
fn patient(root: &std::path::Path) -> Socket {
    Socket {
        limit: Duration::from_mins(1),
        ..quick(root)
    }
}

fn answering(answer: &'static str) -> impl Fn(UnixStream) + Send + 'static {
    move |mut s| {
        let mut request = vec![0; 8 + "disablequeueing map mpatha".len() + 1];
        s.read_exact(&mut request).unwrap();
        assert_eq!(request[..8], 27u64.to_ne_bytes());
        assert_eq!(&request[8..], b"disablequeueing map mpatha\0");
        s.write_all(&(answer.len() as u64 + 1).to_ne_bytes())
            .unwrap();
        s.write_all(answer.as_bytes()).unwrap();
        s.write_all(&[0]).unwrap();
    }
}

#[test]
fn ok_is_success_and_all_else_is_not() {
    for (answer, good) in [
        ("ok\n", true),
        ("fail\n", false),
        ("timeout\n", false),
        ("fail\nmap not found\n", false),
        ("", false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let socket = patient(root.path());
        serve(&root.path().join("run").join(SOCKET), 1, answering(answer));
        let result = socket.disable_queueing("mpatha");
        assert_eq!(result.is_ok(), good, "{answer:?}: {result:?}");
        assert!(good || matches!(result, Err(Error::Refused { .. })));
    }
}

#[test]
fn a_map_is_called_as_multipathd_calls_it_and_not_as_the_kernel_does() {
    for (kernel, alias) in [
        ("mpatha", "mpatha"),
        ("db\\x2clog", "db,log"),
        ("a\\x2cb\\x21", "a,b!"),
        ("a\\xzz", "a\\xzz"),
        ("a\\x", "a\\x"),
        ("a\\xe4", "a\\xe4"),
    ] {
        assert_eq!(plain(kernel), alias);
    }
    let root = tempfile::tempdir().unwrap();
    let socket = patient(root.path());
    let (sent, got) = std::sync::mpsc::channel();
    serve(&root.path().join("run").join(SOCKET), 1, move |mut s| {
        let mut command = [0; 64];
        let length = s.read(&mut command).unwrap();
        sent.send(command[8..length].to_vec()).unwrap();
        s.write_all(&4_u64.to_ne_bytes()).unwrap();
        s.write_all(b"ok\n\0").unwrap();
    });
    socket.disable_queueing("db\\x2clog").unwrap();
    assert_eq!(got.recv().unwrap(), b"disablequeueing map db,log\0");
}

#[test]
fn the_second_address_is_tried_when_nobody_is_at_the_first() {
    let root = tempfile::tempdir().unwrap();
    let mut socket = patient(root.path());
    socket
        .addresses
        .insert(0, Address::Path(root.path().join("nobody")));
    serve(&root.path().join("run").join(SOCKET), 1, answering("ok\n"));
    assert!(socket.disable_queueing("mpatha").is_ok());
}

#[test]
fn no_daemon_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let error = quick(root.path()).restore_queueing("mpatha").unwrap_err();
    assert!(
        error.to_string().contains("systemctl start multipathd"),
        "{error}"
    );
}

#[test]
fn a_name_that_would_be_another_command_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "",
        "a b",
        "a\" map b",
        "a\nb",
        "ä",
        "a!b",
        "a\\x21b",
        "a\\x20b",
        "a#b",
        "a{b",
    ] {
        let error = quick(root.path()).disable_queueing(name).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
}

#[test]
fn misbehaviour_ends_in_an_error_in_time() {
    for (how, misbehave) in misbehaviours() {
        let root = tempfile::tempdir().unwrap();
        let socket = quick(root.path());
        serve(&root.path().join("run").join(SOCKET), 1, misbehave);
        let begin = Instant::now();
        let error = socket.disable_queueing("mpatha").unwrap_err().to_string();
        assert!(error.contains(SOCKET), "{how}: {error}");
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{how}: {:?}",
            begin.elapsed()
        );
    }
}
