//! Part of stage 4: where the copies of a tap go. Pure.

use std::{net::IpAddr, sync::Arc};

use podtap_api::{EXCLUDE, ItemState};

use crate::{failure::Failure, reason, store::{objects::{CachedNode, CachedPod}, snapshot::Snapshot}, validate::tap::{NoPolicy, Policy, Selection, Tap, RequestedDestination}};

/// Where copies can be sent to.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The node that receives; none for an external endpoint.
    pub node: Option<String>,
    /// The pod that gets the interface; none for a node or an external endpoint.
    pub pod: Option<Arc<CachedPod>>,
    /// Addresses that lead there, the preferred one first.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
}

/// One destination, as far as it is known. Both can be there: a place that was in use stays so while its node is away
/// for a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub place: Option<Place>,
    pub failure: Option<Failure>,
}

impl From<Result<Place, Failure>> for Resolved {
    fn from(result: Result<Place, Failure>) -> Self {
        match result {
            Ok(place) => Self { place: Some(place), failure: None },
            Err(failure) => Self { place: None, failure: Some(failure) },
        }
    }
}

/// Finds one destination of a tap.
pub fn resolve(snapshot: &Snapshot, policy: &Policy, tap: &Tap, index: usize, wanted: &RequestedDestination) -> Resolved {
    match wanted {
        RequestedDestination::Node { name, .. } => on_node(snapshot, policy, tap, name, None),
        RequestedDestination::Pod { selection, .. } => match consumer(snapshot, tap, index, selection) {
            Ok(pod) => on_node(snapshot, policy, tap, pod.node.as_deref().unwrap_or_default(), Some(&pod)),
            Err(failure) => Err(failure).into(),
        },
        RequestedDestination::External { address, port } => external(snapshot, policy, *address, *port).into(),
    }
}

/// The family that all places have, preferring that of the first place's preferred address; `None` if there is none.
pub fn common_family(places: &[&Place]) -> Option<Family> {
    let has = |place: &Place, family| place.addresses.iter().any(|address| Family::of(*address) == family);
    let mut families = places.first()?.addresses.iter().map(|address| Family::of(*address));
    families.find(|family| places.iter().all(|place| has(place, *family)))
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// For `kubectl get`, for example `node/worker-3:mirror`.
pub fn printable(wanted: &RequestedDestination, pod: Option<&CachedPod>, interface: &str) -> String {
    let at = |place: String| if interface.is_empty() { place } else { format!("{place}:{interface}") };
    match (wanted, pod) {
        (RequestedDestination::Node { name, .. }, _) => at(format!("node/{name}")),
        (RequestedDestination::Pod { .. }, Some(pod)) => at(format!("pod/{}", pod.name)),
        (RequestedDestination::Pod { selection: Selection::Names(names), .. }, None) => {
            at(format!("pod/{}", names.iter().cloned().collect::<Vec<_>>().join("|")))
        }
        (RequestedDestination::Pod { selection: Selection::Labels(selector), .. }, None) => at(format!("pod/{selector}")),
        (RequestedDestination::External { address, port }, _) => std::net::SocketAddr::new(*address, *port).to_string(),
    }
}

fn external(snapshot: &Snapshot, policy: &Policy, address: IpAddr, port: u16) -> Result<Place, Failure> {
    let mut pods = snapshot.pods.values().flatten();
    if pods.any(|pod| !pod.host_network && !pod.finished && pod.addresses.contains(&address)) {
        return Err(Failure::new(
            reason::EXTERNAL_NOT_ALLOWED,
            format!(
                "{address} is the address of a pod: copies that arrive at its interface could be copied again, without end. Use a destination with pod, which gets an interface of its own"
            ),
        ));
    }
    let place = Place { node: None, pod: None, addresses: vec![address], port };
    let cure = format!(
        "ask the cluster's administrator for one that lists a network with {address} in spec.allowedExternalCIDRs"
    );
    match &policy.external {
        Ok(networks) if networks.iter().any(|network| network.contains(address)) => Ok(place),
        Ok(_) => Err(Failure::new(
            reason::EXTERNAL_NOT_ALLOWED,
            format!(
                "{address} is in none of spec.allowedExternalCIDRs of the PodTapPolicy default: ask the cluster's administrator to add its network"
            ),
        )),
        Err(NoPolicy::Absent) => Err(Failure::new(
            reason::POLICY_NOT_FOUND,
            format!("external destinations need a PodTapPolicy named default, and there is none: {cure}"),
        )),
        Err(NoPolicy::Unreadable(error)) => Err(Failure::new(
            reason::EXTERNAL_NOT_ALLOWED,
            format!("the PodTapPolicy default cannot be read ({error}), so no external destination is allowed: {cure}"),
        )),
    }
}

/// The pod that gets the interface. One chosen by labels is kept for as long as it is Ready.
fn consumer(snapshot: &Snapshot, tap: &Tap, index: usize, selection: &Selection) -> Result<Arc<CachedPod>, Failure> {
    let namespace = &tap.reference.namespace;
    let pod = match selection {
        Selection::Names(names) => {
            let name = names.first().map(String::as_str).unwrap_or_default();
            let pod = snapshot.pod(namespace, name).filter(|pod| !pod.finished).ok_or_else(|| {
                Failure::new(
                    reason::POD_NOT_FOUND,
                    format!("there is no running pod {name} in the namespace {namespace}: it is used as soon as it appears; correct the destination if the name is wrong"),
                )
            })?;
            if pod.node.is_none() {
                return Err(Failure::new(
                    reason::POD_NOT_READY,
                    format!(
                        "the pod {name} is not on a node yet: it is used as soon as the scheduler has found one (kubectl describe pod -n {namespace} {name})"
                    ),
                ));
            }
            pod
        }
        Selection::Labels(selector) => {
            let shown = tap.status.destinations.get(index).map(|shown| shown.pod.as_str()).unwrap_or_default();
            let pods = snapshot.pods.get(namespace).into_iter().flatten();
            let usable = |pod: &&Arc<CachedPod>| {
                pod.node.is_some() && !pod.finished && !pod.terminating && !pod.excluded && selection.matches(pod)
            };
            // Ready ones first; of these the present one; then the oldest.
            let rank = |pod: &&Arc<CachedPod>| (!pod.ready, pod.name != shown, pod.created, pod.name.clone());
            let best = pods.filter(usable).min_by_key(rank).filter(|pod| pod.ready || pod.name == shown);
            best.ok_or_else(|| {
                Failure::new(
                    reason::POD_NOT_READY,
                    format!("no pod of the namespace {namespace} with the labels {selector} is Ready: the oldest one is used as soon as it is (kubectl get pods -n {namespace} -l '{selector}')"),
                )
            })?
        }
    };
    let name = &pod.name;
    if pod.host_network {
        return Err(Failure::new(
            reason::HOST_NETWORK,
            format!(
                "the pod {name} uses the network of its node (hostNetwork: true), and has no place of its own for an interface: use a node destination with the node {}",
                pod.node.as_deref().unwrap_or_default()
            ),
        ));
    }
    if snapshot.is_impostor(pod) {
        return Err(Failure::new(
            reason::POD_NOT_READY,
            format!(
                "the pod {name} says by its annotations that it is a static pod, which is another one: use a pod that is what it says"
            ),
        ));
    }
    if pod.excluded {
        return Err(Failure::new(
            reason::EXCLUDED,
            format!("the pod {name} carries {EXCLUDE}=true: choose another one"),
        ));
    }
    Ok(Arc::clone(pod))
}

fn on_node(snapshot: &Snapshot, policy: &Policy, tap: &Tap, name: &str, pod: Option<&Arc<CachedPod>>) -> Resolved {
    let failure = |reason, message: String| Resolved { place: None, failure: Some(Failure::new(reason, message)) };
    let Some(node) = snapshot.nodes.get(name) else {
        return failure(
            reason::NODE_NOT_FOUND,
            format!("there is no node {name}: use one of those that `kubectl get nodes` shows"),
        );
    };
    if node.excluded {
        return failure(reason::EXCLUDED, format!("the node {name} carries {EXCLUDE}=true: choose another one"));
    }
    if node.addresses.is_empty() {
        return failure(
            reason::NODE_WITHOUT_ADDRESS,
            format!(
                "the node {name} has no address of the type InternalIP (kubectl get node {name} -o wide): its kubelet reports one when it is set up right"
            ),
        );
    }
    let place = Place {
        node: Some(name.to_owned()),
        pod: pod.cloned(),
        addresses: node.addresses.clone(),
        port: policy.receiver_port,
    };
    if node.ready {
        return Resolved { place: Some(place), failure: None };
    }
    // A kubelet that is silent for a moment must not interrupt a mirror that works.
    let in_use = snapshot.node_taps.get(name).is_some_and(|node_tap| {
        node_tap.status.receivers.iter().any(|r| r.tap_uid == tap.reference.uid && r.state == ItemState::Active)
    });
    Resolved { place: in_use.then_some(place), failure: Some(not_ready(node)) }
}

/// Why nothing can be done on a node for the time being.
pub fn not_ready(node: &CachedNode) -> Failure {
    let name = &node.name;
    Failure::new(
        reason::NODE_NOT_READY,
        format!("the node {name} is not Ready: goes on by itself when it returns (kubectl describe node {name})"),
    )
}

#[cfg(test)]
mod tests;
