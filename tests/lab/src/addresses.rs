//! The addressing plan: names and addresses of all members. It is fixed, so that a node keeps its own after a power cut.

use anyhow::{Context, Result, bail};

/// The name of the member that holds the control plane and the fabric.
pub const CONTROL_PLANE: &str = "cp";
/// The fabric's address in the control plane; the API server listens on it.
pub const FABRIC: &str = "10.66.0.1";
/// The port of the API server.
pub const API_PORT: u16 = 6443;
/// All pods of all nodes.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// All services.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first service address, which Kubernetes assigns to its own API.
pub const API_SERVICE: &str = "10.96.0.1";
/// The service address that pods ask for names.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// One digit, so that names sort and every address below is formed from it directly.
pub const MOST_NODES: u8 = 9;

/// The name of the n-th node, counted from one.
pub fn name(number: u8) -> String {
    format!("n{number}")
}

/// The number of a node.
pub fn number(name: &str) -> Result<u8> {
    let number = name.strip_prefix('n').filter(|digits| digits.len() == 1);
    let number: u8 = number
        .and_then(|digits| digits.parse().ok())
        .with_context(|| format!("{name} is not a node: they are called n1 to n{MOST_NODES}"))?;
    if number == 0 {
        bail!("n0 is not a node: they are called n1 to n{MOST_NODES}");
    }
    Ok(number)
}

/// The node's address on the fabric.
pub fn node_address(number: u8) -> String {
    format!("10.66.0.1{number}")
}

/// The addresses of the node's pods.
pub fn pod_subnet(number: u8) -> String {
    format!("10.244.{}.0/24", number - 1)
}

/// The node's MAC address: fixed, so that the neighbours' caches stay valid after a power cut.
pub fn hardware_address(number: u8) -> String {
    format!("02:00:0a:42:00:1{number}")
}

/// The fabric's end of the node's veth pair.
pub fn cable(number: u8) -> String {
    format!("v{}", name(number))
}

/// The node's machine ID: kubelet reports it, and two nodes must not share one.
pub fn machine_id(number: u8) -> String {
    format!("{number:032x}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for node in 1..=MOST_NODES {
            assert_eq!(number(&name(node)).expect("a node"), node);
        }
        for wrong in ["n0", "n10", "cp", "1", "", "n"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_node_is_where_the_documentation_says() {
        assert_eq!(node_address(1), "10.66.0.11");
        assert_eq!(pod_subnet(1), "10.244.0.0/24");
        assert_eq!(machine_id(1).trim().len(), 32);
    }
}
