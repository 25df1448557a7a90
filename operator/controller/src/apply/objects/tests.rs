use kube::core::Status;

use super::*;
use crate::{fixtures::{at, node, object, pod, World}, store::objects::{ContainerError, CachedHelper}};

/// A helper pod on n1 of the template `new`, as `change` makes it.
fn helper(change: impl FnOnce(&mut CachedPod)) -> CachedPod {
    let mut fact = CachedPod::new(pod("podtap-system", "helper", "n1"), "podtap-system");
    fact.helper = Some(CachedHelper { template: "new".into(), ended: None, container_error: None });
    change(&mut fact);
    fact
}

fn container_error(reason: &str, message: &str) -> ContainerError {
    ContainerError { reason: reason.into(), message: message.into() }
}

fn end(fact: &mut CachedPod) {
    fact.helper.as_mut().expect("a helper").ended = Some(container_error("Evicted", "low on memory"));
}

fn act(plan: &NodePlan, helper: Option<&CachedPod>, owner: Option<&str>) -> &'static str {
    match helper_action(helper, "n1", plan, owner, "new") {
        None => "nothing",
        Some(Action::CreateHelper { .. }) => "create",
        Some(Action::DeleteHelper { at_once: true, .. }) => "delete at once",
        Some(Action::DeleteHelper { at_once: false, .. }) => "delete",
        Some(action) => panic!("{action:?} is not about a helper"),
    }
}

#[test]
fn what_becomes_of_a_helper_pod() {
    let serve = NodePlan::Serve(NodeTapSpec::default());
    let fine = helper(|_| {});
    assert_eq!(act(&serve, None, Some("uid")), "create");
    assert_eq!(act(&serve, None, None), "nothing", "it would belong to nobody");
    assert_eq!(act(&serve, Some(&fine), Some("uid")), "nothing");
    assert_eq!(act(&serve, Some(&helper(end)), Some("uid")), "delete");
    let outdated = helper(|fact| fact.helper.as_mut().expect("a helper").template = "old".into());
    assert_eq!(act(&serve, Some(&outdated), Some("uid")), "delete");
    let leaving = helper(|fact| fact.terminating = true);
    assert_eq!(act(&serve, Some(&leaving), Some("uid")), "nothing", "its name is not free yet");
    assert_eq!(act(&NodePlan::Retire, Some(&fine), None), "delete");
    assert_eq!(act(&NodePlan::Retire, Some(&leaving), None), "nothing");
    assert_eq!(act(&NodePlan::Retire, None, None), "nothing");
    assert_eq!(act(&NodePlan::Forget, Some(&leaving), None), "delete at once", "no kubelet would confirm it");
    assert_eq!(act(&NodePlan::Forget, None, None), "nothing");
}

/// What is remembered of n1's helper.
fn noted(state: &mut ControllerState, fact: CachedPod) -> Option<Failure> {
    let mut snapshot = World { nodes: vec![node("n1", &["10.0.0.1"])], ..World::default() }.snapshot();
    snapshot.helpers.insert("n1".into(), Arc::new(fact));
    note_helpers(&snapshot, state, "new");
    state.helper_failures.get("n1").cloned()
}

#[test]
fn why_a_helper_does_not_run_is_kept_until_one_does() {
    let mut state = ControllerState::default();
    let unready = |fact: &mut CachedPod| fact.ready = false;
    assert_eq!(noted(&mut state, helper(unready)), None, "it is starting");
    let pulling = |fact: &mut CachedPod| {
        fact.ready = false;
        fact.helper.as_mut().expect("a helper").container_error = Some(container_error("ImagePullBackOff", "no such image"));
    };
    let failure = noted(&mut state, helper(pulling)).expect("a problem");
    assert_eq!(failure.reason, reason::HELPER_FAILED);
    assert!(failure.message.contains("no such image") && failure.message.contains("imagePullSecrets"));
    assert_eq!(noted(&mut state, helper(unready)), Some(failure.clone()), "the next attempt is no success");
    let outdated = |fact: &mut CachedPod| fact.helper.as_mut().expect("a helper").template = "old".into();
    assert_eq!(noted(&mut state, helper(outdated)), Some(failure), "that one says nothing");
    assert_eq!(noted(&mut state, helper(|_| {})), None);
}

#[test]
fn a_helper_that_ends_again_and_again_is_made_after_growing_pauses() {
    let mut state = ControllerState::default();
    let failure = noted(&mut state, helper(end)).expect("a problem");
    assert!(failure.message.contains("Evicted: low on memory") && failure.message.contains("make room"));
    let key = RetryKey::Helper("n1".into());
    assert!(state.retries.holds(&key, at(0)));
    noted(&mut state, helper(|_| {}));
    assert!(!state.retries.holds(&key, at(0)));
}

#[test]
fn a_refusal_says_what_to_do() {
    let refused = |code: u16, reason: &str, message: &str| {
        let status = Status::failure(message, reason).with_code(code);
        let action = Action::CreateHelper { node: "n1".into(), owner: "uid".into() };
        rejection(&action, &kube::Error::Api(status.boxed())).map(|(_, failure)| failure.message)
    };
    let security = refused(403, "Forbidden", "violates PodSecurity \"baseline:latest\"").expect("a problem");
    assert!(security.contains("pod-security.kubernetes.io/enforce=privileged"), "{security}");
    assert!(refused(403, "Forbidden", "exceeded quota: pods").expect("a problem").contains("ResourceQuota"));
    assert!(refused(422, "Invalid", "no").expect("a problem").contains("admission rule"));
    assert_eq!(refused(500, "InternalError", "etcd"), None, "that passes");
}

#[test]
fn what_the_kubelet_says_is_found() {
    let mut object: Pod = object(serde_json::json!({
        "metadata": {
            "namespace": "podtap-system", "name": "h",
            "labels": {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "helper"},
        },
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "tap-helper", "image": "", "imageID": "", "ready": false, "restartCount": 3,
             "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}},
             "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}},
        ]},
    }));
    let container_error = |pod: &Pod| CachedPod::new(pod.clone(), "podtap-system").helper.expect("a helper").container_error;
    let said = container_error(&object).expect("a complaint");
    assert_eq!(said.reason, "CrashLoopBackOff");
    assert_eq!(said.message, "back-off restarting failed container (container tap-helper: Error, exit code 1)");
    let status = object.status.as_mut().expect("a status").container_statuses.as_mut().expect("some");
    status[1].state.as_mut().expect("a state").waiting.as_mut().expect("waiting").reason =
        Some("ContainerCreating".into());
    assert_eq!(container_error(&object), None);
}
