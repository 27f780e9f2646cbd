//! What is sent, and kept from others, when lvmlockd is to let go of a lockspace.

use super::*;

#[test]
fn drop_vg_takes_every_answer_for_an_answer() {
    for reply in [
        "response=\"OK\"\nop_result=0\n##\n",
        "response=\"OK\"\nop_result=-210\n##\n",
    ] {
        let root = tempfile::tempdir().unwrap();
        listen(root.path(), 1, replying("drop_vg", reply));
        assert!(
            patient(root.path())
                .drop_vg("san", Duration::from_mins(1))
                .is_ok()
        );
    }
}

#[test]
fn drop_vg_waits_as_long_as_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    listen(root.path(), 2, |mut stream| {
        request(&mut stream);
        std::thread::sleep(Duration::from_millis(700));
        let _ = stream.write_all(b"response=\"OK\"\nop_result=0\n##\n");
    });
    assert!(matches!(
        quick(root.path()).drop_vg("san", Duration::from_millis(100)),
        Err(Error::TimedOut { .. })
    ));
    assert!(
        quick(root.path())
            .drop_vg("san", Duration::from_mins(1))
            .is_ok()
    );
}

/// It may crash lvmlockd, with the drop.
#[test]
fn while_a_lockspace_is_dropped_nobody_asks_for_locks() {
    let root = tempfile::tempdir().unwrap();
    let client = patient(root.path());
    let (asked, drops) = std::sync::mpsc::channel();
    let (answer, answers) = std::sync::mpsc::channel::<()>();
    listen(root.path(), 3, move |mut stream| {
        let asked_for = request(&mut stream);
        let drop = asked_for.starts_with("request = \"drop_vg\"");
        asked.send(drop).unwrap();
        if drop {
            answers.recv().unwrap();
            let _ = stream.write_all(b"response=\"OK\"\nop_result=0\n##\n");
        } else {
            let _ = stream.write_all(b"response=\"OK\"\nresult = 0\ndump_len = 0\n##\n");
        }
    });
    let dropping = client.clone();
    let first = std::thread::spawn(move || dropping.drop_vg("san", Duration::from_mins(1)));
    assert!(drops.recv().unwrap());
    // Nobody else on the node can: lvmlockctl and other agents take the same name.
    let address = SocketAddr::from_abstract_name(&client.dump).unwrap();
    let taken = |address| UnixDatagram::bind_addr(address).unwrap_err().kind();
    assert_eq!(taken(&address), io::ErrorKind::AddrInUse);
    let asking = client.clone();
    let question = std::thread::spawn(move || asking.lockspaces());
    // Another drop does not wait for the first one.
    let dropping = client.clone();
    let second = std::thread::spawn(move || dropping.drop_vg("tank", Duration::from_mins(1)));
    let begin = Instant::now();
    while client.quiet.lock().unwrap().strong_count() < 2 {
        assert!(begin.elapsed() < Duration::from_mins(1), "no second drop");
        std::thread::sleep(Duration::from_millis(5));
    }
    answer.send(()).unwrap();
    assert!(first.join().unwrap().is_ok());
    assert!(drops.recv().unwrap(), "the question came before the drop");
    // The first one's end is not the second one's.
    assert_eq!(taken(&address), io::ErrorKind::AddrInUse);
    answer.send(()).unwrap();
    assert!(second.join().unwrap().is_ok());
    assert!(!drops.recv().unwrap());
    assert_eq!(question.join().unwrap().unwrap().len(), 0);
}

#[test]
fn a_drop_that_takes_long_does_not_keep_others_from_their_answer() {
    let root = tempfile::tempdir().unwrap();
    let client = Socket {
        limit: Duration::from_millis(1500),
        ..quick(root.path())
    };
    let (asked, drops) = std::sync::mpsc::channel();
    let (answer, answers) = std::sync::mpsc::channel::<()>();
    listen(root.path(), 1, move |mut stream| {
        request(&mut stream);
        asked.send(()).unwrap();
        answers.recv().unwrap();
        let _ = stream.write_all(b"response=\"OK\"\nop_result=0\n##\n");
    });
    let dropping = client.clone();
    let drop = std::thread::spawn(move || dropping.drop_vg("san", Duration::from_mins(1)));
    drops.recv().unwrap();
    let until = Instant::now() + client.limit * 20;
    assert!(client.own_dump_socket(until).is_ok());
    answer.send(()).unwrap();
    assert!(drop.join().unwrap().is_ok());
}

#[test]
fn a_drop_does_not_wait_for_who_keeps_the_name() {
    let root = tempfile::tempdir().unwrap();
    let client = patient(root.path());
    let address = SocketAddr::from_abstract_name(&client.dump).unwrap();
    let other = UnixDatagram::bind_addr(&address).unwrap();
    let reply = "response=\"OK\"\nop_result=0\n##\n";
    listen(root.path(), 1, replying("drop_vg", reply));
    assert!(client.drop_vg("san", Duration::from_mins(1)).is_ok());
    drop(other);
}
