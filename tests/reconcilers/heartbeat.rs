//! Says of the Nodes made here that they live, as a kubelet does: by renewing a lease for each. A control plane of our own is told not to
//! ask; a developer's takes a Node without a kubelet for lost after less than a minute, and its pods for not ready with it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::task::AbortOnDropHandle;

use crate::node::LABEL;
use crate::support::Result;
use crate::support::progress::say;

/// Oftener than a kubelet does (10 s), for clusters that notice sooner.
const EVERY: Duration = Duration::from_secs(3);
const DURATION: i32 = 40;

/// Until it is dropped.
pub fn start(client: Client) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            if let Err(error) = renew(&client).await {
                say(format!("the Nodes' leases were not renewed: {error}"));
            }
            // A Node that has just joined is not asked before that either.
            tokio::time::sleep(EVERY).await;
        }
    }))
}

async fn renew(client: &Client) -> Result {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(client.clone());
    for node in nodes.list(&ListParams::default().labels(LABEL)).await? {
        let name = node.name_any();
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                // It goes with its Node.
                owner_references: node.owner_ref(&()).map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(DURATION),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply("test").force();
        leases.patch(&name, &params, &Patch::Apply(&lease)).await?;
    }
    Ok(())
}
