//! A lockspace that somebody joins again by hand while devices of the fence are left: it does not end the fence.

use std::time::Duration;

use super::{HOOK, LIMIT, OPEN, agent, closed_again, cut, log, target, volume};
use crate::harness::node::Node;
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

/// The long ones of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "joined-while-fenced",
        about: "the lockspace is joined again while an error device is held open: a refresh of it is closed, and what is activated anew is not",
        shape: Shape::arrays,
        tell: joined_while_fenced,
    }]
}

/// What tells a device from another of the same name and UUID.
fn sequence(node: &Node) -> Result<String> {
    node.sh("cat /sys/block/$(basename $(readlink -f /dev/mapper/san-lv))/diskseq")
}

fn joined_while_fenced(cluster: &mut Cluster) -> Result {
    cluster.mark_dirty();
    volume(cluster)?;
    let n1 = cluster.node("n1")?;
    n1.sh("setsid sh -c 'exec 3</dev/san/lv; exec sleep 1000' >/dev/null 2>&1 & echo $! >/run/holder.pid")?;
    agent(n1)?;
    let n1 = cut(cluster)?;
    let end = n1.run(HOOK, LIMIT)?;
    say(format!("    {} ms: {}", end.ms, end.err.trim()));
    ensure(
        end.code == 0 && target(n1)? == "error",
        "the volume is fenced while somebody holds it open",
    )?;
    let fenced = sequence(n1)?;
    cluster.san.restore_all("n1", Some(0))?;
    let n1 = cluster.node("n1")?;
    until("the paths are back", Duration::from_secs(60), || {
        Ok((n1.path_states(0)? == "AA").then_some(()))
    })?;
    n1.sh_within(
        "for i in 1 2 3 4 5 6; do ! vgchange --lockstart san || break; sleep 1; done; lvmlockctl --info | grep '^VG san '",
        LIMIT,
    )?;
    until("the agent tells of it", Duration::from_secs(30), || {
        Ok(log(n1)?.contains("JoinedWhileFenced").then_some(()))
    })?;
    n1.sh(OPEN)?;
    closed_again(n1, 1)?;
    ensure(
        target(n1)? == "error" && sequence(n1)? == fenced,
        "what was fenced is closed again, although the lockspace is joined; a new table makes no new device",
    )?;
    n1.sh("kill $(cat /run/holder.pid)")?;
    n1.sh_within(
        "for i in 1 2 3 4 5; do ! dmsetup remove --retry --noudevsync san-lv || break; sleep 1; done; ! dmsetup info san-lv 2>/dev/null",
        LIMIT,
    )?;
    until("nothing stands any more", Duration::from_secs(30), || {
        let left = n1.sh("ls -A /run/storage-fence/fenced")?;
        Ok(left.is_empty().then_some(()))
    })?;
    n1.sh_within("lvchange -aey san/lv", LIMIT)?;
    std::thread::sleep(Duration::from_secs(12));
    ensure(
        target(n1)? == "linear" && sequence(n1)? != fenced,
        "what is activated anew is left alone",
    )
}
