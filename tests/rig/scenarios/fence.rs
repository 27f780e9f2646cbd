//! The main job, end to end: a node loses its SAN, a person applies a StorageFenceRequest, and the node lives on.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::node::Node;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::timeline::Timeline;
use crate::harness::writer::Writer;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// From the request to the released locks. The mechanism needs 2 to 3 s; an emulated node that shares its CPU needs air.
pub const FENCE_LIMIT: Duration = Duration::from_secs(45);
/// The scenario with the most: how many LVs are written to when the paths go.
const VOLUMES: usize = 20;

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "dry-run",
            about: "a dry run changes nothing and lists exactly what the real run then does; here of a healthy node, on demand",
            shape: Shape::kubernetes,
            tell: dry_run,
        },
        Scenario {
            name: "no-multipath",
            about: "a node whose PVs are plain disks: straight to the swap; its agent comes on demand and goes again",
            shape: Shape::kubernetes,
            tell: no_multipath_on_demand,
        },
        demo(),
    ]
}

/// What `make demo` shows, which is a proof like any other.
pub fn demo() -> Scenario {
    Scenario {
        name: "demo",
        about: "n1 loses every path to its SAN with 20 volumes under I/O; one kubectl apply, and it lives on",
        shape: Shape::kubernetes,
        tell: tell_demo,
    }
}

/// LVs `lv0`, `lv1`… of a VG on a node, each with a writer.
pub fn volumes_in_use(node: &Node, vg: &str, count: usize) -> Result<Vec<Writer>> {
    let make: Vec<String> = (0..count)
        .map(|n| format!("lvcreate -qq -y -aey -Wn -Zn -L 16M -n lv{n} {vg}"))
        .collect();
    node.sh_within(&make.join(" && "), Duration::from_secs(180))?;
    (0..count)
        .map(|n| Writer::start(node, &format!("lv{n}"), &format!("/dev/{vg}/lv{n}")))
        .collect()
}

/// All tables of the VG's LVs are `error`, by the kernel's word and not by ours.
pub fn all_error(node: &Node, vg: &str, count: usize) -> Result {
    let targets = node.lv_targets(vg)?;
    let wrong: Vec<_> = targets.iter().filter(|(_, kind)| kind != "error").collect();
    ensure(
        targets.len() == count && wrong.is_empty(),
        format!(
            "dmsetup table on {} says `error` for all {count} volumes {wrong:?}",
            node.name()
        ),
    )
}

/// The watchdog does not count on any lockspace, sanlock has none, and the host is the one that it was.
pub fn lives_on(node: &Node, boot_id: &str) -> Result {
    ensure(
        !node.watchdog_armed()?,
        format!(
            "{}: wdmd has no client, the watchdog is disarmed",
            node.name()
        ),
    )?;
    ensure(
        node.reset().is_none() && node.boot_id()? == boot_id,
        format!("{} was not reset", node.name()),
    )
}

fn tell_demo(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    say(format!(
        "n1 takes {VOLUMES} volumes of the shared VG into use, and a file system on a disk of its own"
    ));
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", VOLUMES)?;
    n1.sh("mkfs.ext4 -q -F /dev/rig-local && mount /dev/rig-local /local")?;
    let local = Writer::start(n1, "local", "/local/data")?;
    let boot_id = n1.boot_id()?;
    ensure(
        n1.watchdog_armed()?,
        "n1's watchdog counts on the lockspace",
    )?;
    std::thread::sleep(Duration::from_secs(5));
    let quiet = local.state(n1)?.longest_pause_ms;
    local.forget_pauses(n1)?;
    print_objects(cluster, &["nodestorages"])?;

    let control_plane = cluster.control_plane()?;
    let timeline = Timeline::start(control_plane, "n1-san")?;
    say("every path of n1 to the SAN is cut");
    cluster.san.cut_all("n1", None)?;
    let cut = Instant::now();
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    until(
        "n1's kernel knows that both paths are gone",
        Duration::from_secs(30),
        || Ok((n1.path_states(0)? == "FF").then_some(())),
    )?;
    ensure(
        n1.queues(0)?,
        "multipath queues: the writers hang, no error reaches them",
    )?;
    let control_plane = cluster.control_plane()?;
    until("the cluster knows it too", Duration::from_secs(30), || {
        let storage = control_plane.object("nodestorage", "n1")?;
        Ok(storage.filter(|s| s["status"]["paths"] == "0/2").map(drop))
    })?;
    let yaml = request_yaml("n1-san", "n1", &["reason: every path to the SAN is gone"]);
    say(format!("kubectl apply -f -\n{yaml}"));
    let control_plane = cluster.control_plane()?;
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

    say("what is so, measured");
    all_error(n1, "san", VOLUMES)?;
    let mut eio = 0;
    for writer in &writers {
        let end = writer.wait_for_end(n1, Duration::from_secs(30))?;
        eio += usize::from(end.errno == Some(5));
    }
    ensure(
        eio == VOLUMES,
        format!("all {VOLUMES} writers got EIO and ended"),
    )?;
    lives_on(n1, &boot_id)?;
    let pause = local.state(n1)?;
    ensure(
        !pause.ended && pause.longest_pause_ms <= (4 * quiet).max(2000),
        format!(
            "the file system on n1's own disk never paused: longest gap between two writes {} ms, before the outage {quiet} ms",
            pause.longest_pause_ms
        ),
    )?;
    let agent = agent_memory(n1)?;
    ensure(
        agent.0 <= 16 * 1024 && agent.1 >= agent.0,
        format!("the agent uses {} KiB of memory, all of it locked", agent.0),
    )?;
    let first_step = timeline
        .wait_for("FreezeLocks", Duration::from_secs(10))?
        .saturating_duration_since(before_apply);
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
    let remaining = Duration::from_secs(90).saturating_sub(cut.elapsed());
    std::thread::sleep(remaining);
    lives_on(n1, &boot_id)?;

    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    say("in figures");
    for line in [
        format!(
            "{:>7.1} s  from the cut to the request",
            seconds(cut, before_apply)
        ),
        format!(
            "{:>7.1} ms from kubectl apply to the first step seen in the API",
            first_step.as_secs_f64() * 1e3
        ),
        format!(
            "{:>7.1} ms of these were kubectl's own",
            seconds(before_apply, applied) * 1e3
        ),
        format!(
            "{:>7.1} s  from kubectl apply to the released locks",
            seconds(before_apply, released)
        ),
        format!(
            "{:>7.1} s  from the cut until n2 had the volume (the leases' own time)",
            seconds(cut, taken)
        ),
        format!(
            "{:>7} ms the longest pause of the local file system",
            local.state(n1)?.longest_pause_ms
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

fn dry_run(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let control_plane = cluster.control_plane()?;
    let n1 = cluster.node("n1")?;
    let writers = volumes_in_use(n1, "san", 3)?;
    let tables = n1.sh("dmsetup table --showkeys; multipathd show maps raw format '%n %Q'")?;

    control_plane.apply(&request_yaml("healthy", "n1", &[]))?;
    let request = control_plane.wait_for_phase("healthy", "Rejected", FENCE_LIMIT)?;
    let message = request["status"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure(
        condition(&request, "Fenced").is_some_and(|c| c["reason"] == "NothingAffected"),
        format!("a healthy node is not fenced by a plain request: {message}"),
    )?;
    control_plane.kubectl(&["delete", "sfr", "healthy"])?;

    let spec = [
        "volumeGroups: {mode: Named, names: [san]}",
        "whenPathsRemain: Fence",
    ];
    control_plane.apply(&request_yaml(
        "planned",
        "n1",
        &[&spec[..], &["dryRun: true"]].concat(),
    ))?;
    let dry = control_plane.wait_for_phase("planned", "DryRunComplete", FENCE_LIMIT)?;
    ensure(
        n1.sh("dmsetup table --showkeys; multipathd show maps raw format '%n %Q'")? == tables,
        "after the dry run every table is what it was",
    )?;
    for writer in &writers {
        ensure(!writer.state(n1)?.ended, format!("{} goes on", writer.name))?;
    }
    control_plane.kubectl(&["delete", "sfr", "planned"])?;

    let boot_id = n1.boot_id()?;
    cluster.node_mut("n1")?.mark_dirty();
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    control_plane.apply(&request_yaml("meant", "n1", &spec))?;
    let real = control_plane.wait_for_condition("meant", "LocksReleased", "True", FENCE_LIMIT)?;
    ensure(
        steps(&dry) == steps(&real) && !steps(&dry).is_empty(),
        format!(
            "the real run took the steps of the dry run: {}",
            steps(&real).join(", ")
        ),
    )?;
    ensure(
        devices(&dry) == devices(&real) && devices(&dry).len() >= 3,
        format!(
            "to the devices of the dry run: {}",
            devices(&real).join(", ")
        ),
    )?;
    all_error(n1, "san", 3)?;
    lives_on(n1, &boot_id)
}

/// Names of the steps of a request, in order.
fn steps(request: &Value) -> Vec<String> {
    let steps = request["status"]["node"]["steps"].as_array().cloned();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    steps
        .unwrap_or_default()
        .iter()
        .map(|step| text(&step["step"]))
        .collect()
}

/// Names of its devices.
fn devices(request: &Value) -> Vec<String> {
    let groups = request["status"]["node"]["volumeGroups"]
        .as_array()
        .cloned();
    let mut names: Vec<String> = groups
        .unwrap_or_default()
        .iter()
        .flat_map(|group| group["devices"].as_array().cloned().unwrap_or_default())
        .filter_map(|device| device["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn no_multipath_on_demand(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&["agent.mode=OnDemand"])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    until("no node has an agent", Duration::from_secs(120), || {
        Ok(
            (cluster.agent_pod("n1")?.is_none() && cluster.agent_pod("n2")?.is_none())
                .then_some(()),
        )
    })?;
    let n2 = cluster.node("n2")?;
    let writers = volumes_in_use(n2, "san", 2)?;
    let boot_id = n2.boot_id()?;
    cluster.node_mut("n2")?.mark_dirty();
    cluster.san.cut_all("n2", None)?;
    let (n2, control_plane) = (cluster.node("n2")?, cluster.control_plane()?);
    for writer in &writers {
        let end = writer.wait_for_end(n2, Duration::from_secs(60))?;
        ensure(
            end.errno == Some(5),
            format!("{}: without multipath EIO comes by itself", writer.name),
        )?;
    }
    ensure(
        n2.watchdog_armed()?,
        "the LVs are active all the same, and the watchdog counts",
    )?;
    // A path that fails only by its I/O is running as far as sysfs knows; the person says what is meant.
    control_plane.apply(&request_yaml(
        "n2-san",
        "n2",
        &["volumeGroups: {mode: AllShared}", "whenPathsRemain: Fence"],
    ))?;
    let request =
        control_plane.wait_for_condition("n2-san", "LocksReleased", "True", FENCE_LIMIT)?;
    let quiesce = request["status"]["node"]["steps"]
        .as_array()
        .and_then(|steps| steps.iter().find(|step| step["step"] == "Quiesce"))
        .context("no Quiesce among the steps")?;
    ensure(
        quiesce["result"] == "Skipped",
        format!("no queueing had to be turned off: {quiesce}"),
    )?;
    ensure(cluster.agent_pod("n1")?.is_none(), "no agent came to n1")?;
    all_error(n2, "san", 2)?;
    lives_on(n2, &boot_id)?;
    control_plane.kubectl(&["delete", "sfr", "n2-san"])?;
    until(
        "n2's agent is gone when no request needs it",
        Duration::from_secs(120),
        || Ok(cluster.agent_pod("n2")?.is_none().then_some(())),
    )?;
    let label =
        control_plane.kubectl(&["get", "node", "n2", "-o", "jsonpath={.metadata.labels}"])?;
    ensure(!label.contains("agent-wanted"), "and its label is gone")
}
