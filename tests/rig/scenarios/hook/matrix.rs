//! The death of a daemon before every step of a fence, on a real node: as many steps at a time as there are volume groups. Each one's hook is held
//! right before a step, then the daemon is killed, and they all go on.

use std::time::{Duration, Instant};

use super::crashes::{
    LIMIT, LOOK, Look, STEPS, asked, cut, give_back, hook, set_up, stepper, steps,
};
use crate::guest::stepper::Steps;
use crate::harness::agent::Pending;
use crate::harness::node::Node;
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "multipathd-killed-at-every-step",
            about: "kill -9 of multipathd before every step of a fence: each is proven and released, and dropped once",
            shape,
            tell: multipathd_killed,
        },
        Scenario {
            name: "lvmlockd-killed-at-every-step",
            about: "kill -9 of lvmlockd before every step of a fence: nothing that is open is let go of, nothing left suspended, and the watchdog resets the node",
            shape: long_leases,
            tell: lvmlockd_killed,
        },
        Scenario {
            name: "sanlock-killed-at-every-step",
            about: "the same of sanlock: whatever was begun is cut off, and nothing else touched",
            shape: long_leases,
            tell: sanlock_killed,
        },
    ]
}

/// Each on a LUN of its own: so many steps at a time, because what costs time is the reboot.
const GROUPS: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "m5"];

fn shape() -> Shape {
    Shape::arrays().with_luns(GROUPS.len())
}

/// Leases of 40 s, so that none runs out before the death, though every hook has to be held first. When lvmlockd dies after that, sanlock keeps
/// no orphans: it lets go of the lockspace, whatever is open (sanlock: release_token_async, where `space_dead` counts before `PERSISTENT`).
fn long_leases() -> Shape {
    let mut shape = shape();
    shape.io_timeout = 5;
    shape
}

/// What goes on by itself is over by then: a hook gives a lock manager that is gone 20 s before it refuses.
const SETTLED: Duration = Duration::from_secs(30);
/// From the death until the watchdog resets the node, by far.
const RESET: Duration = Duration::from_secs(150);

/// A hook, and the step that it is held at.
struct Cell {
    vg: &'static str,
    number: usize,
    hook: Pending,
    /// The steps before it, and itself; none where the hook has ended without coming to it.
    calls: Option<Vec<String>>,
    ended: Option<Steps>,
}

impl Cell {
    fn was_sent(&self, what: &str) -> bool {
        let calls = self.calls.as_deref().unwrap_or_default();
        let before = calls.split_last().map_or(&[][..], |(_, before)| before);
        self.calls.is_none() || before.iter().any(|c| c.contains(what))
    }

    /// Whether it is held right before that.
    fn is_at(&self, what: &str) -> bool {
        let at = self.calls.as_ref().and_then(|c| c.last());
        at.is_some_and(|at| at.contains(what))
    }

    fn name(&self) -> String {
        let at = self.calls.as_ref().and_then(|c| c.last());
        let at = at.map_or("no such step", String::as_str);
        format!("{}: before {at}", self.number)
    }

    /// Whether it has ended, by now.
    fn poll(&mut self, limit: Duration) -> Result<bool> {
        if self.ended.is_none()
            && let Some(answer) = self.hook.poll(limit)?
        {
            self.ended = Some(steps(&answer)?);
        }
        Ok(self.ended.is_some())
    }
}

/// Cuts the SAN and holds each hook before the next step, kills the daemon, and lets them go on. `number` is of the last step so far.
fn killed(cluster: &mut Cluster, daemon: &str, number: &mut usize) -> Result<Vec<Cell>> {
    cut(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    n1.sh("rm -f /run/held.* /run/go")?;
    let mut cells = Vec::new();
    for vg in GROUPS {
        *number += 1;
        let held = format!(
            "echo \"$CALLS\" >/run/held.part.{vg}; mv /run/held.part.{vg} /run/held.{vg}; until test -e /run/go; do sleep 0.05; done"
        );
        let which = number.to_string();
        let command = stepper(&[("before", &which, &held)], &hook(vg));
        cells.push(Cell {
            vg,
            number: *number,
            hook: n1.start(&format!("{command} 2>/run/said.{vg}"), LIMIT)?,
            calls: None,
            ended: None,
        });
    }
    say("    every path is lost, and the hooks are there");
    until("every hook is held, or has ended", LIMIT, || {
        for cell in &mut cells {
            let held = n1.run(&format!("cat /run/held.{}", cell.vg), LIMIT)?;
            if held.code == 0 {
                cell.calls = Some(held.out.lines().map(str::to_owned).collect());
            } else if !cell.poll(Duration::ZERO)? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    if daemon != "multipathd" {
        let status = n1.sanlock()?;
        let late = |lease: &&str| lease.starts_with("lvm_") && !living_or_left(lease);
        if let Some(lease) = status.split("\ns ").find(late) {
            return Err(format!("it comes too late: {lease}").into());
        }
    }
    n1.sh(&format!("kill -9 $(pidof {daemon}); touch /run/go"))?;
    say(format!("    {daemon} is killed"));
    Ok(cells)
}

/// Whether sanlock's account of a lockspace says that its lease lives, or that it is on its way out already, since a fence has dropped it.
fn living_or_left(lease: &str) -> bool {
    let says = |what: &str| lease.lines().any(|line| line.trim() == what);
    says("space_dead=0") || says("list=rem")
}

fn any_held(cells: &[Cell]) -> bool {
    cells.iter().any(|c| c.calls.is_some())
}

fn multipathd_killed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let boot = cluster.node("n1")?.boot_id()?;
    let (first, last) = asked()?;
    let mut number = first - 1;
    let mut going_on = true;
    while going_on {
        let cells = killed(cluster, "multipathd", &mut number)?;
        going_on = any_held(&cells) && number < last;
        let n1 = cluster.node("n1")?;
        for mut cell in cells {
            if !cell.poll(LIMIT)? {
                return Err(format!("{}: the hook does not end", cell.name()).into());
            }
            let ended = cell.ended.as_ref().context("it has ended")?;
            let drops = ended.calls.iter().filter(|c| c.contains("drop_vg")).count();
            let told = format!("{}: ended with {}, {drops} drop", cell.name(), ended.code);
            say(format!("    {told}"));
            if ended.code != 0 || drops != 1 {
                return Err(told.into());
            }
        }
        // Nobody keeps queueing off once a hook has ended: sanlock's last I/O may wait in a map until the paths are back.
        let look = Look::at(n1)?;
        for vg in GROUPS {
            look.check(vg)?;
            if !look.open(vg).is_empty() || !look.let_go(vg) {
                return Err(format!("{vg} is not let go of: {}", n1.sh(LOOK)?).into());
            }
        }
        let none = n1.run("pidof multipathd", LIMIT)?.code != 0;
        n1.sh("multipathd && until multipathd show daemon >/dev/null; do sleep 0.2; done")?;
        if !none {
            return Err("somebody else has started multipathd again".into());
        }
        give_back(cluster, &GROUPS)?;
    }
    let same = cluster.node("n1")?.boot_id()? == boot;
    ensure(
        same && (number >= last || number >= STEPS),
        "every fence was proven and released, and the node was not reset",
    )
}

fn lvmlockd_killed(cluster: &mut Cluster) -> Result {
    // Before the locks are frozen nothing has been touched, and without lvmlockd nothing is.
    without_a_lock_manager(cluster, "lvmlockd", |cell| Some(cell.was_sent("kill_vg")))
}

fn sanlock_killed(cluster: &mut Cluster) -> Result {
    // It is asked once the hook has its turn, and before the fence is written down: one that finds none touches nothing. Which of the two is
    // not told by a folder's making.
    without_a_lock_manager(cluster, "sanlock", |cell| {
        if cell.was_sent("/journal.new") || cell.is_at("/journal.new") {
            Some(true)
        } else if cell.is_at("/turn") || cell.is_at("oom_score_adj") {
            Some(false)
        } else {
            None
        }
    })
}

/// `cut_off`: which of them have to be, in the end, and which must not be.
fn without_a_lock_manager(
    cluster: &mut Cluster,
    daemon: &str,
    cut_off: impl Fn(&Cell) -> Option<bool>,
) -> Result {
    cluster.mark_dirty();
    let (first, last) = asked()?;
    let mut number = first - 1;
    let mut resets = 0;
    loop {
        set_up(cluster, &GROUPS)?;
        let mut cells = killed(cluster, daemon, &mut number)?;
        let death = Instant::now();
        let n1 = cluster.node("n1")?;
        while death.elapsed() < SETTLED {
            let look = Look::at(n1)?;
            cells.iter().try_for_each(|cell| let_go(cell, &look))?;
            std::thread::sleep(Duration::from_secs(2));
        }
        let (look, told) = told(n1)?;
        say(format!(
            "    {:.0} s after the death:",
            death.elapsed().as_secs_f64()
        ));
        let mut watched = false;
        let mut wrong = Vec::new();
        for (cell, told) in cells.iter_mut().zip(&told) {
            cell.poll(Duration::ZERO)?;
            watched |= look.watched(cell.vg);
            if let Err(error) = settled(cell, &look, told, cut_off(cell)) {
                wrong.push(error.to_string());
            }
        }
        if !wrong.is_empty() {
            let log = n1.run(
                "sanlock client log_dump | tail -n 300; tail -n +1 /run/said.*",
                LIMIT,
            );
            let log = log.map_or_else(|e| e.to_string(), |answer| answer.out);
            return Err(format!("{}\n{log}", wrong.join("\n")).into());
        }
        if watched {
            until_reset(n1, &cells, death)?;
            resets += 1;
        }
        let going_on = any_held(&cells) && number < last;
        drop(cells);
        if !going_on {
            break;
        }
        cluster.reboot("n1")?;
    }
    ensure(
        resets > 0 && (number >= last || number >= STEPS),
        format!("nothing was let go of without proof; the watchdog reset the node {resets} times"),
    )
}

/// What must never be.
fn let_go(cell: &Cell, look: &Look) -> Result {
    let open = look.open(cell.vg);
    if !look.watched(cell.vg) && !open.is_empty() {
        let name = cell.name();
        return Err(format!("{name}: let go of, and open: {}", open.join(", ")).into());
    }
    Ok(())
}

/// What a hook has said last, and noted.
struct Told {
    said: String,
    noted: String,
}

/// What the node looks like, and what every hook has told, in one command: there is not much time.
fn told(node: &Node) -> Result<(Look, Vec<Told>)> {
    let each = GROUPS.map(|vg| {
        format!(
            "; echo; echo @@; tail -n 1 /run/said.{vg}; echo; echo @@; cat /run/sf/{vg}/journal /run/sf/{vg}/fenced/* 2>/dev/null"
        )
    });
    let text = node.sh(&format!("{LOOK}{}; true", each.concat()))?;
    let mut parts = text.split("@@\n").map(|part| part.trim().to_owned());
    let mut next = || parts.next().context("half a look");
    let look = Look::of(&next()?)?;
    let told = GROUPS.iter().map(|_| {
        Ok(Told {
            said: next()?,
            noted: next()?,
        })
    });
    let told = told.collect::<Result<_>>()?;
    Ok((look, told))
}

/// Tells a cell of the matrix, and checks it.
fn settled(cell: &Cell, look: &Look, told: &Told, cut_off: Option<bool>) -> Result {
    let vg = cell.vg;
    let Told { said, noted } = told;
    let (open, watched) = (look.open(vg).len(), look.watched(vg));
    let ended = cell.ended.as_ref().map(|e| e.code);
    let told = format!(
        "{}: {open} open, {}, {}; {said}",
        cell.name(),
        if watched { "held" } else { "let go of" },
        ended.map_or("goes on".into(), |code| format!("ended with {code}")),
    );
    say(format!("    {told}"));
    let_go(cell, look)?;
    let wrong = if !look.suspended().is_empty() {
        "left suspended"
    } else if cut_off.is_some_and(|cut_off| cut_off != (open == 0)) {
        "open is what should be cut off, or the other way round"
    } else if watched && (ended == Some(0) || noted.contains("\"Released\"")) {
        "called released, and the watchdog still counts on it"
    } else if !watched && !cell.was_sent("drop_vg") {
        "let go of, and this fence had not dropped it"
    } else {
        return Ok(());
    };
    let calls = cell.ended.as_ref().map(|e| e.calls.join("; "));
    Err(format!("{wrong}: {told}\nits steps: {}", calls.unwrap_or_default()).into())
}

/// The watchdog resets the node, and until then nothing is let go of that is open.
fn until_reset(node: &Node, cells: &[Cell], death: Instant) -> Result {
    while node.reset().is_none() {
        if death.elapsed() > RESET {
            return Err("the watchdog does not reset the node".into());
        }
        // It may go down meanwhile.
        if let Ok(look) = Look::at(node) {
            cells.iter().try_for_each(|cell| let_go(cell, &look))?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let reset = node.reset().context("it was reset")?;
    let after = reset.at.duration_since(death).as_secs_f64();
    say(format!("    reset {after:.1} s after the death"));
    if !reset.by_watchdog {
        return Err("it was not the watchdog that reset the node".into());
    }
    Ok(())
}
