use std::{collections::BTreeMap, net::IpAddr};

use podtap_model::Sender;

use super::{DeduplicatedTap, entry};
use crate::store::{node_tap::CachedNodeTap, pod::CachedPod, snapshot::Snapshot};

/// The senders of the tap that are about to be removed although their pods run, while some node may leave flows to them, and their nodes.
///
/// What opted out is not among them: that counts more than a few frames of the other ends.
pub(super) fn senders(
    tap: &DeduplicatedTap<'_>,
    snapshot: &Snapshot,
    attended: &BTreeMap<&str, &CachedNodeTap>,
) -> Vec<(String, Sender)> {
    let excluded_namespaces = &tap.plan.targets.excluded_namespaces;
    let planned = tap.pods();
    let mut found = Vec::new();
    for (node, node_tap) in attended {
        // If the options change, every node stops leaving flows in the same write.
        let Some(spec) = node_tap.spec.as_ref().filter(|_| tap.entry(node_tap).is_some()) else { continue };
        if snapshot.nodes.get(*node).is_none_or(|node| node.excluded) {
            continue;
        }
        let of_tap = |sender: &&Sender| {
            sender.tap == *tap.uid()
                && !planned.contains(&*sender.pod.uid)
                && !excluded_namespaces.contains(&sender.pod.namespace)
        };
        for sender in spec.senders.iter().filter(of_tap) {
            let pod = &sender.pod;
            let cached = snapshot.pod(&pod.namespace, &pod.name);
            let runs = |cached: &CachedPod| {
                cached.uid == pod.uid && cached.node.as_deref() == Some(node) && !cached.finished && !cached.excluded
            };
            let may_be_peer = attended.values().any(|other| may_leave_flows(tap, other, &pod.addresses));
            if cached.is_some_and(|cached| runs(cached)) && may_be_peer {
                found.push(((*node).to_owned(), sender.clone()));
            }
        }
    }
    found
}

/// Whether the node may leave flows to these addresses: its spec says so, or it has not applied it.
fn may_leave_flows(tap: &DeduplicatedTap<'_>, node_tap: &CachedNodeTap, addresses: &[IpAddr]) -> bool {
    entry(tap.uid(), node_tap).is_some_and(|entry| {
        entry.peers.iter().any(|peer| addresses.contains(peer)) || !node_tap.has_observed(node_tap.generation)
    })
}
