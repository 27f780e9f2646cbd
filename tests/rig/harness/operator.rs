//! The operator in a cluster: our image, installed by helm from this clone's chart as a user installs it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::control_plane::ControlPlane;
use super::process::{output, root};
use super::wait::until;
use super::{Cluster, Context, Result, ensure};

/// What lets go of a request without giving the node its storage back.
pub const RETAIN: &str = r#"{"spec":{"deletionPolicy":"Retain"}}"#;
/// Where the rig installs it.
pub const NAMESPACE: &str = "storage-fence";
/// An image is unpacked and a pod started on emulated machines.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);
/// What is checked before a fence, in this order (docs/status-and-conditions.md).
const PREFLIGHT: [&str; 10] = [
    "DeviceMapper",
    "LockManager",
    "Watchdog",
    "Queueing",
    "KillHook",
    "MemoryLocked",
    "DaemonsSpared",
    "StateDirectory",
    "HostName",
    "DeadExt",
];

/// The archive of our image, made by hack/image for the sources as they are. SFO_IMAGE names another one.
pub fn image() -> Result<PathBuf> {
    if let Some(archive) = std::env::var_os("SFO_IMAGE") {
        return Ok(PathBuf::from(archive));
    }
    let script = root().join("hack/image");
    Ok(PathBuf::from(output(&mut Command::new(script))?))
}

/// Runs helm against the cluster.
fn helm(control_plane: &ControlPlane, args: &[&str]) -> Result<String> {
    let script = root().join("hack/tools/helm");
    output(
        Command::new(script)
            .args(args)
            .env("KUBECONFIG", control_plane.kubeconfig()),
    )
}

impl Cluster {
    /// Installs the operator, or changes the installation to these values (`agent.mode=OnDemand`), and waits until it works: a leader, and in
    /// Resident mode a Ready NodeStorage for every node.
    pub fn install_operator(&self, values: &[&str]) -> Result {
        let control_plane = self.control_plane()?;
        let labels = [
            "pod-security.kubernetes.io/enforce=privileged",
            "pod-security.kubernetes.io/warn=privileged",
        ];
        if !control_plane
            .try_kubectl(&["get", "namespace", NAMESPACE])?
            .status
            .success()
        {
            control_plane.kubectl(&["create", "namespace", NAMESPACE])?;
            control_plane.kubectl(
                &[
                    &["label", "namespace", NAMESPACE, "--overwrite"],
                    &labels[..],
                ]
                .concat(),
            )?;
        }
        let mut args = vec![
            "upgrade",
            "--install",
            "storage-fence",
            "charts/storage-fence-operator",
        ];
        args.extend(["--namespace", NAMESPACE, "--reset-values"]);
        // The image is on the nodes already, and there is no registry.
        args.extend(["--set", "image.pullPolicy=Never"]);
        for value in values {
            args.extend(["--set", value]);
        }
        helm(control_plane, &args)?;
        until("the controller is available", INSTALL_LIMIT, || {
            let said = control_plane.try_kubectl(&[
                "rollout",
                "status",
                "deployment/storage-fence-controller",
                "-n",
                NAMESPACE,
                "--timeout=20s",
            ])?;
            Ok(said.status.success().then_some(()))
        })?;
        if !values.contains(&"agent.mode=OnDemand") {
            for node in self.nodes() {
                self.wait_for_agent_on(node.name())?;
            }
        }
        Ok(())
    }

    /// Removes it, and everything that it owns but the CRDs and their objects.
    pub fn uninstall_operator(&self) -> Result {
        helm(
            self.control_plane()?,
            &["uninstall", "storage-fence", "--namespace", NAMESPACE],
        )?;
        Ok(())
    }

    /// Waits until the agent of a node has reported about this boot that the node could be fenced.
    pub fn wait_for_agent_on(&self, node: &str) -> Result {
        let boot_id = self.node(node)?.boot_id()?;
        let control_plane = self.control_plane()?;
        let ended = until(
            &format!("the agent of {node} reports"),
            INSTALL_LIMIT,
            || {
                let Some(storage) = control_plane.object("nodestorage", node)? else {
                    return Ok(None);
                };
                let ready = condition(&storage, "Ready").is_some_and(|c| c["status"] == "True");
                Ok((ready && storage["status"]["bootId"] == boot_id.as_str()).then_some(()))
            },
        );
        ended.map_err(|error| {
            let pods = control_plane
                .kubectl(&["get", "pods", "-A", "-o", "wide"])
                .unwrap_or_default();
            let storage = control_plane
                .kubectl(&["get", "nodestorages", "-o", "yaml"])
                .unwrap_or_default();
            format!("{error}\n{pods}\n{storage}").into()
        })
    }

    /// Whether every check of a node's preflight ended as it is called here, and those that are not called here passed.
    pub fn preflight_is(&self, node: &str, others: &[(&str, &str)]) -> Result {
        let storage = self.control_plane()?.object("nodestorage", node)?;
        let storage = storage.context("the agent has reported")?;
        let checks = storage["status"]["preflight"].as_array().cloned();
        let checks = checks.unwrap_or_default();
        let told = |check: &Value| {
            let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            (word("name"), word("result"), word("message"))
        };
        let told: Vec<_> = checks.iter().map(told).collect();
        let names: Vec<&str> = told.iter().map(|(name, _, _)| name.as_str()).collect();
        ensure(
            names == PREFLIGHT,
            format!(
                "the preflight of {node} has all checks: {}",
                names.join(", ")
            ),
        )?;
        for (name, result, message) in &told {
            let other = others.iter().find(|(other, _)| other == name);
            let expected = other.map_or("Passed", |(_, result)| result);
            ensure(result == expected, format!("{name}: {result}: {message}"))?;
        }
        Ok(())
    }

    /// Name of the agent's pod on a node, if there is one that is not on its way out.
    pub fn agent_pod(&self, node: &str) -> Result<Option<String>> {
        let text = self.control_plane()?.kubectl(&[
            "get",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/component=agent",
            "-o",
            "json",
        ])?;
        let pods: Value = serde_json::from_str(&text)?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(pods
            .iter()
            .find(|pod| {
                pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)))
    }

    /// What the agents of all nodes said last, and where their threads are: for whoever has to find out why a scenario failed. It goes by the
    /// nodes' own line, since the network may be what is broken.
    pub fn words_of_agents(&self) -> String {
        const ASK: &str = "for a in $(pgrep -f 'storage-fence agent'); do \
             for t in /proc/$a/task/*; do echo \"$(cat $t/comm) $(cat $t/wchan) $(grep State $t/status)\"; done | sort | uniq -c; done; \
             tail -qn 30 /var/log/pods/*_storage-fence-agent*/*/*.log; uptime";
        let mut words = String::new();
        for node in self.nodes() {
            let said = node.run(ASK, Duration::from_secs(20));
            let said = said.map_or_else(|e| e.to_string(), |a| a.out + &a.err);
            words += &["the agent on ", node.name(), ":\n", &said, "\n"].concat();
        }
        words
    }

    /// Takes every request away, so that the next scenario begins without any. Its node may still stand fenced: that is what a reboot is for.
    pub fn delete_requests(&self) -> Result {
        let control_plane = self.control_plane()?;
        let names = control_plane.kubectl(&["get", "sfr", "-o", "name"])?;
        for name in names.lines() {
            control_plane.kubectl(&["patch", name, "--type=merge", "-p", RETAIN])?;
        }
        control_plane.kubectl(&[
            "delete",
            "storagefencerequests",
            "--all",
            "--ignore-not-found",
            "--wait=false",
        ])?;
        Ok(())
    }
}

impl ControlPlane {
    /// An object as the API server has it, if it has it.
    pub fn object(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"])?;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(
            serde_json::from_str(&text).context(format!("what kubectl says of {kind} {name}"))?,
        ))
    }

    /// A request.
    pub fn request(&self, name: &str) -> Result<Value> {
        self.object("storagefencerequest", name)?
            .context(format!("there is no request {name}"))
    }

    /// Waits until a condition of a request has this status, and gives the request. The error shows all of its status.
    pub fn wait_for_condition(
        &self,
        name: &str,
        type_: &str,
        status: &str,
        limit: Duration,
    ) -> Result<Value> {
        let what = format!("request {name} has {type_}={status}");
        until(&what, limit, || {
            let request = self.request(name)?;
            let is = condition(&request, type_).is_some_and(|c| c["status"] == status);
            Ok(is.then_some(request))
        })
        .map_err(|error| {
            let status = self.request(name).map(|r| r["status"].clone());
            format!("{error}\n{}", status.unwrap_or_default()).into()
        })
    }

    /// Waits until a request has this phase, and gives the request.
    pub fn wait_for_phase(&self, name: &str, phase: &str, limit: Duration) -> Result<Value> {
        let what = format!("request {name} has the phase {phase}");
        until(&what, limit, || {
            let request = self.request(name)?;
            Ok((request["status"]["phase"] == phase).then_some(request))
        })
        .map_err(|error| {
            let status = self.request(name).map(|r| r["status"].clone());
            format!("{error}\n{}", status.unwrap_or_default()).into()
        })
    }
}

/// A condition of an object.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_)
}

/// A request for a node, as a user writes it; `spec` is added to it, line by line.
pub fn request_yaml(name: &str, node: &str, spec: &[&str]) -> String {
    let mut yaml = format!(
        "apiVersion: storagefence.io/v1alpha1\nkind: StorageFenceRequest\nmetadata:\n  name: {name}\nspec:\n  nodeName: {node}\n"
    );
    for line in spec {
        yaml.push_str("  ");
        yaml.push_str(line);
        yaml.push('\n');
    }
    yaml
}
