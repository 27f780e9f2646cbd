//! Two arrays that fail one after the other, the first of them in a way that its fence cannot come to an end.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::operator::{condition, request_yaml};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on, volumes_in_use};

/// The scenarios of this file: two minutes, most of which are spent waiting for time-outs.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "second-array",
        about: "an array becomes a black hole and its fence hangs; then another array is lost: that one is fenced and let go of meanwhile, and the \
                first one when its I/O ends",
        shape: || Shape::kubernetes().with_luns(2),
        tell: second_array,
    }]
}

/// Of whatever has lost every path: the node has to tell the arrays apart.
const POLICY: &str = "apiVersion: storagefence.io/v1alpha1\nkind: StorageFencePolicy\nmetadata:\n  name: arrays\nspec:\n  response: Fence\n  \
     triggers:\n    allPathsDown: {forSeconds: 1}\n";

const SPEC: [&str; 3] = [
    "volumeGroups: {mode: Named, names: [san]}",
    "whenPathsRemain: Fence",
    "drainTimeoutSeconds: 5",
];

/// Whether sanlock has the lockspace of that volume group, and is not about to let it go.
fn held(lockspaces: &[String], vg: &str) -> bool {
    let of_it = format!("s lvm_{vg}:");
    let is = |l: &String| l.starts_with(&of_it) && !l.contains(" REM");
    lockspaces.iter().any(is)
}

/// The fence of the node's own that names this volume group.
fn own_fence(cluster: &Cluster, vg: &str) -> Result<Option<Value>> {
    let text = cluster
        .control_plane()?
        .kubectl(&["get", "sfr", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    let items = all["items"].as_array().cloned().unwrap_or_default();
    let names = |r: &Value| r["spec"]["volumeGroups"]["names"].clone();
    Ok(items
        .into_iter()
        .find(|r| names(r) == serde_json::json!([vg])))
}

fn second_array(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    cluster.shared_vg("other", 1)?;
    cluster.node_mut("n1")?.mark_dirty();
    let control_plane = cluster.control_plane()?;
    control_plane.apply(POLICY)?;
    let n1 = cluster.node("n1")?;
    until("n1 keeps the policy", Duration::from_secs(60), || {
        let kept = n1.sh("cat /run/storage-fence/policies.json 2>/dev/null || true")?;
        Ok(kept.contains("\"arrays\"").then_some(()))
    })?;
    let boot_id = n1.boot_id()?;
    let _san = volumes_in_use(n1, "san", 2)?;
    let _other = volumes_in_use(n1, "other", 2)?;

    say("the array of san becomes a black hole");
    cluster.san.black_hole_all("n1", Some(0))?;
    let hole = Instant::now();
    let control_plane = cluster.control_plane()?;
    control_plane.apply(&request_yaml("n1-san", "n1", &SPEC))?;
    let not_proven = |r: &Value| {
        let fenced = condition(r, "Fenced");
        fenced.is_some_and(|c| c["status"] == "False" && c["reason"] == "NotProven")
    };
    until("its fence is not proven", Duration::from_secs(30), || {
        Ok(not_proven(&control_plane.request("n1-san")?).then_some(()))
    })?;
    say(format!("    after {:.1} s", hole.elapsed().as_secs_f64()));

    say("the array of other loses every path");
    cluster.san.cut_all("n1", Some(1))?;
    let cut = Instant::now();
    let n1 = cluster.node("n1")?;
    until("other is let go of", FENCE_LIMIT, || {
        Ok((!held(&n1.lockspaces()?, "other")).then_some(()))
    })?;
    say(format!("    after {:.1} s", cut.elapsed().as_secs_f64()));
    all_error(n1, "other", 2)?;
    ensure(
        held(&n1.lockspaces()?, "san") && n1.watchdog_armed()?,
        "san is held, and the watchdog is armed for it",
    )?;
    let targets = n1.lv_targets("san")?;
    ensure(
        targets.iter().any(|(_, kind)| kind != "error"),
        format!("the fence of san hangs: {targets:?}"),
    )?;
    let fence = until("the record says so", FENCE_LIMIT, || {
        let fence = own_fence(cluster, "other")?;
        Ok(fence.filter(|r| condition(r, "LocksReleased").is_some_and(|c| c["status"] == "True")))
    })?;
    ensure(
        condition(&fence, "Fenced").is_some_and(|c| c["status"] == "True"),
        "the fence of other is proven",
    )?;
    let request = cluster.control_plane()?.request("n1-san")?;
    let message = condition(&request, "Fenced").map(|c| c["message"].clone());
    ensure(
        not_proven(&request)
            && message
                .as_ref()
                .and_then(Value::as_str)
                .is_some_and(|m| m.contains("tried on")),
        format!("that of san is not, and it is still tried: {message:?}"),
    )?;
    let hung = "for t in /proc/$(pgrep -f '^/storage-fence agent')/task/*; do cat $t/comm; done | grep -c '^swap' || true";
    let hung: usize = n1.sh(hung)?.trim().parse()?;
    ensure(hung <= 2, format!("{hung} threads hang in two volumes"))?;

    say("the array of san answers again");
    cluster.san.restore_all("n1", Some(0))?;
    let control_plane = cluster.control_plane()?;
    control_plane.wait_for_condition("n1-san", "LocksReleased", "True", FENCE_LIMIT)?;
    let n1 = cluster.node("n1")?;
    all_error(n1, "san", 2)?;
    lives_on(n1, &boot_id)?;
    control_plane.kubectl(&["delete", "sfp", "arrays"])?;
    Ok(())
}
