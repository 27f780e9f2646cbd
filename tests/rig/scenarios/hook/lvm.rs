//! The death of LVM's own commands between any two of their device-mapper calls, on a real node: what they leave suspended, half made, or with a table
//! that waits is in the way of the fence that comes next.

use super::crashes::{
    GROUPS, LIMIT, Look, asked, cut, paths_return, set_up, stepper, successor, traced,
};
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "lvm-killed-at-every-step",
        about: "kill -9 of lvcreate -s, lvextend, and lvextend of a thin pool after each of their device-mapper calls: what they leave is fenced all the same",
        shape: Shape::arrays,
        tell: lvm_killed,
    }]
}

/// One for each of [`GROUPS`]: each suspends volumes that are in use.
const COMMANDS: [&str; 3] = [
    "lvcreate -qq -y -s -L 16M -n snap s0/a",
    "lvextend -qq -y -L +4M s1/a",
    "lvextend -qq -y -L +4M s2/pool",
];
const POOL: &str = "lvcreate -qq -y -aey -L 32M -n pool --type thin-pool --poolmetadatasize 4M s2 && lvcreate -qq -y -aey -V 32M -n thin --thinpool s2/pool";
/// Volumes and what is below them go in whatever order they stand in: by the third time nothing stands on anything.
const REMOVED: &str = "for i in 1 2 3 4; do for d in $(dmsetup ls | cut -f1 | grep '^s[012]-' | grep -v lvmlock); do \
     dmsetup remove --noudevsync $d 2>/dev/null; done; done; true";
/// As it was before the fence, without what a command may have made before it died.
const RETURNED: &str = "set -e; for map in $(dmsetup ls --target multipath | cut -f1); do multipathd restorequeueing map $map >/dev/null; done; \
     for i in 1 2 3 4 5 6; do ! vgchange -qq --lockstart s0 s1 s2 || break; sleep 1; done; \
     ! lvs s0/snap >/dev/null 2>&1 || lvremove -qq -y s0/snap; vgchange -qq -aey s0 s1 s2";
/// Each of the commands makes so many calls at least, and leaves something suspended so often.
const CALLS: usize = 3;
const SUSPENDED: usize = 6;

fn lvm_killed(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    set_up(cluster, &GROUPS)?;
    let n1 = cluster.node("n1")?;
    n1.sh_within(POOL, LIMIT)?;
    let boot = n1.boot_id()?;
    let (first, last) = asked()?;
    let mut deaths = [0; GROUPS.len()];
    let mut suspended = 0;
    for number in first..=last {
        let met = killed(cluster.node("n1")?, number, &mut suspended)?;
        deaths
            .iter_mut()
            .zip(met)
            .for_each(|(all, met)| *all += usize::from(met));
        if met == [false; GROUPS.len()] {
            break;
        }
        cut(cluster, &GROUPS)?;
        let n1 = cluster.node("n1")?;
        successor(n1, &GROUPS).map_err(|e| format!("after the deaths at {number}: {e}"))?;
        paths_return(cluster, &GROUPS)?;
        let n1 = cluster.node("n1")?;
        n1.sh_within(REMOVED, LIMIT)?;
        n1.sh_within(RETURNED, LIMIT)?;
    }
    let all = (first, last) == (1, usize::MAX);
    ensure(
        !all || deaths.iter().all(|n| *n >= CALLS) && suspended >= SUSPENDED,
        format!(
            "each command died after each of its calls ({deaths:?}), and left something suspended {suspended} times"
        ),
    )?;
    let same = cluster.node("n1")?.boot_id()? == boot;
    ensure(
        same,
        "every fence was proven and released, and the node was not reset",
    )
}

/// Each command dies after its device-mapper call of that number. Whether it came to it.
fn killed(node: &Node, number: usize, suspended: &mut usize) -> Result<[bool; GROUPS.len()]> {
    let mut met = [false; GROUPS.len()];
    for (command, met) in COMMANDS.iter().zip(&mut met) {
        let which = format!("{number} of dm ");
        let told = traced(&node.run(&stepper(&[("after", &which, "kill")], command), LIMIT)?)?;
        *met = told.at.is_some();
        let at = told.at.and_then(|at| told.calls.get(at));
        say(format!(
            "    {number}: {command}: {}",
            at.map_or("not killed", String::as_str)
        ));
        if at.is_none() && told.code != 0 {
            return Err(format!("not killed, and ended with {}: {}", told.code, told.err).into());
        }
    }
    let look = Look::at(node)?;
    *suspended += look.suspended().len();
    say(format!(
        "    suspended: {:?}; a table waits: {:?}",
        look.suspended(),
        look.waiting()
    ));
    Ok(met)
}
