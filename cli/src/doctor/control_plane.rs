//! The controller, its lease, the collector, and the policy.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    is_component,
    report::{Finding, Group},
    snapshot::Snapshot,
    unread,
};
use crate::{
    exit::{page, page_of},
    forward::is_ready,
    pod_state::trouble,
};

/// Pod Security's label of a namespace.
pub const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// The findings about them.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let home = &snapshot.home;
    let mut findings = Vec::new();
    match &snapshot.controller {
        Err(message) => findings.push(unread(Group::ControlPlane, "the controller", message)),
        Ok(None) => findings.push(
            Finding::error(Group::ControlPlane, format!("there is no controller in the namespace {home}"))
                .hint("Install PodTap, or name its namespace with --podtap-namespace.")
                .page(page("install.md", "")),
        ),
        Ok(Some(_)) => {
            findings.extend(security(snapshot));
            findings.push(controller(snapshot));
            findings.extend(pods(snapshot));
            findings.push(lease(snapshot));
        }
    }
    findings.extend(policy(snapshot));
    findings
}

/// Whether the namespace admits helper pods.
fn security(snapshot: &Snapshot) -> Option<Finding> {
    let namespace = snapshot.namespace.as_ref().ok()?.as_ref()?;
    let level = namespace.labels().get(ENFORCE)?;
    if level == "privileged" {
        return Some(Finding::ok(Group::ControlPlane, "Pod Security admits helper pods"));
    }
    Some(wrong_level(&snapshot.home, level))
}

/// The finding about a namespace that does not admit helper pods.
pub fn wrong_level(home: &str, level: &str) -> Finding {
    Finding::error(
        Group::ControlPlane,
        format!("Pod Security of the namespace {home} enforces {level}, which rejects helper pods"),
    )
    .hint(format!("kubectl label namespace {home} {ENFORCE}=privileged --overwrite"))
    .page(page_of("HelperPodRejected"))
}

fn controller(snapshot: &Snapshot) -> Finding {
    let Ok(Some(deployment)) = &snapshot.controller else { unreachable!("the caller has matched it") };
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or_default();
    let message = format!("{ready} of {replicas} pods of the controller are ready");
    if ready >= replicas && ready > 0 {
        return Finding::ok(Group::ControlPlane, message);
    }
    let conditions = status.conditions.into_iter().flatten();
    let refusal = conditions.filter(|condition| condition.type_ == "ReplicaFailure").find_map(|found| found.message);
    let hint = match refusal {
        Some(refusal) => format!("The API server rejects its pods: {refusal}"),
        None if replicas == 0 => {
            format!("kubectl -n {} scale deployment podtap-controller --replicas=2", snapshot.home)
        }
        None => format!("kubectl -n {} describe deployment podtap-controller", snapshot.home),
    };
    if ready > 0 {
        return Finding::warning(Group::ControlPlane, message).hint(hint);
    }
    Finding::error(Group::ControlPlane, format!("{message}: taps do not change, and what is mirrored runs on"))
        .hint(hint)
        .page(page("troubleshooting.md", "no-conditions-at-all"))
}

/// Pods of the controller and of the collector that do not work.
fn pods(snapshot: &Snapshot) -> Vec<Finding> {
    let pods = match &snapshot.pods {
        Ok(pods) => pods,
        Err(message) => return vec![unread(Group::ControlPlane, "pods", message)],
    };
    let broken = |pod: &Pod| {
        let is_own = ["controller", "collector"].iter().any(|component| is_component(pod, component));
        let why = trouble(pod).filter(|_| is_own)?;
        Some(
            Finding::error(Group::ControlPlane, format!("the pod {} does not run: {why}", pod.name_any()))
                .hint(format!("kubectl -n {} describe pod {}", snapshot.home, pod.name_any()))
                // The causes of all pods with PodTap's image.
                .page(page_of("HelperPodFailed")),
        )
    };
    pods.iter().filter_map(broken).collect()
}

/// Whether a controller leads. The lease has times of another clock, so what counts is whether its holder is ready.
fn lease(snapshot: &Snapshot) -> Finding {
    let lease = match &snapshot.lease {
        Ok(lease) => lease.as_ref(),
        Err(message) => return unread(Group::ControlPlane, "the lease", message),
    };
    let holder = lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.clone()).filter(|name| !name.is_empty());
    let pod = snapshot.pods.iter().flatten().find(|pod| Some(pod.name_any()) == holder);
    let error =
        |message| Finding::error(Group::ControlPlane, message).page(page("troubleshooting.md", "no-conditions-at-all"));
    match (holder, pod) {
        (None, _) => error("no controller leads: the lease podtap-controller has no holder".to_owned()),
        (Some(holder), _) if snapshot.pods.is_err() => {
            Finding::ok(Group::ControlPlane, format!("the lease is held by {holder}"))
        }
        (Some(holder), Some(pod)) if is_ready(pod) => {
            Finding::ok(Group::ControlPlane, format!("the controller {holder} leads"))
        }
        (Some(holder), _) => {
            error(format!("no controller leads: the lease is held by the pod {holder}, which is not ready"))
        }
    }
}

fn policy(snapshot: &Snapshot) -> Vec<Finding> {
    let policy = match &snapshot.policy {
        Err(message) => return vec![unread(Group::ControlPlane, "the PodTapPolicy", message)],
        Ok(None) if snapshot.undecodable.iter().any(|text| text.starts_with("PodTapPolicy")) => return Vec::new(),
        Ok(None) => {
            let text = "there is no PodTapPolicy: the defaults apply, and external destinations are refused";
            return vec![Finding::ok(Group::ControlPlane, text)];
        }
        Ok(Some(policy)) => policy,
    };
    if policy.spec.suspend_all {
        return vec![
            Finding::error(Group::ControlPlane, "nothing is mirrored: the PodTapPolicy has suspendAll: true")
                .hint("kubectl patch podtappolicy default --type=merge -p '{\"spec\":{\"suspendAll\":false}}'")
                .page(page_of("Suspended")),
        ];
    }
    vec![Finding::ok(Group::ControlPlane, "the PodTapPolicy is valid, and suspends nothing")]
}
