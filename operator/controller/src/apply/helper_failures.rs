//! Why the helper pods of nodes do not work, in the user's words. Pure.

use std::collections::BTreeMap;

use podtap_model::Reason;

use crate::{
    apply::actions::Action,
    failure::Failure,
    plan::helper_pods::{READY_DEADLINE, Unready, serving},
    retries::{Retries, RetryKey},
    store::{
        pod::{CachedPod, ContainerError},
        snapshot::Snapshot,
    },
};

/// Records the state of the helper pods. `unready` are the nodes whose helper pod is not Ready, and since when.
pub fn observe(
    snapshot: &Snapshot,
    unready: &BTreeMap<String, Unready>,
    template: &str,
    helper_failures: &mut BTreeMap<String, Failure>,
    retries: &mut Retries,
) {
    for (node, pods) in &snapshot.helpers {
        let key = RetryKey::Helper(node.clone());
        for pod in pods.iter().filter(|pod| !pod.terminating) {
            let Some(error) = pod.helper.as_ref().and_then(|helper| helper.ended.as_ref()) else { continue };
            // The next pod is created after a growing pause.
            if !retries.is_paused(&key, snapshot.now) {
                retries.failed(key.clone(), snapshot.now);
            }
            helper_failures.insert(node.clone(), does_not_run(node, pod, error));
        }
        let Some(pod) = serving(pods, template) else { continue };
        if let Some(error) = pod.helper.as_ref().and_then(|helper| helper.container_error.as_ref()) {
            helper_failures.insert(node.clone(), does_not_run(node, pod, error));
        } else if pod.ready {
            helper_failures.remove(node);
            retries.succeeded(&key);
        }
    }
    for (node, _) in unready.iter().filter(|(_, unready)| unready.deadline() <= snapshot.now) {
        let pod = serving(snapshot.helpers_of(node), template);
        helper_failures.entry(node.clone()).or_insert_with(|| is_not_ready(node, pod.map(AsRef::as_ref)));
    }
}

fn does_not_run(node: &str, pod: &CachedPod, ContainerError { reason, message }: &ContainerError) -> Failure {
    let action = match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
            "check that the node can pull PodTap's image (image.repository, image.tag, image.pullPolicy and image.pullSecrets of the chart)"
        }
        "OutOfcpu" | "OutOfmemory" | "OutOfpods" | "Evicted" => "make room on the node",
        _ => "look at the pod's events and logs",
    };
    let cause = if message.is_empty() { reason.clone() } else { format!("{reason}: {message}") };
    Failure::new(
        Reason::HelperPodFailed,
        format!(
            "the helper pod {} of the node {node} does not run ({cause}): ask the cluster's administrator to {action}",
            pod.name
        ),
    )
}

fn is_not_ready(node: &str, pod: Option<&CachedPod>) -> Failure {
    let minutes = READY_DEADLINE.as_mins();
    let message = match pod {
        Some(pod) => format!(
            "the helper pod {} of the node {node} has not been Ready for {minutes} minutes: ask the cluster's administrator to look at the pod's events and logs",
            pod.name
        ),
        None => format!(
            "the node {node} has had no helper pod for {minutes} minutes: ask the cluster's administrator to look at the controller's log"
        ),
    };
    Failure::new(Reason::HelperPodFailed, message)
}

/// The failure if the API server rejects a helper pod, and its node.
pub fn rejection(action: &Action, error: &kube::Error) -> Option<(String, Failure)> {
    let (Action::CreateHelper { node, .. }, kube::Error::Api(status)) = (action, error) else { return None };
    if !(status.is_forbidden() || status.is_invalid()) {
        return None;
    }
    let action = if status.message.contains("PodSecurity") {
        "label the namespace of PodTap with pod-security.kubernetes.io/enforce=privileged (other namespaces need nothing)"
    } else if ["podtap-helper-pods", "podtap-agent-accounts"].iter().any(|policy| status.message.contains(policy)) {
        "install PodTap's manifest or chart of this version, with the name of this image: its policies contain that, too"
    } else if status.message.contains("quota") {
        "raise the ResourceQuota of the namespace of PodTap"
    } else {
        "make an exception for the namespace of PodTap in the admission rule that rejects it"
    };
    let message = format!(
        "the API server rejects the helper pod of the node {node} ({}): ask the cluster's administrator to {action}",
        status.message
    );
    Some((node.clone(), Failure::new(Reason::HelperPodRejected, message)))
}

#[cfg(test)]
mod tests;
