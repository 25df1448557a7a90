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

/// Asks the nodes of the pods of these `silent` taps that a receiver does not hear.
pub fn ask(nodes: &mut BTreeMap<String, NodeState>, taps: &[TapPlan<'_>], silent: &BTreeSet<Uid>, snapshot: &Snapshot) {
    let mut asked: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    let is_silent = |plan: &&TapPlan<'_>| silent.contains(&plan.tap.reference.uid);
    for plan in taps.iter().filter(|plan| plan.is_executed()).filter(is_silent) {
        for destination in &plan.destinations {
            for pod in plan.targets.tapped() {
                if let Some((node, address)) = unheard(plan, destination, pod, snapshot) {
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

/// Whether a receiver hears nothing of some pod, although there was time for it.
pub fn is_silent(status: &PodTapStatus) -> bool {
    let silent = [Reason::NoProbeFromNode, Reason::PortBlocked].map(Reason::as_str);
    status
        .conditions
        .iter()
        .any(|c| c.type_ == CONDITION_DELIVERING && c.status == "False" && silent.contains(&&*c.reason))
}

/// The node of a pod and the address of the destination on another node whose receiver is in place and does not hear the pod.
fn unheard<'a>(
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
    let hears = receiver.heard_pods.iter().any(|uid| **uid == *pod.uid);
    (receiver.state == State::Active && !hears).then_some((node, endpoint.ip()))
}
