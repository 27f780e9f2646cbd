//! What races with a fence, on a real kernel: while the fence is held between two system calls, a volume gets its real table back, others come up,
//! a map queues again. Each time the fence is stopped once more right before it has the locks dropped, and the node is looked at there.

use std::time::{Duration, Instant};

use super::crashes::{
    LIMIT, Look, Point, completed, cut, hook, look_before_a_drop, set_up, stepper, steps,
};
use crate::guest::stepper::Steps;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "races",
        about: "an lvchange --refresh after the swap, volumes that come up after the plan, queueing that comes back by hand and by multipathd: closed before anything is released",
        shape: || Shape::arrays().with_luns(4),
        tell: races,
    }]
}

/// A fence, emulated and watched at each system call: whatever races with it costs a second or two of it.
const BOUND: Duration = Duration::from_secs(30);

/// s0-a has its real table again, by LVM, or by hand where that refuses; and it is read through it.
const REFRESH: &str = "lvchange --refresh s0/a >/run/said.refresh 2>&1; echo \"lvchange ended with $?\" >>/run/said.refresh; \
     dmsetup table s0-a | grep -q ' linear ' || { dmsetup load s0-a </run/table.s0 && dmsetup resume --noudevsync s0-a; }; \
     dmsetup table s0-a >/run/raced.s0; \
     timeout 5 dd if=/dev/mapper/s0-a of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && echo read >>/run/raced.s0; true";

/// A volume of s1 comes up before the locks are frozen, by LVM.
const COMES_UP: &str =
    "lvchange -aey -K s1/c >/run/said.up 2>&1; dmsetup table s1-c >/run/raced.s1; true";

/// What somebody makes of a volume group is a volume of it, whoever made it.
fn make(name: &str) -> String {
    let uuid = format!("{name:Z<32}");
    format!(
        "pv=$(dmsetup deps -o devno s1-lvmlock | sed \"s/.*(\\([0-9]*\\), \\([0-9]*\\)).*/\\1:\\2/\"); \
         vg=$(dmsetup info -c --noheadings -o uuid s1-lvmlock | cut -c1-36); \
         dmsetup create --noudevsync s1-{name} --uuid ${{vg}}{uuid} --table \"0 8192 linear $pv 2048\" 2>>/run/said.up; dmsetup table s1-{name} >>/run/raced.s1; true"
    )
}

/// The map of a volume group queues again, and somebody's read waits in it: no swap ends before that.
fn queue(vg: &str, how: &str) -> String {
    format!(
        "map=$(dmsetup deps -o devname {vg}-lvmlock | sed \"s/.*(\\(.*\\))/\\1/\"); n=$(dmsetup info -c --noheadings -o minor {vg}-a); {how}; \
         for i in $(seq 60); do ! dmsetup table $map | grep -q queue_if_no_path || break; sleep 0.05; done; \
         dmsetup table $map >/run/raced.{vg}; (dd if=/dev/dm-$n of=/dev/null bs=4k count=1 iflag=direct >/dev/null 2>&1 &); \
         for i in $(seq 60); do read a b </sys/block/dm-$n/inflight; test $a -eq 0 || break; sleep 0.05; done; echo $a waits >>/run/raced.{vg}"
    )
}

/// A fence of one volume group and what races with it.
struct Race {
    vg: &'static str,
    /// Before or after, a step, what is done.
    points: Vec<(&'static str, String, String)>,
}

impl Race {
    /// What is done there lies in files: quotes within quotes otherwise.
    fn new(node: &Node, vg: &'static str, deeds: &[(&'static str, &str, &str)]) -> Result<Self> {
        node.sh(&format!("rm -f /run/raced.{vg} /run/at-drop.{vg}"))?;
        let look = format!("{{ {}; }} >/run/at-drop.{vg}", look_before_a_drop());
        let mut points = Vec::new();
        for (at, (order, which, deed)) in deeds
            .iter()
            .chain(&[("before", "drop_vg", &*look)])
            .enumerate()
        {
            let file = format!("/run/deed.{vg}.{at}");
            node.write_file(&file, deed)?;
            points.push((*order, (*which).to_owned(), format!("bash {file}")));
        }
        Ok(Self { vg, points })
    }

    fn points(&self) -> Vec<Point<'_>> {
        let all = self.points.iter();
        all.map(|p| (p.0, p.1.as_str(), p.2.as_str())).collect()
    }

    /// By the hook, which does not ask whether paths work.
    fn hook(&self, node: &Node) -> Result<Steps> {
        let began = Instant::now();
        let command = stepper(&self.points(), &hook(self.vg));
        let told = steps(&node.run(&command, LIMIT)?)?;
        ensure(
            told.code == 0 && began.elapsed() < BOUND,
            format!(
                "{}: proven after {:.1} s",
                self.vg,
                began.elapsed().as_secs_f64()
            ),
        )?;
        self.check(node, &told)?;
        Ok(told)
    }

    /// What the node was like when the locks were about to be dropped.
    fn check(&self, node: &Node, told: &Steps) -> Result {
        let vg = self.vg;
        let raced = node.sh(&format!("cat /run/raced.{vg}"))?;
        say(format!("    {vg}: {}", raced.replace('\n', "; ")));
        if told.done != self.points.len() {
            return Err(format!("{vg}: held {} times: {:?}", told.done, told.calls).into());
        }
        let look = Look::of(&node.sh(&format!("cat /run/at-drop.{vg}"))?)?;
        let ours = |names: &[String]| names.iter().any(|n| n.starts_with(&format!("{vg}-")));
        ensure(
            look.held_before_a_drop(vg) && !ours(look.suspended()) && !ours(look.waiting()),
            format!(
                "{vg}: held by sanlock and the watchdog until its locks are dropped, nothing suspended or half swapped"
            ),
        )?;
        let open = look.open(vg);
        ensure(
            open.is_empty(),
            format!("{vg}: every volume is on the error target by then {open:?}"),
        )
    }
}

fn uuid(node: &Node, name: &str) -> Result<String> {
    node.sh(&format!("dmsetup info -c --noheadings -o uuid {name}"))
}

/// How often a device was swapped before the drop.
fn swaps(told: &Steps, uuid: &str) -> usize {
    let before = told.calls.iter().take_while(|c| !c.contains("drop_vg"));
    before.filter(|c| **c == format!("dm swap {uuid}")).count()
}

fn raced(node: &Node, vg: &str, words: &[&str]) -> Result {
    let raced = node.sh(&format!("cat /run/raced.{vg}"))?;
    let all = words.iter().all(|word| raced.contains(word));
    ensure(all, format!("{vg}: it was so: {words:?}"))
}

/// How often a map was told to fail its I/O.
fn told_to_fail(told: &Steps) -> usize {
    told.calls
        .iter()
        .filter(|c| c.starts_with("dm message "))
        .count()
}

fn races(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    let all = ["s0", "s1", "s2", "s3"];
    set_up(cluster, &all)?;
    let n1 = cluster.node("n1")?;
    n1.sh("lvcreate -qq -y -an -ky -Zn -Wn -L 16M -n c s1; dmsetup table s0-a >/run/table.s0")?;
    let boot = n1.boot_id()?;
    let swap = |name: &str| -> Result<String> { Ok(format!("dm swap {}", uuid(n1, name)?)) };
    let (refreshed, waits, by_itself) = (swap("s0-a")?, swap("s2-a")?, swap("s3-a")?);

    say("the kill hook, while every path works");
    let told = Race::new(n1, "s0", &[("after", &refreshed, REFRESH)])?.hook(n1)?;
    say(format!(
        "    {}",
        n1.sh("cat /run/said.refresh")?.replace('\n', "; ")
    ));
    raced(n1, "s0", &[" linear ", "read"])?;
    ensure(
        swaps(&told, &uuid(n1, "s0-a")?) == 2 && swaps(&told, &uuid(n1, "s0-b")?) == 1,
        "s0: the one that was refreshed was swapped again, and no other",
    )?;
    let late = make("late");
    let deeds = [
        ("before", "kill_vg", COMES_UP),
        ("after", "dm swap", late.as_str()),
    ];
    let told = Race::new(n1, "s1", &deeds)?.hook(n1)?;
    say(format!("    {}", n1.sh("cat /run/said.up")?));
    came_up(n1, &told, &["s1-c", "s1-late"])?;
    // A hook that ends while paths work leaves the maps queueing: what sanlock still has to end must not wait there.
    completed(n1, &["s0", "s1"])?;
    cut(cluster, &all)?;
    let n1 = cluster.node("n1")?;
    let by_multipathd = queue("s3", "multipathd restorequeueing map $map");
    let told = Race::new(n1, "s3", &[("before", &by_itself, &by_multipathd)])?.hook(n1)?;
    raced(n1, "s3", &["queue_if_no_path", "1 waits"])?;
    ensure(
        told_to_fail(&told) >= 2,
        "s3: multipathd itself had the map queue again in the middle of the swap, and the kernel was told again to fail what waits",
    )?;
    n1.sh("kill -STOP $(pidof multipathd)")?;
    let by_message = queue("s2", "dmsetup message $map 0 queue_if_no_path");
    let told = Race::new(n1, "s2", &[("before", &waits, &by_message)])?.hook(n1)?;
    raced(n1, "s2", &["queue_if_no_path", "1 waits"])?;
    ensure(
        told_to_fail(&told) >= 2,
        "s2: the kernel was told again to fail what waits, though multipathd hangs",
    )?;
    completed(n1, &all)?;
    let reads = || Ok((n1.run("pgrep -x dd", LIMIT)?.code != 0).then_some(()));
    until(
        "nobody's read waits any more",
        Duration::from_secs(20),
        reads,
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// Volumes that were not in the plan were swapped like the others.
fn came_up(node: &Node, told: &Steps, names: &[&str]) -> Result {
    let raced = node.sh("cat /run/raced.s1")?;
    let open = raced.lines().filter(|l| l.contains(" linear ")).count();
    ensure(
        open == names.len(),
        format!("s1: they came up with their tables: {raced}"),
    )?;
    for name in names {
        let uuid = uuid(node, name).context((*name).to_owned())?;
        ensure(
            swaps(told, &uuid) == 1,
            format!("{name} was swapped before the locks were dropped"),
        )?;
    }
    Ok(())
}
