//! Whether the tunnels of the CNI and PodTap's ports collide.

use kube::ResourceExt as _;
use podtap_model::bounds::SENDER_PORT;
use serde_json::Value;

use super::{
    report::{Finding, Group},
    snapshot::{Cni, Snapshot},
};
use crate::exit::page_of;

/// A program that connects pods, and the UDP port of its tunnels.
#[derive(Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub program: &'static str,
    pub port: u16,
}

/// The findings about them.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let receiver = snapshot.receiver_port();
    let clash = |tunnel: &Tunnel| {
        let Tunnel { program, port } = tunnel;
        let hint = if *port == receiver {
            "Choose another receiverPort in the PodTapPolicy, and open it in the firewalls."
        } else if *port == SENDER_PORT {
            "PodTap's senders use this port: choose another one for the tunnels."
        } else {
            return None;
        };
        let text = format!("the tunnels of {program} use UDP {port}, and so does PodTap");
        Some(Finding::error(Group::Nodes, text).hint(hint).page(page_of("PortInUse")))
    };
    let tunnels = tunnels(snapshot);
    let clashes: Vec<_> = tunnels.iter().filter_map(clash).collect();
    if !clashes.is_empty() {
        return clashes;
    }
    let ok = |tunnel: Tunnel| {
        let Tunnel { program, port } = tunnel;
        Finding::ok(Group::Nodes, format!("the tunnels of {program} (UDP {port}) and PodTap's (UDP {receiver}) differ"))
    };
    tunnels.into_iter().map(ok).collect()
}

/// The tunnels of this cluster, as far as their settings are known.
fn tunnels(snapshot: &Snapshot) -> Vec<Tunnel> {
    let Cni { cilium, flannel, calico } = &snapshot.cni;
    let setting = |map: &Option<k8s_openapi::api::core::v1::ConfigMap>, key: &str| {
        map.as_ref().and_then(|map| map.data.as_ref()?.get(key).cloned())
    };
    let of_cilium =
        cilium.as_ref().filter(|_| setting(cilium, "routing-mode").as_deref() != Some("native")).map(|_| {
            let port = setting(cilium, "tunnel-port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
            let is_geneve = setting(cilium, "tunnel-protocol").as_deref() == Some("geneve");
            Tunnel { program: "Cilium", port: port.unwrap_or(if is_geneve { 6081 } else { 8472 }) }
        });
    let backend = setting(flannel, "net-conf.json").and_then(|text| serde_json::from_str::<Value>(&text).ok());
    // K3s has no ConfigMap. Its nodes have annotations, without the port.
    let has_flannel = snapshot.nodes.iter().flatten().any(|node| {
        node.annotations().get("flannel.alpha.coreos.com/backend-type").is_some_and(|kind| kind == "vxlan")
    });
    let of_flannel = match &backend {
        Some(config) if config["Backend"]["Type"] == "vxlan" => Some(port(&config["Backend"]["Port"], 8472)),
        Some(_) => None,
        None => has_flannel.then_some(8472),
    };
    let of_calico = calico.as_ref().filter(|felix| felix["spec"]["vxlanEnabled"] != false);
    let of_calico = of_calico.map(|felix| port(&felix["spec"]["vxlanPort"], 4789));
    of_cilium
        .into_iter()
        .chain(of_flannel.map(|port| Tunnel { program: "Flannel", port }))
        .chain(of_calico.map(|port| Tunnel { program: "Calico", port }))
        .collect()
}

fn port(value: &Value, default: u16) -> u16 {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(default)
}
