//! Death at every step, on a real node: the engine is killed before each system call by which it changes anything, and its successor has to
//! complete the fence. Three volume groups at a time, because what costs time is joining their lockspaces again.

use std::time::Duration;

use super::super::stacks::holds;
use crate::guest::stepper::Steps;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};
use crate::wire::Answer;

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "killed-at-the-worst-steps",
        about: "the hook is killed with new tables loaded, when all is proven, and when the lockspace is dropped: the next one completes it",
        shape: Shape::arrays,
        tell: killed_at_the_worst_steps,
    }]
}

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "killed-at-every-step",
        about: "kill -9 before every step of a fence, one after the other: nothing is left suspended or released too early, and the next one completes it",
        shape: Shape::arrays,
        tell: killed_at_every_step,
    }]
}

/// Of one command, under emulation and watched at each system call.
pub const LIMIT: Duration = Duration::from_secs(100);
/// Volume groups, each on a LUN of its own.
pub const GROUPS: [&str; 3] = ["s0", "s1", "s2"];

/// A volume group's hook, with a journal of its own.
pub fn hook(vg: &str) -> String {
    format!("/payload/bin/storage-fence kill-hook --state-directory /run/sf/{vg} {vg}")
}

/// Runs `program` and does `deed` before or after (`order`) the step `which`.
pub fn stepped(node: &Node, order: &str, which: &str, deed: &str, program: &str) -> Result<Steps> {
    let command = stepper(&[(order, which, deed)], program);
    steps(&node.run(&command, LIMIT)?)
}

/// Where a program is stopped: before or after, a step, what is done there.
pub type Point<'a> = (&'a str, &'a str, &'a str);

/// The command that runs `program` with a deed at each of these points.
pub fn stepper(points: &[Point], program: &str) -> String {
    let point = |(order, which, deed): &Point| format!("{order} '{which}' '{deed}' ");
    let points: String = points.iter().map(point).collect();
    format!("/payload/bin/rig guest-stepper {points}{program}")
}

/// What the stepper told of a hook, which needs nothing that may be broken: it opened no device and no file that may lie on one, started nothing, and
/// spoke to the daemons of its host only.
pub fn steps(answer: &Answer) -> Result<Steps> {
    let told = traced(answer)?;
    if told.out_of_bounds.is_empty() {
        return Ok(told);
    }
    Err(format!(
        "a fence has no business with this: {:?}",
        told.out_of_bounds
    )
    .into())
}

/// What the stepper told, whatever it is.
pub fn traced(answer: &Answer) -> Result<Steps> {
    let last = answer.out.lines().last().unwrap_or_default();
    let told: Steps = serde_json::from_str(last).context(format!(
        "the stepper ended with {}: {}{}",
        answer.code, answer.out, answer.err
    ))?;
    Ok(Steps {
        err: answer.err.clone(),
        ..told
    })
}

/// What the node looks like at one moment.
pub struct Look {
    tables: Vec<(String, String)>,
    suspended: Vec<String>,
    waiting: Vec<String>,
    wdmd: String,
    sanlock: String,
    lvmlockd: String,
}

/// What [`Look::of`] reads. Whoever asks lvmlockd for its state takes the same address for the answer, the agent too: then one is told that it is in use.
///
/// The tables come last: a fence may go on meanwhile, and one that was still open before the locks were asked for would look as if they had been
/// released too early.
pub const LOOK: &str = "wdmd -d; echo ==; timeout 5 sanlock client gets 2>&1; echo ==; \
     for i in $(seq 20); do info=$(timeout 5 lvmlockctl --info 2>&1); case $info in *\"socket error\"*) sleep 0.2;; *) break;; esac; done; echo \"$info\"; \
     echo ==; dmsetup table; echo ==; dmsetup info -c --noheadings --separator ' ' -o name,suspended,attr";

/// The same without lvmlockd's word: who is stopped right before a drop keeps everybody else from asking it.
pub fn look_before_a_drop() -> String {
    LOOK.replace("$(timeout 5 lvmlockctl --info 2>&1)", "")
}

impl Look {
    pub fn at(node: &Node) -> Result<Self> {
        Self::of(&node.sh(LOOK)?)
    }

    /// One that somebody took.
    pub fn of(text: &str) -> Result<Self> {
        let text = format!("{text}\n");
        let mut parts = text.split("==\n").map(str::to_owned);
        let mut next = || parts.next().context("half a look");
        let table = |line: &str| {
            let (name, table) = line.split_once(": ")?;
            Some((name.to_owned(), table.split(' ').nth(2)?.to_owned()))
        };
        let (wdmd, sanlock, lvmlockd) = (next()?, next()?, next()?);
        let tables = next()?.lines().filter_map(table).collect();
        let info = next()?;
        let is = |at: usize, what: &str| -> Vec<String> {
            let words = info.lines().map(|l| l.split(' ').collect::<Vec<_>>());
            let those = words.filter(|l| l.get(at).is_some_and(|w| w.contains(what)));
            those.map(|l| l[0].to_owned()).collect()
        };
        Ok(Self {
            tables,
            suspended: is(1, "Suspended"),
            waiting: is(2, "I"),
            wdmd,
            sanlock,
            lvmlockd,
        })
    }

    /// Volumes that can still reach the SAN.
    pub fn open(&self, vg: &str) -> Vec<&str> {
        let ours = |name: &str| {
            name.strip_prefix(&format!("{vg}-"))
                .is_some_and(|lv| lv != "lvmlock")
        };
        self.tables
            .iter()
            .filter(|(name, kind)| ours(name) && kind != "error")
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Devices with a table that waits in the inactive slot, whoever's.
    pub fn waiting(&self) -> &[String] {
        &self.waiting
    }

    /// Devices that are suspended, whoever's.
    pub fn suspended(&self) -> &[String] {
        &self.suspended
    }

    /// Whether the watchdog counts on its lease, whoever else has let go.
    pub fn watched(&self, vg: &str) -> bool {
        holds(&self.wdmd, vg)
    }

    /// Whether every one of the three who can let go still holds on.
    pub fn held(&self, vg: &str) -> bool {
        holds(&self.wdmd, vg) && self.locked(vg) && self.lvmlockd.contains(&format!("VG {vg} "))
    }

    /// The same of the two who can be asked right before a drop.
    pub fn held_before_a_drop(&self, vg: &str) -> bool {
        holds(&self.wdmd, vg) && self.locked(vg)
    }

    fn locked(&self, vg: &str) -> bool {
        let lockspace = |l: &str| l.contains(&format!("lvm_{vg}:")) && !l.contains(" REM");
        self.sanlock.lines().any(lockspace)
    }

    /// Whether the watchdog has let go, and sanlock has, or does as soon as its last I/O ends.
    pub fn let_go(&self, vg: &str) -> bool {
        !holds(&self.wdmd, vg) && !self.locked(vg)
    }

    /// Whether the lock manager and the watchdog have let go for good.
    pub fn released(&self, vg: &str) -> bool {
        !holds(&self.wdmd, vg) && !self.sanlock.contains(&format!("lvm_{vg}:"))
    }

    /// What must never be when nobody is at work.
    pub fn check(&self, vg: &str) -> Result {
        if !self.suspended.is_empty() {
            return Err(format!("left suspended: {}", self.suspended.join(", ")).into());
        }
        self.check_open(vg)
    }

    /// What must never be.
    pub fn check_open(&self, vg: &str) -> Result {
        let open = self.open(vg);
        if !open.is_empty() && !self.held(vg) {
            return Err(format!(
                "released, and {} still reaches the SAN: {} {}",
                open.join(", "),
                self.sanlock,
                self.lvmlockd
            )
            .into());
        }
        Ok(())
    }
}

/// Shared volume groups with two volumes each, on a node whose SAN is well.
pub fn set_up(cluster: &Cluster, groups: &[&str]) -> Result {
    for (lun, vg) in groups.iter().enumerate() {
        cluster.shared_vg(vg, lun)?;
        cluster.node("n1")?.sh_within(
            &format!("for lv in a b; do lvcreate -qq -y -aey -L 64M -n $lv {vg}; done"),
            LIMIT,
        )?;
    }
    Ok(())
}

/// Cuts every path, and waits until the node knows. Somebody reads each volume all the while: that I/O waits in the queue of a map.
pub fn cut(cluster: &mut Cluster, groups: &[&str]) -> Result {
    // By number: the name is udev's, and nobody waits for that.
    let read = |vg: &&str| {
        format!(
            "(dd if=/dev/dm-$(dmsetup info -c --noheadings -o minor {vg}-a) of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &) "
        )
    };
    let reads: Vec<String> = groups.iter().map(read).collect();
    cluster.san.cut_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    n1.sh(&reads.join("; "))?;
    for lun in 0..groups.len() {
        until("both paths have failed", Duration::from_secs(40), || {
            Ok((n1.path_states(lun)? == "FF").then_some(()))
        })?;
    }
    Ok(())
}

/// Brings every path back, and waits until the node knows.
pub fn paths_return(cluster: &mut Cluster, groups: &[&str]) -> Result {
    cluster.san.restore_all("n1", None)?;
    let n1 = cluster.node("n1")?;
    for lun in 0..groups.len() {
        until("the paths are back", Duration::from_secs(60), || {
            Ok((n1.path_states(lun)? == "AA").then_some(()))
        })?;
    }
    Ok(())
}

/// The node as it was before the fence, by hand: as an administrator would.
pub fn give_back(cluster: &mut Cluster, groups: &[&str]) -> Result {
    paths_return(cluster, groups)?;
    let n1 = cluster.node("n1")?;
    let all = groups.join(" ");
    n1.sh_within(
        &format!(
            "set -e; for map in $(dmsetup ls --target multipath | cut -f1); do multipathd restorequeueing map $map >/dev/null; done; \
             for vg in {all}; do for lv in a b; do \
             ! dmsetup info $vg-$lv >/dev/null 2>&1 || dmsetup remove --retry --noudevsync $vg-$lv; done; done; \
             for i in 1 2 3 4 5 6; do ! vgchange -qq --lockstart {all} || break; sleep 1; done; vgchange -qq --noudevsync -aey {all}"
        ),
        LIMIT,
    )?;
    let look = Look::at(n1)?;
    for vg in groups {
        if !look.held(vg) || look.open(vg).len() != 2 {
            return Err(format!("{vg} is not in use again").into());
        }
    }
    Ok(())
}

/// The next hook completes what is left, and everything is as a fence leaves it.
pub fn successor(node: &Node, groups: &[&str]) -> Result {
    // Watched to its end, for what it has no business to do.
    let hooks: Vec<_> = groups
        .iter()
        .map(|vg| {
            let command = format!("{} 2>/run/said.{vg}", stepper(&[], &hook(vg)));
            Ok((vg, node.start(&command, LIMIT)?))
        })
        .collect::<Result<_>>()?;
    for (vg, hook) in hooks {
        let told = steps(&hook.wait(LIMIT)?)?;
        if told.code != 0 {
            let said = node.sh(&format!("cat /run/said.{vg}"))?;
            return Err(format!("the successor for {vg} ended with {}: {said}", told.code).into());
        }
    }
    let look = Look::at(node)?;
    for vg in groups {
        look.check(vg)?;
        let open = look.open(vg);
        if !open.is_empty() {
            return Err(format!("not cut off: {}", open.join(", ")).into());
        }
    }
    completed(node, groups)
}

/// Waits until everything is as a fence leaves it.
pub fn completed(node: &Node, groups: &[&str]) -> Result {
    until("the watchdog lets go", Duration::from_secs(30), || {
        let look = Look::at(node)?;
        for vg in groups {
            look.check_open(vg)?;
        }
        // A successor may still be at work: until then it suspends one after the other.
        let done = |vg: &&str| look.open(vg).is_empty() && look.released(vg);
        let all = look.suspended().is_empty() && groups.iter().all(done);
        Ok(all.then_some(()))
    })
    .map_err(|e| {
        let look = format!(
            "{LOOK}; dmsetup table --target multipath; dmsetup status --target multipath; sanlock client log_dump | tail -n 60"
        );
        format!("{e}\n{}", node.sh(&look).unwrap_or_default())
    })?;
    // Killed after the release: the watchdog lets go already while a successor still swaps.
    until(
        "grace periods are no longer expedited",
        Duration::from_secs(30),
        || Ok((!expedited(node)?).then_some(())),
    )
}

/// Whether the kernel hurries its grace periods along, which is for the span of a swap only.
pub fn expedited(node: &Node) -> Result<bool> {
    Ok(node.sh("cat /sys/kernel/rcu_expedited")? != "0")
}

/// Where most is half done: the new tables loaded and none live, and then one live (the second death of one fence); proven, and not yet written
/// down; dropped, and not yet confirmed.
const WORST: [(&str, &str, &str); 4] = [
    ("s0", "before", "dm swap"),
    ("s0", "after", "dm swap"),
    ("s1", "before", "fenced/"),
    ("s2", "after", "drop_vg"),
];

fn killed_at_the_worst_steps(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let boot = cluster.node("n1")?.boot_id()?;
    cut(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    for (vg, order, which) in WORST {
        let told = stepped(n1, order, which, "kill", &hook(vg))?;
        let at = told.at.context(format!("{vg}: no step is {which}"))?;
        let look = Look::at(n1)?;
        say(format!(
            "    {vg}: killed {order} {}; open: {:?}, held: {}",
            told.calls[at],
            look.open(vg),
            look.held(vg)
        ));
        look.check(vg)?;
    }
    ensure(true, "nothing is left suspended, or released too early")?;
    ensure(
        expedited(n1)?,
        "the kernel is left hurried by the one that died swapping",
    )?;
    successor(n1, &GROUPS)?;
    ensure(true, "its successor gives that back")?;
    for vg in ["s0", "s1"] {
        n1.sh(&format!("grep -q 'completing the fence' /run/said.{vg}"))?;
    }
    ensure(true, "the next ones complete what the journal says")?;
    ensure(
        true,
        "none opened a device or a file on one, started anything, or spoke to anybody but the daemons",
    )?;
    ensure(n1.boot_id()? == boot, "the node was not reset")
}

/// The first step, and the last: SFO_STEP=FIRST-LAST goes through some of them only, since all take a quarter of an hour.
pub fn asked() -> Result<(usize, usize)> {
    let Ok(text) = std::env::var("SFO_STEP") else {
        return Ok((1, usize::MAX));
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, ""));
    let last = if last.is_empty() {
        usize::MAX
    } else {
        last.parse()?
    };
    Ok((first.parse::<usize>()?.max(1), last))
}

fn killed_at_every_step(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let boot = cluster.node("n1")?.boot_id()?;
    let (first, last) = asked()?;
    let mut number = first - 1;
    let mut deaths = Vec::new();
    let mut going_on = true;
    // How many steps there are differs from hook to hook: until nobody of a round is killed any more.
    while going_on {
        let which: Vec<String> = (1..=GROUPS.len())
            .map(|n| (number + n).to_string())
            .collect();
        number += GROUPS.len();
        let met = round(cluster, &which)?;
        going_on = !met.is_empty() && number < last;
        deaths.extend(met);
    }
    let by_number = deaths.len();
    // So a number may be another step's for each.
    for which in missed(&deaths).chunks(GROUPS.len()) {
        deaths.extend(round(cluster, which)?);
    }
    let missed = missed(&deaths);
    let all = (first, last) == (1, usize::MAX);
    ensure(
        (!all || by_number >= STEPS) && missed.is_empty(),
        format!("each of {by_number} steps was met {missed:?}"),
    )?;
    let same = cluster.node("n1")?.boot_id()? == boot;
    ensure(same, "every one was completed, and the node was not reset")
}

/// A hook for each volume group, killed before one of these steps, and its successor. Gives the steps at which one was killed.
fn round(cluster: &mut Cluster, which: &[String]) -> Result<Vec<String>> {
    cut(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    let mut deaths = Vec::new();
    for (vg, which) in GROUPS.into_iter().zip(which) {
        let told = stepped(n1, "before", which, "kill", &hook(vg))?;
        let at = told.at.map(|at| told.calls[at].clone());
        say(format!(
            "    {which}: {}",
            at.as_deref().unwrap_or("not killed")
        ));
        Look::at(n1)?
            .check(vg)
            .map_err(|e| format!("killed before step {which} ({at:?}): {e}"))?;
        if at.is_none() && told.code != 0 {
            return Err(format!("not killed, and ended with {}: {}", told.code, told.err).into());
        }
        deaths.extend(at);
    }
    successor(n1, &GROUPS).map_err(|e| format!("after the deaths before {which:?}: {e}"))?;
    give_back(cluster, &GROUPS)?;
    Ok(deaths)
}

/// A fence of a volume group with two volumes has so many steps at least.
pub const STEPS: usize = 35;
/// Some of them, by what their descriptions have in them: whoever sees fewer has gone blind for some.
const AMONG_THEM: [&str; 5] = ["kill_vg", "dm load", "dm swap", "fenced/", "drop_vg"];

/// Those of them that are not among these.
fn missed(steps: &[String]) -> Vec<String> {
    let seen = |what: &&&str| steps.iter().any(|s| s.contains(**what));
    let missed = AMONG_THEM.iter().filter(|what| !seen(what));
    missed.map(|what| (*what).to_owned()).collect()
}
