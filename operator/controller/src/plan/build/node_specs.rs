//! Part of stage 4: the outcomes of all taps, node by node. Pure.

use std::collections::BTreeMap;

use podtap_api::{NodeTapEndpoint, NodeTapPod, NodeTapReceiver, NodeTapSender, NodeTapSpec};

use super::TapPlan;
use crate::store::objects::CachedPod;

/// What each node that has something to do is to hold.
pub fn node_specs(taps_: &[TapPlan<'_>], underlay_mtu: Option<i32>) -> BTreeMap<String, NodeTapSpec> {
    let mut nodes: BTreeMap<String, NodeTapSpec> = BTreeMap::new();
    for tap in taps_.iter().filter(|tap| tap.is_executed()) {
        let tap = &tap.tap.reference;
        let Ok(spec) = &tap.tap.spec else { continue };
        let mut endpoints = Vec::new();
        for destination in &tap.destinations {
            let (Some(address), Some(vni)) = (destination.address, destination.vni) else { continue };
            let port = i32::from(destination.port);
            endpoints.push(NodeTapEndpoint { address: address.to_string(), port, vni });
            if !destination.node.is_empty() {
                nodes.entry(destination.node.clone()).or_default().receivers.push(NodeTapReceiver {
                    tap: tap.clone(),
                    vni,
                    port,
                    ipv6: address.is_ipv6(),
                    interface_name: destination.interface.clone(),
                    raw: destination.raw,
                    pod: destination.pod.as_deref().map(node_tap_pod),
                });
            }
        }
        for pod in tap.targets.tapped() {
            let Some(node) = &pod.node else { continue };
            let node = nodes.entry(node.clone()).or_default();
            // Once for all of the tap's pods: it can be long.
            if let Some(options) = &tap.options
                && !node.treatments.iter().any(|known| known.tap_uid == tap.uid)
            {
                node.treatments.push(options.clone());
            }
            node.underlay_mtu = underlay_mtu;
            node.senders.push(NodeTapSender {
                tap: tap.clone(),
                pod: node_tap_pod(pod),
                interface: spec.interface.clone(),
                direction: spec.direction,
                destinations: endpoints.clone(),
                treated: tap.options.is_some(),
            });
        }
    }
    for spec in nodes.values_mut() {
        spec.senders.sort_by(|a, b| (&a.tap, &a.pod.uid).cmp(&(&b.tap, &b.pod.uid)));
        spec.receivers.sort_by_key(|receiver| receiver.vni);
        spec.treatments.sort_by(|a, b| a.tap_uid.cmp(&b.tap_uid));
    }
    nodes
}

fn node_tap_pod(pod: &CachedPod) -> NodeTapPod {
    NodeTapPod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        cgroup_uid: pod.cgroup_uid.clone(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
    }
}
