//! Whose mirrored frames the receivers of a node accept.

use std::collections::{BTreeMap, BTreeSet};

use podtap_model::{IpNet, NodeState};

use crate::store::snapshot::Snapshot;

/// Lets the receivers of each node accept what the other nodes with a `NodeTap` send, and `networks`.
///
/// A node is allowed before it has its first sender: its helper pod needs longer to start than the others to learn of it. Otherwise the
/// first frames of a pod there would be dropped.
pub fn allow(nodes: &mut BTreeMap<String, NodeState>, snapshot: &Snapshot, networks: &[IpNet]) {
    let senders: BTreeSet<&String> = nodes.keys().chain(snapshot.node_taps.keys()).collect();
    let sources: Vec<(String, BTreeSet<IpNet>)> =
        senders.into_iter().map(|node| (node.clone(), addresses(snapshot, node))).collect();
    for (name, node) in nodes.iter_mut().filter(|(_, node)| !node.receivers.is_empty()) {
        // The kernel delivers what the node itself sends without a UDP packet.
        let others = sources.iter().filter(|(sender, _)| sender != name).flat_map(|(_, addresses)| addresses);
        node.sources = others.chain(networks).copied().collect::<BTreeSet<_>>().into_iter().collect();
    }
}

/// The addresses from which a node may send: those of its object, and those that its routes select.
fn addresses(snapshot: &Snapshot, node: &str) -> BTreeSet<IpNet> {
    let of_object = snapshot.nodes.get(node).into_iter().flat_map(|node| &node.all_addresses);
    let of_routes = snapshot.node_taps.get(node).into_iter().flat_map(|node_tap| &node_tap.status.source_addresses);
    of_object.chain(of_routes).map(|address| IpNet::from(*address)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::fixtures::{World, node, pod, policy, tap};

    fn sources(world: &World, node: &str) -> Vec<String> {
        world.plan(&crate::plan::vni::Vnis::default(), |_, _, plan| {
            plan.nodes[node].sources.iter().map(ToString::to_string).collect()
        })
    }

    #[test]
    fn other_nodes_with_taps_may_send() {
        let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}])));
        world.nodes.push(node("n3", &["10.0.0.3"]));
        assert_eq!(sources(&world, "n2"), ["10.0.0.1/32"]);
        assert_eq!(sources(&world, "n1"), [""; 0], "it has no receiver");
        world.pods.push(pod("shop", "web-3", "n3"));
        world.nodes[2] = node("n3", &["10.0.0.3", "fd00::3"]);
        assert_eq!(sources(&world, "n2"), ["10.0.0.1/32", "10.0.0.3/32", "fd00::3/128"]);
    }

    #[test]
    fn a_node_that_had_taps_may_send_its_next_frames_at_once() {
        let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}])));
        world.node_taps = vec![crate::fixtures::node_tap("n3", podtap_model::NodeState::default())];
        world.nodes.push(node("n3", &["10.0.0.3"]));
        assert_eq!(sources(&world, "n2"), ["10.0.0.1/32", "10.0.0.3/32"]);
        let status = world.node_taps[0].status.get_or_insert_default();
        status.source_addresses = vec!["192.168.7.3".parse().expect("an address")];
        assert_eq!(sources(&world, "n2"), ["10.0.0.1/32", "10.0.0.3/32", "192.168.7.3/32"]);
    }

    #[test]
    fn the_policy_adds_networks() {
        let mut world = World::with(tap("t", json!([{"node": {"name": "n1"}}])));
        world.policy = Some(policy(json!({"receiverSourceCIDRs": ["100.64.0.0/10"]})));
        assert_eq!(sources(&world, "n1"), ["100.64.0.0/10"], "the node's own frames need no permission");
    }
}
