//! Probes that arrive, and those that do not.

use super::{churn::Watch, *};
use crate::{
    fixtures::OWN_NAMESPACE,
    names::{HELPER, LABEL_COMPONENT, LABEL_NAME, PRODUCT},
    status::delivering::GRACE,
};

/// A tap of `web` and `db` on n1 and n3 with helper pods on these nodes, which was Ready.
fn established() -> Watch {
    Watch::established(world(json!([{"node": {"name": "n2"}}])))
}

fn world(destinations: Value) -> World {
    let mut world = World::with(tap("t", destinations));
    world.nodes.push(crate::fixtures::node("n3", &["10.0.0.3"]));
    world.pods.push(pod("shop", "db", "n3"));
    world.pods.extend(["n1", "n2", "n3"].map(|node| helper_pod(node, "True")));
    world
}

fn helper_pod(node: &str, ready: &str) -> k8s_openapi::api::core::v1::Pod {
    let mut pod = pod(OWN_NAMESPACE, node, node);
    let labels = [(LABEL_NAME, PRODUCT), (LABEL_COMPONENT, HELPER)];
    pod.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
    conditions.into_iter().flatten().for_each(|condition| condition.status = ready.to_owned());
    pod
}

impl Watch {
    /// The pods whose probes n2 gets from now on, and those of them whose full-size probes it does not get.
    fn receive(&mut self, pods: &[&str], without_full_size: &[&str]) {
        let owned = |pods: &[&str]| pods.iter().map(|pod| (*pod).to_owned()).collect();
        let statuses = self.world.node_taps.iter_mut().flat_map(|node_tap| &mut node_tap.status);
        for receiver in statuses.flat_map(|status| &mut status.receivers) {
            (receiver.pods_with_probes, receiver.pods_without_full_size_probes) =
                (owned(pods), owned(without_full_size));
        }
    }
}

fn delivering(status: &PodTapStatus) -> (&str, Reason) {
    summary(status)[CONDITION_DELIVERING]
}

const BOTH: [&str; 2] = ["shop-db", "shop-web"];

#[test]
fn a_tap_is_ready_once_probes_of_every_pod_arrive() {
    let (world, claims) = world(json!([{"node": {"name": "n2"}}])).settled(&Vnis::default());
    let mut watch = Watch { world, claims, waits: Waits::default() };
    watch.receive(&["shop-db"], &[]);
    let status = watch.status(0);
    assert_eq!((delivering(&status), status.tapped_pods), (("False", Reason::Pending), 2));
    assert_eq!(watch.next(), Some(at(0) + GRACE));
    watch.receive(&BOTH, &[]);
    let status = watch.status(1);
    assert_eq!(delivering(&status), ("True", Reason::AsExpected));
    assert_eq!((summary(&status)[CONDITION_READY].0, watch.next()), ("True", None));
}

/// The kubelet reports that a helper pod is Ready after it has started to work.
#[test]
fn a_tap_is_not_ready_before_its_first_probes_whatever_its_helper_pods_are() {
    let mut world = world(json!([{"node": {"name": "n2"}}]));
    world.pods[2] = helper_pod("n1", "False");
    let (world, claims) = world.settled(&Vnis::default());
    let mut watch = Watch { world, claims, waits: Waits::default() };
    watch.receive(&["shop-db"], &[]);
    assert_eq!(delivering(&watch.status(0)), ("False", Reason::Pending));
    watch.receive(&BOTH, &[]);
    assert_eq!(delivering(&watch.status(1)), ("True", Reason::AsExpected));
}

/// A sender may be in place before the receiver is: its probes need time from then on.
#[test]
fn a_receiver_that_has_just_been_put_in_place_has_a_grace_time() {
    let (world, claims) = world(json!([{"node": {"name": "n2"}}])).settled(&Vnis::default());
    let mut watch = Watch { world, claims, waits: Waits::default() };
    watch.receive(&[], &[]);
    let state = |watch: &mut Watch, state: State| {
        let statuses = watch.world.node_taps.iter_mut().flat_map(|node_tap| &mut node_tap.status);
        statuses.flat_map(|status| &mut status.receivers).for_each(|receiver| receiver.state = state);
    };
    state(&mut watch, State::Pending);
    assert_eq!(delivering(&watch.status(0)), ("False", Reason::Pending));
    state(&mut watch, State::Active);
    assert_eq!(delivering(&watch.status(3)), ("False", Reason::Pending));
    assert_eq!(delivering(&watch.status(7)), ("False", Reason::Pending));
    assert_eq!(delivering(&watch.status(8)), ("False", Reason::NoProbeFromNode));
}

#[test]
fn probes_that_stop_are_a_failure_at_once() {
    let mut watch = established();
    watch.receive(&["shop-db"], &[]);
    let status = watch.status(1);
    assert_eq!(delivering(&status), ("False", Reason::NoProbeFromNode));
    let words = "node n2 receives no probes from node n1: check that";
    assert_eq!(mentions(&status, words), [CONDITION_READY, CONDITION_DELIVERING]);
    // Also for the next leader.
    watch.restart();
    assert_eq!(delivering(&watch.status(2)), ("False", Reason::NoProbeFromNode));
    watch.receive(&BOTH, &[]);
    assert_eq!(delivering(&watch.status(3)), ("True", Reason::AsExpected));
}

/// A blocked port is told from a node that is out of reach by TCP, which the nodes of the pods try while probes are missing.
#[test]
fn a_blocked_port_is_told_from_a_node_out_of_reach() {
    let mut watch = established();
    let checked = |watch: &Watch| {
        watch.world.plan(&watch.claims, |_, _, plan| {
            let state = |(node, state): (&String, &NodeState)| (node.clone(), state.checked_addresses.clone());
            let mut all: Vec<_> = plan.nodes.iter().map(state).collect();
            all.retain(|(_, addresses)| !addresses.is_empty());
            all
        })
    };
    let n2: std::net::IpAddr = "10.0.0.2".parse().expect("an address");
    watch.receive(&["shop-db"], &[]);
    assert_eq!(checked(&watch), [], "the first probes need time");
    assert_eq!(delivering(&watch.status(1)), ("False", Reason::NoProbeFromNode));
    assert_eq!(checked(&watch), [("n1".to_owned(), vec![n2])]);
    let reach = |watch: &mut Watch, node: &str, addresses: &[std::net::IpAddr]| {
        let mut node_taps = watch.world.node_taps.iter_mut();
        let node_tap = node_taps.find(|node_tap| node_tap.metadata.name.as_deref() == Some(node));
        node_tap.and_then(|n| n.status.as_mut()).expect("it has a status").reachable_addresses = addresses.to_vec();
    };
    reach(&mut watch, "n3", &[n2]);
    assert_eq!(delivering(&watch.status(2)), ("False", Reason::NoProbeFromNode), "n1 does not reach it");
    reach(&mut watch, "n1", &[n2]);
    let status = watch.status(3);
    assert_eq!(delivering(&status), ("False", Reason::PortBlocked));
    let words = "node n2 receives no probes from node n1, but TCP connections from there succeed";
    assert_eq!(mentions(&status, words), [CONDITION_READY, CONDITION_DELIVERING]);
    assert_eq!(checked(&watch), [("n1".to_owned(), vec![n2])], "as long as it lasts");
    // One node of two is out of reach.
    watch.receive(&[], &[]);
    reach(&mut watch, "n3", &[]);
    assert_eq!(delivering(&watch.status(4)), ("False", Reason::NoProbeFromNode));
    watch.receive(&BOTH, &[]);
    assert_eq!(delivering(&watch.status(5)), ("True", Reason::AsExpected));
    assert_eq!(checked(&watch), []);
}

#[test]
fn only_small_frames_arrive() {
    let mut watch = established();
    watch.receive(&BOTH, &BOTH);
    let status = watch.status(1);
    assert_eq!(delivering(&status), ("False", Reason::PathMtu));
    assert!(
        message(&status, CONDITION_DELIVERING).starts_with("node n2 receives small probes from nodes n1, n3, but no")
    );
    // What does not arrive at all comes first.
    watch.receive(&["shop-web"], &["shop-web"]);
    assert_eq!(delivering(&watch.status(2)), ("False", Reason::NoProbeFromNode));
}

/// Pods come and go: the first probe of a new one may take a while.
#[test]
fn a_new_pod_of_an_established_tap_has_a_grace_time() {
    let mut watch = established();
    watch.world.pods.push(started(pod("shop", "new", "n1")));
    watch.settle();
    watch.receive(&BOTH, &[]);
    let status = watch.status(10);
    assert_eq!((delivering(&status).0, status.tapped_pods), ("True", 3));
    assert_eq!(watch.next(), Some(at(10) + GRACE), "the leader must not sleep through it");
    assert_eq!(delivering(&watch.status(14)).0, "True");
    assert_eq!(delivering(&watch.status(15)), ("False", Reason::NoProbeFromNode));
}

/// Without a helper pod, the mirror runs on, and nothing sends probes.
#[test]
fn a_helper_pod_that_is_replaced_is_no_failure() {
    let mut watch = established();
    let ready = std::mem::replace(&mut watch.world.pods[2], helper_pod("n1", "False"));
    watch.receive(&["shop-db"], &[]);
    for seconds in [1, 30] {
        assert_eq!(delivering(&watch.status(seconds)).0, "True");
    }
    // The next one has the grace time.
    watch.world.pods[2] = ready;
    assert_eq!(delivering(&watch.status(31)).0, "True");
    assert_eq!(delivering(&watch.status(36)), ("False", Reason::NoProbeFromNode));
}

#[test]
fn a_receiver_that_is_not_in_place_is_down() {
    let mut watch = established();
    for receiver in
        watch.world.node_taps.iter_mut().flat_map(|n| &mut n.status).flat_map(|status| &mut status.receivers)
    {
        (receiver.state, receiver.reason) = (State::Failed, Reason::PortInUse);
        receiver.pods_with_probes.clear();
    }
    let status = watch.status(1);
    assert_eq!(delivering(&status), ("False", Reason::ReceiverDown));
    assert_eq!(message(&status, CONDITION_DELIVERING), "see DestinationsReady");
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::PortInUse));
}

/// External destinations report nothing, and get probes only on request.
#[test]
fn external_destinations_are_unknown() {
    let external = |probe: bool| json!({"external": {"address": "192.0.2.10", "probe": probe}});
    let node = json!({"node": {"name": "n2"}});
    for (destinations, pods, expected) in [
        (json!([external(false)]), &[][..], ("Unknown", Reason::ExternalDestination)),
        (json!([external(true)]), &[], ("Unknown", Reason::ExternalDestination)),
        (json!([external(false), node]), &[], ("Unknown", Reason::ExternalDestination)),
        (json!([external(true), node]), &BOTH, ("Unknown", Reason::ExternalDestination)),
        (json!([external(true), node]), &["shop-web"], ("False", Reason::NoProbeFromNode)),
    ] {
        let mut world = world(destinations.clone());
        world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
        let (world, claims) = world.settled(&Vnis::default());
        let mut watch = Watch { world, claims, waits: Waits::default() };
        watch.receive(pods, &[]);
        watch.status(0);
        let status = watch.status(GRACE.as_secs());
        assert_eq!(delivering(&status), expected, "{destinations}");
        assert_eq!(summary(&status)[CONDITION_READY].0 == "True", expected.0 != "False", "{destinations}");
    }
}
