//! Which nodes find out by TCP whether they reach a receiver at all, since their probes do not arrive there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use podtap_api::{CONDITION_DELIVERING, PodTapStatus};
use podtap_model::{NodeState, Reason, State, Uid, bounds::MAX_CHECKED_ADDRESSES};

use crate::{
    plan::tap_plan::{PlannedDestination, TapPlan},
    store::{pod::CachedPod, snapshot::Snapshot},
};

/// Asks the nodes of those pods of these taps whose probes a receiver does not get.
pub fn ask(
    nodes: &mut BTreeMap<String, NodeState>,
    taps: &[TapPlan<'_>],
    without_probes: &BTreeSet<Uid>,
    snapshot: &Snapshot,
) {
    let mut asked: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    let is_asked = |plan: &&TapPlan<'_>| plan.is_executed() && without_probes.contains(&plan.tap.reference.uid);
    for plan in taps.iter().filter(is_asked) {
        for destination in &plan.destinations {
            for pod in plan.targets.tapped() {
                if let Some((node, address)) = missing_probes(plan, destination, pod, snapshot) {
                    asked.entry(node).or_default().insert(address);
                }
            }
        }
    }
    for (node, addresses) in asked {
        if let Some(state) = nodes.get_mut(node) {
            state.checked_addresses = addresses.into_iter().take(MAX_CHECKED_ADDRESSES).collect();
        }
    }
}

/// Whether a receiver gets no probes of some pod, although there was time for it.
pub fn lacks_probes(status: &PodTapStatus) -> bool {
    let reasons = [Reason::NoProbeFromNode, Reason::PortBlocked].map(Reason::as_str);
    status
        .conditions
        .iter()
        .any(|c| c.type_ == CONDITION_DELIVERING && c.status == "False" && reasons.contains(&&*c.reason))
}

/// The node of a pod and the address of the destination on another node whose receiver is in place and gets no probes of the pod.
fn missing_probes<'a>(
    plan: &TapPlan<'_>,
    destination: &PlannedDestination,
    pod: &'a CachedPod,
    snapshot: &Snapshot,
) -> Option<(&'a str, IpAddr)> {
    let node = pod.node.as_deref()?;
    let receiving = destination.resolved.as_ref()?.node().filter(|receiving| *receiving != node)?;
    let (endpoint, vni) = (destination.endpoint?, destination.vni?.get());
    let tap: &str = &plan.tap.reference.uid;
    let mut receivers = snapshot.node_taps.get(receiving)?.status.receivers.iter();
    let receiver = receivers.find(|receiver| receiver.tap_uid == tap && receiver.vni == vni)?;
    let gets_probes = receiver.pods_with_probes.iter().any(|uid| **uid == *pod.uid);
    (receiver.state == State::Active && !gets_probes).then_some((node, endpoint.ip()))
}
