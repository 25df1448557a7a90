//! The network that connects the nodes: a bridge in the control plane's namespace, and a veth pair from it to each node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addresses::{FABRIC, MOST_NODES, cable, hardware_address, node_address, number, pod_subnet};
use crate::{command, namespaces::within_network, process::Process, progress};

const BRIDGE: &str = "fab0";
/// The node's end of its veth pair.
const PORT: &str = "eth0";
const PATIENCE: Duration = Duration::from_secs(20);

/// Creates the bridge; called inside the control plane.
pub fn make() -> Result<()> {
    command::line("ip link set lo up")?;
    command::line(&format!("ip link add {BRIDGE} type bridge"))?;
    command::line(&format!("ip addr add {FABRIC}/24 dev {BRIDGE}"))?;
    command::line(&format!("ip link set {BRIDGE} up"))?;
    // The API server answers pods at their own addresses.
    route_to_pods(1..=MOST_NODES)
}

/// Connects a node.
pub fn attach(control_plane: &Process, number: u8, node: &Process) -> Result<()> {
    let cable = cable(number);
    within_network(control_plane, || {
        let there = progress::wait_until(PATIENCE, || exists(BRIDGE));
        ensure!(there, "the control plane has made no {BRIDGE}");
        // The kernel removes a dead node's veth pair some time later.
        if exists(&cable) {
            let _ = command::line(&format!("ip link del {cable}"));
        }
        let far_end = format!("{PORT} address {} netns {}", hardware_address(number), node.pid);
        command::line(&format!("ip link add {cable} type veth peer name {far_end}"))?;
        plug_in(&cable)
    })
    .with_context(|| format!("cannot connect node {number} to the fabric"))
}

fn plug_in(cable: &str) -> Result<()> {
    command::line(&format!("ip link set {cable} master {BRIDGE} up")).map(drop)
}

/// Gives a node its address and its routes; called inside the node.
pub fn configure_node(number: u8) -> Result<()> {
    command::line("ip link set lo up")?;
    ensure!(progress::wait_until(PATIENCE, || exists(PORT)), "this node was not connected to the fabric");
    command::line(&format!("ip addr add {}/24 dev {PORT}", node_address(number)))?;
    command::line(&format!("ip link set {PORT} up"))?;
    command::line(&format!("ip route add default via {FABRIC}"))?;
    // To all possible nodes, so that existing ones reach those that are added later.
    route_to_pods((1..=MOST_NODES).filter(|other| *other != number))
}

fn route_to_pods(nodes: impl Iterator<Item = u8>) -> Result<()> {
    for node in nodes {
        let (subnet, gateway) = (pod_subnet(node), node_address(node));
        command::line(&format!("ip route add {subnet} via {gateway}"))?;
    }
    Ok(())
}

/// Disconnects a node, which keeps running, or connects it again. The latter also repairs what an interrupted start has left.
pub fn set_cable(control_plane: &Process, number: u8, connected: bool) -> Result<()> {
    let cable = cable(number);
    within_network(control_plane, || {
        if connected { plug_in(&cable) } else { command::line(&format!("ip link set {cable} down")).map(drop) }
    })
}

/// Whether a node has a veth pair.
pub fn has_cable(control_plane: &Process, node: &str) -> bool {
    number(node).is_ok_and(|number| within_network(control_plane, || Ok(exists(&cable(number)))).unwrap_or_default())
}

/// Whether a node's veth pair is up.
pub fn is_connected(control_plane: &Process, number: u8) -> bool {
    let flags = within_network(control_plane, || command::line(&format!("ip -oneline link show {}", cable(number))));
    flags.is_ok_and(|line| line.contains(",UP") || line.contains("<UP"))
}

fn exists(device: &str) -> bool {
    command::line(&format!("ip link show {device}")).is_ok()
}
