use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use podtap_model::{SenderStatus, State, bounds::MAX_PEERS};

use super::DeduplicatedTap;
use crate::store::{
    generations::{Generations, Part},
    node_tap::CachedNodeTap,
    snapshot::Snapshot,
};

/// How many pods have each address. The status of a pod that has ended names an address that another one may have by now.
pub(super) fn owners(snapshot: &Snapshot) -> HashMap<IpAddr, usize> {
    let mut owners = HashMap::new();
    for pod in snapshot.pods.values().flatten().filter(|pod| !pod.finished && !pod.host_network) {
        for address in &pod.addresses {
            *owners.entry(*address).or_default() += 1;
        }
    }
    owners
}

/// What nodes report, by node, tap and pod: searching each node's list for each pod of each tap would take too long.
pub(super) type Senders<'a> = HashMap<(&'a str, &'a str, &'a str), &'a SenderStatus>;

pub(super) fn senders<'a>(attended: &BTreeMap<&'a str, &'a CachedNodeTap>) -> Senders<'a> {
    let of_node = |(&node, &node_tap): (&&'a str, &&'a CachedNodeTap)| {
        let senders = node_tap.status.senders.iter();
        senders.map(move |sender| ((node, sender.tap_uid.as_str(), sender.pod_uid.as_str()), sender))
    };
    attended.iter().flat_map(of_node).collect()
}

/// The addresses of the pods that the tap mirrors now, sorted. None if there is only one such pod.
///
/// A new peer's node must have applied the current spec of the tap. A peer stays one while its node applies a change that affects
/// neither its sender nor the tap's options: otherwise, each such change would be written to all nodes twice.
pub(super) fn peers(
    tap: &DeduplicatedTap<'_>,
    attended: &BTreeMap<&str, &CachedNodeTap>,
    generations: &Generations,
    owners: &HashMap<IpAddr, usize>,
    senders: &Senders<'_>,
) -> Vec<IpAddr> {
    let entries = attended.values().filter_map(|node_tap| tap.entry(node_tap));
    let current: BTreeSet<IpAddr> = entries.flat_map(|entry| &entry.peers).copied().collect();
    let mut peers = BTreeSet::new();
    let mut pods = 0;
    for pod in tap.plan.targets.tapped() {
        let node_tap = pod.node.as_deref().and_then(|node| attended.get(node));
        let Some(node_tap) = node_tap.filter(|node_tap| tap.entry(node_tap).is_some()) else { continue };
        let sender = senders.get(&(node_tap.name.as_str(), &**tap.uid(), &*pod.uid));
        let Some(sender) = sender.filter(|sender| mirrors(sender)) else { continue };
        let part = Part::Sender { tap: tap.uid().clone(), pod: pod.uid.clone() };
        let has_applied = node_tap.has_observed(generations.change(node_tap, &part).generation());
        let is_peer = |address: &&IpAddr| {
            sender.addresses.contains(address)
                && owners.get(*address) == Some(&1)
                && (has_applied || current.contains(*address))
        };
        let before = peers.len();
        peers.extend(pod.addresses.iter().filter(is_peer));
        pods += usize::from(peers.len() > before);
    }
    if pods < 2 { Vec::new() } else { peers.into_iter().take(MAX_PEERS).collect() }
}

/// Whether the sender mirrors each frame that it should.
fn mirrors(sender: &SenderStatus) -> bool {
    sender.state == State::Active && sender.degraded.is_empty()
}
