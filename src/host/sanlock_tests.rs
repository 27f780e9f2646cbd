//! sanlock as `src/cmd.c` writes it, and of every temper.

use std::io::{Read, Write};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::host::socket::testing::{misbehaviours, serve};

const DAEMON: &str = "our_host_name=node1 use_watchdog=1 high_priority=1 io_timeout=10 watchdog_fire_timeout=60 kill_grace_seconds=40 helper_pid=771 monotime=1204 version_str=3.9.5 version_num=3.9.5 version_hex=03090005 smproto_hex=00000001";
const SPACE: &str = "space_id=1 io_timeout=2 sector_size=512 align_size=1048576 host_generation=4 renew_fail=0 space_dead=0 killing_pids=0 used_retries=0 external_used=0 used_by_orphans=1 corrupt_result=0 acquire_last_result=1 renewal_last_result=1 acquire_last_attempt=400 acquire_last_success=400 renewal_last_attempt=1200 renewal_last_success=1200";

fn state(kind: u32, name: &str, host_id: u64, text: &str) -> Vec<u8> {
    let mut out = vec![0; STATE];
    out[..4].copy_from_slice(&kind.to_ne_bytes());
    out[16..24].copy_from_slice(&host_id.to_ne_bytes());
    out[24..24 + name.len()].copy_from_slice(name.as_bytes());
    out[72..76].copy_from_slice(&u32::try_from(text.len() + 1).unwrap().to_ne_bytes());
    out.extend(text.bytes());
    out.push(0);
    out
}

fn space(name: &str, list: &str, text: &str) -> Vec<u8> {
    let mut out = state(3, name, 7, &format!("list={list} {text}"));
    out.resize(out.len() + LOCKSPACE, 0xaa);
    out
}

fn answer(records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = encode_status().to_vec();
    out.extend(state(1, "node1", 0, DAEMON));
    out.extend(state(2, "lvmlockd", 0, "ci=2 fd=9 pid=812 flags=0"));
    out.extend(records.concat());
    out
}

#[test]
fn the_request_is_a_header() {
    let header = encode_status();
    assert_eq!(
        header[..12],
        [
            &0x0428_2010u32.to_ne_bytes()[..],
            &1u32.to_ne_bytes(),
            &5u32.to_ne_bytes()
        ]
        .concat()
    );
    assert_eq!(header[16..20], 32u32.to_ne_bytes());
    assert_eq!(header[24..28], 3u32.to_ne_bytes());
}

#[test]
fn a_status_is_read() {
    let status = decode_status(&answer(&[
        space("lvm_san", "spaces", SPACE),
        space(&"x".repeat(48), "rem", SPACE),
    ]))
    .unwrap();
    assert_eq!(
        (status.version, status.fire_timeout),
        (Some(0x0309_0005), Some(60))
    );
    let [l, long] = status.lockspaces.as_slice() else {
        panic!("{status:?}")
    };
    assert_eq!(
        (l.name.as_str(), l.host_id, l.generation, l.io_timeout),
        ("lvm_san", 7, Some(4), 2)
    );
    assert_eq!(
        (l.last_renewal, l.last_result, l.state),
        (Some(Monotonic::from_secs(1200)), 1, LockspaceState::Healthy)
    );
    assert_eq!(
        (long.name.len(), long.state),
        (48, LockspaceState::Removing)
    );
}

#[test]
fn each_state_is_told_apart() {
    let told = |list: &str, from: &str, to: &str| {
        decode_status(&answer(&[space("a", list, &SPACE.replace(from, to))]))
            .unwrap()
            .lockspaces[0]
            .state
    };
    assert_eq!(told("add", "", ""), LockspaceState::Adding);
    assert_eq!(
        told(
            "spaces",
            "renewal_last_result=1",
            "renewal_last_result=-202"
        ),
        LockspaceState::RenewalFailing
    );
    assert_eq!(
        told("spaces", "renew_fail=0", "renew_fail=1"),
        LockspaceState::RenewalFailing
    );
    assert_eq!(
        told("spaces", "space_dead=0", "space_dead=1"),
        LockspaceState::Expired
    );
    assert_eq!(
        told("spaces", "killing_pids=0", "killing_pids=2"),
        LockspaceState::Expired
    );
    assert_eq!(
        told("rem", "space_dead=0", "space_dead=1"),
        LockspaceState::Removing
    );
}

#[test]
fn an_old_version_tells_less() {
    let mut old = encode_status().to_vec();
    old.extend(state(
        1,
        "node1",
        0,
        "our_host_name=node1 io_timeout=10 version_hex=03080005",
    ));
    old.extend(space(
        "lvm_san",
        "spaces",
        &SPACE.replace("host_generation=4 ", ""),
    ));
    let status = decode_status(&old).unwrap();
    assert_eq!(
        (status.fire_timeout, status.lockspaces[0].generation),
        (None, None)
    );
}

#[test]
fn a_new_version_tells_more() {
    // As 5.1.1: its threads between the daemon and the clients, more keys in a lockspace.
    let mut new = encode_status().to_vec();
    new.extend(state(
        1,
        "node1",
        0,
        &DAEMON.replace("03090005", "05010100"),
    ));
    new.extend(state(
        7,
        "",
        0,
        "worker=0 cmd_last=add_lockspace busy=0 thread_id=11685",
    ));
    new.extend(state(8, "", 0, "busy=0 thread_id=11686 work_count=0"));
    new.extend(space(
        "lvm_san",
        "spaces",
        &format!("version=0x00050000 no_timeout=0 no_watchdog=0 caw=0 caw_dev=0:0 {SPACE}"),
    ));
    let status = decode_status(&new).unwrap();
    assert_eq!(
        (status.version, status.lockspaces.len()),
        (Some(0x0501_0100), 1)
    );
    assert_eq!(status.lockspaces[0].generation, Some(4));
}

#[test]
fn what_is_cut_off_is_never_an_empty_list() {
    let whole = answer(&[space("lvm_san", "spaces", SPACE)]);
    for cut in 0..whole.len() {
        if let Ok(status) = decode_status(&whole[..cut]) {
            // Only between records can a cut not be seen: after the daemon's and after the client's.
            let header = HEADER + STATE + DAEMON.len() + 1;
            assert!(
                cut == header || cut == header + STATE + "ci=2 fd=9 pid=812 flags=0".len() + 1,
                "{cut}: {status:?}"
            );
        }
    }
    assert!(decode_status(&encode_status()).is_err());
}

#[test]
fn what_is_not_sanlock_is_refused() {
    let mut other = answer(&[]);
    other[0] ^= 1;
    assert!(decode_status(&other).unwrap_err().contains("magic"));
    assert!(
        decode_status(&answer(&[state(99, "x", 0, "")]))
            .unwrap_err()
            .contains("type 99")
    );
    assert!(
        decode_status(&answer(&[space("a", "limbo", SPACE)]))
            .unwrap_err()
            .contains("limbo")
    );
    assert!(
        decode_status(&answer(&[space("a", "spaces", "io_timeout=ten")]))
            .unwrap_err()
            .contains("io_timeout")
    );
    let mut long = state(2, "x", 0, "");
    long[72..76].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(decode_status(&answer(&[long])).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = encode_status().to_vec();
        bytes.extend(&tail);
        let _ = decode_status(&bytes);
        let _ = decode_status(&tail);
    }

    #[test]
    fn a_flipped_byte_is_read_or_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = answer(&[space("lvm_san", "spaces", SPACE)]);
        let i = at.index(bytes.len());
        bytes[i] = to;
        let _ = decode_status(&bytes);
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
fn the_answer_is_read_to_its_end() {
    let root = tempfile::tempdir().unwrap();
    serve(&root.path().join("run").join(SOCKET), 1, |mut s| {
        let mut request = [0; HEADER];
        s.read_exact(&mut request).unwrap();
        assert_eq!(request, encode_status());
        // In pieces, as a daemon with little buffer sends it.
        for part in answer(&[
            space("lvm_a", "spaces", SPACE),
            space("lvm_b", "add", SPACE),
        ])
        .chunks(500)
        {
            s.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert_eq!(patient(root.path()).status().unwrap().lockspaces.len(), 2);
}

#[test]
fn no_daemon_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let error = quick(root.path()).status().unwrap_err();
    assert!(
        error.to_string().contains("systemctl start sanlock"),
        "{error}"
    );
}

#[test]
fn misbehaviour_ends_in_an_error_in_time() {
    for (how, misbehave) in misbehaviours() {
        let root = tempfile::tempdir().unwrap();
        serve(&root.path().join("run").join(SOCKET), 1, misbehave);
        let begin = Instant::now();
        let error = quick(root.path()).status().unwrap_err().to_string();
        assert!(error.contains(SOCKET), "{how}: {error}");
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{how}: {:?}",
            begin.elapsed()
        );
    }
}
