//! A part that a fence cannot do without is not there, or talks nonsense, on a real node: it is named, with where it was looked for and what to
//! do; nothing is touched; and when it is back, the fence goes on.

use std::time::Duration;

use super::crashes::{LIMIT, Look};
use super::{HOOK, agent, volume};
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "missing-parts",
        about: "lvmlockd hangs, it or sanlock is gone or talks garbage, no device mapper: named, nothing touched, and then the fence works",
        shape: Shape::arrays,
        tell: missing_parts,
    }]
}

/// Something that is wrong with the node.
struct Fault {
    what: &'static str,
    make: String,
    mend: String,
    /// What `inspect` and the hook have to say: the part and where it was looked for, what is wrong, what to do.
    says: [&'static str; 3],
}

const LVMLOCKD: &str = "/run/lvm/lvmlockd.socket";
const SANLOCK: &str = "/run/sanlock/sanlock.sock";
const GONE: &str = "No such file or directory";
const NONSENSE: &str = "what its protocol does not know";
/// Begins a program that sees no `/dev/mapper/control`.
const BLIND: &str = "mkdir -p /run/empty; unshare -m sh -c 'mount --bind /run/empty /dev/mapper && exec \"$@\"' sh ";

fn faults() -> Vec<Fault> {
    let gone = |socket| {
        (
            format!("mv {socket} {socket}.aside"),
            format!("mv {socket}.aside {socket}"),
        )
    };
    let babbles = |socket| {
        let (take, put) = gone(socket);
        (
            format!(
                "{take}; setsid /payload/bin/rig guest-babbler {socket} >/run/babbler.log 2>&1 </dev/null & echo $! >/run/babbler.pid; \
                 until test -S {socket}; do sleep 0.1; done"
            ),
            format!("kill $(cat /run/babbler.pid); rm {socket}; {put}"),
        )
    };
    let fault = |what, (make, mend): (String, String), says| Fault {
        what,
        make,
        mend,
        says,
    };
    vec![
        fault(
            "lvmlockd hangs",
            (
                "kill -STOP $(pidof lvmlockd)".into(),
                "kill -CONT $(pidof lvmlockd)".into(),
            ),
            [
                "lvmlockd at /run/lvm/lvmlockd.socket",
                "did not answer within",
                "journalctl -u lvmlockd",
            ],
        ),
        fault(
            "lvmlockd is gone",
            gone(LVMLOCKD),
            [
                "lvmlockd at /run/lvm/lvmlockd.socket",
                GONE,
                "systemctl start lvmlockd",
            ],
        ),
        fault(
            "lvmlockd talks garbage",
            babbles(LVMLOCKD),
            ["lvmlockd at /run/lvm/lvmlockd.socket", NONSENSE, "ss -xlp"],
        ),
        fault(
            "sanlock talks garbage",
            babbles(SANLOCK),
            ["sanlock at /run/sanlock/sanlock.sock", NONSENSE, "ss -xlp"],
        ),
    ]
}

/// What must not change: every table, the lockspaces and whether they are frozen, and who keeps the watchdog armed.
fn state(node: &Node) -> Result<String> {
    node.sh(
        "dmsetup table | sort; sanlock client gets; lvmlockctl --info --dump | grep -o 'ls_name=[^ ]*\\|kill_vg=[0-9]*'; \
         wdmd -d | grep -o 'sanlock_lvm_[^ ]*' | sort; cat /sys/kernel/rcu_expedited",
    )
}

fn has_all(text: &str, says: &[&str]) -> Result {
    for word in says {
        if !text.contains(word) {
            return Err(format!("nothing says {word:?}: {text}").into());
        }
    }
    Ok(())
}

fn missing_parts(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let (n1, writer) = volume(cluster)?;
    let boot = n1.boot_id()?;
    agent(n1)?;
    spared(n1)?;
    let before = state(n1)?;
    ensure(
        before.contains("lvm_san:") && before.contains("kill_vg=0"),
        "a volume group in use, whose paths all work: a hook would fence it",
    )?;
    for fault in faults() {
        n1.sh(&fault.make)?;
        let inspected = n1.run("/payload/bin/storage-fence inspect", LIMIT)?;
        let hook = n1.run(&for_seconds(8), LIMIT)?;
        n1.sh(&fault.mend)?;
        has_all(&inspected.out, &["\"Failed\""])?;
        has_all(&inspected.out, &fault.says)?;
        has_all(&hook.err, &fault.says)?;
        untouched(n1, &before, hook.code, fault.what)?;
    }
    blind(n1, &before)?;
    let (make, mend) = (
        format!("mv {SANLOCK} {SANLOCK}.aside"),
        format!("mv {SANLOCK}.aside {SANLOCK}"),
    );
    kept_by_lvmlockctl(n1, &make, &mend)?;

    let says = [
        "sanlock at /run/sanlock/sanlock.sock",
        GONE,
        "systemctl start sanlock",
    ];
    n1.sh(&format!("{make}; : >/run/hook.log"))?;
    let inspected = n1.run("/payload/bin/storage-fence inspect", LIMIT)?;
    let hook = n1.start(&format!("{HOOK} 2>/run/hook.log"), LIMIT)?;
    until("the hook says what is missing", LIMIT, || {
        let told = n1.sh("cat /run/hook.log")?;
        Ok(told.contains("trying again").then_some(()))
    })?;
    n1.sh("cp /run/hook.log /run/hook.before")?;
    n1.sh(&mend)?;
    has_all(&inspected.out, &says)?;
    let told = n1.sh("cat /run/hook.before")?;
    has_all(&told, &says)?;
    ensure(
        told.contains("the agent did not fence it (sanlock does not answer"),
        "sanlock is gone: the agent and the hook say so, and both touch nothing",
    )?;
    let end = hook.wait(LIMIT)?;
    let told = n1.sh("tail -n 1 /run/hook.log")?;
    say(format!("    {} ms: {told}", end.ms));
    ensure(
        end.code == 0 && Look::at(n1)?.open("san").is_empty(),
        "it is back, and the hook that waited for it has the volume group fenced: proven",
    )?;
    // The agent says that it is proven before sanlock has let go.
    until("the locks are released", Duration::from_secs(30), || {
        Ok(Look::at(n1)?.released("san").then_some(()))
    })?;
    let written = writer.wait_for_end(n1, Duration::from_secs(20))?;
    ensure(written.errno == Some(5), "the writer got EIO")?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// The hook, ended from outside: it would try on until the watchdog must have reset the host.
fn for_seconds(seconds: u32) -> String {
    format!("timeout {seconds} {HOOK}")
}

fn untouched(node: &Node, before: &str, code: i32, what: &str) -> Result {
    let after = state(node)?;
    if after != before {
        return Err(format!("{what}: this was changed:\n{before}\nand is now:\n{after}").into());
    }
    let look = Look::at(node)?;
    ensure(
        code != 0 && look.held("san") && look.suspended().is_empty(),
        format!(
            "{what}: that is named, with where and what to do; tables, lockspace and watchdog are as before"
        ),
    )
}

/// lvmlockctl itself, as sanlock calls it, has the lockspace dropped for a 0 and for nothing else.
fn kept_by_lvmlockctl(node: &Node, make: &str, mend: &str) -> Result {
    node.sh(&format!(
        "cp /etc/lvm/lvmlocal.conf /run/lvmlocal.conf; echo 'global/lvmlockctl_kill_command=\"/usr/bin/{}\"' >>/etc/lvm/lvmlocal.conf; {make}",
        for_seconds(8).trim_end_matches(" san")
    ))?;
    node.sh("dmesg --clear")?;
    let end = node.run("lvmlockctl --kill san", LIMIT)?;
    node.sh(&format!("{mend}; mv /run/lvmlocal.conf /etc/lvm/"))?;
    let told = node.sh("dmesg | grep storage-fence: || true")?;
    has_all(&told, &["the locks of san are lost", "sanlock.sock"])?;
    let after = state(node)?;
    let look = Look::at(node)?;
    ensure(
        end.code != 0
            && end.ms >= 8000
            && after.contains("lvm_san:")
            && after.contains("kill_vg=1")
            && look.held("san"),
        format!(
            "the hook did not end with 0, and lvmlockctl with {} after {} ms: the lockspace is frozen, and sanlock, the watchdog and lvmlockd keep it",
            end.code, end.ms
        ),
    )
}

/// No `/dev/mapper/control`, for `inspect` and for the hook.
fn blind(node: &Node, before: &str) -> Result {
    let says = [
        "device mapper at /dev/mapper/control",
        GONE,
        "modprobe dm_mod",
    ];
    let inspected = node.run(
        &format!("{BLIND} /payload/bin/storage-fence inspect"),
        LIMIT,
    )?;
    ensure(
        inspected.code == 1,
        "without device mapper there is nothing to inspect",
    )?;
    has_all(&inspected.err, &says)?;
    let hook = node.run(&format!("{BLIND} {}", for_seconds(4)), LIMIT)?;
    has_all(&hook.err, &says)?;
    blind_agent(node, &says)?;
    untouched(node, before, hook.code, "device mapper is gone")
}

/// The same for an agent, which has nobody but its log to tell while the API server is away.
fn blind_agent(node: &Node, says: &[&str]) -> Result {
    node.sh(&format!(
        "{BLIND} env STATE_DIRECTORY=/run/blind KUBECONFIG=/run/kubeconfig timeout 60 /payload/bin/storage-fence agent --node-name n1 \
         --health-listen 127.0.0.1:9899 >/run/blind.log 2>&1 </dev/null & echo $! >/run/blind.pid"
    ))?;
    until("an agent without device mapper says so", LIMIT, || {
        let log = node.sh("cat /run/blind.log")?;
        Ok(log.contains("cannot be looked at").then_some(()))
    })?;
    let log = node.sh("kill $(cat /run/blind.pid); cat /run/blind.log")?;
    has_all(&log, says)
}

/// The daemons of the node, as their packages start them, and then as docs/install.md has it.
fn spared(node: &Node) -> Result {
    let look = || -> Result<String> {
        let checks = node.sh("/payload/bin/storage-fence inspect")?;
        let all: serde_json::Value = serde_json::from_str(&checks)?;
        let checks = all["preflight"].as_array().cloned().unwrap_or_default();
        let found = checks.iter().find(|c| c["name"] == "DaemonsSpared");
        Ok(found.map_or_else(String::new, |c| format!("{} {}", c["result"], c["message"])))
    };
    let told = look()?;
    ensure(
        told.starts_with("\"Warning\"") && told.contains("sanlock (0)"),
        "sanlock is not spared when memory runs out, which is told",
    )?;
    node.sh(
        "for pid in $(pidof sanlock lvmlockd wdmd multipathd); do choom -n -1000 -p $pid; done",
    )?;
    let told = look()?;
    ensure(
        told.starts_with("\"Passed\"") && told.contains("lvmlockd (-1000)"),
        "until it is",
    )
}
