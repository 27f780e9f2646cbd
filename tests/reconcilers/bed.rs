//! What all cases share: one control plane, or a developer's cluster, and an administrator's access to it.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use storage_fence::api::{StorageFenceRemediation, StorageFenceRequest};
use tokio_util::task::AbortOnDropHandle;

use crate::controller::Controllers;
use crate::heartbeat;
use crate::support::control_plane::{self, ControlPlane};
use crate::support::process::{RunDir, output, root, succeeded};
use crate::support::{Context, Result};

/// Where the operator is installed: the chart's and the manifests' default.
pub const NAMESPACE: &str = "storage-fence";
const CHART: &str = "charts/storage-fence-operator";

/// What the cases stand on.
pub struct Bed {
    /// An administrator's access.
    pub config: Config,
    /// The same as a client.
    pub client: Client,
    /// The controllers that run.
    pub controllers: Controllers,
    program: PathBuf,
    helm: PathBuf,
    kubeconfig: PathBuf,
    // Dropped in this order: the folder goes last.
    control_plane: Option<Arc<Mutex<ControlPlane>>>,
    _heartbeat: Option<AbortOnDropHandle<()>>,
    run: RunDir,
}

/// The runtime that all of it lives in.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    // What kube does not choose by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("a runtime")
}

impl Bed {
    /// Starts the control plane, unless SFO_KUBECONFIG names another.
    pub async fn make() -> Result<Self> {
        let run = RunDir::new()?;
        let helm = PathBuf::from(output(
            Command::new(root().join("hack/tools/helm")).arg("--print-path"),
        )?);
        let program = control_plane::program()?;
        let theirs = std::env::var_os("SFO_KUBECONFIG").map(PathBuf::from);
        // Nodes here have no kubelet: nobody says that they are alive, and that is no news.
        let flags = ["--node-monitor-grace-period", "1h"];
        let ours = match theirs {
            Some(_) => None,
            None => Some(ControlPlane::start(&run, &flags)?),
        };
        let kubeconfig = theirs.or_else(|| ours.as_ref().map(ControlPlane::kubeconfig));
        let kubeconfig = kubeconfig.context("neither a control plane nor a kubeconfig")?;
        let control_plane = ours.map(|ours| Arc::new(Mutex::new(ours)));
        let config = Kubeconfig::read_from(&kubeconfig).context("reading the kubeconfig")?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(config, &options).await?;
        let client = client(&config)?;
        let theirs = control_plane.is_none();
        Ok(Self {
            _heartbeat: theirs.then(|| heartbeat::start(client.clone())),
            config,
            client,
            controllers: Controllers::default(),
            program,
            helm,
            kubeconfig,
            control_plane,
            run,
        })
    }

    /// Whether the control plane is ours to switch off.
    pub fn owns_control_plane(&self) -> bool {
        self.control_plane.is_some()
    }

    /// The folder of the run.
    pub fn dir(&self) -> &Path {
        self.run.path()
    }

    /// The API of a cluster-scoped kind.
    pub fn all<K: Resource<Scope = kube::core::ClusterResourceScope, DynamicType = ()>>(
        &self,
    ) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// The API of a namespaced kind in the operator's namespace.
    pub fn ours<K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>>(
        &self,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Stops the API server alone.
    pub async fn stop_api_server(&self) -> Result {
        self.with_control_plane(ControlPlane::stop_api_server).await
    }

    /// Starts it again.
    pub async fn start_api_server(&self) -> Result {
        self.with_control_plane(ControlPlane::start_api_server)
            .await
    }

    async fn with_control_plane(&self, act: fn(&mut ControlPlane) -> Result) -> Result {
        let ours = self
            .control_plane
            .clone()
            .context("the control plane is not ours")?;
        tokio::task::spawn_blocking(move || {
            act(&mut ours.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await?
    }

    /// Runs kubectl to its end, whatever that is.
    pub async fn try_kubectl(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.arg("kubectl").args(args);
        command.env("KUBECACHEDIR", self.run.join("kubectl-cache"));
        self.run_command(command).await
    }

    /// Runs a kubectl command that has to succeed, and gives what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let what = format!("kubectl {}", args.join(" "));
        succeeded(&what, &self.try_kubectl(args).await?)
    }

    /// Runs helm in the operator's namespace; it has to succeed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.helm);
        command.args(args).args(["--namespace", NAMESPACE]);
        for (name, folder) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(name, self.run.join("helm").join(folder));
        }
        let what = format!("helm {}", args.join(" "));
        succeeded(&what, &self.run_command(command).await?)
    }

    async fn run_command(&self, mut command: Command) -> Result<Output> {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .current_dir(root())
            .stdin(Stdio::null());
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// A token of a service account of ours; bound to a pod, and so to the pod's node, if one is given.
    pub async fn token(&self, service_account: &str, pod: Option<&Pod>) -> Result<String> {
        let bound_object_ref = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.uid(),
        });
        let asked = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Vec::new(),
                bound_object_ref,
                expiration_seconds: Some(3600),
            },
            ..TokenRequest::default()
        };
        let accounts = self.ours::<ServiceAccount>();
        let answer = accounts
            .create_token_request(service_account, &PostParams::default(), &asked)
            .await
            .context(format!("a token of {service_account}"))?;
        Ok(answer.status.context("no token in the answer")?.token)
    }

    /// The access that a token gives.
    pub fn access(&self, token: &str) -> Result<Config> {
        let mut config = self.config.clone();
        config.auth_info = serde_json::from_value(json!({ "token": token }))?;
        Ok(config)
    }

    /// The same as a kubeconfig, for another process.
    pub fn kubeconfig_with(&self, token: &str, name: &str) -> Result<PathBuf> {
        let mut config = Kubeconfig::read_from(&self.kubeconfig)?;
        let user = json!([{ "name": "test", "user": { "token": token } }]);
        config.auth_infos = serde_json::from_value(user)?;
        for context in config
            .contexts
            .iter_mut()
            .filter_map(|c| c.context.as_mut())
        {
            context.user = Some("test".into());
        }
        let path = self.run.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(path)
    }

    /// Installs or changes the release, with the CRDs as they are in the tree.
    pub async fn install(&self, mode: &str) -> Result {
        self.install_crds().await?;
        self.make_namespace().await?;
        let mode = format!("agent.mode={mode}");
        self.helm(&[
            "upgrade",
            "--install",
            "storage-fence",
            CHART,
            "--set",
            &mode,
        ])
        .await?;
        Ok(())
    }

    /// As the documents say: helm never upgrades CRDs.
    pub async fn install_crds(&self) -> Result {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "crds/"])
            .await?;
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=240s",
            "-f",
            "crds/",
        ])
        .await?;
        Ok(())
    }

    /// As the documents say, with the label that lets privileged pods in.
    pub async fn make_namespace(&self) -> Result {
        self.kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "manifests/namespace.yaml",
        ])
        .await?;
        Ok(())
    }

    /// Takes out of a developer's cluster what was put in. A control plane of our own simply ends.
    pub async fn clean_up(&self) {
        self.controllers.stop_all().await;
        if self.owns_control_plane() {
            return;
        }
        // Nobody is left to take their finalizers off, and with one of them its definition stays, too.
        let client = &self.client;
        for freed in [
            free(client, |_: &StorageFenceRequest| self.all()).await,
            free(client, |r: &StorageFenceRemediation| {
                Api::namespaced(client.clone(), &r.namespace().unwrap_or_default())
            })
            .await,
        ] {
            if let Err(error) = freed {
                crate::support::progress::say(format!("left behind: {error}"));
            }
        }
        let commands: [&[&str]; 5] = [
            &["delete", "nodes", "-l", crate::node::LABEL],
            &[
                "delete",
                "crds,clusterroles,clusterrolebindings,namespaces,validatingadmissionpolicies,validatingadmissionpolicybindings",
                "-l",
                crate::node::LABEL,
                "--wait=false",
            ],
            &[
                "delete",
                "-k",
                "manifests/",
                "--ignore-not-found",
                "--wait=false",
            ],
            &[
                "delete",
                "-f",
                "crds/",
                "--ignore-not-found",
                "--wait=false",
            ],
            &[
                "delete",
                "pods",
                "--all",
                "-n",
                NAMESPACE,
                "--force",
                "--grace-period=0",
            ],
        ];
        for command in commands {
            if let Err(error) = self.kubectl(command).await {
                crate::support::progress::say(format!("left behind: {error}"));
            }
        }
    }
}

/// Takes the finalizers off all objects of a kind, each by the API that `of` gives.
async fn free<K>(client: &Client, of: impl Fn(&K) -> Api<K>) -> Result
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let all = Api::<K>::all(client.clone());
    for object in all.list(&ListParams::default()).await? {
        let params = PatchParams::default();
        of(&object)
            .patch(&object.name_any(), &params, &none)
            .await?;
    }
    Ok(())
}

/// A client with time limits of its own: a case that hangs is worse than one that fails.
pub fn client(config: &Config) -> Result<Client> {
    let mut config = config.clone();
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(Duration::from_mins(1));
    config.write_timeout = Some(Duration::from_mins(1));
    Ok(Client::try_from(config)?)
}

/// An answer that has to be a refusal: its code and its text.
pub fn refusal<T: Debug>(answer: kube::Result<T>) -> Result<(u16, String)> {
    match answer {
        Err(kube::Error::Api(status)) => Ok((status.code, status.message.clone())),
        Err(other) => Err(format!("an error that is no refusal: {other}").into()),
        Ok(taken) => Err(format!("it was not refused: {taken:?}").into()),
    }
}
