use super::*;
use crate::{
    fixtures::pod,
    store::pod::{CachedHelper, ContainerError},
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

fn act(plan: &NodePlan, helper: Option<&CachedPod>, owner: Option<&str>) -> &'static str {
    match helper_action(helper, "n1", plan, owner, "new") {
        None => "nothing",
        Some(Action::CreateHelper { .. }) => "create",
        Some(Action::DeleteHelper { immediately: true, .. }) => "delete immediately",
        Some(Action::DeleteHelper { immediately: false, .. }) => "delete",
        Some(action) => panic!("{action:?} is not about a helper"),
    }
}

#[test]
fn the_helper_pod_of_each_plan() {
    let serve = NodePlan::Serve(NodeState::default());
    let fine = helper(|_| {});
    assert_eq!(act(&serve, None, Some("uid")), "create");
    assert_eq!(act(&serve, None, None), "nothing", "it would have no owner");
    assert_eq!(act(&serve, Some(&fine), Some("uid")), "nothing");
    assert_eq!(act(&serve, Some(&helper(end)), Some("uid")), "delete");
    let outdated = helper(|object| object.helper.as_mut().expect("a helper").template = "old".into());
    assert_eq!(act(&serve, Some(&outdated), Some("uid")), "delete");
    let leaving = helper(|object| object.terminating = true);
    assert_eq!(act(&serve, Some(&leaving), Some("uid")), "nothing", "its name is not free yet");
    assert_eq!(act(&NodePlan::Retire, Some(&fine), None), "delete");
    assert_eq!(act(&NodePlan::Retire, Some(&leaving), None), "nothing");
    assert_eq!(act(&NodePlan::Retire, None, None), "nothing");
    assert_eq!(act(&NodePlan::Forget, Some(&leaving), None), "delete immediately", "no kubelet would confirm it");
    assert_eq!(act(&NodePlan::Forget, None, None), "nothing");
}
