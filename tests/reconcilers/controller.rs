//! The built controller as a process, with the credentials that the chart gives it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bed::{Bed, NAMESPACE};
use crate::support::process::Guarded;
use crate::support::{Context, Result};
use crate::wait::{LIMIT, until};

/// When `NoAgent` is said here.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(8);
const PROGRAM: &str = env!("CARGO_BIN_EXE_storage-fence");
const LEASE: &str = "storage-fence-controller";

/// The replicas that run.
#[derive(Default)]
pub struct Controllers(Mutex<Vec<Replica>>);

struct Replica {
    name: String,
    process: Guarded,
    log: PathBuf,
}

impl Controllers {
    fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one more, and waits until somebody leads. In that mode: Resident or OnDemand.
    pub async fn start(&self, bed: &Bed, name: &str, mode: &str) -> Result {
        let token = bed.token("storage-fence-controller", None).await?;
        let kubeconfig = bed.kubeconfig_with(&token, name)?;
        let log = bed.dir().join(format!("{name}.log"));
        let args = [
            // The environment is this way for the child alone.
            format!("KUBECONFIG={}", kubeconfig.display()),
            format!("POD_NAME={name}"),
            PROGRAM.to_owned(),
            "controller".to_owned(),
            format!("--agent-mode={mode}"),
            format!("--agent-timeout-seconds={}", AGENT_TIMEOUT.as_secs()),
            format!("--namespace={NAMESPACE}"),
            "--health-listen=127.0.0.1:0".to_owned(),
            "--log-level=info,storage_fence=debug".to_owned(),
        ];
        let process = Guarded::start(name, "/usr/bin/env", &args, &log)?;
        let name = name.to_owned();
        self.replicas().push(Replica { name, process, log });
        until("a controller leads", LIMIT, async || {
            self.all_alive()?;
            Ok(leader(bed).await?.ok_or_else(|| "nobody does".to_owned()))
        })
        .await
        .map(drop)
    }

    /// One replica in that mode, and no other.
    pub async fn only_one(&self, bed: &Bed, mode: &str) -> Result {
        self.stop_all().await;
        self.start(bed, &format!("{}-1", mode.to_lowercase()), mode)
            .await
    }

    /// Kills one as nothing can be prepared for.
    pub fn kill(&self, name: &str) -> Result {
        let mut replicas = self.replicas();
        let at = replicas.iter().position(|r| r.name == name);
        let mut replica = replicas.remove(at.context(format!("no controller {name}"))?);
        replica.process.signal(Signal::SIGKILL)?;
        replica.process.end();
        Ok(())
    }

    /// Memory of the only one: resident in kB, now and at most so far.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.all_alive()?;
        let replicas = self.replicas();
        let replica = replicas.first().context("no controller runs")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", replica.process.id()))?;
        let of = |name: &str| -> Result<u64> {
            let line = status.lines().find(|l| l.starts_with(name));
            let number = line.and_then(|l| l.split_whitespace().nth(1));
            Ok(number.context(format!("no {name}"))?.parse()?)
        };
        Ok((of("VmRSS:")?, of("VmHWM:")?))
    }

    /// What the only one has asked of the API server so far, by purpose, method and status, as its metrics tell.
    pub async fn calls(&self) -> Result<BTreeMap<String, u64>> {
        const NAME: &str = "storage_fence_controller_api_calls_total{";
        self.all_alive()?;
        let log = {
            let replicas = self.replicas();
            let replica = replicas.first().context("no controller runs")?;
            std::fs::read_to_string(&replica.log)?
        };
        let lines = log
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let address = lines
            .filter(|l| l["message"] == "health and metrics are served")
            .find_map(|l| l["address"].as_str().map(str::to_owned))
            .context("no address in the controller's log")?;
        let fetch = move || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Result::Ok(text)
        };
        let text = tokio::task::spawn_blocking(fetch).await??;
        Ok(counts(&text, NAME))
    }

    /// Ends all of them as a Deployment does; they give the lease back.
    pub async fn stop_all(&self) {
        let mut replicas = std::mem::take(&mut *self.replicas());
        let ended = tokio::task::spawn_blocking(move || {
            for replica in &mut replicas {
                replica.process.terminate(Duration::from_secs(30));
            }
        });
        let _ = ended.await;
    }

    /// An error if one of them has ended by itself.
    pub fn all_alive(&self) -> Result {
        for replica in self.replicas().iter_mut() {
            if let Some(status) = replica.process.ended() {
                let log = std::fs::read_to_string(&replica.log)?;
                let last: Vec<&str> = log.lines().rev().take(10).collect();
                return Err(
                    format!("controller {} ended ({status}): {last:?}", replica.name).into(),
                );
            }
        }
        Ok(())
    }
}

/// Name of the replica that holds the lease.
pub async fn leader(bed: &Bed) -> Result<Option<String>> {
    let lease = bed.ours::<Lease>().get_opt(LEASE).await?;
    let holder = lease.and_then(|l| l.spec?.holder_identity);
    let name = holder.as_deref().and_then(|h| h.split('_').next());
    Ok(name.filter(|n| !n.is_empty()).map(str::to_owned))
}

/// Counters of a name (with its brace) by their labels, in what Prometheus reads.
pub fn counts(metrics: &str, name: &str) -> BTreeMap<String, u64> {
    let of_it = metrics.lines().filter_map(|l| l.strip_prefix(name));
    let counts = of_it.filter_map(|l| {
        let (labels, count) = l.split_once("} ")?;
        Some((labels.to_owned(), count.parse().ok()?))
    });
    counts.collect()
}
