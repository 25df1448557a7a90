//! Whether what is mirrored arrives, by the probes that the receivers hear. Pure.
//!
//! Each sender sends a probe per second. A node reports which pods its receivers hear, and that they hear one no more only after several
//! probes are missing. So what a receiver has heard and hears no more is a failure at once; the first probes of a pod have [`GRACE`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_DELIVERING, PodTapStatus};
use podtap_model::{Reason, Uid};

use crate::{
    failure::{Failure, count},
    plan::tap_plan::TapPlan,
    status::progress::StatusInputs,
    store::pod::CachedPod,
};

/// How long the first probes of a pod may take, after it is tapped and after its node's helper pod is Ready.
pub const GRACE: SignedDuration = SignedDuration::from_secs(5);
/// How many nodes a message names.
const MAX_NODES: usize = 5;

/// Whether the receivers hear a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Everywhere,
    /// A receiver is not in place. Or its mirror runs on, but the helper pod of its node, which sends the probes, is not Ready.
    Unknown,
    /// The receiver of this destination hears nothing.
    Nothing(usize),
    /// The receiver of this destination hears the small probes only.
    SmallOnly(usize),
}

/// Whether the receivers hear a tapped pod.
pub fn heard(plan: &TapPlan<'_>, pod: &CachedPod, inputs: StatusInputs<'_>) -> Heard {
    let heard = at_receivers(plan, pod, inputs);
    let helpers = pod.node.iter().flat_map(|node| inputs.snapshot.helpers_of(node));
    let sends = helpers.into_iter().any(|helper| helper.ready && !helper.terminating);
    if heard == Heard::Everywhere || sends { heard } else { Heard::Unknown }
}

fn at_receivers(plan: &TapPlan<'_>, pod: &CachedPod, inputs: StatusInputs<'_>) -> Heard {
    let (mut small_only, mut without_receiver) = (None, false);
    for (index, destination) in plan.destinations.iter().enumerate() {
        let node = destination.resolved.as_ref().and_then(|resolved| resolved.node());
        let Some((node, vni)) = node.zip(destination.vni) else { continue };
        let Some(receiver) = inputs.reports.active_receiver(node, &plan.tap.reference.uid, vni.get()) else {
            without_receiver = true;
            continue;
        };
        let has = |pods: &[String]| pods.binary_search_by(|uid| uid.as_str().cmp(&pod.uid)).is_ok();
        if !has(&receiver.heard_pods) {
            return Heard::Nothing(index);
        }
        if has(&receiver.small_only_pods) {
            small_only.get_or_insert(index);
        }
    }
    let otherwise = if without_receiver { Heard::Unknown } else { Heard::Everywhere };
    small_only.map_or(otherwise, Heard::SmallOnly)
}

/// What the receivers of one tap do not hear, and since when the controller has known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Silence {
    /// Pods that were heard everywhere last time.
    delivered: BTreeSet<Uid>,
    /// Pods that are not, and since when that counts.
    silent: BTreeMap<Uid, Timestamp>,
}

impl Silence {
    /// What is not heard now. What was not heard before keeps its time.
    ///
    /// A new leader does not know these times, and must not change what its predecessor has reported.
    pub fn observe(&self, status: &PodTapStatus, heard: &[(&CachedPod, Heard)], now: Timestamp) -> Self {
        let own = status.conditions.iter().find(|condition| condition.type_ == CONDITION_DELIVERING);
        let missing = [Reason::NoProbeFromNode, Reason::PortBlocked, Reason::PathMtu].map(Reason::as_str);
        let has_failed = own.is_some_and(|c| c.status == "False" && missing.contains(&&*c.reason));
        let mut next = Self::default();
        for (pod, heard) in heard {
            match heard {
                Heard::Everywhere => {
                    next.delivered.insert(pod.uid.clone());
                }
                Heard::Unknown => {}
                Heard::Nothing(_) | Heard::SmallOnly(_) => {
                    let is_new = !self.delivered.contains(&pod.uid) && !has_failed;
                    let first = if is_new { now } else { now - GRACE };
                    // Without the filter, a clock that was set back would prolong the time.
                    let known = self.silent.get(&pod.uid).copied().filter(|since| *since <= now);
                    next.silent.insert(pod.uid.clone(), known.unwrap_or(first));
                }
            }
        }
        next
    }

    /// Whether the pod is not heard.
    pub fn is_silent(&self, pod: &CachedPod) -> bool {
        self.silent.contains_key(&pod.uid)
    }

    /// Whether that the pod is not heard is a failure.
    pub fn is_late(&self, pod: &CachedPod, now: Timestamp) -> bool {
        self.silent.get(&pod.uid).is_some_and(|since| now.duration_since(*since) >= GRACE)
    }

    /// When that becomes a failure for the next pod.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.silent.values().map(|since| *since + GRACE).filter(|moment| *moment > now).min()
    }
}

/// What is wrong with the delivery, if these pods are not heard.
pub fn failure(plan: &TapPlan<'_>, silent: &[(&CachedPod, Heard)], inputs: StatusInputs<'_>) -> Option<Failure> {
    let nothing = |heard: &Heard| match heard {
        Heard::Nothing(index) => Some(*index),
        _ => None,
    };
    let small_only = |heard: &Heard| match heard {
        Heard::SmallOnly(index) => Some(*index),
        _ => None,
    };
    if let Some((index, nodes)) = first(silent, nothing) {
        let (at, port) = place(plan, index);
        let from = named(&nodes);
        return Some(if nodes.iter().all(|node| reaches(plan, index, node, inputs)) {
            Failure::new(
                Reason::PortBlocked,
                format!(
                    "{at} receives no probes from {from}, but TCP connections from there succeed: let firewalls and security groups between the nodes pass UDP port {port}"
                ),
            )
        } else {
            Failure::new(
                Reason::NoProbeFromNode,
                format!(
                    "{at} receives no probes from {from}: check that the network between the nodes, their firewalls and security groups let UDP port {port} pass"
                ),
            )
        });
    }
    let (index, nodes) = first(silent, small_only)?;
    let (at, _) = place(plan, index);
    Some(Failure::new(
        Reason::PathMtu,
        format!(
            "{at} receives small probes from {}, but no full-size ones: the network between the nodes carries less than the MTU of their interfaces; ask the cluster's administrator to set spec.underlayMTU of the PodTapPolicy",
            named(&nodes)
        ),
    ))
}

/// Whether a node has found out that it reaches a destination by TCP.
fn reaches(plan: &TapPlan<'_>, index: usize, node: &str, inputs: StatusInputs<'_>) -> bool {
    let endpoint = plan.destinations.get(index).and_then(|destination| destination.endpoint);
    let (Some(endpoint), Some(node_tap)) = (endpoint, inputs.applied.node_taps.get(node)) else { return false };
    node_tap.status.reachable_addresses.contains(&endpoint.ip())
}

/// The first destination that lacks probes of a kind, and the nodes whose pods they are of.
fn first<'a>(
    silent: &[(&'a CachedPod, Heard)],
    kind: impl Fn(&Heard) -> Option<usize>,
) -> Option<(usize, BTreeSet<&'a str>)> {
    let index = silent.iter().filter_map(|(_, heard)| kind(heard)).min()?;
    let here = silent.iter().filter(|(_, heard)| kind(heard) == Some(index));
    Some((index, here.filter_map(|(pod, _)| pod.node.as_deref()).collect()))
}

fn named(nodes: &BTreeSet<&str>) -> String {
    let named: Vec<&str> = nodes.iter().take(MAX_NODES).copied().collect();
    let more = match nodes.len().saturating_sub(MAX_NODES) {
        0 => String::new(),
        more => format!(" and {}", count(more, "other node", "other nodes")),
    };
    let kind = if nodes.len() == 1 { "node" } else { "nodes" };
    format!("{kind} {}{more}", named.join(", "))
}

/// A receiver, and its UDP port.
fn place(plan: &TapPlan<'_>, index: usize) -> (String, u16) {
    let Some(destination) = plan.destinations.get(index) else { return (String::new(), 0) };
    let node = destination.resolved.as_ref().and_then(|resolved| resolved.node()).unwrap_or_default();
    let named = if plan.destinations.len() > 1 {
        format!("destination {}: node {node}", destination.name)
    } else {
        format!("node {node}")
    };
    (named, destination.endpoint.map_or(0, |endpoint| endpoint.port()))
}
