//! Leader election on a Lease.
//!
//! The other side's clock is never asked: a candidate takes the lease over when it has seen no change of it for the lease's whole duration by
//! its own monotonic clock. A holder gives up before that: it stops when it could not renew within the renew deadline, which is shorter. All
//! writes are replacements with a resourceVersion, so that of two candidates one fails.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longer than any client's limit.
const NO_DEADLINE: Duration = Duration::from_mins(1);

/// How an election runs.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Who we are: unlike every other candidate, and unlike ourselves before a restart.
    pub identity: String,
    /// After this long without a change others take over.
    pub lease_duration: Duration,
    /// After this long without a successful renewal the holder stops. Shorter than the lease.
    pub renew_deadline: Duration,
    /// Between two attempts. Every attempt has a shorter time limit of its own, that of the client.
    pub retry_period: Duration,
}

impl Election {
    /// With the usual times: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: &str, lease: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            lease: lease.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Leadership ended without being asked to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lost {
    /// Somebody else holds the lease.
    #[error(
        "lost the lease {lease} to {holder}: this process stops and starts over as a candidate"
    )]
    Taken {
        /// Name of the Lease.
        lease: String,
        /// The new holder.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error(
        "could not renew the lease {lease} for {deadline:?}: this process stops before another one takes over. The last error was: {error}"
    )]
    Deadline {
        /// Name of the Lease.
        lease: String,
        /// The renew deadline.
        deadline: Duration,
        /// What the last attempt met.
        error: String,
    },
}

/// What to do about the lease as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// Nobody holds it.
    Take,
    /// The holder has not renewed it for its whole duration.
    TakeOver,
    /// We hold it.
    Renew,
    /// Somebody else does.
    Wait,
}

/// Decides. `unchanged_for` is how long we ourselves have seen the lease unchanged.
fn decide(
    holder: Option<&str>,
    identity: &str,
    unchanged_for: Duration,
    lease: Duration,
) -> Decision {
    match holder {
        None | Some("") => Decision::Take,
        Some(holder) if holder == identity => Decision::Renew,
        Some(_) if unchanged_for >= lease => Decision::TakeOver,
        Some(_) => Decision::Wait,
    }
}

/// What we saw of the lease, and since when.
#[derive(Debug)]
struct Observation {
    version: Option<String>,
    since: Instant,
}

impl Observation {
    /// Notes the version that was read and says for how long it has been the same.
    fn note(&mut self, version: Option<&String>, now: Instant) -> Duration {
        if self.version.as_ref() != version {
            self.version = version.cloned();
            self.since = now;
        }
        now.saturating_duration_since(self.since)
    }
}

/// The lease as it should be written. Acquiring sets the time and counts the transition, unless the holder stays the same.
fn written(election: &Election, mut lease: Lease, decision: Decision, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    if decision != Decision::Renew {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
    }
    spec.holder_identity = Some(election.identity.clone());
    spec.lease_duration_seconds =
        Some(i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Takes part in the election until `stop`, and then gives the lease back. `leading` says whether we hold it.
///
/// `client` should be one for [`Purpose::Lease`](super::client::Purpose::Lease).
///
/// # Errors
/// When leadership is lost. The caller must end the process: writes may be under way.
pub async fn run(
    election: Election,
    client: Client,
    leading: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Lost> {
    let mut candidate = Candidate {
        api: Api::namespaced(client, &election.namespace),
        election,
        seen: Observation {
            version: None,
            since: Instant::now(),
        },
        held: None,
        renewed: None,
    };
    let ended = tokio::select! {
        // An attempt that this cuts short may still be stored; giving the lease back reads it again, and is a replacement like every other.
        lost = candidate.take_part(&leading) => Err(lost),
        () = stop.cancelled() => Ok(()),
    };
    leading.send_replace(false);
    if ended.is_ok() {
        candidate.vacate().await;
    }
    ended
}

struct Candidate {
    api: Api<Lease>,
    election: Election,
    seen: Observation,
    /// The lease as we last wrote it.
    held: Option<Lease>,
    /// When the last successful renewal was sent. None: we do not lead.
    renewed: Option<Instant>,
}

impl Candidate {
    async fn take_part(&mut self, leading: &watch::Sender<bool>) -> Lost {
        loop {
            // The time before the request, not after the answer: others may have seen the change at once.
            let sent = Instant::now();
            // An attempt may take several requests: all of them together end by the deadline.
            let attempt = tokio::time::timeout(self.left(), self.attempt(sent)).await;
            let Ok(attempt) = attempt else {
                return self.deadline("the attempts took too long".to_owned());
            };
            match attempt {
                Ok(None) => {
                    self.renewed = Some(sent);
                    if !leading.send_replace(true) {
                        tracing::info!(identity = self.election.identity, "leading");
                    }
                }
                Ok(Some(holder)) => {
                    if self.renewed.is_some() {
                        return Lost::Taken {
                            lease: self.election.lease.clone(),
                            holder,
                        };
                    }
                    tracing::debug!(holder, "another one leads");
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.election.lease, "could not get at the lease");
                    if self.overdue() {
                        return self.deadline(error.to_string());
                    }
                }
            }
            tokio::time::sleep(self.election.retry_period.min(self.left())).await;
            if self.overdue() {
                return self.deadline("no attempt succeeded".to_owned());
            }
        }
    }

    /// Takes or renews the lease. Some: it is somebody else's.
    async fn attempt(&mut self, now: Instant) -> Result<Option<String>, kube::Error> {
        // A holder saves the read: the write fails if anybody came between.
        if self.renewed.is_some()
            && let Some(held) = self.held.clone()
        {
            match self.write(held, Decision::Renew).await {
                Ok(()) => return Ok(None),
                // Perhaps our own write, whose answer got lost. Read who holds it.
                Err(error) if is(&error, 409) || is(&error, 404) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(lease) = self.api.get_opt(&self.election.lease).await? else {
            return self.create().await.map(|()| None);
        };
        let unchanged_for = self
            .seen
            .note(lease.metadata.resource_version.as_ref(), now);
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.clone());
        let decision = decide(
            holder.as_deref(),
            &self.election.identity,
            unchanged_for,
            self.election.lease_duration,
        );
        match decision {
            Decision::Wait => Ok(Some(holder.unwrap_or_default())),
            Decision::Take | Decision::TakeOver | Decision::Renew => {
                match self.write(lease, decision).await {
                    Ok(()) => Ok(None),
                    Err(error) if is(&error, 409) => Ok(Some("another candidate".to_owned())),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn create(&mut self) -> Result<(), kube::Error> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.election.lease.clone()),
                namespace: Some(self.election.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec::default()),
        };
        let lease = written(&self.election, lease, Decision::Take, Timestamp::now());
        self.held = Some(self.api.create(&PostParams::default(), &lease).await?);
        Ok(())
    }

    /// Replaces the lease; the resourceVersion that it was read with makes this fail if anybody came between.
    async fn write(&mut self, lease: Lease, decision: Decision) -> Result<(), kube::Error> {
        let lease = written(&self.election, lease, decision, Timestamp::now());
        let stored = self
            .api
            .replace(&self.election.lease, &PostParams::default(), &lease)
            .await?;
        self.held = Some(stored);
        Ok(())
    }

    /// Whether a holder must stop now.
    fn overdue(&self) -> bool {
        self.renewed
            .is_some_and(|renewed| renewed.elapsed() >= self.election.renew_deadline)
    }

    /// Until the holder's deadline. A candidate that does not lead has none.
    fn left(&self) -> Duration {
        self.renewed.map_or(NO_DEADLINE, |renewed| {
            self.election
                .renew_deadline
                .saturating_sub(renewed.elapsed())
        })
    }

    fn deadline(&self, error: String) -> Lost {
        Lost::Deadline {
            lease: self.election.lease.clone(),
            deadline: self.election.renew_deadline,
            error,
        }
    }

    /// Gives the lease back, so that another one need not wait for it to run out. The lease is read again: a renewal may have been cut short.
    async fn vacate(&self) {
        if self.renewed.is_none() {
            return;
        }
        let given_back = async {
            let Some(mut lease) = self.api.get_opt(&self.election.lease).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(self.election.identity.as_str()) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            self.api
                .replace(&self.election.lease, &PostParams::default(), &lease)
                .await
                .map(|_| ())
        };
        match given_back.await {
            Ok(()) => tracing::info!(lease = self.election.lease, "gave the lease back"),
            Err::<(), kube::Error>(error) => {
                tracing::warn!(%error, lease = self.election.lease, "could not give the lease back: it runs out by itself");
            }
        }
    }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
