//! The pods of a plan.

use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _};
use podtap_api::PodTapPolicySpec;
use podtap_model::{InterfaceName, Reason, SenderStatus};
use serde::{Deserialize, Serialize};

use super::{
    place::Place,
    wire::{Family, Wire},
};
use crate::{
    pods::{Cause, Surroundings, Verdict, verdict, without_nodes},
    tap::Tap,
};

/// Annotation in which Multus tells of the interfaces of a pod (Network Plumbing Working Group, "De-facto Standard", 4.1.3).
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// A pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its node; none if it is on none yet.
    pub node: Option<String>,
    /// Its name; with its namespace, if the tap is one of the cluster.
    pub pod: String,
    /// The interface that would be tapped, if it is known.
    pub interface: Option<String>,
    /// Its MTU, if it is known.
    pub mtu: Option<u32>,
    /// Its mirrored frames.
    pub wire: Wire,
    /// Whether it would be tapped.
    #[serde(flatten)]
    pub state: RowState,
    /// What may be missing from what is mirrored, as the node reports it for taps that mirror the pod already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
}

/// Whether a pod would be tapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum RowState {
    /// It would be, as far as that is known.
    Ok,
    /// As soon as it can be.
    Pending(Cause),
    /// It would not.
    Refused(Cause),
    /// The user may not read what tells.
    Unknown(Cause),
}

/// What the state of a pod depends on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The tap.
    pub tap: &'a Tap,
    /// Whether it exists: then, its place among other taps is decided.
    pub exists: bool,
    /// Whether it mirrors already: then, the nodes report its pods.
    pub is_observed: bool,
    /// What else decides.
    pub around: &'a Surroundings,
    /// Its destinations.
    pub places: &'a [Place],
    /// Over what its frames are sent.
    pub family: Option<Family>,
    /// The policy, if it is known.
    pub policy: Option<&'a PodTapPolicySpec>,
}

/// The pods in the order in which a limit takes them, and named ones that do not exist.
pub fn rows(context: Context<'_>, mut pods: Vec<Pod>) -> Vec<Row> {
    let Context { tap, is_observed, policy, .. } = context;
    pods.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
    let limit = if is_observed { usize::MAX } else { limit(tap, policy) };
    let mut tapped = 0;
    let mut rows = Vec::new();
    for pod in &pods {
        let state = if is_observed { observed(tap, pod, context.around) } else { state(context, pod) };
        let state = match state {
            None => continue,
            Some(RowState::Ok) if tapped >= limit => {
                RowState::Refused(Cause::new(Reason::TooManyPods, format!("the oldest {limit} are tapped")))
            }
            Some(state) => state,
        };
        tapped += usize::from(state == RowState::Ok);
        rows.push(row(context, pod, state));
    }
    rows.extend(missing(tap, &pods));
    rows.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    rows
}

/// The most pods that it taps.
fn limit(tap: &Tap, policy: Option<&PodTapPolicySpec>) -> usize {
    let (own, of_policy) = match tap {
        Tap::Namespaced(tap) => (tap.spec.targets.max_pods, policy.map(|policy| policy.limits.targets_per_tap)),
        Tap::Cluster(tap) => (tap.spec.targets.max_pods, policy.map(|policy| policy.limits.targets_per_cluster_tap)),
    };
    usize::try_from(own.min(of_policy.unwrap_or(u32::MAX))).unwrap_or(usize::MAX)
}

/// Whether a pod is tapped; none if the tap does not select it.
fn observed(tap: &Tap, pod: &Pod, around: &Surroundings) -> Option<RowState> {
    match verdict(tap, pod, around) {
        Verdict::Tapped => Some(RowState::Ok),
        Verdict::Pending(cause) => Some(RowState::Pending(cause)),
        Verdict::NotTapped(cause) => Some(RowState::Refused(cause)),
        Verdict::Unknown(cause) => Some(RowState::Unknown(cause)),
        Verdict::NotMatched(_) => None,
    }
}

/// Whether a pod would be tapped; none if the tap does not select it.
fn state(context: Context<'_>, pod: &Pod) -> Option<RowState> {
    let Context { tap, exists, around, places, policy, .. } = context;
    let uid = pod.uid();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let refused = |reason, message: String| Some(RowState::Refused(Cause::new(reason, message)));
    match without_nodes(tap, pod, around) {
        Some(Verdict::NotMatched(_)) => return None,
        Some(Verdict::NotTapped(cause)) => return Some(RowState::Refused(cause)),
        Some(Verdict::Pending(cause)) => return Some(RowState::Pending(cause)),
        Some(Verdict::Unknown(cause)) => return Some(RowState::Unknown(cause)),
        Some(Verdict::Tapped) | None => {}
    }
    if places.iter().any(|place| place.pod.is_some() && place.pod == uid) {
        return refused(Reason::DestinationIsTarget, "it is a destination of this tap".to_owned());
    }
    if let (Some(nodes), Some(node)) = (&around.nodes, node)
        && !nodes.contains_key(node)
    {
        return refused(Reason::NodeNotFound, format!("its node {node} does not exist any more"));
    }
    let most = policy.filter(|_| !exists).map_or(u32::MAX, |policy| policy.limits.taps_per_pod);
    let others = senders(pod, around).filter(|(sender, _)| sender.tap_uid != tap.uid()).count();
    if u32::try_from(others).unwrap_or(u32::MAX) >= most {
        let message =
            format!("{most} taps mirror it already, and limits.tapsPerPod of the PodTapPolicy allows no more");
        return refused(Reason::TooManyTaps, message);
    }
    Some(RowState::Ok)
}

/// Senders in a pod, with the interface that their tap asks for.
fn senders<'a>(
    pod: &Pod,
    around: &'a Surroundings,
) -> impl Iterator<Item = (&'a SenderStatus, Option<&'a InterfaceName>)> {
    let uid = pod.uid().unwrap_or_default();
    around.node_taps.iter().flatten().flat_map(move |node| {
        let senders = node.status.iter().flat_map(|status| &status.senders);
        let uid = uid.clone();
        senders.filter(move |sender| sender.pod_uid == uid).map(|sender| {
            let tap = node.spec.0.taps.iter().find(|tap| *tap.uid == *sender.tap_uid);
            (sender, tap.and_then(|tap| tap.interface.as_ref()))
        })
    })
}

fn row(context: Context<'_>, pod: &Pod, state: RowState) -> Row {
    let Context { tap, around, places, family, policy, .. } = context;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let requested = match tap {
        Tap::Namespaced(tap) => tap.spec.targets.interface.as_ref(),
        Tap::Cluster(tap) => tap.spec.targets.interface.as_ref(),
    };
    let networks = networks(pod);
    let network = networks.iter().find(|network| match requested {
        Some(interface) => network.interface.as_deref() == Some(&**interface),
        None => network.default,
    });
    let observed = senders(pod, around).find(|(_, interface)| *interface == requested);
    let interface = requested
        .map(ToString::to_string)
        .or_else(|| network?.interface.clone())
        .or_else(|| observed?.0.interface.clone());
    // Users who may annotate pods can write any number. Linux has no larger MTU (include/uapi/linux/if_ether.h, ETH_MAX_MTU).
    let mtu = network.and_then(|network| network.mtu).filter(|mtu| u16::try_from(*mtu).is_ok());
    let is_remote = |place: &Place| match (&place.node, &node) {
        _ if place.is_external => Some(true),
        (Some(receiver), Some(node)) => Some(receiver != node),
        _ => None,
    };
    let remote: Vec<Option<bool>> = places.iter().map(is_remote).collect();
    let leaves_node = if remote.contains(&Some(true)) {
        Some(true)
    } else if remote.contains(&None) {
        None
    } else {
        Some(false)
    };
    let mut degraded: Vec<String> = senders(pod, around).flat_map(|(sender, _)| sender.degraded.clone()).collect();
    degraded.dedup();
    let name = tap.pod_name(&pod.namespace().unwrap_or_default(), &pod.name_any());
    let is_tapped = matches!(state, RowState::Ok);
    let wire = Wire::of(leaves_node, family, mtu, policy.and_then(|policy| policy.underlay_mtu));
    Row {
        node,
        pod: name,
        interface: interface.filter(|_| is_tapped),
        mtu: mtu.filter(|_| is_tapped),
        wire: if is_tapped { wire } else { Wire::default() },
        state,
        degraded,
    }
}

/// An entry of the annotation of Multus.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    interface: Option<String>,
    default: bool,
    mtu: Option<u32>,
}

/// The interfaces of a pod; none if no CNI plugin tells of them.
fn networks(pod: &Pod) -> Vec<Network> {
    let text = pod.annotations().get(NETWORK_STATUS);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Pods that are named, and do not exist.
fn missing(tap: &Tap, pods: &[Pod]) -> Vec<Row> {
    let Tap::Namespaced(tap) = tap else { return Vec::new() };
    let names = tap.spec.targets.pod_names.iter().flatten();
    let absent = names.filter(|name| !pods.iter().any(|pod| pod.meta().name.as_ref() == Some(name)));
    absent
        .map(|name| Row {
            node: None,
            pod: name.clone(),
            interface: None,
            mtu: None,
            wire: Wire::default(),
            state: RowState::Refused(Cause::new(
                Reason::PodNotFound,
                "there is no such pod; it is tapped as soon as it exists",
            )),
            degraded: Vec::new(),
        })
        .collect()
}
