//! lvmlockd as two versions of lvm2 speak, and of every temper.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::host::socket::testing::{misbehaviours, serve};

const UUID: &str = "Vk7Qw2-1mVd-0gXy-9KqZ-bC3d-E4fG-h5iJ6k";
const UUID_PLAIN: &str = "Vk7Qw21mVd0gXy9KqZbC3dE4fGh5iJ6k";

/// As 2.03.16 prints it.
fn info_2_03_16() -> String {
    format!(
        "info=structs unused_action_count=3 unused_client_count=0 unused_resource_count=0 unused_lock_count=2\n\
         info=client pid=812 fd=9 pi=2 id=14 name=lvs\n\
         info=ls ls_name=lvm_san-a vg_name=san-a vg_uuid={UUID} vg_sysid=. vg_args=1.0.0:lvmlock lm_type=sanlock host_id=7 create_fail=0 create_done=1 thread_work=1 thread_stop=0 thread_done=0 kill_vg=0 drop_vg=0 sanlock_gl_enabled=1\n\
         info=r name=GLLK type=gl mode=un sh_count=0 version=0\n\
         info=r name=VGLK type=vg mode=un sh_count=0 version=4\n\
         info=r name=AdwhLO-eIRB-cTCM-G5mV-EqcH-w9kv-7bHTkZ type=lv mode=ex sh_count=0 version=0\n\
         info=lk mode=ex version=0 flags=0x1 client_id=0\n\
         info=r name=BdwhLO-eIRB-cTCM-G5mV-EqcH-w9kv-7bHTkZ type=lv mode=sh sh_count=1 version=0\n\
         info=r name=CdwhLO-eIRB-cTCM-G5mV-EqcH-w9kv-7bHTkZ type=lv mode=un sh_count=0 version=0\n"
    )
}

/// As 2.03.40 prints it: a generation, no system id, PR.
fn info_2_03_40() -> String {
    format!(
        "info=structs unused_action_count=3 unused_client_count=0 unused_resource_count=0 unused_lock_count=2\n\
         info=ls ls_name=REM:lvm_old vg_name=old vg_uuid=x-y vg_args=1.0.0:lvmlock lm_type=sanlock host_id=7 generation=2 create_fail=0 create_done=1 thread_work=0 thread_stop=1 thread_done=1 kill_vg=1 fence_pr=0 no_timeout=0 sanlock_gl_enabled=0\n\
         info=ls ls_name=lvm_cluster vg_name=cluster vg_uuid=z lm_type=dlm host_id=0 create_done=1\n\
         info=r name=AdwhLO type=lv mode=ex sh_count=0 version=0\n\
         info=ls ls_name=lvm_san vg_name=san vg_uuid={UUID} vg_args=1.0.0:lvmlock lm_type=sanlock host_id=12 generation=5 create_fail=0 create_done=1 thread_work=0 thread_stop=0 thread_done=0 kill_vg=1 fence_pr=0 no_timeout=0 sanlock_gl_enabled=0\n\
         info=ls_action client_id=1 flags=0x0 version=0 op=lock rt=lv mode=ex\n\
         info=ls ls_name=lvm_new vg_name=new vg_uuid=n lm_type=sanlock host_id=3 generation=0 create_done=0\n"
    )
}

#[test]
fn info_of_an_old_version() {
    let lockspaces = parse_info(&info_2_03_16()).unwrap();
    let [l] = lockspaces.as_slice() else {
        panic!("{lockspaces:?}")
    };
    assert_eq!(
        (l.name.as_str(), l.vg_name.as_str(), l.vg_uuid.as_str()),
        ("lvm_san-a", "san-a", UUID_PLAIN)
    );
    assert_eq!(
        (l.host_id, l.generation, l.frozen, l.lv_locks),
        (7, None, false, 2)
    );
    assert_eq!(l.state, LockspaceState::Healthy);
}

#[test]
fn info_of_a_new_version() {
    let lockspaces = parse_info(&info_2_03_40()).unwrap();
    let told: Vec<_> = lockspaces
        .iter()
        .map(|l| (l.name.as_str(), l.generation, l.frozen, l.lv_locks, l.state))
        .collect();
    // The dlm one is left out, and its locks are nobody else's.
    assert_eq!(
        told,
        [
            ("lvm_old", Some(2), true, 0, LockspaceState::Removing),
            ("lvm_san", Some(5), true, 0, LockspaceState::Healthy),
            ("lvm_new", None, false, 0, LockspaceState::Adding),
        ]
    );
}

#[test]
fn what_is_no_info_is_refused() {
    assert!(parse_info("hello\n").is_err());
    assert!(parse_info("info=ls vg_name=x lm_type=sanlock\n").is_err());
    assert_eq!(parse_info(""), Ok(vec![]));
}

#[test]
fn a_message_is_lines_and_an_end() {
    let message = encode(&[
        ("request", Value::Text("drop_vg")),
        ("pid", Value::Number(3)),
        ("vg_name", Value::Text("a\"b\\")),
    ]);
    assert_eq!(
        String::from_utf8(message).unwrap(),
        "request = \"drop_vg\"\npid = 3\nvg_name = \"a\\\"b\\\\\"\n##\n"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        let _ = parse_info(&text);
        let _ = Reply::decode(&text);
    }

    #[test]
    fn any_info_lines_are_read_or_refused(lines in prop::collection::vec("info=(ls|r|lk|x)( (ls_name|vg_name|vg_uuid|type|mode|host_id|kill_vg|lm_type)=[a-z0-9:-]{0,8}){0,8}", 0..8)) {
        let _ = parse_info(&lines.join("\n"));
    }

    #[test]
    fn fields_survive(key in "[a-z_]{1,10}", text in "[ -~]{0,30}", number in any::<i64>()) {
        prop_assume!(key != "n" && !text.contains('\\'));
        let message = String::from_utf8(encode(&[(&key, Value::Text(&text)), ("n", Value::Number(number))])).unwrap();
        let reply = Reply::decode(&message);
        prop_assert_eq!(reply.text(&key), Some(text.as_str()));
        prop_assert_eq!(reply.number("n"), Some(number));
    }
}

/// A client whose dump name no other test has.
fn quick(root: &std::path::Path) -> Socket {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dump = format!(
        "{DUMP}-test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    Socket {
        address: Address::Path(Paths::under(root).run.join(SOCKET)),
        dump,
        trusted_uid: nix::unistd::getuid().as_raw(),
        limit: Duration::from_millis(400),
        quiet: Arc::default(),
    }
}

/// For answers that come: a busy machine may take its time.
fn patient(root: &std::path::Path) -> Socket {
    Socket {
        limit: Duration::from_mins(1),
        ..quick(root)
    }
}

fn listen(root: &std::path::Path, connections: usize, f: impl Fn(UnixStream) + Send + 'static) {
    serve(&root.join("run").join(SOCKET), connections, f);
}

fn request(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(END) {
        stream.read_exact(&mut byte).unwrap();
        all.push(byte[0]);
    }
    String::from_utf8(all).unwrap()
}

/// A daemon that answers `info` with that text, in datagrams of that size.
fn informing(
    dump: String,
    text: String,
    size: usize,
    promised: Option<usize>,
) -> impl Fn(UnixStream) + Send {
    move |mut stream| {
        assert!(request(&mut stream).starts_with("request = \"info\"\n"));
        let length = promised.unwrap_or(text.len());
        write!(
            stream,
            "response = \"OK\"\nresult = 0\ndump_len = {length}\n##\n"
        )
        .unwrap();
        let to = SocketAddr::from_abstract_name(&dump).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        for part in text.as_bytes().chunks(size) {
            let _ = socket.send_to_addr(part, &to);
        }
    }
}

#[test]
fn info_comes_in_datagrams() {
    for size in [100, 65_536] {
        let root = tempfile::tempdir().unwrap();
        let client = patient(root.path());
        listen(
            root.path(),
            2,
            informing(client.dump.clone(), info_2_03_16(), size, None),
        );
        assert_eq!(client.lockspaces().unwrap()[0].vg_uuid, UUID_PLAIN);
        // And the name is free again for the next question.
        assert_eq!(client.lockspaces().unwrap().len(), 1);
    }
}

#[test]
fn info_that_never_comes_times_out() {
    let root = tempfile::tempdir().unwrap();
    let client = quick(root.path());
    listen(
        root.path(),
        1,
        informing(client.dump.clone(), info_2_03_16(), 65_536, Some(100_000)),
    );
    assert!(matches!(client.lockspaces(), Err(Error::TimedOut { .. })));
}

#[test]
fn info_longer_than_promised_or_believable_is_refused() {
    for promised in [5, DUMP_LIMIT + 1] {
        let root = tempfile::tempdir().unwrap();
        let client = patient(root.path());
        listen(
            root.path(),
            1,
            informing(client.dump.clone(), info_2_03_16(), 65_536, Some(promised)),
        );
        assert!(
            matches!(client.lockspaces(), Err(Error::Protocol { .. })),
            "{promised}"
        );
    }
}

#[test]
fn more_locks_than_the_daemon_can_tell_are_said_to_be_too_many() {
    let root = tempfile::tempdir().unwrap();
    let client = patient(root.path());
    listen(root.path(), 3, |mut stream: UnixStream| {
        request(&mut stream);
        let no_space = b"response = \"OK\"\nresult = -28\ndump_len = 0\n##\n";
        stream.write_all(no_space).unwrap();
    });
    let error = client.lockspaces().unwrap_err().to_string();
    assert!(error.contains("too long for its buffer"), "{error}");
    assert!(error.contains("deactivate volumes"), "{error}");
}

#[test]
fn a_stranger_cannot_forge_info() {
    let root = tempfile::tempdir().unwrap();
    let mut client = quick(root.path());
    if nix::unistd::getuid().is_root() {
        // Root is believed: what is left to test is that everybody else is looked at. The sender below gives another uid, as root may.
        let forger = client.dump.clone();
        listen(root.path(), 1, move |mut stream| {
            let text = info_2_03_16();
            request(&mut stream);
            write!(
                stream,
                "response = \"OK\"\nresult = 0\ndump_len = {}\n##\n",
                text.len()
            )
            .unwrap();
            let socket = UnixDatagram::unbound().unwrap();
            let address = nix::sys::socket::UnixAddr::new_abstract(forger.as_bytes()).unwrap();
            let who = UnixCredentials::from(nix::libc::ucred {
                pid: std::process::id().cast_signed(),
                uid: 65534,
                gid: 65534,
            });
            let parts = [std::io::IoSlice::new(text.as_bytes())];
            let message = [nix::sys::socket::ControlMessage::ScmCredentials(&who)];
            nix::sys::socket::sendmsg(
                socket.as_raw_fd(),
                &parts,
                &message,
                MsgFlags::empty(),
                Some(&address),
            )
            .unwrap();
        });
    } else {
        client.trusted_uid = 0;
        listen(
            root.path(),
            1,
            informing(client.dump.clone(), info_2_03_16(), 65_536, None),
        );
    }
    assert!(matches!(client.lockspaces(), Err(Error::TimedOut { .. })));
}

#[test]
fn another_asker_is_waited_for_and_then_named() {
    let root = tempfile::tempdir().unwrap();
    let client = quick(root.path());
    let address = SocketAddr::from_abstract_name(&client.dump).unwrap();
    let other = UnixDatagram::bind_addr(&address).unwrap();
    let begin = Instant::now();
    let error = client.lockspaces().unwrap_err();
    assert!(error.to_string().contains("ss -xlp"), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(300));
    // One that ends in time is no problem.
    let client = Socket {
        limit: Duration::from_mins(1),
        ..client
    };
    listen(
        root.path(),
        1,
        informing(client.dump.clone(), info_2_03_16(), 65_536, None),
    );
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(other);
    });
    assert!(client.lockspaces().is_ok());
    thread.join().unwrap();
}

fn replying(expected: &'static str, reply: &'static str) -> impl Fn(UnixStream) + Send {
    move |mut stream| {
        let asked = request(&mut stream);
        assert!(
            asked.starts_with(&format!(
                "request = \"{expected}\"\ncmd = \"storage-fence\"\npid = "
            )),
            "{asked}"
        );
        assert!(asked.contains("\nvg_name = \"san\"\n##\n"), "{asked}");
        stream.write_all(reply.as_bytes()).unwrap();
    }
}

#[test]
fn kill_vg_reads_its_result() {
    for (reply, outcome) in [
        (
            "response=\"OK\"\nop=20\nop_result=0\nlm_result=0\nresult_flags=\"none\"\n\n##\n",
            "ok",
        ),
        (
            "response=\"OK\"\nop=20\nop_result=-210\n\n##\n",
            "no lockspace",
        ),
        ("response=\"failed\"\n\n##\n", "failed"),
        ("response=\"OK\"\n##\n", "without op_result"),
        ("what\n##\n", "without a response"),
        ("response=\"OK\"\nop_result=0\n", "closed after"),
    ] {
        let root = tempfile::tempdir().unwrap();
        listen(root.path(), 1, replying("kill_vg", reply));
        let result = patient(root.path()).kill_vg("san");
        let told = result.map_or_else(|e| e.to_string(), |()| "ok".to_owned());
        assert!(told.contains(outcome), "{reply:?}: {told}");
    }
}

/// It does where a lock is given back just then.
#[test]
fn info_that_came_out_too_long_is_asked_for_again() {
    let root = tempfile::tempdir().unwrap();
    let client = patient(root.path());
    let dump = client.dump.clone();
    let informing = informing(dump.clone(), info_2_03_16(), 65_536, None);
    let times = AtomicU32::new(0);
    listen(root.path(), 3, move |mut stream: UnixStream| {
        if times.fetch_add(1, Ordering::Relaxed) == 2 {
            return informing(stream);
        }
        request(&mut stream);
        let no_space = b"response = \"OK\"\nresult = -28\ndump_len = 0\n##\n";
        stream.write_all(no_space).unwrap();
        // What it had written by then comes all the same.
        let junk = [b"info=ls half of a list ".as_slice(); 40].concat();
        let to = SocketAddr::from_abstract_name(&dump).unwrap();
        let _ = UnixDatagram::unbound().unwrap().send_to_addr(&junk, &to);
    });
    assert_eq!(client.lockspaces().unwrap().len(), 1);
}

#[test]
fn a_name_that_is_no_volume_groups_is_not_sent() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "",
        "a b",
        "a\"\nrequest = \"stop_vg",
        "-x",
        "..",
        &"x".repeat(128),
    ] {
        assert!(
            matches!(quick(root.path()).kill_vg(name), Err(Error::Refused { .. })),
            "{name:?}"
        );
    }
}

#[test]
fn no_daemon_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let error = quick(root.path()).lockspaces().unwrap_err();
    assert!(
        error.to_string().contains("systemctl start lvmlockd"),
        "{error}"
    );
}

#[test]
fn misbehaviour_ends_in_an_error_in_time() {
    for (how, misbehave) in misbehaviours() {
        let root = tempfile::tempdir().unwrap();
        let client = quick(root.path());
        listen(root.path(), 3, misbehave);
        let begin = Instant::now();
        let error = client.lockspaces().unwrap_err().to_string();
        assert!(error.contains(SOCKET), "{how}: {error}");
        assert!(client.kill_vg("san").is_err(), "{how}");
        assert!(
            client.drop_vg("san", Duration::from_millis(200)).is_err(),
            "{how}"
        );
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "{how}: {:?}",
            begin.elapsed()
        );
    }
}

#[path = "lvmlockd_drop_tests.rs"]
mod drop;
