//! Requests that ask for what cannot be, or should not be: each is answered, and nothing is touched.

use std::time::Duration;

use crate::harness::operator::{condition, request_yaml};
use crate::harness::{Cluster, Result, Scenario, Shape, ensure};

use super::fence::volumes_in_use;

/// The scenarios of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "refusals",
        about: "unknown and local VGs, healthy paths, unknown nodes, bad specs: answered on a real node, and nothing is touched",
        shape: Shape::kubernetes,
        tell: refusals,
    }]
}

const ANSWER_LIMIT: Duration = Duration::from_secs(45);

fn refusals(cluster: &mut Cluster) -> Result {
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    // In the pod of the chart as it is. Debian 13's sanlock has no DEAD_EXT, its units spare nobody, and the chart installs the hook when told to.
    let others = [
        ("KillHook", "Unknown"),
        ("DaemonsSpared", "Warning"),
        ("DeadExt", "Warning"),
    ];
    cluster.preflight_is("n1", &others)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    let writers = volumes_in_use(n1, "san", 2)?;
    n1.sh("vgcreate --locktype none local /dev/rig-local && lvcreate -qq -y -Wn -Zn -L 16M -n own local")?;
    let look = "dmsetup table; sanlock client gets; lvmlockctl --info | grep -c kill_vg=1; true";
    let before = n1.sh(look)?;

    let named = |vg: &str| format!("volumeGroups: {{mode: Named, names: [{vg}]}}");
    let force = "whenPathsRemain: Fence".to_owned();
    for (name, node, spec, reason) in [
        ("unknown-node", "n9", vec![], "NodeNotFound"),
        (
            "unknown-vg",
            "n1",
            vec![named("sun"), force.clone()],
            "VolumeGroupUnknown",
        ),
        (
            "local-vg",
            "n1",
            vec![named("local"), force],
            "VolumeGroupNotShared",
        ),
        ("healthy", "n1", vec![named("san")], "PathsRemain"),
        ("healthy-affected", "n1", vec![], "NothingAffected"),
    ] {
        let spec: Vec<&str> = spec.iter().map(String::as_str).collect();
        control_plane.apply(&request_yaml(name, node, &spec))?;
        let request = control_plane.wait_for_phase(name, "Rejected", ANSWER_LIMIT)?;
        let said = ["Fenced", "Accepted"]
            .iter()
            .filter_map(|type_| condition(&request, type_))
            .any(|c| c["reason"] == reason && c["status"] == "False");
        ensure(
            said,
            format!(
                "{name}: {reason}: {}",
                request["status"]["message"].as_str().unwrap_or_default()
            ),
        )?;
        control_plane.kubectl(&["delete", "sfr", name])?;
    }
    for (what, yaml, words) in [
        (
            "Named without names",
            request_yaml("bad", "n1", &["volumeGroups: {mode: Named}"]),
            "names is required",
        ),
        (
            "an unknown value",
            request_yaml("bad", "n1", &["whenPathsRemain: Perhaps"]),
            "Perhaps",
        ),
        (
            "an unknown field",
            request_yaml("bad", "n1", &["dryrun: true"]),
            "dryrun",
        ),
        (
            "no time at all",
            request_yaml("bad", "n1", &["drainTimeoutSeconds: 0"]),
            "drainTimeoutSeconds",
        ),
    ] {
        match control_plane.apply(&yaml) {
            Ok(said) => return Err(format!("{what} was taken: {said}").into()),
            Err(error) => ensure(
                error.to_string().contains(words),
                format!("{what} is turned down by the API server, which names it"),
            )?,
        }
    }
    ensure(
        n1.sh(look)? == before,
        "on n1 every table and every lockspace is what it was",
    )?;
    for writer in &writers {
        ensure(!writer.state(n1)?.ended, format!("{} goes on", writer.name))?;
        writer.stop(n1)?;
    }
    n1.sh("vgremove -qq -y -f local")?;
    n1.sh("vgchange -qq -an san")?;
    Ok(())
}
