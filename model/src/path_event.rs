use serde::{Deserialize, Serialize};

/// What `podtap-agent try-paths` reports of the paths between nodes: a line of JSON each, as soon as it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum PathEvent {
    /// The port is in use on the node, so nothing can be received: by receivers of taps, or by another program.
    PortInUse,
    /// IP packets of up to this size are sent to a node: the MTU of the route, unless a smaller one was requested.
    Sends {
        /// Its name.
        to: String,
        /// In bytes.
        mtu: u32,
    },
    /// The first IP packet of this size has arrived.
    Received {
        /// Name of the node that sent it.
        from: String,
        /// In bytes.
        size: u32,
    },
}
