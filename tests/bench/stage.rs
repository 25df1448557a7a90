//! The setup of all comparisons: a tapped pod and its peer on one node, the receiver's node, and two cores for all of them.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use podtap_tests::{
    cluster::{Cluster, Sandbox, namespace_of_node},
    namespace::within,
    wait::until,
};

use crate::{columns, programs::Background};

/// Port of the server that answers iperf3.
pub const IPERF_PORT: u16 = 5201;

/// Two pods on n1, of which `web` is tapped; receivers are on n2.
pub struct Stage {
    pub sandbox: Sandbox,
    /// Network namespaces.
    pub web: PathBuf,
    pub peer: PathBuf,
    pub n1: PathBuf,
    pub n2: PathBuf,
    /// Addresses.
    pub web_address: Ipv4Addr,
    pub peer_address: Ipv4Addr,
    pub n1_address: Ipv4Addr,
    pub n2_address: Ipv4Addr,
    server: RefCell<Option<Background>>,
}

impl Stage {
    pub fn new() -> Self {
        let lab = Cluster::lab();
        let sandbox = Sandbox::alone("bench-traffic");
        let [web, peer] = ["web", "peer"].map(|name| sandbox.pod(name, "n1", name));
        let [n1, n2] = ["n1", "n2"].map(|node| namespace_of_node(lab, node));
        let [n1_address, n2_address] = ["n1", "n2"].map(node_address);
        let [web_address, peer_address] = [&web, &peer].map(address);
        let (web, peer) = (sandbox.network(&web), sandbox.network(&peer));
        let server = RefCell::new(None);
        let stage = Self { sandbox, web, peer, n1, n2, web_address, peer_address, n1_address, n2_address, server };
        stage.restart_server();
        stage
    }

    /// Replaces the server, which may hang.
    pub fn restart_server(&self) {
        // The old server keeps the port until it ends.
        drop(self.server.take());
        *self.server.borrow_mut() =
            Some(Background::start(&self.peer, &["iperf3", "-s", "-p", &IPERF_PORT.to_string()]));
        let address = (self.peer_address, IPERF_PORT);
        until("iperf3 listens", Duration::from_secs(10), || {
            within(&self.web, move || TcpStream::connect_timeout(&address.into(), Duration::from_secs(1)))
        });
    }
}

/// Removes what a killed bench left.
pub fn clean_up() {
    columns::clean_up(&namespace_of_node(Cluster::lab(), "n2"));
    let namespaces: Vec<Namespace> = Cluster::lab().list_all();
    for name in namespaces.into_iter().filter_map(|namespace| namespace.metadata.name) {
        if name.starts_with("t-bench-") {
            let deleted = Cluster::lab().kubectl(&["delete", "namespace", &name, "--timeout=60s"], "");
            deleted.expect("a namespace can be deleted");
        }
    }
}

fn address(pod: &Pod) -> Ipv4Addr {
    let address = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).expect("a running pod has an address");
    address.parse().expect("the lab is IPv4")
}

fn node_address(name: &str) -> Ipv4Addr {
    let nodes: Vec<Node> = Cluster::lab().list_all();
    let node = nodes.into_iter().find(|n| n.metadata.name.as_deref() == Some(name)).expect("the node exists");
    let addresses = node.status.and_then(|s| s.addresses).expect("a node has addresses");
    let mut parsed = addresses.iter().filter_map(|a| a.address.parse::<IpAddr>().ok());
    parsed.find_map(|a| if let IpAddr::V4(a) = a { Some(a) } else { None }).expect("the lab is IPv4")
}
