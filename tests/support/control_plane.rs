//! A real Kubernetes control plane on this machine. In the rig, the nodes' kubelets join it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::{Guarded, RunDir, output, root, succeeded};
use super::wait::until;
use super::{Context, Result};

/// The host's loopback, as a guest sees it in QEMU's user-mode network.
pub const HOST_IN_GUEST: &str = "10.0.2.2";

/// The control plane of a run.
pub struct ControlPlane {
    program: PathBuf,
    dir: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    server: Guarded,
    port: u16,
}

/// The program that is apiserver, etcd, controller-manager, scheduler, kubelet and kubectl in one. SFO_KUBERNETES names one that exists
/// already; otherwise tests/control-plane makes it, once.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("SFO_KUBERNETES") {
        return Ok(PathBuf::from(program));
    }
    let build = root().join("tests/control-plane/build");
    Ok(PathBuf::from(output(&mut Command::new(build))?))
}

impl ControlPlane {
    /// Starts it and waits until it is ready. `flags` are some of `up`'s.
    pub fn start(run: &RunDir, flags: &[&str]) -> Result<Self> {
        let program = program()?;
        let dir = run.join("control-plane");
        let log = run.join("control-plane.log");
        let mut args = vec![
            "up".to_owned(),
            "--dir".to_owned(),
            dir.display().to_string(),
        ];
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        let server = Guarded::start("the control plane", &program, &args, &log)?;
        let mut control_plane = Self {
            program,
            dir,
            args,
            log,
            server,
            port: 0,
        };
        control_plane.wait_until_ready()?;
        Ok(control_plane)
    }

    fn wait_until_ready(&mut self) -> Result {
        let log = self.log.clone();
        let server = &mut self.server;
        let url = until("the control plane is ready", Duration::from_mins(2), || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = server.ended() {
                return Err(format!("the control plane ended ({status}): {said}").into());
            }
            Ok(said
                .lines()
                .find_map(|line| line.strip_prefix("READY "))
                .and_then(|rest| {
                    rest.split(' ')
                        .find_map(|word| word.strip_prefix("server="))
                })
                .map(str::to_owned))
        })?;
        self.port = url
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .context(format!("no port in {url}"))?;
        Ok(())
    }

    /// Stops all of it, as in an outage of the API; its data stay.
    pub fn stop(&mut self) {
        self.server.terminate(Duration::from_secs(30));
    }

    /// Starts it again on the same port and the old data.
    pub fn start_again(&mut self) -> Result {
        let mut args = self.args.clone();
        args.extend(["--port".to_owned(), self.port.to_string()]);
        self.server = Guarded::start("the control plane", &self.program, &args, &self.log)?;
        self.wait_until_ready()
    }

    /// Stops the API server alone, and waits until it is gone.
    pub fn stop_api_server(&mut self) -> Result {
        self.switch_api_server(Signal::SIGUSR1, "APISERVER stopped")
    }

    /// Starts the API server again, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result {
        self.switch_api_server(Signal::SIGUSR2, "APISERVER ready")
    }

    fn switch_api_server(&mut self, signal: Signal, word: &str) -> Result {
        let log = self.log.clone();
        let said = || -> Result<usize> { Ok(fs::read_to_string(&log)?.matches(word).count()) };
        let before = said()?;
        self.server.signal(signal)?;
        until(
            &format!("the control plane says {word}"),
            Duration::from_mins(2),
            || Ok((said()? > before).then_some(())),
        )
    }

    /// The API server's port on this machine's loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The program itself: also a kubelet, and kubectl.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// An administrator's credentials, for this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// The authority that kubelets trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("pki/ca.crt")
    }

    /// Credentials for a client inside a guest.
    pub fn guest_kubeconfig(&self, user: &str, groups: &str, to: &Path) -> Result {
        output(
            Command::new(&self.program)
                .args(["kubeconfig", "--user", user, "--groups", groups, "--server"])
                .arg(format!("https://{HOST_IN_GUEST}:{}", self.port))
                .arg("--dir")
                .arg(&self.dir)
                .arg("--out")
                .arg(to),
        )?;
        Ok(())
    }

    /// A kubectl command, ready to be run or watched.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("kubectl")
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.dir.join("kubectl-cache"));
        command
    }

    /// Runs kubectl to its end, whatever that is.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<Output> {
        Ok(self.kubectl_command(args).output()?)
    }

    /// Runs a kubectl command that has to succeed, and gives what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        succeeded(
            &format!("kubectl {}", args.join(" ")),
            &self.try_kubectl(args)?,
        )
    }

    /// Applies a manifest.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.dir.join("apply.yaml");
        fs::write(&file, yaml)?;
        self.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()])
    }

    /// Waits until a node is Ready since that boot: what it said before is believed for a while after it is off.
    pub fn wait_for_node(&self, name: &str, boot_id: &str, limit: Duration) -> Result {
        let path =
            "jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=='Ready')].status}";
        let ready = format!("{boot_id} True");
        until(&format!("Node {name} is Ready"), limit, || {
            let answer = self.try_kubectl(&["get", "node", name, "-o", path])?;
            Ok((String::from_utf8_lossy(&answer.stdout) == ready).then_some(()))
        })
    }
}
