//! What becomes of pods of a real kubelet whose volumes are fenced: those and no others are evicted, and one that may not be holds the way back up.

use std::time::Duration;

use serde_json::Value;

use crate::harness::control_plane::ControlPlane;
use crate::harness::node::Node;
use crate::harness::operator::{condition, request_yaml};
use crate::harness::{Cluster, Context, Result, Scenario, Shape, ensure, say, until};

use super::fence::{FENCE_LIMIT, all_error, lives_on};

/// The scenarios of this file.
pub fn long() -> Vec<Scenario> {
    vec![Scenario {
        name: "pods-evicted",
        about: "pods with a raw volume, a file system and a budget: those that lost their storage are evicted, no other; then the node has it back",
        shape: Shape::kubernetes,
        tell: pods_evicted,
    }]
}

/// A pod is started or ended by an emulated kubelet.
const POD_LIMIT: Duration = Duration::from_secs(120);
const UNFENCE_LIMIT: Duration = Duration::from_secs(240);
const REQUEST: &str = "evicting";
/// Name, its volume if it has one, and whether that has a file system.
const PODS: [(&str, Option<&str>, bool); 4] = [
    ("raw", Some("lv0"), false),
    ("mounted", Some("lv1"), true),
    ("guarded", Some("lv2"), false),
    ("bystander", None, false),
];
const WRITES_RAW: &str = "exec 3<>/dev/vol; n=0; while echo pod-$n | dd of=/dev/vol bs=512 count=1 conv=notrunc,sync oflag=direct 2>/dev/null; do n=$((n+1)); echo $n >/tmp/n; sleep 0.1; done; while :; do sleep 1; done";
const WRITES_FILE: &str = "test -e /data/kept || echo kept >/data/kept; exec 3>>/data/open; sync; while :; do echo x >&3; sleep 0.1; done";
const WRITES_NOTHING: &str = "while :; do sleep 1; done";

fn pods_evicted(cluster: &mut Cluster) -> Result {
    cluster.node_mut("n1")?.mark_dirty();
    cluster.install_operator(&[])?;
    cluster.delete_requests()?;
    cluster.shared_vg("san", 0)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    let boot_id = n1.boot_id()?;
    // A kubelet puts a loop device on a raw volume, so that nobody takes it away.
    n1.sh(
        "modprobe loop; for n in 0 1 2; do lvcreate -qq -y -aey -Wn -Zn -L 16M -n lv$n san; done",
    )?;
    for (name, volume, file_system) in PODS {
        control_plane.apply(&pod(name, volume, file_system))?;
    }
    control_plane.apply(BUDGET)?;
    let before: Vec<String> = PODS
        .iter()
        .map(|(name, ..)| running(control_plane, name))
        .collect::<Result<_>>()?;
    until("every pod writes", POD_LIMIT, || {
        let stamped = |lv: &str| -> Result<bool> {
            let read = n1.sh(&format!(
                "dd if=/dev/san/{lv} iflag=direct bs=512 count=1 2>/dev/null | tr -d '\\0'"
            ))?;
            Ok(read.starts_with("pod-"))
        };
        let mounted = n1.run("grep -q san-lv1 /proc/mounts", Duration::from_secs(10))?;
        Ok((stamped("lv0")? && stamped("lv2")? && mounted.code == 0).then_some(()))
    })?;

    say("every path of n1 is cut, and it is fenced, with workloads: Evict");
    cluster.san.cut_all("n1", None)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    until(
        "n1's kernel knows that both paths are gone",
        Duration::from_secs(30),
        || Ok((n1.path_states(0)? == "FF").then_some(())),
    )?;
    let spec = ["workloads: Evict", "unfenceAfterSeconds: 3"];
    control_plane.apply(&request_yaml(REQUEST, "n1", &spec))?;
    control_plane.wait_for_condition(REQUEST, "LocksReleased", "True", FENCE_LIMIT)?;
    all_error(n1, "san", 3)?;
    lives_on(n1, &boot_id)?;

    for (n, name) in ["raw", "mounted"].iter().enumerate() {
        gone(control_plane, name, &before[n])
            .map_err(|error| told(control_plane, &error.to_string()))?;
    }
    let request = until("the pod that its budget holds is named", POD_LIMIT, || {
        let request = control_plane.request(REQUEST)?;
        let held = condition(&request, "WorkloadsEvicted")
            .is_some_and(|c| c["status"] == "False" && c["reason"] == "WaitingForDisruptionBudget");
        Ok(held.then_some(request))
    })
    .map_err(|error| told(control_plane, &error.to_string()))?;
    let said = condition(&request, "WorkloadsEvicted").context("no WorkloadsEvicted")?;
    say(format!("    WorkloadsEvicted: {}", said["message"]));
    ensure(
        said["message"]
            .as_str()
            .is_some_and(|m| m.contains("guarded")),
        "its name is told",
    )?;
    until(
        "the pod of lv2 is the only one that is left with a fenced volume",
        POD_LIMIT,
        || {
            let listed = affected(&control_plane.request(REQUEST)?);
            let left = [(before[2].clone(), vec!["san-lv2".to_owned()])];
            Ok((listed == left).then_some(()))
        },
    )
    .map_err(|error| told(control_plane, &error.to_string()))?;
    for n in [2, 3] {
        ensure(
            uid(control_plane, PODS[n].0)?.as_ref() == Some(&before[n]),
            format!("{} is the pod that it was", PODS[n].0),
        )?;
    }

    say("the SAN returns, and the node is to have its storage back");
    cluster.san.restore_all("n1", None)?;
    let (n1, control_plane) = (cluster.node("n1")?, cluster.control_plane()?);
    let unfenced = r#"{"spec":{"fenceState":"Unfenced"}}"#;
    control_plane.kubectl(&["patch", "sfr", REQUEST, "--type=merge", "-p", unfenced])?;
    until(
        "the status names the pod that holds lv2, and nothing of the others",
        UNFENCE_LIMIT,
        || {
            let request = control_plane.request(REQUEST)?;
            let blockers = request["status"]["node"]["unfence"]["blockers"].clone();
            let blockers = blockers.as_array().cloned().unwrap_or_default();
            let open = || blockers.iter().filter(|b| b["reason"] == "DeviceOpen");
            let named = open().any(|b| b["podUid"] == before[2].as_str());
            let others = open().any(|b| b["device"] != "san-lv2");
            Ok((named && !others).then_some(()))
        },
    )
    .map_err(|error| told(control_plane, &error.to_string()))?;
    say("its owner deletes that pod");
    control_plane.kubectl(&["delete", "pod", "guarded", "--wait=false"])?;
    control_plane
        .wait_for_phase(REQUEST, "Unfenced", UNFENCE_LIMIT)
        .map_err(|error| told(control_plane, &error.to_string()))?;
    gone(control_plane, "guarded", &before[2])?;

    say("the pods are made again, and find what they had written");
    n1.sh("for n in 0 1 2; do lvchange -aey san/lv$n; done")?;
    ensure(stamp(n1, "lv0")?.starts_with("pod-"), "lv0 has its data")?;
    control_plane.apply(&pod("mounted", Some("lv1"), true))?;
    let again = running(control_plane, "mounted")?;
    ensure(again != before[1], "it is another pod")?;
    let kept =
        n1.sh("cat $(awk '$1 == \"/dev/mapper/san-lv1\" {print $2; exit}' /proc/mounts)/kept")?;
    ensure(
        kept.trim() == "kept",
        "it has the file that the evicted pod wrote",
    )?;
    ensure(
        uid(control_plane, "bystander")?.as_ref() == Some(&before[3]),
        "the pod without a volume never noticed",
    )?;
    ensure(
        n1.reset().is_none() && n1.boot_id()? == boot_id,
        "n1 was not reset",
    )?;
    clear(control_plane)
}

fn stamp(node: &Node, lv: &str) -> Result<String> {
    node.sh(&format!(
        "dd if=/dev/san/{lv} iflag=direct bs=512 count=1 2>/dev/null | tr -d '\\0'"
    ))
}

/// So that the namespace is as it was.
fn clear(control_plane: &ControlPlane) -> Result {
    control_plane.kubectl(&["delete", "pods", "--all", "--timeout=120s"])?;
    control_plane.kubectl(&["delete", "pdb,pvc", "--all", "--timeout=60s"])?;
    control_plane.kubectl(&["delete", "pv", "--all", "--timeout=60s"])?;
    control_plane.kubectl(&["delete", "sfr", REQUEST, "--timeout=60s"])?;
    Ok(())
}

/// A pod whose owner allows no eviction.
const BUDGET: &str = "apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: guarded, namespace: default}
spec:
  maxUnavailable: 0
  selector: {matchLabels: {app: guarded}}
";

/// A pod on n1, with a local volume as a CSI driver for shared volume groups would give it.
fn pod(name: &str, volume: Option<&str>, file_system: bool) -> String {
    let script = match (volume, file_system) {
        (None, _) => WRITES_NOTHING,
        (_, true) => WRITES_FILE,
        (_, false) => WRITES_RAW,
    };
    let container = format!(
        "{{name: main, image: 'rig.invalid/pause:1', imagePullPolicy: Never, command: [/bin/busybox, sh, -c, {script:?}]"
    );
    let pod = |volumes: &str, of_container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: n1}}\n  \
             terminationGracePeriodSeconds: 2\n  automountServiceAccountToken: false\n  volumes: [{{name: tmp, emptyDir: {{}}}}{volumes}]\n  containers:\n  - {container}, {of_container}}}\n"
        )
    };
    let Some(lv) = volume else {
        return pod("", "volumeMounts: [{name: tmp, mountPath: /tmp}]");
    };
    let (mode, kind, used) = if file_system {
        (
            "Filesystem",
            "fsType: ext4, ",
            "volumeMounts: [{name: tmp, mountPath: /tmp}, {name: vol, mountPath: /data}]",
        )
    } else {
        (
            "Block",
            "",
            "volumeMounts: [{name: tmp, mountPath: /tmp}], volumeDevices: [{name: vol, devicePath: /dev/vol}]",
        )
    };
    let claim = format!(", {{name: vol, persistentVolumeClaim: {{claimName: {name}}}}}");
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 16Mi}}\n  volumeMode: {mode}\n  accessModes: [ReadWriteOnce]\n  \
         persistentVolumeReclaimPolicy: Retain\n  storageClassName: ''\n  claimRef: {{namespace: default, name: {name}}}\n  local: {{{kind}path: /dev/san/{lv}}}\n  \
         nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [n1]}}]}}]}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  storageClassName: ''\n  volumeName: {name}\n  volumeMode: {mode}\n  \
         accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 16Mi}}}}\n---\n{}",
        pod(&claim, used)
    )
}

fn uid(control_plane: &ControlPlane, name: &str) -> Result<Option<String>> {
    let pod = control_plane.object("pod", name)?;
    Ok(pod.and_then(|p| p["metadata"]["uid"].as_str().map(str::to_owned)))
}

/// Waits until a pod runs, and gives its UID.
fn running(control_plane: &ControlPlane, name: &str) -> Result<String> {
    let mut last = Value::Null;
    until(&format!("pod {name} runs"), POD_LIMIT, || {
        last = control_plane.object("pod", name)?.unwrap_or_default();
        let ready = condition(&last, "Ready").is_some_and(|c| c["status"] == "True");
        let uid = last["metadata"]["uid"].as_str();
        Ok(uid.filter(|_| ready).map(str::to_owned))
    })
    .map_err(|error| {
        let events = control_plane.kubectl(&["get", "events", "-A"]);
        format!(
            "{error}\n{}\n{}",
            last["status"],
            events.unwrap_or_default()
        )
        .into()
    })
}

/// Waits until the pod with that UID is no more.
fn gone(control_plane: &ControlPlane, name: &str, was: &str) -> Result {
    until(
        &format!("pod {name} is evicted and gone"),
        POD_LIMIT,
        || {
            let now = uid(control_plane, name)?;
            Ok((now.as_deref() != Some(was)).then_some(()))
        },
    )
}

/// Pods that the agent has seen with fenced volumes, by UID.
fn affected(request: &Value) -> Vec<(String, Vec<String>)> {
    let pods = request["status"]["affectedPods"]["pods"].as_array();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let pod = |p: &Value| {
        let volumes = p["volumes"].as_array();
        let volumes = volumes.into_iter().flatten().map(text).collect();
        (text(&p["uid"]), volumes)
    };
    pods.into_iter().flatten().map(pod).collect()
}

fn told(control_plane: &ControlPlane, error: &str) -> Box<dyn std::error::Error + Send + Sync> {
    let request = control_plane.object("sfr", REQUEST).ok().flatten();
    let pods = control_plane.kubectl(&["get", "pods", "-o", "wide"]);
    let status = request.map(|r| r["status"].to_string());
    format!(
        "{error}\n{}\n{}",
        status.unwrap_or_default(),
        pods.unwrap_or_default()
    )
    .into()
}
