//! The plans of all taps, node by node.

use std::{collections::BTreeMap, net::IpAddr};

use podtap_model::{Endpoint, NodeState, Pod, PodDetails, Receiver, Sender, Tap, bounds::MAX_METADATA_LABELS};

use crate::{
    plan::{
        deduplication::Deduplication,
        moves::Moves,
        tap_plan::{MetadataUse, PlannedDestination, TapPlan},
    },
    store::pod::CachedPod,
    validate::{policy::Policy, spec::TapSpec},
};

/// The desired state of each node that has something to do.
pub fn node_specs(
    taps: &[TapPlan<'_>],
    policy: &Policy,
    deduplication: &Deduplication,
    moves: &Moves,
) -> BTreeMap<String, NodeState> {
    let mut nodes: BTreeMap<String, NodeState> = BTreeMap::new();
    for plan in taps.iter().filter(|plan| plan.is_executed()) {
        let Ok(spec) = &plan.tap.spec else { continue };
        let uid = &plan.tap.reference.uid;
        let requested = plan.destinations.iter().filter_map(|destination| receiver(plan, destination));
        for (node, receiver) in requested.chain(moves.receivers_of(uid).cloned()) {
            let node = nodes.entry(node).or_default();
            node.probe_ether_type = policy.probe_ether_type;
            node.receivers.push(receiver);
        }
        let tapped = plan
            .targets
            .tapped()
            .filter_map(|pod| Some((pod.node.clone()?, sender(plan, pod, &policy.metadata_labels))));
        for (node, sender) in tapped.chain(deduplication.leaving_of(uid)) {
            let old = moves.destinations_of(uid, &node);
            let node = nodes.entry(node).or_default();
            if !node.taps.iter().any(|known| known.uid == *uid) {
                let new = tap(plan, spec, deduplication.peers_of(uid));
                node.taps.push(match old {
                    Some(old) => Tap { destinations: old.clone(), ..new },
                    None => new,
                });
            }
            if let Some(program) = &plan.program
                && !node.programs.iter().any(|known| known.id == program.id)
            {
                node.programs.push(program.clone());
            }
            node.underlay_mtu = policy.underlay_mtu;
            node.probe_ether_type = policy.probe_ether_type;
            node.orphan_timeout_seconds = Some(policy.orphan_timeout_seconds);
            node.senders.push(sender);
        }
    }
    for state in nodes.values_mut() {
        state.taps.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        state.senders.sort_by(|a, b| (&a.tap, &a.pod.uid).cmp(&(&b.tap, &b.pod.uid)));
        state.receivers.sort_by_key(|receiver| receiver.vni);
        state.programs.sort_by(|a, b| a.id.cmp(&b.id));
    }
    nodes
}

/// What all senders of the tap have in common.
pub fn tap(plan: &TapPlan<'_>, spec: &TapSpec, peers: Vec<IpAddr>) -> Tap {
    let reference = &plan.tap.reference;
    Tap {
        namespace: reference.namespace.clone(),
        name: reference.name.clone(),
        uid: reference.uid.clone(),
        interface: spec.interface.clone(),
        direction: spec.direction,
        destinations: endpoints(plan),
        options: plan.options.clone(),
        program: plan.program.as_ref().map(|program| program.id.clone()),
        expiration_time: plan.tap.expiration,
        peers,
        probe: plan.sends_probes(),
        metadata: plan.sends_metadata(),
    }
}

/// Where the tap's frames are sent.
pub fn endpoints(plan: &TapPlan<'_>) -> Vec<Endpoint> {
    let endpoint = |destination: &PlannedDestination| {
        let (endpoint, vni) = (destination.endpoint?, destination.vni?);
        Some(Endpoint { address: endpoint.ip(), port: endpoint.port(), vni })
    };
    plan.destinations.iter().filter_map(endpoint).collect()
}

/// The sender of a pod. `labels`: keys of those that metadata tell.
pub fn sender(plan: &TapPlan<'_>, pod: &CachedPod, labels: &[String]) -> Sender {
    let details = plan.sends_metadata().then(|| details(pod, labels));
    Sender { tap: plan.tap.reference.uid.clone(), pod: model_pod(pod), details }
}

/// What metadata tell of a pod. Labels that find no room are left out, the last ones of the list first.
fn details(pod: &CachedPod, labels: &[String]) -> PodDetails {
    let mut room = MAX_METADATA_LABELS;
    let has_room = |(key, value): &(&String, &String)| {
        let fits = key.len() + value.len() <= room;
        room -= if fits { key.len() + value.len() } else { room };
        fits
    };
    let listed = labels.iter().filter_map(|key| pod.labels.get_key_value(key));
    let labels = listed.filter(has_room).map(|(key, value)| (key.clone(), value.clone())).collect();
    PodDetails { node: pod.node.clone(), workload: pod.workload.clone(), labels }
}

/// The receiver of a destination, and its node. None for an external endpoint, nor for a destination to which nothing is sent.
pub fn receiver(plan: &TapPlan<'_>, destination: &PlannedDestination) -> Option<(String, Receiver)> {
    let (endpoint, resolved) = (destination.endpoint?, destination.resolved.as_ref()?);
    let receiver = Receiver {
        tap: plan.tap.reference.clone(),
        vni: destination.vni?,
        port: endpoint.port(),
        ipv6: endpoint.is_ipv6(),
        interface_name: destination.interface.clone()?,
        frame_format: destination.frame_format,
        metadata: destination.metadata == MetadataUse::Wanted,
        packet_socket: destination.packet_socket,
        pod: resolved.pod().map(model_pod),
    };
    Some((resolved.node()?.to_owned(), receiver))
}

/// A pod as a node knows it.
pub fn model_pod(pod: &CachedPod) -> Pod {
    Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        config_hash: pod.config_hash.clone(),
        addresses: pod.addresses.clone(),
    }
}
