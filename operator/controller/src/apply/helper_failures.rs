//! Why the helper pods of nodes do not run, in the user's words. Pure.

use std::collections::BTreeMap;

use podtap_model::Reason;

use crate::{
    apply::actions::Action,
    failure::Failure,
    names,
    retries::{Retries, RetryKey},
    store::{pod::ContainerError, snapshot::Snapshot},
};

/// Records the state of the helper pods. A pod of an outdated template is about to be replaced, and is ignored.
pub fn observe(
    snapshot: &Snapshot,
    helper_failures: &mut BTreeMap<String, Failure>,
    retries: &mut Retries,
    template: &str,
) {
    for (node, pod) in &snapshot.helpers {
        let Some(helper) = pod.helper.as_ref().filter(|helper| helper.template == template) else { continue };
        let key = RetryKey::Helper(node.clone());
        if let Some(error) = &helper.ended {
            // The next pod is created after a growing pause.
            if !pod.terminating && !retries.is_paused(&key, snapshot.now) {
                retries.failed(key, snapshot.now);
            }
            helper_failures.insert(node.clone(), pod_failure(node, error));
        } else if let Some(error) = &helper.container_error {
            helper_failures.insert(node.clone(), pod_failure(node, error));
        } else if pod.ready {
            helper_failures.remove(node);
            retries.succeeded(&key);
        }
    }
}

fn pod_failure(node: &str, ContainerError { reason, message }: &ContainerError) -> Failure {
    let action = match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
            "check that the node can pull PodTap's image (image, pullPolicy and imagePullSecrets of the chart)"
        }
        "OutOfcpu" | "OutOfmemory" | "OutOfpods" | "Evicted" => "make room on the node",
        _ => "look at the pod's events and logs",
    };
    let cause = if message.is_empty() { reason.clone() } else { format!("{reason}: {message}") };
    Failure::new(
        Reason::HelperPodFailed,
        format!(
            "the helper pod {} of the node {node} does not run ({cause}): ask the cluster's administrator to {action}",
            names::helper_pod(node)
        ),
    )
}

/// The failure if the API server rejects a helper pod, and its node.
pub fn rejection(action: &Action, error: &kube::Error) -> Option<(String, Failure)> {
    let (Action::CreateHelper { node, .. }, kube::Error::Api(status)) = (action, error) else { return None };
    if !(status.is_forbidden() || status.is_invalid()) {
        return None;
    }
    let action = if status.message.contains("PodSecurity") {
        "label the namespace of PodTap with pod-security.kubernetes.io/enforce=privileged (other namespaces need nothing)"
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
