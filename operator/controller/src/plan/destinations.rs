//! Where the mirrored frames of a tap are sent.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::jiff::SignedDuration;
use podtap_api::EXCLUDE;
use podtap_model::{InterfaceName, Reason, State};

use crate::{
    failure::Failure,
    names,
    plan::pod_index::PodIndex,
    store::{
        node::CachedNode,
        pod::CachedPod,
        snapshot::{AddressHolder, Snapshot},
    },
    validate::{
        policy::Policy,
        spec::{DestinationKind, RequestedDestination, Selection},
        tap::Tap,
    },
};

/// A destination that exists and is allowed. Addresses are in order of preference.
#[derive(Clone, Debug, PartialEq)]
pub enum ResolvedDestination {
    /// An interface on a node.
    Node { name: String, addresses: Vec<IpAddr>, port: u16 },
    /// An interface in a pod, which mirrored frames reach through the pod's node.
    Pod { pod: Arc<CachedPod>, node: String, addresses: Vec<IpAddr>, port: u16 },
    /// A VXLAN endpoint.
    External { address: [IpAddr; 1], port: u16 },
}

impl ResolvedDestination {
    /// The node that receives the frames; none for an external endpoint.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Node { name, .. } => Some(name),
            Self::Pod { node, .. } => Some(node),
            Self::External { .. } => None,
        }
    }

    /// The pod that gets the interface, if it is one.
    pub fn pod(&self) -> Option<&CachedPod> {
        match self {
            Self::Pod { pod, .. } => Some(pod),
            Self::Node { .. } | Self::External { .. } => None,
        }
    }

    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Node { addresses, .. } | Self::Pod { addresses, .. } => addresses,
            Self::External { address, .. } => address,
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Node { port, .. } | Self::Pod { port, .. } | Self::External { port, .. } => *port,
        }
    }
}

/// The result for one destination. Both can be set: a destination that is in use stays so while its node is briefly not ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    pub resolved: Option<ResolvedDestination>,
    pub failure: Option<Failure>,
}

impl From<Result<ResolvedDestination, Failure>> for Resolution {
    fn from(result: Result<ResolvedDestination, Failure>) -> Self {
        match result {
            Ok(resolved) => Self { resolved: Some(resolved), failure: None },
            Err(failure) => Self { resolved: None, failure: Some(failure) },
        }
    }
}

/// Resolves one destination of a tap.
pub fn resolve(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &Tap,
    RequestedDestination { name, kind }: &RequestedDestination,
) -> Resolution {
    match kind {
        DestinationKind::Node { name, .. } => on_node(snapshot, policy, tap, name, None),
        DestinationKind::Pod { namespace, selection, .. } => {
            match consumer(snapshot, pods, tap, name, namespace, selection) {
                Ok(pod) => on_node(snapshot, policy, tap, pod.node.as_deref().unwrap_or_default(), Some(&pod)),
                Err(failure) => Err(failure).into(),
            }
        }
        DestinationKind::Collector => match collector(snapshot, tap, name) {
            Ok(pod) => on_node(snapshot, policy, tap, pod.node.as_deref().unwrap_or_default(), Some(&pod)),
            Err(failure) => Err(failure).into(),
        },
        DestinationKind::External { address, port, .. } => external(snapshot, policy, *address, *port).into(),
    }
}

/// The address family that all destinations have; of two, that of the first destination's preferred address.
pub fn common_family(destinations: &[&ResolvedDestination]) -> Option<Family> {
    let has = |destination: &ResolvedDestination, family| {
        destination.addresses().iter().any(|address| Family::of(*address) == family)
    };
    let mut families = destinations.first()?.addresses().iter().map(|address| Family::of(*address));
    families.find(|family| destinations.iter().all(|destination| has(destination, *family)))
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
pub fn printable(kind: &DestinationKind, pod: Option<&CachedPod>, interface: Option<&InterfaceName>) -> String {
    let with_interface = |text: String| match interface {
        Some(interface) => format!("{text}:{interface}"),
        None => text,
    };
    match (kind, pod) {
        (DestinationKind::Node { name, .. }, _) => with_interface(format!("node/{name}")),
        (DestinationKind::Pod { .. }, Some(pod)) => with_interface(format!("pod/{}", pod.name)),
        (DestinationKind::Pod { selection: Selection::Names(names), .. }, None) => {
            with_interface(format!("pod/{}", names.iter().cloned().collect::<Vec<_>>().join("|")))
        }
        (DestinationKind::Pod { selection: Selection::Labels(selector), .. }, None) => {
            with_interface(format!("pod/{selector}"))
        }
        (DestinationKind::Collector, Some(pod)) => with_interface(format!("collector/{}", pod.name)),
        (DestinationKind::Collector, None) => "collector".to_owned(),
        (DestinationKind::External { address, port, .. }, _) => std::net::SocketAddr::new(*address, *port).to_string(),
    }
}

fn external(snapshot: &Snapshot, policy: &Policy, address: IpAddr, port: u16) -> Result<ResolvedDestination, Failure> {
    if let Some(failure) = in_cluster(snapshot, address) {
        return Err(failure);
    }
    let action = format!(
        "ask the cluster's administrator for one that lists a network with {address} in spec.allowedExternalCIDRs"
    );
    match &policy.external {
        Some(networks) if networks.iter().any(|network| network.contains(&address)) => {
            Ok(ResolvedDestination::External { address: [address], port })
        }
        Some(_) => Err(Failure::new(
            Reason::NotAllowedByPolicy,
            format!(
                "{address} is in none of spec.allowedExternalCIDRs of the PodTapPolicy default: ask the cluster's administrator to add its network"
            ),
        )),
        None => Err(Failure::new(
            Reason::PolicyNotFound,
            format!("external destinations need a PodTapPolicy named default, and there is none: {action}"),
        )),
    }
}

/// Why an external endpoint may not have the address: nodes and pods have receivers of their own, behind which frames are dropped. At
/// any other VXLAN device of a node, the network stack gets the frames, and routes or answers them.
fn in_cluster(snapshot: &Snapshot, address: IpAddr) -> Option<Failure> {
    let address = address.to_canonical();
    let (holder, instead) = match snapshot.addresses.get(&address) {
        Some(AddressHolder::Pod) => ("of a pod".to_owned(), "set `pod` instead of `external`".to_owned()),
        Some(AddressHolder::Node(node)) => {
            (format!("of the node {node}"), format!("set `node: {{name: {node}}}` instead of `external`"))
        }
        None if address.is_loopback() => {
            ("that every node has for itself".to_owned(), "set `node` instead of `external`".to_owned())
        }
        None => return None,
    };
    Some(Failure::new(
        Reason::ClusterAddress,
        format!(
            "{address} is an address {holder}, where mirrored frames could be routed or mirrored again, without end: {instead}, which creates an interface that only shows them"
        ),
    ))
}

/// The pod that gets the interface. A pod that was chosen by labels is kept for as long as it is ready.
fn consumer(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    tap: &Tap,
    destination: &str,
    namespace: &str,
    selection: &Selection,
) -> Result<Arc<CachedPod>, Failure> {
    let pod = match selection {
        Selection::Names(names) => {
            let name = names.first().map(String::as_str).unwrap_or_default();
            let pod = snapshot.pod(namespace, name).filter(|pod| !pod.finished).ok_or_else(|| {
                Failure::new(
                    Reason::PodNotFound,
                    format!("the namespace {namespace} has no running pod {name}: it is used as soon as it exists; correct the destination if the name is wrong"),
                )
            })?;
            if pod.node.is_none() {
                return Err(Failure::new(
                    Reason::PodNotReady,
                    format!(
                        "the pod {name} is not scheduled yet: it is used as soon as it is on a node (kubectl describe pod -n {namespace} {name})"
                    ),
                ));
            }
            pod
        }
        Selection::Labels(selector) => {
            let shown = tap.status.destination(destination).and_then(|shown| shown.pod.as_deref()).unwrap_or_default();
            let is_usable =
                |pod: &&Arc<CachedPod>| pod.node.is_some() && !pod.finished && !pod.terminating && !pod.excluded;
            // Ready pods first; among these the current one; then the oldest.
            let rank = |pod: &&Arc<CachedPod>| (!pod.ready, pod.name != shown, pod.created, pod.name.clone());
            let best = pods
                .matching(namespace, selection)
                .filter(is_usable)
                .min_by_key(rank)
                .filter(|pod| pod.ready || pod.name == shown);
            best.ok_or_else(|| {
                Failure::new(
                    Reason::PodNotReady,
                    format!("no pod of the namespace {namespace} with the labels {selector} is ready: the oldest one is used as soon as it is (kubectl get pods -n {namespace} -l '{selector}')"),
                )
            })?
        }
    };
    match unsuitable(snapshot, pod) {
        Some(failure) => Err(failure),
        None => Ok(Arc::clone(pod)),
    }
}

/// The collector's pod that gets the frames: the ready one that a hash of the tap and the pod ranks highest. So taps are spread over
/// all, and one that is added takes over only its share (rendezvous hashing; Thaler and Ravishankar 1998). The current one is kept while
/// it is not ready for a moment only, as when one of its containers restarts.
fn collector(snapshot: &Snapshot, tap: &Tap, destination: &str) -> Result<Arc<CachedPod>, Failure> {
    let shown = tap.status.destination(destination).and_then(|shown| shown.pod.as_deref()).unwrap_or_default();
    let is_usable = |pod: &&Arc<CachedPod>| {
        let node = pod.node.as_ref().and_then(|node| snapshot.nodes.get(node));
        let has_node = node.is_some_and(|node| !node.excluded && !node.addresses.is_empty());
        has_node && !pod.finished && !pod.terminating && unsuitable(snapshot, pod).is_none()
    };
    let usable: Vec<_> = snapshot.collectors.iter().filter(is_usable).collect();
    let current = usable.iter().find(|pod| pod.name == shown);
    let is_unready_for_a_moment = |pod: &&&Arc<CachedPod>| {
        !pod.ready && pod.ready_changed.is_some_and(|since| snapshot.now.duration_since(since) < KEPT_UNREADY)
    };
    if let Some(pod) = current.filter(is_unready_for_a_moment) {
        return Ok(Arc::clone(pod));
    }
    let rank = |pod: &&&Arc<CachedPod>| names::hash(format!("{}/{}", tap.reference.uid, pod.uid).as_bytes());
    let best = usable.iter().filter(|pod| pod.ready).max_by_key(rank).or(current);
    best.map(|pod| Arc::clone(pod)).ok_or_else(|| {
        Failure::new(
            Reason::PodNotReady,
            "no pod of PodTap's collector is ready: the tap starts as soon as one is; if there is none, ask the cluster's administrator to install it (collector.enabled of the Helm chart)",
        )
    })
}

/// How long a pod of the collector may be not ready before its taps move to another one.
const KEPT_UNREADY: SignedDuration = SignedDuration::from_secs(30);

/// Why the pod cannot be a destination.
fn unsuitable(snapshot: &Snapshot, pod: &CachedPod) -> Option<Failure> {
    let name = &pod.name;
    if pod.host_network {
        return Some(Failure::new(
            Reason::HostNetwork,
            format!(
                "the pod {name} shares the network of its node (hostNetwork: true), and cannot have an interface of its own: use a node destination with the node {}",
                pod.node.as_deref().unwrap_or_default()
            ),
        ));
    }
    if snapshot.is_impostor(pod) {
        return Some(Failure::new(
            Reason::PodNotReady,
            format!(
                "the annotations of the pod {name} claim that it is the static pod of another one: choose another pod"
            ),
        ));
    }
    pod.excluded.then(|| {
        Failure::new(Reason::Excluded, format!("the pod {name} has opted out with {EXCLUDE}: choose another pod"))
    })
}

fn on_node(snapshot: &Snapshot, policy: &Policy, tap: &Tap, name: &str, pod: Option<&Arc<CachedPod>>) -> Resolution {
    let failed = |reason, message: String| Resolution { resolved: None, failure: Some(Failure::new(reason, message)) };
    let Some(node) = snapshot.nodes.get(name) else {
        return failed(
            Reason::NodeNotFound,
            format!(
                "there is no node {name}: correct the name, or ask the cluster's administrator for the names of the nodes"
            ),
        );
    };
    if node.excluded {
        return failed(Reason::Excluded, format!("the node {name} has opted out with {EXCLUDE}: choose another one"));
    }
    if node.addresses.is_empty() {
        return failed(
            Reason::NodeWithoutAddress,
            format!(
                "the node {name} has no address of the type InternalIP: choose another one, or ask the cluster's administrator to check its kubelet, which reports one"
            ),
        );
    }
    let (name, addresses, port) = (name.to_owned(), node.addresses.clone(), policy.receiver_port);
    let resolved = match pod {
        Some(pod) => ResolvedDestination::Pod { pod: Arc::clone(pod), node: name, addresses, port },
        None => ResolvedDestination::Node { name, addresses, port },
    };
    if node.ready {
        return Resolution { resolved: Some(resolved), failure: None };
    }
    // A kubelet that does not report for a moment must not interrupt a mirror that works.
    let is_in_use = snapshot.node_taps.get(&node.name).is_some_and(|node_tap| {
        let is_active = |r: &podtap_model::ReceiverStatus| r.tap_uid == *tap.reference.uid && r.state == State::Active;
        node_tap.status.receivers.iter().any(is_active)
    });
    Resolution { resolved: is_in_use.then_some(resolved), failure: Some(not_ready(node)) }
}

/// Why nothing can be done on a node at the moment.
pub fn not_ready(node: &CachedNode) -> Failure {
    let name = &node.name;
    Failure::new(
        Reason::NodeNotReady,
        format!(
            "the node {name} is not ready: the tap resumes when it is; if it stays so, ask the cluster's administrator"
        ),
    )
}

#[cfg(test)]
mod tests;
