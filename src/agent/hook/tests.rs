//! The hook on the simulated node, with agents that are alive, dead, hung, or liars.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{Asked, SILENCE, ask};
use super::server::Server;
use super::*;
use crate::agent::executor;
use crate::agent::journal::{Journal, Record, Turn};
use crate::fence::report::{LocksOutcome, Outcome};
use crate::host::simulated::{Daemon, Group, InFlight, Layout, Simulation, uuid_of};

mod lives;
mod others;
mod slow;

struct Bench {
    node: Simulation,
    state: tempfile::TempDir,
}

impl Bench {
    /// The lease was renewed so many seconds ago: 130 s after that the host may be reset.
    fn renewed(ago: u64) -> Self {
        let layout = Layout {
            groups: vec![
                Group::bystander("other", true),
                Group {
                    renewed_ago: ago,
                    ..Group::target("vg1")
                },
            ],
        };
        Self {
            node: Simulation::new(&layout),
            state: tempfile::tempdir().expect("a directory"),
        }
    }

    fn new() -> Self {
        Self::renewed(90)
    }

    fn hook_of(&self, vg: &str) -> (Verdict, Vec<String>) {
        let options = Options {
            vg: vg.into(),
            state_directory: self.state.path().into(),
        };
        let mut told = Vec::new();
        let verdict = run(&self.node.host(), &options, &mut |line| {
            told.push(line.to_owned());
        });
        assert_eq!(self.node.violations(), Vec::<String>::new());
        (verdict, told)
    }

    fn hook(&self) -> (Verdict, Vec<String>) {
        self.hook_of("vg1")
    }

    /// Fenced and proven; the locks are released or not.
    fn assert_fenced(&self, verdict: &Verdict) {
        assert!(matches!(verdict, Verdict::Proven(_)), "{verdict:?}");
        let open = self.node.state(|s| s.not_fenced(&uuid_of("vg1")));
        assert_eq!(open, Vec::<String>::new());
        let standing = self.journal().standings().all().expect("read");
        assert_eq!(standing.len(), 1, "{standing:?}");
    }

    /// By the next hook.
    fn assert_released_by_a_hook(&self, when: &str) {
        let (verdict, told) = self.hook();
        assert!(
            matches!(verdict, Verdict::Proven(_)),
            "{when}: {verdict:?} {told:?}"
        );
        self.assert_fenced(&verdict);
        assert!(!self.held(), "{when}: {told:?}");
    }

    fn record(&self) -> Option<Record> {
        self.open().1
    }

    fn held(&self) -> bool {
        self.node.state(|s| s.held(&uuid_of("vg1")))
    }

    fn journal(&self) -> Journal {
        self.open().0
    }

    fn open(&self) -> (Journal, Option<Record>) {
        let boot_id = self.node.host().system.boot_id().expect("boot ID");
        Journal::open(self.state.path(), &boot_id).expect("open")
    }

    /// What an agent would do that fences for a request.
    fn fence_as_agent(&self) -> Option<crate::fence::report::FenceReport> {
        self.fence_for_a_request(ReleaseLocks::AfterProof)
    }

    fn fence_for_a_request(
        &self,
        release_locks: ReleaseLocks,
    ) -> Option<crate::fence::report::FenceReport> {
        let order = crate::fence::Order {
            release_locks,
            uid: "request".into(),
            name: "request".into(),
            ..order("vg1", 1)
        };
        let host = self.node.host();
        let inventory = self.node.inventory();
        catch_unwind(AssertUnwindSafe(|| {
            executor::run(
                &host,
                &mut self.journal(),
                &order,
                inventory,
                &|| false,
                &mut |_| (),
            )
        }))
        .ok()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.end();
    }
}

/// An agent that does that with the first who connects.
fn agent(directory: &Path, serve: impl FnOnce(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(directory.join(SOCKET)).expect("bind");
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            serve(stream);
        }
    });
}

fn hear_out(mut stream: &UnixStream) {
    let _ = stream.read(&mut [0; 200]);
}

#[test]
fn without_an_agent_the_hook_fences_by_itself() {
    let bench = Bench::new();
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(!bench.held());
    assert!(told.iter().any(|t| t.contains("no agent")), "{told:?}");
    let left = bench.journal().left().expect("read").expect("a record");
    assert!(!left.unfinished() && is_ours(&left.begun.order.uid));
    assert_eq!(
        bench.journal().standings().all().expect("read")[0].locks,
        LocksOutcome::Released
    );
}

#[test]
fn without_proof_the_hook_fails_and_nothing_is_released() {
    let bench = Bench::new();
    bench.node.state(|s| {
        s.device("vg1-lv1").expect("device").in_flight = InFlight::Forever;
    });
    let (verdict, _) = bench.hook();
    let Verdict::Unproven(why) = &verdict else {
        panic!("{verdict:?}")
    };
    assert!(why.contains("vg1-lv1"), "{why}");
    assert!(bench.held());
    assert!(!bench.node.log().iter().any(|l| l.starts_with("drop_vg")));
    assert_eq!(bench.journal().standings().all().expect("read"), vec![]);
}

#[test]
fn the_hook_completes_what_a_killed_agent_began() {
    // How many calls a fence makes is not the same each time: its threads ask side by side.
    for at in (4..).step_by(4) {
        let bench = Bench::new();
        bench.node.kill_at_call(at);
        let _ = bench.fence_as_agent();
        if !bench.node.restart_agent() {
            assert!(at > 20, "only {at} calls");
            break;
        }
        let begun = bench.journal().left().expect("read");
        let begun = begun.is_some_and(|r| r.unfinished());
        let (verdict, told) = bench.hook();
        bench.assert_fenced(&verdict);
        let completed = told
            .iter()
            .any(|t| t.contains("completing the fence of request"));
        assert_eq!(completed, begun, "{told:?}");
    }
}

#[test]
fn a_volume_group_that_stands_fenced_is_not_fenced_twice() {
    let bench = Bench::new();
    let report = bench.fence_as_agent().expect("not killed");
    assert_eq!(report.outcome, Outcome::Proven);
    // multipathd is not waited for: it may be told late.
    let log = || {
        let mut log = bench.node.log();
        log.retain(|l| !l.starts_with("disablequeueing"));
        log
    };
    let before = log();
    agent(bench.state.path(), |mut stream| {
        hear_out(&stream);
        for _ in 0..3 {
            let _ = stream.write_all(b"working\n");
            std::thread::sleep(Duration::from_millis(30));
        }
        let _ = stream.write_all(b"proven\n");
    });
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert_eq!(log(), before, "{told:?}");
}

#[test]
fn a_lockspace_that_was_joined_anew_meanwhile_is_not_given_up() {
    let bench = Bench::renewed(0);
    bench.node.at(Duration::from_secs(1001), |s| {
        // The release cannot be confirmed, so the hook stays with it for a minute.
        s.wdmd = Daemon::Hangs;
        let mut of_it = s.lockspaces.iter().map(|l| l.lockspace.clone());
        let mut anew = of_it.find(|l| l.vg_name == "vg1").expect("a lockspace");
        anew.generation = anew.generation.map(|g| g + 1);
        anew.frozen = false;
        s.later(Duration::from_secs(20), |s| s.join(anew));
    });
    bench.node.state(|s| {
        s.device("vg1-lv0").expect("a device").in_flight =
            InFlight::Until(Duration::from_secs(1002));
    });
    let (verdict, told) = bench.hook();
    assert!(
        matches!(&verdict, Verdict::Unproven(why) if why.contains("joined anew")),
        "{verdict:?} {told:?}"
    );
    assert!(bench.held(), "it is in use");
}

#[test]
fn locks_that_a_request_keeps_are_left_to_the_watchdog() {
    let kept = |verdict: &Verdict| matches!(verdict, Verdict::Unproven(why) if why.contains("releaseLocks: Never"));
    let bench = Bench::new();
    let report = bench.fence_for_a_request(ReleaseLocks::Never);
    assert_eq!(report.expect("not killed").locks, LocksOutcome::Kept);
    let (verdict, _) = bench.hook();
    assert!(kept(&verdict), "{verdict:?}");
    // As the agent carries the hook's order out.
    let standings = bench.journal().standings();
    let order = keeping(&order("vg1", 1), &bench.node.inventory(), &standings);
    assert_eq!(order.release_locks, ReleaseLocks::Never);
    assert!(bench.held() && !bench.node.log().iter().any(|l| l.starts_with("drop_vg")));
    // A fence that was going on when its agent was killed.
    let bench = Bench::new();
    bench.node.kill_at_call(30);
    assert!(bench.fence_for_a_request(ReleaseLocks::Never).is_none());
    assert!(bench.node.restart_agent());
    let (verdict, _) = bench.hook();
    assert!(kept(&verdict), "{verdict:?}");
    assert!(
        bench.held()
            && bench
                .node
                .state(|s| s.not_fenced(&uuid_of("vg1")))
                .is_empty()
    );
    // Joined anew since, it is another lockspace, which nobody asked to keep.
    bench.node.state(|s| s.rejoin(&uuid_of("vg1")));
    let order = super::order("vg1", 1);
    let order = keeping(
        &order,
        &bench.node.inventory(),
        &bench.journal().standings(),
    );
    assert_eq!(order.release_locks, ReleaseLocks::AfterProof);
}

#[test]
fn a_stranger_on_a_physical_volume_is_no_proof_for_the_hook() {
    let bench = Bench::new();
    bench.fence_as_agent().expect("not killed");
    let pv = bench.journal().standings().all().expect("read")[0]
        .group
        .pvs[0]
        .dev;
    let dev = crate::fence::DevNo {
        major: 253,
        minor: 99,
    };
    bench.node.state(|s| s.activate(dev, "x", "", pv));
    agent(bench.state.path(), |mut stream| {
        hear_out(&stream);
        let _ = stream.write_all(b"proven\n");
    });
    let (verdict, _) = bench.hook();
    assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
}

#[test]
fn an_agent_that_says_proven_is_not_believed() {
    let bench = Bench::new();
    agent(bench.state.path(), |mut stream| {
        hear_out(&stream);
        let _ = stream.write_all(b"proven\n");
    });
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(told[0].contains("may still reach the SAN"), "{told:?}");
}

#[test]
fn an_agent_that_talks_nonsense_or_nothing_is_done_without() {
    type Misbehaviour = fn(UnixStream);
    let misbehaviours: [(&str, Misbehaviour); 5] = [
        ("closes at once", drop),
        ("garbage", |mut s| {
            hear_out(&s);
            let _ = s.write_all(&[0xff, 0, b'\n', 3]);
            hear_out(&s);
        }),
        (
            "no line end",
            |mut s| while s.write_all(&[b'x'; 999]).is_ok() {},
        ),
        ("works and dies", |mut s| {
            hear_out(&s);
            let _ = s.write_all(b"working\nwork");
        }),
        ("silent", |s| {
            hear_out(&s);
            std::thread::sleep(SILENCE * 3);
        }),
    ];
    for (what, serve) in misbehaviours {
        let bench = Bench::new();
        agent(bench.state.path(), serve);
        let began = Instant::now();
        let (verdict, told) = bench.hook();
        bench.assert_fenced(&verdict);
        assert!(told[0].contains("fencing without it"), "{what}: {told:?}");
        assert!(began.elapsed() < SILENCE * 4, "{what}");
    }
}

#[test]
fn an_agent_that_hangs_in_its_fence_loses_its_turn() {
    // Four seconds are left until the earliest reset.
    let bench = Bench::renewed(126);
    let hung = Turn::take(bench.state.path(), "agent", Duration::ZERO).expect("take");
    let began = Instant::now();
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(!hung.mine(), "{told:?}");
    assert!(told.iter().any(|t| t.contains("in its place")), "{told:?}");
}

#[test]
fn whoever_lost_its_turn_does_nothing_any_more() {
    let bench = Bench::new();
    let mut journal = bench.journal();
    journal.hold(Turn::take(bench.state.path(), "agent", Duration::ZERO).expect("take"));
    let _hook = Turn::take(bench.state.path(), "kill-hook", Duration::ZERO).expect("take");
    let inventory = bench.node.inventory();
    let host = bench.node.host();
    let order = order("vg1", 1);
    let report = executor::run(
        &host,
        &mut journal,
        &order,
        inventory,
        &|| false,
        &mut |_| (),
    );
    assert_eq!(report.outcome, Outcome::NotProven);
    let by = format!("kill-hook {} fences on this node now", std::process::id());
    assert!(report.message.contains(&by), "{}", report.message);
    assert_eq!(bench.node.log(), Vec::<String>::new());
    assert_eq!(bench.journal().left().expect("read"), None);
}

#[test]
fn called_again_it_looks_again() {
    let bench = Bench::new();
    let (first, _) = bench.hook();
    bench.assert_fenced(&first);
    // Until sanlock has forgotten the lockspace.
    let later = bench.node.host().system.monotonic() + Duration::from_secs(9);
    let bell = crate::host::Bell::default();
    bench.node.host().system.wait(&bell, 0, later);
    let (again, _) = bench.hook();
    assert!(
        matches!(&again, Verdict::Proven(m) if m.contains("kill-hook of vg1")),
        "{again:?}"
    );
    let pv = crate::fence::DevNo { major: 8, minor: 9 };
    bench.node.state(|s| s.refresh("vg1-lv0", pv));
    let (open, _) = bench.hook();
    assert!(matches!(open, Verdict::Unproven(_)), "{open:?}");
}

#[test]
fn what_cannot_be_fenced_is_told_and_nothing_is_touched() {
    let bench = Bench::new();
    for vg in ["nonsense", "vg"] {
        let (verdict, _) = bench.hook_of(vg);
        assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
    }
    bench.node.state(|s| s.sanlock = Daemon::Dead);
    let (verdict, told) = bench.hook();
    assert!(matches!(verdict, Verdict::Unproven(_)), "{verdict:?}");
    assert!(told.iter().any(|t| t.contains("trying again")), "{told:?}");
    assert_eq!(bench.node.log(), Vec::<String>::new());
}

#[test]
fn an_lvmlockd_that_is_dead_is_waited_for_until_somebody_starts_it_again() {
    let bench = Bench::new();
    bench.node.state(|s| {
        s.lvmlockd = Daemon::Dead;
        s.later(Duration::from_secs(3), |s| s.lvmlockd = Daemon::Alive);
    });
    let (verdict, told) = bench.hook();
    bench.assert_fenced(&verdict);
    assert!(!bench.held());
    assert!(told.iter().any(|t| t.contains("trying again")), "{told:?}");
    let bench = Bench::new();
    bench.node.state(|s| s.lvmlockd = Daemon::Dead);
    let (verdict, _) = bench.hook();
    let named = |v: &Verdict| matches!(v, Verdict::Unproven(m) if m.contains("lvmlockd"));
    assert!(named(&verdict), "{verdict:?}");
    assert_eq!(bench.node.log(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_socket_is_for_root_and_survives_nonsense() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join(SOCKET), "something old").expect("write");
    let server = Server::bind(dir.path()).expect("bind");
    let path = dir.path().join(SOCKET);
    let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (tell, mut calls) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(server.serve(tell));
    for nonsense in [
        &b"\n"[..],
        b"storage-fence 1 fence ../x\n",
        &[0xff; 9000],
        b"half",
    ] {
        let mut stream = UnixStream::connect(&path).expect("connect");
        let _ = stream.write_all(nonsense);
    }
    let socket = path.clone();
    let hook = std::thread::spawn(move || ask(&socket, "vg-1", SILENCE * 3));
    let call = calls.recv().await.expect("a call");
    assert_eq!(call.vg, "vg-1");
    // Longer than the hook would wait for one that says nothing.
    tokio::time::sleep(SILENCE + Duration::from_millis(500)).await;
    assert!(!hook.is_finished() && !call.answer.is_closed());
    call.answer.send(Ok(())).expect("it still waits");
    assert_eq!(hook.join().expect("join"), Asked::Proven);
}
