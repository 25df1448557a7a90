//! Whether what is mirrored arrives, by the probes that the receivers get. Pure.
//!
//! Each sender sends a probe per second. A node reports of which pods its receivers get probes, and that those of a pod are missing only
//! after several are. So probes that stop are a failure at once; the first ones of a pod have [`GRACE`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_DELIVERING, PodTapStatus};
use podtap_model::{Reason, Uid, bounds::MAX_PODS_WITH_PROBES};

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

/// Whether the probes of a pod arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// At every receiver.
    Received,
    /// A receiver is not in place. Or its mirror runs on, but the helper pod of its node, which sends the probes, is not Ready.
    Unknown,
    /// The receiver of this destination gets none.
    Missing(usize),
    /// The receiver of this destination gets the small ones only.
    FullSizeMissing(usize),
}

/// Whether the probes of a tapped pod arrive.
pub fn probes(plan: &TapPlan<'_>, pod: &CachedPod, inputs: StatusInputs<'_>) -> Probes {
    let probes = at_receivers(plan, pod, inputs);
    let helpers = pod.node.iter().flat_map(|node| inputs.snapshot.helpers_of(node));
    let sends = helpers.into_iter().any(|helper| helper.ready && !helper.terminating);
    if probes == Probes::Received || sends { probes } else { Probes::Unknown }
}

fn at_receivers(plan: &TapPlan<'_>, pod: &CachedPod, inputs: StatusInputs<'_>) -> Probes {
    let (mut full_size_missing, mut without_receiver) = (None, false);
    for (index, destination) in plan.destinations.iter().enumerate() {
        let node = destination.resolved.as_ref().and_then(|resolved| resolved.node());
        let Some((node, vni)) = node.zip(destination.vni) else { continue };
        let Some(receiver) = inputs.reports.active_receiver(node, &plan.tap.reference.uid, vni.get()) else {
            without_receiver = true;
            continue;
        };
        let has = |pods: &[String]| pods.binary_search_by(|uid| uid.as_str().cmp(&pod.uid)).is_ok();
        if !has(&receiver.pods_with_probes) {
            // A report that is full does not tell of the others.
            let is_full = receiver.pods_with_probes.len() >= MAX_PODS_WITH_PROBES;
            return if is_full { Probes::Unknown } else { Probes::Missing(index) };
        }
        if has(&receiver.pods_without_full_size_probes) {
            full_size_missing.get_or_insert(index);
        }
    }
    let otherwise = if without_receiver { Probes::Unknown } else { Probes::Received };
    full_size_missing.map_or(otherwise, Probes::FullSizeMissing)
}

/// The pods of one tap whose probes are missing, and since when the controller has known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MissingProbes {
    /// Pods whose probes arrived at every receiver last time.
    delivered: BTreeSet<Uid>,
    /// Pods whose probes are missing, and since when that counts.
    since: BTreeMap<Uid, Timestamp>,
}

impl MissingProbes {
    /// What is missing now. What was missing before keeps its time.
    ///
    /// A new leader does not know these times, and must not change what its predecessor has reported.
    pub fn observe(&self, status: &PodTapStatus, probes: &[(&CachedPod, Probes)], now: Timestamp) -> Self {
        let own = status.conditions.iter().find(|condition| condition.type_ == CONDITION_DELIVERING);
        let reasons = [Reason::NoProbeFromNode, Reason::PortBlocked, Reason::PathMtu].map(Reason::as_str);
        let has_failed = own.is_some_and(|c| c.status == "False" && reasons.contains(&&*c.reason));
        let mut next = Self::default();
        for (pod, probes) in probes {
            match probes {
                Probes::Received => {
                    next.delivered.insert(pod.uid.clone());
                }
                Probes::Unknown => {}
                Probes::Missing(_) | Probes::FullSizeMissing(_) => {
                    let is_new = !self.delivered.contains(&pod.uid) && !has_failed;
                    let first = if is_new { now } else { now - GRACE };
                    // Without the filter, a clock that was set back would prolong the time.
                    let known = self.since.get(&pod.uid).copied().filter(|since| *since <= now);
                    next.since.insert(pod.uid.clone(), known.unwrap_or(first));
                }
            }
        }
        next
    }

    /// Whether probes of the pod are missing.
    pub fn contains(&self, pod: &CachedPod) -> bool {
        self.since.contains_key(&pod.uid)
    }

    /// Whether it is a failure that probes of the pod are missing.
    pub fn is_late(&self, pod: &CachedPod, now: Timestamp) -> bool {
        self.since.get(&pod.uid).is_some_and(|since| now.duration_since(*since) >= GRACE)
    }

    /// When that becomes a failure for the next pod.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.since.values().map(|since| *since + GRACE).filter(|moment| *moment > now).min()
    }
}

/// What is wrong with the delivery, if the probes of these pods are missing.
pub fn failure(plan: &TapPlan<'_>, missing: &[(&CachedPod, Probes)], inputs: StatusInputs<'_>) -> Option<Failure> {
    let all = |probes: &Probes| match probes {
        Probes::Missing(index) => Some(*index),
        _ => None,
    };
    let full_size = |probes: &Probes| match probes {
        Probes::FullSizeMissing(index) => Some(*index),
        _ => None,
    };
    if let Some((index, nodes)) = first(missing, all) {
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
    let (index, nodes) = first(missing, full_size)?;
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
    missing: &[(&'a CachedPod, Probes)],
    kind: impl Fn(&Probes) -> Option<usize>,
) -> Option<(usize, BTreeSet<&'a str>)> {
    let index = missing.iter().filter_map(|(_, probes)| kind(probes)).min()?;
    let here = missing.iter().filter(|(_, probes)| kind(probes) == Some(index));
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
