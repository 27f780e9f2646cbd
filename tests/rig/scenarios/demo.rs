//! What `make demo` shows, which is a proof like any other: a node loses its SAN, a person applies a request, and the node lives on.

use std::time::{Duration, Instant};

use crate::harness::node::Node;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::timeline::Timeline;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};

/// How many LVs are written to when the paths go.
const VOLUMES: usize = 20;

/// The demonstration.
pub fn demo() -> Scenario {
    Scenario {
        name: "demo",
        about: "n1 loses every path to its SAN with 20 volumes under I/O; one kubectl apply, and it lives on",
        shape: Shape::kubernetes,
        tell: tell_demo,
    }
}

fn tell_demo(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    let before = prepare(cluster)?;
    let outage = fence(cluster)?;
    say("what is so, measured");
    facts(cluster, &before)?;
    takeover(cluster, &before, &outage)
}

/// What n1 does before the outage.
struct Before {
    writers: Vec<Writer>,
    local: Writer,
    /// The same on n2, which is not fenced: tells a pause of the machine's from one of the fence's.
    witness: Writer,
    boot_id: String,
    /// Longest gap between two writes to the local file system in a quiet time, in ms.
    quiet: u64,
}

fn prepare(cluster: &Cluster) -> Result<Before> {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    say(format!(
        "n1 takes {VOLUMES} volumes of the shared VG into use, and a file system on a disk of its own"
    ));
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", VOLUMES)?;
    let local = on_its_own_disk(n1)?;
    let witness = on_its_own_disk(cluster.node("n2")?)?;
    let boot_id = n1.boot_id()?;
    ensure(
        n1.watchdog_armed()?,
        "n1's watchdog counts on the lockspace",
    )?;
    std::thread::sleep(Duration::from_secs(5));
    let quiet = local.state(n1)?.longest_pause_ms;
    local.forget_pauses(n1)?;
    witness.forget_pauses(cluster.node("n2")?)?;
    print_objects(cluster, &["nodestorages"])?;
    Ok(Before {
        writers,
        local,
        witness,
        boot_id,
        quiet,
    })
}

/// A writer to a file system on the node's own disk.
fn on_its_own_disk(node: &Node) -> Result<Writer> {
    node.sh("mkfs.ext4 -q -F /dev/rig-local && mount /dev/rig-local /local")?;
    Writer::start(node, "local", "/local/data")
}

/// When what happened.
struct Outage {
    cut: Instant,
    before_apply: Instant,
    applied: Instant,
    first_step: Instant,
    released: Instant,
}

fn fence(cluster: &mut Cluster) -> Result<Outage> {
    let timeline = Timeline::start(cluster.control_plane()?, "n1-san")?;
    say("every path of n1 to the SAN is cut");
    cluster.san.cut_all("n1", None)?;
    let cut = Instant::now();
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    until(
        "n1's kernel knows that both paths are gone",
        Duration::from_secs(30),
        || Ok((n1.path_states(0)? == "FF").then_some(())),
    )?;
    ensure(
        n1.queues(0)?,
        "multipath queues: the writers hang, no error reaches them",
    )?;
    until("the cluster knows it too", Duration::from_secs(30), || {
        let storage = control_plane.object("nodestorage", "n1")?;
        Ok(storage.filter(|s| s["status"]["paths"] == "0/2").map(drop))
    })?;
    let yaml = request_yaml("n1-san", "n1", &["reason: every path to the SAN is gone"]);
    say(format!("kubectl apply -f -\n{yaml}"));
    let before_apply = Instant::now();
    control_plane.apply(&yaml)?;
    let applied = Instant::now();
    let request =
        control_plane.wait_for_condition("n1-san", "LocksReleased", "True", FENCE_LIMIT)?;
    let released = Instant::now();
    ensure(
        condition(&request, "Fenced").is_some_and(|c| c["reason"] == "Proven"),
        "the status says Fenced=True (Proven), LocksReleased=True",
    )?;
    print_objects(cluster, &["sfr", "nodestorages"])?;
    Ok(Outage {
        cut,
        before_apply,
        applied,
        first_step: timeline.wait_for("FreezeLocks", Duration::from_secs(10))?,
        released,
    })
}

fn facts(cluster: &Cluster, before: &Before) -> Result {
    let n1 = cluster.node("n1")?;
    all_error(n1, "san", VOLUMES)?;
    let mut eio = 0;
    for writer in &before.writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(30))?;
        eio += usize::from(end.errno == Some(5));
    }
    ensure(
        eio == VOLUMES,
        format!("all {VOLUMES} writers got EIO and ended"),
    )?;
    lives_on(n1, &before.boot_id)?;
    let local = before.local.state(n1)?;
    let elsewhere = before.witness.state(cluster.node("n2")?)?.longest_pause_ms;
    ensure(
        !local.ended && local.longest_pause_ms <= (4 * before.quiet).max(2000),
        format!(
            "the file system on n1's own disk never paused: longest gap between two writes {} ms, before the outage {} ms, on n2 meanwhile \
             {elsewhere} ms",
            local.longest_pause_ms, before.quiet
        ),
    )?;
    let (resident, locked) = agent_memory(n1)?;
    ensure(
        resident <= 16 * 1024 && locked >= resident,
        format!("the agent uses {resident} KiB of memory, all of it locked"),
    )
}

fn takeover(cluster: &Cluster, before: &Before, outage: &Outage) -> Result {
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    say("n2 waits for the leases to run out, and takes a volume over");
    let taken = until("n2 takes lv0 over", Duration::from_secs(180), || {
        let answer = n2.run("lvchange -aey san/lv0", Duration::from_secs(60))?;
        Ok((answer.code == 0).then(Instant::now))
    })?;
    let stamp = n2.sh("dd if=/dev/san/lv0 iflag=direct bs=4096 count=1 2>/dev/null | head -n1")?;
    ensure(
        stamp.starts_with("owner=n1 "),
        "n2 activates lv0 and reads what n1 wrote last",
    )?;
    n2.sh("lvchange -an san/lv0")?;
    // Longer than the watchdog would have taken: 66 to 76 s after the last renewal.
    std::thread::sleep(Duration::from_secs(90).saturating_sub(outage.cut.elapsed()));
    lives_on(n1, &before.boot_id)?;
    before.witness.stop(n2)?;
    n2.sh("umount /local")?;

    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    let from_apply = |to: Instant| seconds(outage.before_apply, to);
    say("in figures");
    for line in [
        format!(
            "{:>7.1} s  from the cut until the cluster showed it, and the person applied the request",
            seconds(outage.cut, outage.before_apply)
        ),
        format!(
            "{:>7.1} s  from kubectl apply to the first step seen in the API; kubectl's own part is {:.1} s",
            from_apply(outage.first_step),
            from_apply(outage.applied)
        ),
        format!(
            "{:>7.1} s  from kubectl apply to the released locks",
            from_apply(outage.released)
        ),
        format!(
            "{:>7.1} s  from the cut until n2 had the volume (the leases' own time)",
            seconds(outage.cut, taken)
        ),
        format!(
            "{:>7} ms the longest pause of n1's own file system",
            before.local.state(n1)?.longest_pause_ms
        ),
    ] {
        say(format!("    {line}"));
    }
    Ok(())
}

/// Resident and locked memory of the agent in KiB.
fn agent_memory(node: &Node) -> Result<(u64, u64)> {
    let text = node.sh("cat /proc/$(pgrep -of '^/storage-fence agent')/status")?;
    let of = |key: &str| -> Result<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next())
            .context(format!("no {key} of the agent in {text:?}"))?
            .parse()
            .context(key)
    };
    Ok((of("VmRSS:")?, of("VmLck:")?))
}

fn print_objects(cluster: &Cluster, kinds: &[&str]) -> Result {
    for kind in kinds {
        say(format!("kubectl get {kind}"));
        println!("{}", cluster.control_plane()?.kubectl(&["get", kind])?);
    }
    Ok(())
}
