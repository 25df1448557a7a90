use super::*;
use crate::{
    fixtures::{helper, uid},
    store::pod::ContainerError,
};

fn end(pod: &mut CachedPod) {
    let error = ContainerError { reason: "Evicted".into(), message: "low on memory".into() };
    pod.helper.as_mut().expect("a helper").ended = Some(error);
}

/// What happens to the pods of n1: `new` is the current template.
fn act(plan: &NodePlan, pods: &[&CachedPod], owner: Option<&str>, replace: bool) -> Vec<String> {
    let pods: Vec<_> = pods.iter().map(|pod| Arc::new((*pod).clone())).collect();
    let text = |action| match action {
        Action::CreateHelper { .. } => "create".to_owned(),
        Action::DeleteHelper { name, immediately: true, .. } => format!("delete {name} immediately"),
        Action::DeleteHelper { name, immediately: false, .. } => format!("delete {name}"),
        action => panic!("{action:?} is not about a helper"),
    };
    helper_actions(&pods, "n1", plan, owner, "new", replace).into_iter().map(text).collect()
}

#[test]
fn the_helper_pod_of_each_plan() {
    let serve = NodePlan::Serve(NodeState::default());
    let served = |pods: &[&CachedPod]| act(&serve, pods, Some("uid"), false);
    let fine = helper("a", "n1", "new", |_| {});
    assert_eq!(served(&[]), ["create"]);
    assert_eq!(act(&serve, &[], None, false), [""; 0], "it would have no owner");
    assert_eq!(served(&[&fine]), [""; 0]);
    assert_eq!(served(&[&helper("a", "n1", "new", end)]), ["delete a", "create"]);
    assert_eq!(act(&NodePlan::Retire, &[&fine], None, false), ["delete a"]);
    assert_eq!(act(&NodePlan::Retire, &[], None, false), [""; 0]);
    assert_eq!(act(&NodePlan::Forget, &[], None, false), [""; 0]);
}

#[test]
fn the_next_pod_does_not_wait_for_the_end_of_the_previous_one() {
    let serve = NodePlan::Serve(NodeState::default());
    let ending = helper("a", "n1", "new", |pod| pod.terminating = true);
    assert_eq!(act(&serve, &[&ending], Some("uid"), false), ["create"]);
    let next = helper("b", "n1", "new", |pod| pod.ready = false);
    assert_eq!(act(&serve, &[&ending, &next], Some("uid"), false), [""; 0]);
    assert_eq!(act(&NodePlan::Retire, &[&ending, &next], None, false), ["delete b"]);
    let both = act(&NodePlan::Forget, &[&ending, &next], None, false);
    assert_eq!(both, ["delete a immediately", "delete b immediately"], "no kubelet would confirm it");
}

#[test]
fn an_outdated_pod_is_kept_until_it_is_its_turn() {
    let serve = NodePlan::Serve(NodeState::default());
    let outdated = helper("a", "n1", "old", |_| {});
    assert_eq!(act(&serve, &[&outdated], Some("uid"), false), [""; 0]);
    assert_eq!(act(&serve, &[&outdated], Some("uid"), true), ["delete a", "create"]);
    let current = helper("a", "n1", "new", |_| {});
    assert_eq!(act(&serve, &[&current], Some("uid"), true), [""; 0]);
}

/// The response to the creation of the next one arrives before the deletion of the outdated one is known.
#[test]
fn the_successor_of_an_outdated_pod_is_kept() {
    let serve = NodePlan::Serve(NodeState::default());
    let outdated = helper("a", "n1", "old", |_| {});
    let next = helper("b", "n1", "new", |pod| pod.ready = false);
    for replace in [true, false] {
        assert_eq!(act(&serve, &[&outdated, &next], Some("uid"), replace), ["delete a"]);
    }
}

/// As after the response to a request was lost, or while two controllers lead.
#[test]
fn of_several_pods_one_is_kept_and_every_controller_chooses_the_same() {
    let serve = NodePlan::Serve(NodeState::default());
    let unready = |pod: &mut CachedPod| pod.ready = false;
    let pods = [helper("a", "n1", "new", unready), helper("b", "n1", "new", |_| {}), helper("c", "n1", "new", |_| {})];
    assert_eq!(act(&serve, &[&pods[0], &pods[1], &pods[2]], Some("uid"), false), ["delete a", "delete c"]);
    assert_eq!(act(&serve, &[&pods[2], &pods[1], &pods[0]], Some("uid"), false), ["delete c", "delete a"]);
    assert_eq!(pods.map(|pod| pod.uid), ["a", "b", "c"].map(uid));
}
