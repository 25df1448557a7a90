//! A mirror like kokotap's: a VXLAN device in the pod, and in each direction a u32 filter that matches everything, with mirred.
//!
//! kokotap attaches the egress filter to a `prio` root qdisc; the clsact here costs less, and every kernel has it.

use std::path::PathBuf;

use super::PLAIN_PORT;
use crate::{programs::bounded, stage::Stage};

/// In the pod and at the receiver.
pub const INTERFACE: &str = "bench-plain";
const VNI: &str = "7777";

/// A plain mirror. Removed when dropped.
pub struct Mirror {
    web: PathBuf,
    n1: PathBuf,
    n2: PathBuf,
}

impl Mirror {
    pub fn begin(stage: &Stage) -> Result<Self, String> {
        let mirror = Self { web: stage.web.clone(), n1: stage.n1.clone(), n2: stage.n2.clone() };
        let (port, from, to) = (PLAIN_PORT.to_string(), stage.n1_address.to_string(), stage.n2_address.to_string());
        // /proc/PID/ns/net
        let process = stage.web.iter().nth(2).and_then(|pid| pid.to_str()).ok_or("a pod has a process")?;
        let vxlan = |remote: &str| -> Vec<String> {
            [
                "ip", "link", "add", INTERFACE, "type", "vxlan", "id", VNI, "dstport", &port, "remote", remote, "dev",
                "eth0",
            ]
            .map(str::to_owned)
            .to_vec()
        };
        for (network, words) in [(&mirror.n2, vxlan(&from)), (&mirror.n1, vxlan(&to))] {
            bounded(network, 5, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let filter = |direction: &str, priority: &str| -> Vec<String> {
            format!(
                "tc filter add dev eth0 {direction} protocol all prio {priority} u32 match u32 0 0 \
                 action mirred egress mirror dev {INTERFACE}"
            )
            .split_whitespace()
            .map(str::to_owned)
            .collect()
        };
        let up = ["ip", "link", "set", INTERFACE, "up"].map(str::to_owned).to_vec();
        let into_pod = ["ip", "link", "set", INTERFACE, "netns", process].map(str::to_owned).to_vec();
        let clsact = ["tc", "qdisc", "add", "dev", "eth0", "clsact"].map(str::to_owned).to_vec();
        for (network, words) in [
            (&mirror.n2, up.clone()),
            (&mirror.n1, into_pod),
            (&mirror.web, up),
            (&mirror.web, clsact),
            (&mirror.web, filter("ingress", "1")),
            (&mirror.web, filter("egress", "2")),
        ] {
            bounded(network, 5, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(mirror)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Some do not exist if not all could be created.
        let _ = bounded(&self.web, 5, &["tc", "qdisc", "del", "dev", "eth0", "clsact"]);
        for network in [&self.web, &self.n1, &self.n2] {
            let _ = bounded(network, 5, &["ip", "link", "del", INTERFACE]);
        }
    }
}

/// Removes what a killed bench has left behind on the receiver's node; the rest is removed with its pods.
pub fn sweep(n2: &std::path::Path) {
    let _ = bounded(n2, 5, &["ip", "link", "del", INTERFACE]);
}
