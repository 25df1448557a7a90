//! The network that connects the nodes: a bridge in the control plane's namespace and a cable from it to each node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addresses::{FABRIC, MOST_NODES, cable, hardware_address, node_address, number, pod_subnet};
use crate::{command, namespaces::within_network, process::Process, progress};

const BRIDGE: &str = "fab0";
/// The node's end of its cable.
const PORT: &str = "eth0";
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the bridge; from inside of the control plane.
pub fn make() -> Result<()> {
    command::line("ip link set lo up")?;
    command::line(&format!("ip link add {BRIDGE} type bridge"))?;
    command::line(&format!("ip addr add {FABRIC}/24 dev {BRIDGE}"))?;
    command::line(&format!("ip link set {BRIDGE} up"))?;
    // The API server answers pods at their own addresses.
    route_to_pods(1..=MOST_NODES)
}

/// Plugs a node in.
pub fn attach(control_plane: &Process, number: u8, node: &Process) -> Result<()> {
    let cable = cable(number);
    within_network(control_plane, || {
        let there = progress::wait_until(PATIENCE, || exists(BRIDGE));
        ensure!(there, "the control plane has made no {BRIDGE}");
        // The kernel takes a dead node's cable away in its own time.
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

/// Gives a node its address and its routes; from inside of it.
pub fn configure_node(number: u8) -> Result<()> {
    command::line("ip link set lo up")?;
    ensure!(progress::wait_until(PATIENCE, || exists(PORT)), "nobody has plugged this node into the fabric");
    command::line(&format!("ip addr add {}/24 dev {PORT}", node_address(number)))?;
    command::line(&format!("ip link set {PORT} up"))?;
    command::line(&format!("ip route add default via {FABRIC}"))?;
    // To all that there can be: a node that comes later is then reached by those that are there.
    route_to_pods((1..=MOST_NODES).filter(|other| *other != number))
}

fn route_to_pods(nodes: impl Iterator<Item = u8>) -> Result<()> {
    for node in nodes {
        let (subnet, gateway) = (pod_subnet(node), node_address(node));
        command::line(&format!("ip route add {subnet} via {gateway}"))?;
    }
    Ok(())
}

/// Cuts a node's cable, and the node lives on, alone; or mends it, also one that a broken start has left half plugged in.
pub fn set_cable(control_plane: &Process, number: u8, connected: bool) -> Result<()> {
    let cable = cable(number);
    within_network(control_plane, || {
        if connected { plug_in(&cable) } else { command::line(&format!("ip link set {cable} down")).map(drop) }
    })
}

/// Whether a node is plugged in at all.
pub fn has_cable(control_plane: &Process, node: &str) -> bool {
    number(node).is_ok_and(|number| within_network(control_plane, || Ok(exists(&cable(number)))).unwrap_or_default())
}

/// Whether a node's cable is whole.
pub fn is_connected(control_plane: &Process, number: u8) -> bool {
    let flags = within_network(control_plane, || command::line(&format!("ip -oneline link show {}", cable(number))));
    flags.is_ok_and(|line| line.contains(",UP") || line.contains("<UP"))
}

fn exists(device: &str) -> bool {
    command::line(&format!("ip link show {device}")).is_ok()
}
