use std::sync::Arc;

use kube::core::Status;

use super::*;
use crate::{
    fixtures::{World, at, helper, node, uid},
    state::ControllerState,
};

fn container_error(reason: &str, message: &str) -> ContainerError {
    ContainerError { reason: reason.into(), message: message.into() }
}

fn end(object: &mut CachedPod) {
    object.helper.as_mut().expect("a helper").ended = Some(container_error("Evicted", "low on memory"));
}

/// What is recorded of n1's helper pod.
fn observed(state: &mut ControllerState, change: impl FnOnce(&mut CachedPod)) -> Option<Failure> {
    observed_at(0, state, change)
}

/// What is recorded `seconds` after the pod, unless it is Ready, began not to be.
fn observed_at(seconds: i64, state: &mut ControllerState, change: impl FnOnce(&mut CachedPod)) -> Option<Failure> {
    let world = World { nodes: vec![node("n1", &["10.0.0.1"])], seconds, ..World::default() };
    let mut snapshot = world.snapshot();
    let pod = helper("helper-of-n1", "n1", "new", change);
    let unready = Unready { pod: Some(uid("helper-of-n1")), since: at(0) };
    let unready = (!pod.ready).then(|| ("n1".to_owned(), unready)).into_iter().collect();
    snapshot.helpers.insert("n1".into(), vec![Arc::new(pod)]);
    let ControllerState { helper_failures, retries, .. } = state;
    observe(&snapshot, &unready, "new", helper_failures, retries);
    state.helper_failures.get("n1").cloned()
}

#[test]
fn why_a_helper_does_not_run_is_kept_until_one_does() {
    let mut state = ControllerState::default();
    let unready = |object: &mut CachedPod| object.ready = false;
    assert_eq!(observed(&mut state, unready), None, "it is starting");
    let pulling = |object: &mut CachedPod| {
        object.ready = false;
        object.helper.as_mut().expect("a helper").container_error =
            Some(container_error("ImagePullBackOff", "no such image"));
    };
    let failure = observed(&mut state, pulling).expect("a failure");
    assert_eq!(failure.reason, Reason::HelperPodFailed);
    assert!(failure.message.contains("no such image") && failure.message.contains("image.pullSecrets"));
    assert_eq!(observed(&mut state, unready), Some(failure), "the next attempt is no success");
    let outdated = |object: &mut CachedPod| object.helper.as_mut().expect("a helper").template = "old".into();
    assert_eq!(observed(&mut state, outdated), None, "one of the previous template works as well");
}

/// As when its tap-helper hangs.
#[test]
fn a_helper_that_is_not_ready_for_long_is_a_failure() {
    let mut state = ControllerState::default();
    let unready = |object: &mut CachedPod| object.ready = false;
    assert_eq!(observed_at(119, &mut state, unready), None);
    let failure = observed_at(120, &mut state, unready).expect("a failure");
    assert_eq!(failure.reason, Reason::HelperPodFailed);
    assert!(failure.message.contains("helper-of-n1") && failure.message.contains("2 minutes"), "{}", failure.message);
    assert_eq!(observed_at(500, &mut state, unready), Some(failure), "the same message: no write for each minute");
    assert_eq!(observed_at(501, &mut state, |_| {}), None);
}

#[test]
fn a_helper_that_keeps_ending_is_recreated_after_growing_pauses() {
    let mut state = ControllerState::default();
    let failure = observed(&mut state, end).expect("a failure");
    assert!(failure.message.contains("Evicted: low on memory") && failure.message.contains("make room"));
    let key = RetryKey::Helper("n1".into());
    assert!(state.retries.is_paused(&key, at(0)));
    observed(&mut state, |_| {});
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
    let policy = "ValidatingAdmissionPolicy 'podtap-helper-pods' with binding 'podtap-helper-pods' denied request";
    assert!(rejected(403, "Forbidden", policy).expect("a failure").contains("manifest or chart"));
    assert!(rejected(422, "Invalid", "no").expect("a failure").contains("admission rule"));
    assert_eq!(rejected(500, "InternalError", "etcd"), None, "that is temporary");
}
