//! The two ways to install, as docs/install.md has them.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;

use crate::bed::{Bed, NAMESPACE};
use crate::support::Result;
use crate::wait::{LIMIT, ensure, ensure_eq, until};

const SFR: &str = "storagefencerequests.storagefence.io";

/// Whether the API server's own RBAC lets that account do that.
async fn may(
    bed: &Bed,
    account: &str,
    verb: &str,
    resource: &str,
    subresource: &str,
) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{NAMESPACE}:{account}")),
            resource_attributes: Some(ResourceAttributes {
                group: Some(
                    if resource == "nodes" {
                        ""
                    } else {
                        "storagefence.io"
                    }
                    .into(),
                ),
                resource: Some(resource.into()),
                subresource: Some(subresource.into()).filter(|s: &String| !s.is_empty()),
                verb: Some(verb.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = bed
        .all::<SubjectAccessReview>()
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

/// The objects are there, the DaemonSet's controller has looked at its own, and the accounts may do what they have to and no more.
async fn installed(bed: &Bed) -> Result {
    let controller = bed
        .ours::<Deployment>()
        .get("storage-fence-controller")
        .await?;
    ensure_eq(
        "replicas",
        controller.spec.and_then(|s| s.replicas),
        Some(2),
    )?;
    until("the DaemonSet is taken up", LIMIT, async || {
        let agents = bed.ours::<DaemonSet>().get("storage-fence-agent").await?;
        let seen = agents.status.and_then(|s| s.observed_generation);
        Ok(if seen == agents.metadata.generation {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        })
    })
    .await?;
    let sfr = "storagefencerequests";
    until("the roles are in force", LIMIT, async || {
        Ok(
            if may(bed, "storage-fence-agent", "patch", sfr, "status").await? {
                Ok(())
            } else {
                Err("the agent may not write a status".to_owned())
            },
        )
    })
    .await?;
    for (account, verb, resource, subresource, wanted) in [
        ("storage-fence-controller", "watch", sfr, "", true),
        ("storage-fence-controller", "patch", sfr, "status", true),
        ("storage-fence-controller", "patch", "nodes", "", true),
        ("storage-fence-controller", "delete", "nodes", "", false),
        (
            "storage-fence-controller",
            "patch",
            "nodestorages",
            "status",
            false,
        ),
        ("storage-fence-agent", "create", "nodestorages", "", true),
        (
            "storage-fence-agent",
            "patch",
            "nodestorages",
            "status",
            true,
        ),
        ("storage-fence-agent", "patch", sfr, "", false),
        ("storage-fence-agent", "patch", "nodes", "", false),
        ("storage-fence-agent", "delete", sfr, "", false),
    ] {
        let is = may(bed, account, verb, resource, subresource).await?;
        ensure_eq(
            &format!("{account} may {verb} {resource}/{subresource}"),
            is,
            wanted,
        )?;
    }
    Ok(())
}

async fn crd_is_there(bed: &Bed) -> Result<bool> {
    let crds = bed.all::<CustomResourceDefinition>();
    Ok(crds.get_opt(SFR).await?.is_some())
}

async fn removed(bed: &Bed) -> Result {
    until("the installation is gone", LIMIT, async || {
        let controller = bed
            .ours::<Deployment>()
            .get_opt("storage-fence-controller")
            .await?;
        let agents = bed
            .ours::<DaemonSet>()
            .get_opt("storage-fence-agent")
            .await?;
        Ok(if controller.is_none() && agents.is_none() {
            Ok(())
        } else {
            Err("it is there".to_owned())
        })
    })
    .await
}

pub async fn kustomize_installs_and_removes(bed: &Bed) -> Result {
    let came = kustomize_installs(bed).await;
    // Whatever came of it: helm does not take over what it has not made.
    bed.kubectl(&[
        "delete",
        "-k",
        "manifests/",
        "--ignore-not-found",
        "--timeout=240s",
    ])
    .await?;
    came?;
    removed(bed).await?;
    ensure(!crd_is_there(bed).await?, "the CRDs are gone too")
}

async fn kustomize_installs(bed: &Bed) -> Result {
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "-k",
        "manifests/",
    ];
    bed.kubectl(&apply).await?;
    installed(bed).await?;
    let again = bed.kubectl(&apply).await?;
    ensure(
        again.lines().count() > 8,
        format!("everything is applied: {again}"),
    )?;
    // The examples are accepted, and by the schema's rules.
    let examples = ["apply", "--dry-run=server", "-f", "manifests/examples/"];
    let accepted = bed.kubectl(&examples).await?;
    ensure(accepted.contains("created (server dry run)"), accepted)
}

pub async fn helm_installs_upgrades_and_uninstalls(bed: &Bed) -> Result {
    // A namespace that is being deleted takes nothing in.
    until("the namespace can be made", LIMIT, async || {
        Ok(bed.make_namespace().await.map_err(|e| e.to_string()))
    })
    .await?;
    let chart = "charts/storage-fence-operator";
    until("helm installs", LIMIT, async || {
        Ok(bed
            .helm(&["upgrade", "--install", "storage-fence", chart])
            .await
            .map_err(|e| e.to_string()))
    })
    .await?;
    installed(bed).await?;
    ensure(crd_is_there(bed).await?, "helm has brought the CRDs")?;
    let before = bed.ours::<DaemonSet>().get("storage-fence-agent").await?;
    bed.helm(&[
        "upgrade",
        "storage-fence",
        chart,
        "--set",
        "agent.mode=OnDemand",
        "--set",
        "controller.replicas=2",
    ])
    .await?;
    let after = bed.ours::<DaemonSet>().get("storage-fence-agent").await?;
    let selects = |d: &DaemonSet| {
        let pod = d.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        pod.and_then(|p| p.node_selector.as_ref())
            .is_some_and(|s| s.contains_key("storagefence.io/agent-wanted"))
    };
    ensure(
        !selects(&before) && selects(&after),
        "the upgrade changes the agents' node selector",
    )?;
    ensure_eq(
        "the DaemonSet is the same one",
        after.metadata.uid,
        before.metadata.uid,
    )?;
    bed.helm(&["uninstall", "storage-fence", "--wait", "--timeout", "240s"])
        .await?;
    removed(bed).await?;
    ensure(
        crd_is_there(bed).await?,
        "requests and reports outlive the operator",
    )
}
