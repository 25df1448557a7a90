use std::sync::Arc;

use kube::core::Status;

use super::*;
use crate::{
    fixtures::{World, at, node, pod},
    state::ControllerState,
    store::pod::{CachedHelper, CachedPod},
};

/// A helper pod on n1 of the template `new`, as `change` makes it.
fn helper(change: impl FnOnce(&mut CachedPod)) -> CachedPod {
    let mut object = CachedPod::new(pod("podtap-system", "helper", "n1"), "podtap-system");
    object.helper = Some(CachedHelper { template: "new".into(), ended: None, container_error: None });
    change(&mut object);
    object
}

fn container_error(reason: &str, message: &str) -> ContainerError {
    ContainerError { reason: reason.into(), message: message.into() }
}

fn end(object: &mut CachedPod) {
    object.helper.as_mut().expect("a helper").ended = Some(container_error("Evicted", "low on memory"));
}

/// What is recorded of n1's helper pod.
fn observed(state: &mut ControllerState, object: CachedPod) -> Option<Failure> {
    let mut snapshot = World { nodes: vec![node("n1", &["10.0.0.1"])], ..World::default() }.snapshot();
    snapshot.helpers.insert("n1".into(), Arc::new(object));
    let ControllerState { helper_failures, retries, .. } = state;
    observe(&snapshot, helper_failures, retries, "new");
    state.helper_failures.get("n1").cloned()
}

#[test]
fn why_a_helper_does_not_run_is_kept_until_one_does() {
    let mut state = ControllerState::default();
    let unready = |object: &mut CachedPod| object.ready = false;
    assert_eq!(observed(&mut state, helper(unready)), None, "it is starting");
    let pulling = |object: &mut CachedPod| {
        object.ready = false;
        object.helper.as_mut().expect("a helper").container_error =
            Some(container_error("ImagePullBackOff", "no such image"));
    };
    let failure = observed(&mut state, helper(pulling)).expect("a failure");
    assert_eq!(failure.reason, Reason::HelperPodFailed);
    assert!(failure.message.contains("no such image") && failure.message.contains("imagePullSecrets"));
    assert_eq!(observed(&mut state, helper(unready)), Some(failure.clone()), "the next attempt is no success");
    let outdated = |object: &mut CachedPod| object.helper.as_mut().expect("a helper").template = "old".into();
    assert_eq!(observed(&mut state, helper(outdated)), Some(failure), "that one is ignored");
    assert_eq!(observed(&mut state, helper(|_| {})), None);
}

#[test]
fn a_helper_that_keeps_ending_is_recreated_after_growing_pauses() {
    let mut state = ControllerState::default();
    let failure = observed(&mut state, helper(end)).expect("a failure");
    assert!(failure.message.contains("Evicted: low on memory") && failure.message.contains("make room"));
    let key = RetryKey::Helper("n1".into());
    assert!(state.retries.is_paused(&key, at(0)));
    observed(&mut state, helper(|_| {}));
    assert!(!state.retries.is_paused(&key, at(0)));
}

#[test]
fn a_rejection_says_what_to_do() {
    let rejected = |code: u16, reason: &str, message: &str| {
        let status = Status::failure(message, reason).with_code(code);
        let action = Action::CreateHelper { node: "n1".into(), owner: "uid".into() };
        rejection(&action, &kube::Error::Api(status.boxed())).map(|(_, failure)| failure.message)
    };
    let security = rejected(403, "Forbidden", "violates PodSecurity \"baseline:latest\"").expect("a failure");
    assert!(security.contains("pod-security.kubernetes.io/enforce=privileged"), "{security}");
    assert!(rejected(403, "Forbidden", "exceeded quota: pods").expect("a failure").contains("ResourceQuota"));
    assert!(rejected(422, "Invalid", "no").expect("a failure").contains("admission rule"));
    assert_eq!(rejected(500, "InternalError", "etcd"), None, "that is temporary");
}
