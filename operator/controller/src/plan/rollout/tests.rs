use std::sync::Arc;

use podtap_model::NodeState;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    fixtures::{World, helper, lost, node},
    plan::helper_pods::{self, READY_DEADLINE},
    store::pod::ContainerError,
};

/// The helper pod of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pod {
    /// Of this template.
    Ready(u32),
    Starting(u32),
    /// With an error that the kubelet reports.
    Failing(u32),
    Missing,
}

/// Nodes `n0`, `n1` and so on, and their helper pods.
#[derive(Clone, Debug)]
struct Nodes {
    pods: Vec<Pod>,
    /// Indices of the nodes that are not Ready.
    lost: BTreeSet<usize>,
    seconds: i64,
    unready: BTreeMap<String, Unready>,
}

impl Nodes {
    fn new(pods: Vec<Pod>) -> Self {
        Self { pods, lost: BTreeSet::new(), seconds: 0, unready: BTreeMap::new() }
    }

    fn snapshot(&self) -> Snapshot {
        let node = |index| {
            let node = node(&format!("n{index}"), &["10.0.0.1"]);
            if self.lost.contains(&index) { lost(node) } else { node }
        };
        let nodes = (0..self.pods.len()).map(node).collect();
        let mut snapshot = World { seconds: self.seconds, nodes, ..World::default() }.snapshot();
        for (index, pod) in self.pods.iter().enumerate() {
            let (template, is_ready, error) = match pod {
                Pod::Ready(template) => (template, true, None),
                Pod::Starting(template) => (template, false, None),
                Pod::Failing(template) => (template, false, Some("ImagePullBackOff")),
                Pod::Missing => continue,
            };
            let name = format!("n{index}");
            let pod = helper(&format!("{name}-{template}"), &name, &template.to_string(), |pod| {
                let error = error.map(|reason| ContainerError { reason: reason.into(), message: String::new() });
                pod.ready = is_ready;
                pod.helper.as_mut().expect("a helper").container_error = error;
            });
            snapshot.helpers.insert(name, vec![Arc::new(pod)]);
        }
        snapshot
    }

    fn plans(&self) -> BTreeMap<String, NodePlan> {
        (0..self.pods.len()).map(|index| (format!("n{index}"), NodePlan::Serve(NodeState::default()))).collect()
    }

    /// One reconcile towards `template`: pods that are to be replaced start to be, and missing ones are created.
    fn reconcile(&mut self, template: u32, max_unavailable: MaxUnavailable) -> Rollout {
        let (snapshot, plans) = (self.snapshot(), self.plans());
        self.unready = helper_pods::unready(&snapshot, &plans, &template.to_string(), &self.unready);
        let rollout = plan(&snapshot, &plans, &template.to_string(), &self.unready, max_unavailable);
        for (index, pod) in self.pods.iter_mut().enumerate() {
            if *pod == Pod::Missing || rollout.replace.contains(&format!("n{index}")) {
                *pod = Pod::Starting(template);
            }
        }
        rollout
    }

    /// Every pod that starts becomes Ready.
    fn start(&mut self) {
        for pod in &mut self.pods {
            if let Pod::Starting(template) = *pod {
                *pod = Pod::Ready(template);
            }
        }
    }

    fn unavailable(&self) -> usize {
        self.pods.iter().filter(|pod| !matches!(pod, Pod::Ready(_))).count()
    }
}

fn replaced(rollout: &Rollout) -> Vec<&str> {
    rollout.replace.iter().map(String::as_str).collect()
}

#[test]
fn one_node_is_first_and_the_others_follow_as_many_as_may() {
    let mut nodes = Nodes::new(vec![Pod::Ready(1); 40]);
    let tenth = MaxUnavailable::Percent(10);
    assert_eq!(replaced(&nodes.reconcile(2, tenth)), ["n0"]);
    assert_eq!(replaced(&nodes.reconcile(2, tenth)), [""; 0], "it is not Ready yet");
    let mut steps = Vec::new();
    loop {
        nodes.start();
        let rollout = nodes.reconcile(2, tenth);
        assert!(!rollout.is_stopped());
        if rollout.replace.is_empty() {
            assert_eq!(rollout, Rollout { current: 40, ..Rollout::default() });
            break;
        }
        steps.push(rollout.replace.len());
    }
    assert_eq!(steps, [[4; 9].as_slice(), &[3]].concat());
}

#[test]
fn a_new_pod_that_fails_stops_it_until_it_works_or_the_template_changes() {
    let mut nodes = Nodes::new(vec![Pod::Ready(1); 5]);
    nodes.reconcile(2, MaxUnavailable::Nodes(2));
    nodes.pods[0] = Pod::Failing(2);
    for _ in 0..3 {
        let rollout = nodes.reconcile(2, MaxUnavailable::Nodes(2));
        assert!(rollout.is_stopped() && rollout.replace.is_empty(), "{rollout:?}");
        assert_eq!((rollout.failing.len(), rollout.outdated.len()), (1, 4));
    }
    // Another template: the node that fails has nothing to lose.
    let mut other = nodes.clone();
    let rollout = other.reconcile(3, MaxUnavailable::Nodes(2));
    assert!(!rollout.is_stopped());
    assert_eq!(replaced(&rollout), ["n0"]);
    // Or it works in the end.
    nodes.pods[0] = Pod::Ready(2);
    assert_eq!(replaced(&nodes.reconcile(2, MaxUnavailable::Nodes(2))), ["n1", "n2"]);
}

#[test]
fn a_new_pod_that_is_not_ready_in_time_stops_it() {
    let mut nodes = Nodes::new(vec![Pod::Ready(1), Pod::Ready(1), Pod::Ready(2)]);
    assert_eq!(replaced(&nodes.reconcile(2, MaxUnavailable::Nodes(1))), ["n0"]);
    nodes.reconcile(2, MaxUnavailable::Nodes(1));
    nodes.seconds = READY_DEADLINE.as_secs() - 1;
    assert!(!nodes.reconcile(2, MaxUnavailable::Nodes(2)).is_stopped());
    nodes.pods[1] = Pod::Ready(1);
    nodes.seconds += 1;
    let rollout = nodes.reconcile(2, MaxUnavailable::Nodes(3));
    assert!(rollout.is_stopped() && rollout.replace.is_empty(), "{rollout:?}");
}

/// Its predecessor is being deleted, which the cache does not show yet.
#[test]
fn a_node_with_a_new_pod_is_not_replaced_again() {
    let mut nodes = Nodes::new(vec![Pod::Ready(1); 3]);
    let mut snapshot = nodes.snapshot();
    let new = helper("new", "n1", "2", |pod| pod.ready = false);
    snapshot.helpers.get_mut("n1").expect("it has one").push(Arc::new(new));
    let rollout = plan(&snapshot, &nodes.plans(), "2", &BTreeMap::new(), MaxUnavailable::Nodes(1));
    assert_eq!((rollout.starting, replaced(&rollout)), (1, vec![]));
    assert_eq!(replaced(&nodes.reconcile(2, MaxUnavailable::Nodes(1))), ["n0"], "without it");
}

#[test]
fn nodes_that_are_lost_are_left_alone_and_stop_nothing() {
    let mut nodes = Nodes::new(vec![Pod::Ready(1), Pod::Failing(2), Pod::Ready(1)]);
    nodes.lost = [0, 1].into();
    assert_eq!(replaced(&nodes.reconcile(2, MaxUnavailable::Nodes(3))), ["n2"]);
    nodes.start();
    nodes.lost.clear();
    nodes.pods[1] = Pod::Ready(2);
    assert_eq!(replaced(&nodes.reconcile(2, MaxUnavailable::Nodes(3))), ["n0"], "when it is back");
}

#[test]
fn settings() {
    use MaxUnavailable::{Nodes, Percent};
    let parsed = ["1", "12", "10%", "100%"].map(|text| text.parse::<MaxUnavailable>().expect("valid"));
    assert_eq!(parsed, [Nodes(1), Nodes(12), Percent(10), Percent(100)]);
    for text in ["", "0", "0%", "101%", "-1", "ten", "10 %"] {
        assert_eq!(text.parse::<MaxUnavailable>(), Err(InvalidMaxUnavailable(text.to_owned())));
    }
    assert_eq!([Percent(10).of(5), Percent(10).of(29), Percent(50).of(3)], [1, 2, 1]);
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let template = 1..4_u32;
    (0..4, template).prop_map(|(kind, template)| match kind {
        0 => Pod::Starting(template),
        1 => Pod::Failing(template),
        2 => Pod::Missing,
        _ => Pod::Ready(template),
    })
}

proptest! {
    #[test]
    fn no_step_takes_more_than_it_may(
        pods in vec(any_pod(), 1..30),
        lost in vec(0..30_usize, 0..4),
        max_unavailable in select(vec!["1", "3", "10%", "50%", "100%"]),
    ) {
        let max_unavailable: MaxUnavailable = max_unavailable.parse().expect("valid");
        let mut nodes = Nodes::new(pods.clone());
        nodes.lost = lost.into_iter().collect();
        let rollout = nodes.reconcile(3, max_unavailable);
        let is_served = |index: &usize| !nodes.lost.contains(index);
        let on_ready_nodes: Vec<Pod> = (0..pods.len()).filter(is_served).map(|index| pods[index]).collect();
        prop_assert!(rollout.replace.is_subset(&rollout.outdated));
        prop_assert!(rollout.replace.is_empty() || !on_ready_nodes.contains(&Pod::Failing(3)), "{rollout:?}");
        let began = on_ready_nodes.iter().filter(|pod| matches!(pod, Pod::Starting(3) | Pod::Missing)).count();
        let limit = if on_ready_nodes.contains(&Pod::Ready(3)) { max_unavailable.of(on_ready_nodes.len()) } else { 1 };
        prop_assert!(rollout.replace.is_empty() || began + rollout.replace.len() <= limit, "{rollout:?}");
        let total = rollout.current + rollout.starting + rollout.failing.len() + rollout.outdated.len();
        prop_assert_eq!(total, on_ready_nodes.len());
    }

    #[test]
    fn a_template_that_works_reaches_every_node_and_what_worked_goes_on(
        pods in vec(any_pod().prop_filter("of an earlier template", |pod| {
            !matches!(pod, Pod::Ready(3) | Pod::Starting(3) | Pod::Failing(3))
        }), 1..30),
        max_unavailable in select(vec![1, 3, 7]),
    ) {
        let mut nodes = Nodes::new(pods.clone());
        let broken = nodes.unavailable();
        for _ in 0..=2 * pods.len() {
            nodes.reconcile(3, MaxUnavailable::Nodes(max_unavailable));
            prop_assert!(nodes.unavailable() <= broken + max_unavailable);
            nodes.start();
        }
        prop_assert_eq!(nodes.pods, vec![Pod::Ready(3); pods.len()]);
    }
}
