//! Addresses of IPv6 on the nodes, which the lab does not have, and a receiver there.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::podtap::INTERFACE;
use crate::{programs::bounded, stage::Stage};

/// Unique local addresses (RFC 4193).
pub const FROM: &str = "fd00:beac::1";
pub const TO: &str = "fd00:beac::2";
pub const PORT: u16 = 4790;
pub const VNI: u32 = 7778;

/// The destination of a tap.
pub fn destination() -> Value {
    json!({"node": null, "external": {"address": TO, "port": PORT}})
}

/// The addresses and the receiver's interface. Removed when dropped.
pub struct Underlay {
    n1: PathBuf,
    n2: PathBuf,
}

impl Underlay {
    pub fn begin(stage: &Stage) -> Result<Self, String> {
        let underlay = Self { n1: stage.n1.clone(), n2: stage.n2.clone() };
        for (network, address) in [(&stage.n1, FROM), (&stage.n2, TO)] {
            // In use at once, without the detection of duplicates.
            let words = ["ip", "addr", "add", &format!("{address}/64"), "dev", "eth0", "nodad"];
            bounded(network, 5, &words)?;
        }
        let receiver = format!(
            "ip link add {INTERFACE} type vxlan id {VNI} dstport {PORT} local {TO} dev eth0 udp6zerocsumrx nolearning"
        );
        bounded(&stage.n2, 5, &receiver.split(' ').collect::<Vec<_>>())?;
        bounded(&stage.n2, 5, &["ip", "link", "set", INTERFACE, "up"])?;
        // The neighbour is known before the first frame.
        bounded(&stage.n1, 5, &["ping", "-6", "-q", "-c", "1", "-W", "3", TO])?;
        stage.sandbox.kubectl(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            &format!(
                "apiVersion: podtap.dev/v1alpha1\nkind: PodTapPolicy\nmetadata: {{name: default}}\n\
                 spec: {{allowedExternalCIDRs: ['{TO}/128']}}\n"
            ),
        )?;
        Ok(underlay)
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        // Some may be missing if the setup failed.
        let _ = bounded(&self.n2, 5, &["ip", "link", "del", INTERFACE]);
        for (network, address) in [(&self.n1, FROM), (&self.n2, TO)] {
            let _ = bounded(network, 5, &["ip", "addr", "del", &format!("{address}/64"), "dev", "eth0"]);
        }
    }
}
