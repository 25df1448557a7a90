//! Whose mirrored frames the receivers of a node accept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use podtap_model::{IpNet, NodeState, bounds::MAX_SOURCE_ADDRESSES};

use crate::store::snapshot::{AddressHolder, Snapshot};

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

/// The addresses from which a node may send: those of its object, and those that its routes select, as its agent reports them.
fn addresses(snapshot: &Snapshot, node: &str) -> BTreeSet<IpNet> {
    let of_object = snapshot.nodes.get(node).into_iter().flat_map(|node| &node.all_addresses);
    let of_routes = snapshot.node_taps.get(node).into_iter().flat_map(|node_tap| &node_tap.status.source_addresses);
    let of_routes = of_routes.take(MAX_SOURCE_ADDRESSES).filter(|address| can_be_of(snapshot, node, **address));
    of_object.chain(of_routes).map(|address| IpNet::from(*address)).collect()
}

/// Whether a node can send from an address that its object does not have. Agents are not trusted: none may open the receivers of other
/// nodes to the pods of the cluster.
fn can_be_of(snapshot: &Snapshot, node: &str, address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    let is_of_a_host = !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast);
    is_of_a_host
        && match snapshot.addresses.get(&address) {
            Some(AddressHolder::Node(holder)) => holder == node,
            Some(AddressHolder::Pod) => false,
            None => true,
        }
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

    /// An agent that was taken over can open other nodes to no pod, and not to the whole world.
    #[test]
    fn what_a_node_reports_is_bounded_and_checked() {
        let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}])));
        let mut neighbour = pod("shop", "neighbour", "n1");
        neighbour.metadata.labels = None;
        neighbour.status.get_or_insert_default().pod_ip = Some("10.244.0.7".into());
        world.pods.push(neighbour);
        world.nodes.push(node("n3", &["10.0.0.3"]));
        world.nodes.push(node("n4", &["10.0.0.4"]));
        world.node_taps = vec![crate::fixtures::node_tap("n3", podtap_model::NodeState::default())];
        let report = |world: &mut World, addresses: &[&str]| {
            let status = world.node_taps[0].status.get_or_insert_default();
            status.source_addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        };
        let invalid =
            ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.244.0.7"];
        report(&mut world, &[&invalid[..], &["10.244.0.7", "10.0.0.4", "192.168.7.3"]].concat());
        assert_eq!(sources(&world, "n2"), ["10.0.0.1/32", "10.0.0.3/32", "192.168.7.3/32"]);
        let many: Vec<String> = (0..100).map(|number| format!("192.168.7.{number}")).collect();
        report(&mut world, &many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(sources(&world, "n2").len(), 2 + 16);
    }

    #[test]
    fn the_policy_adds_networks() {
        let mut world = World::with(tap("t", json!([{"node": {"name": "n1"}}])));
        world.policy = Some(policy(json!({"receiverSourceCIDRs": ["100.64.0.0/10"]})));
        assert_eq!(sources(&world, "n1"), ["100.64.0.0/10"], "the node's own frames need no permission");
    }
}
