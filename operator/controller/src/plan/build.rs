//! Stage 4: what every node is to hold, and what that means for each tap. Pure.
//!
//! # Guarantees
//! - The result depends on the snapshot only, not on the order in which objects were learned.
//! - Every pod that is to be tapped has exactly one sender per tap, on the node that it is bound to.
//! - No node gets two receivers of one VNI, nor two of one name in one network namespace.
//! - Nothing of a refused, suspended or expired tap is on any node.

mod node_specs;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{NodeTapSpec, NodeTapTreatment};

use crate::{failure::Failure, names, plan::{destinations::{self, Family}, limits, mirroring_loops, targets::{self, Targets}, vni::{self, Allocation, Claim, Claims, Refusal}}, reason, store::{objects::CachedPod, snapshot::Snapshot}, validate::tap::{Policy, Spec, Tap, Validated, RequestedDestination}};

/// How a tap stands.
#[derive(Clone, Debug, PartialEq)]
pub enum TapState {
    /// Carried out, as far as its targets and destinations allow.
    Active,
    /// Its user has suspended it.
    Suspended,
    /// Its time is over.
    Expired,
    /// Not carried out at all.
    Refused(Failure),
}

/// One destination of a tap.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// For printing.
    pub text: String,
    /// Empty for an external endpoint, and while it is not known.
    pub node: String,
    pub pod: Option<Arc<CachedPod>>,
    /// Empty for an external endpoint, and while it is not known.
    pub interface: String,
    /// Whether the interface shows frames as the kernel has them.
    pub raw: bool,
    /// Set as soon as copies can be sent there.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub vni: Option<i64>,
    pub failure: Option<Failure>,
}

/// What the plan means for one tap.
#[derive(Clone, Debug)]
pub struct TapPlan<'a> {
    pub tap: &'a Tap,
    pub standing: TapState,
    pub targets: Targets,
    /// In the order of the spec.
    pub destinations: Vec<Destination>,
    pub vni: Option<i64>,
    /// What becomes of its frames, if not all are copied as they are.
    pub options: Option<NodeTapTreatment>,
    /// What of that cannot be done anywhere.
    pub shortfall: Option<Failure>,
}

impl TapPlan<'_> {
    /// Whether any node has to do something for it.
    pub fn is_executed(&self) -> bool {
        self.standing == TapState::Active && self.destinations.iter().any(|d| d.address.is_some())
    }
}

/// The result of this stage.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Nodes that have something to do, and what.
    pub nodes: BTreeMap<String, NodeTapSpec>,
    /// Oldest tap first.
    pub taps_: Vec<TapPlan<'a>>,
}

impl Plan<'_> {
    /// Takes out taps, given by their UIDs, of which nodes must not learn yet.
    pub fn exclude(&mut self, taps: &BTreeSet<String>) {
        for spec in self.nodes.values_mut() {
            spec.senders.retain(|sender| !taps.contains(&sender.tap.uid));
            spec.receivers.retain(|receiver| !taps.contains(&receiver.tap.uid));
            spec.treatments.retain(|options| !taps.contains(&options.tap_uid));
        }
        self.nodes.retain(|_, spec| !spec.senders.is_empty() || !spec.receivers.is_empty());
        for tap in self.taps_.iter_mut().filter(|tap| taps.contains(&tap.tap.reference.uid)) {
            tap.standing = TapState::Refused(Failure::new(
                reason::WAITING,
                format!(
                    "the API server does not take the finalizer {}, without which nothing would be cleaned up in the end: tried again by itself, and the controller's log says why",
                    podtap_api::FINALIZER
                ),
            ));
        }
    }
}

/// When a tap that started at `start` ends.
pub fn end(start: Timestamp, duration_seconds: i64) -> Timestamp {
    // A duration beyond the end of time is one without an end.
    start.checked_add(SignedDuration::from_secs(duration_seconds)).unwrap_or(Timestamp::MAX)
}

/// Whether its time is over.
pub fn is_expired(tap: &Tap, spec: &Spec, now: Timestamp) -> bool {
    let start = tap.status.start_time.as_ref().map(|time| time.0);
    start.zip(spec.duration_seconds).is_some_and(|(start, duration)| end(start, duration) <= now)
}

/// Makes the plan. `recorded` are the claims that are written down; only those are used.
pub fn build<'a>(
    snapshot: &Snapshot,
    validated: &'a Validated,
    allocation: &Allocation,
    recorded: &Claims,
) -> Plan<'a> {
    let policy = &validated.policy;
    let mut taps_: Vec<TapPlan<'a>> =
        validated.taps.iter().map(|tap| tap(snapshot, policy, tap, allocation, recorded)).collect();
    limits::taps_per_namespace(&mut taps_, policy);
    refuse_mirroring_loops(&mut taps_);
    settle_interface_names(&mut taps_);
    limits::taps_per_pod(&mut taps_, policy);
    Plan { nodes: node_specs::node_specs(&taps_, policy.underlay_mtu), taps_ }
}

fn tap<'a>(
    snapshot: &Snapshot,
    policy: &Policy,
    tap: &'a Tap,
    allocation: &Allocation,
    recorded: &Claims,
) -> TapPlan<'a> {
    let spec = match &tap.spec {
        Ok(spec) => spec,
        Err(failure) => {
            return TapPlan {
                tap,
                standing: TapState::Refused(failure.clone()),
                targets: Targets::default(),
                destinations: Vec::new(),
                vni: None,
                options: None,
                shortfall: None,
            };
        }
    };
    let claim = Claim { tap: tap.reference.uid.clone(), slot: 0 };
    let suits = |vni| policy.vni_range.contains(vni) && spec.vni.is_none_or(|wish| wish == vni);
    let vni = vni::find(recorded, &claim, tap.status.vni, suits);
    let destinations = destinations(snapshot, policy, tap, spec, recorded, vni);
    let consumers = destinations.iter().filter_map(|d| d.pod.as_ref()).map(|pod| pod.uid.as_str()).collect();
    let targets = targets::resolve(snapshot, policy, tap, spec, &consumers);
    let standing = if is_expired(tap, spec, snapshot.now) {
        TapState::Expired
    } else if spec.suspend {
        TapState::Suspended
    } else if let Some(refusal) = allocation.refusals.get(&tap.reference.uid) {
        TapState::Refused(vni_failure(snapshot, refusal))
    } else if vni.is_none() || destinations.iter().any(|d| d.vni.is_none()) {
        TapState::Refused(Failure::new(
            reason::WAITING,
            "the VXLAN network identifier is being recorded: goes on by itself",
        ))
    } else {
        TapState::Active
    };
    let (options, shortfall) = spec.options.for_nodes(&tap.reference.uid, snapshot);
    TapPlan { tap, standing, targets, destinations, vni, options, shortfall }
}

fn destinations(
    snapshot: &Snapshot,
    policy: &Policy,
    tap: &Tap,
    spec: &Spec,
    recorded: &Claims,
    primary: Option<i64>,
) -> Vec<Destination> {
    let wanted = || spec.destinations.iter().enumerate();
    let resolved: Vec<_> =
        wanted().map(|(index, wanted)| destinations::resolve(snapshot, policy, tap, index, wanted)).collect();
    let places: Vec<_> = resolved.iter().filter_map(|resolved| resolved.place.as_ref()).collect();
    let family = destinations::common_family(&places);
    let slots = vni::slots(&spec.destinations);
    resolved
        .into_iter()
        .zip(wanted())
        .map(|(resolved, (index, wanted))| {
            let slot = slots.get(index).copied().unwrap_or_default();
            let claim = Claim { tap: tap.reference.uid.clone(), slot };
            let shown = tap.status.destinations.get(index).and_then(|shown| shown.vni);
            let suits = |vni| policy.vni_range.contains(vni);
            let vni = if slot == 0 { primary } else { vni::find(recorded, &claim, shown, suits) };
            destination(resolved, wanted, vni, family)
        })
        .collect()
}

fn destination(
    resolved: destinations::Resolved,
    wanted: &RequestedDestination,
    vni: Option<i64>,
    family: Option<Family>,
) -> Destination {
    let destinations::Resolved { place, mut failure } = resolved;
    let interface = match wanted {
        RequestedDestination::Node { interface, .. } | RequestedDestination::Pod { interface, .. } if interface.is_empty() => {
            vni.map(names::interface).unwrap_or_default()
        }
        RequestedDestination::Node { interface, .. } | RequestedDestination::Pod { interface, .. } => interface.clone(),
        RequestedDestination::External { .. } => String::new(),
    };
    let address = place
        .as_ref()
        .and_then(|place| place.addresses.iter().copied().find(|address| Some(Family::of(*address)) == family));
    if place.is_some() && address.is_none() {
        failure = Some(Failure::new(
            reason::ADDRESS_FAMILY_MISMATCH,
            "the destinations of this tap have no address family in common, and the copies of a tap are all IPv4 or all IPv6: make one tap for each family",
        ));
    }
    let (node, pod, port) = match place {
        Some(place) => (place.node.unwrap_or_default(), place.pod, place.port),
        None => (String::new(), None, 0),
    };
    Destination {
        text: destinations::printable(wanted, pod.as_deref(), &interface),
        raw: matches!(wanted, RequestedDestination::Node { raw: true, .. } | RequestedDestination::Pod { raw: true, .. }),
        node,
        pod,
        interface,
        address,
        port,
        vni,
        failure,
    }
}

fn vni_failure(snapshot: &Snapshot, refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::InUse { vni, holder } => {
            let tap = snapshot.taps.iter().map(|entry| &entry.fact).find(|tap| tap.uid == *holder);
            let holder = tap.map_or_else(
                || "a tap that was deleted, and that a node still holds".to_owned(),
                |tap| format!("the PodTap {}/{}", tap.namespace, tap.name),
            );
            Failure::new(
                reason::VNI_IN_USE,
                format!(
                    "the VXLAN network identifier {vni} belongs to {holder}: waits until it is free; leave out vxlan.vni to have a free one allocated"
                ),
            )
        }
        Refusal::NotAllowed { vni } => Failure::new(
            reason::VNI_NOT_ALLOWED,
            format!(
                "the VXLAN network identifier {vni} is outside of spec.vniRange of the PodTapPolicy default: choose another one, or leave out vxlan.vni to have a free one allocated"
            ),
        ),
        Refusal::Exhausted => Failure::new(
            reason::VNI_EXHAUSTED,
            "all VXLAN network identifiers of spec.vniRange of the PodTapPolicy default are taken: ask the cluster's administrator to widen it, or delete a tap",
        ),
    }
}

fn refuse_mirroring_loops(taps_: &mut [TapPlan<'_>]) {
    let edge = |tap: &TapPlan<'_>| -> (Vec<String>, Vec<String>) {
        if !tap.is_executed() {
            return (Vec::new(), Vec::new());
        }
        let consumers = tap.destinations.iter().filter(|d| d.address.is_some()).filter_map(|d| d.pod.as_ref());
        let consumers: Vec<String> = consumers.map(|pod| pod.uid.clone()).collect();
        // Without a consumer it is no edge: its targets need not be looked at.
        let targets = if consumers.is_empty() {
            Vec::new()
        } else {
            tap.targets.tapped().map(|pod| pod.uid.clone()).collect()
        };
        (targets, consumers)
    };
    let owned: Vec<_> = taps_.iter().map(edge).collect();
    let edges: Vec<cycles::Edge<'_>> = owned
        .iter()
        .map(|(targets, consumers)| cycles::Edge {
            targets: targets.iter().map(String::as_str).collect(),
            consumers: consumers.iter().map(String::as_str).collect(),
        })
        .collect();
    for index in cycles::closing(&edges) {
        taps_[index].standing = TapState::Refused(Failure::new(
            reason::MIRRORING_LOOP,
            "a destination of this tap is tapped, by older taps, into one of this tap's targets: the copies would go around in a circle. Choose another destination, or other targets",
        ));
    }
}

/// Of two receivers of one name in one place, the older tap's wins.
fn settle_interface_names(taps_: &mut [TapPlan<'_>]) {
    let mut taken: BTreeMap<(String, Option<String>, String), String> = BTreeMap::new();
    for tap in taps_.iter_mut().filter(|tap| tap.is_executed()) {
        let tap = format!("{}/{}", tap.tap.reference.namespace, tap.tap.reference.name);
        for destination in tap.destinations.iter_mut().filter(|d| d.address.is_some() && !d.interface.is_empty()) {
            let pod = destination.pod.as_ref().map(|pod| pod.uid.clone());
            let place = (destination.node.clone(), pod, destination.interface.clone());
            match taken.get(&place) {
                None => drop(taken.insert(place, tap.clone())),
                Some(holder) => {
                    destination.address = None;
                    destination.failure = Some(Failure::new(
                        reason::INTERFACE_NAME_IN_USE,
                        format!(
                            "the PodTap {holder} has an interface {} there: choose another interfaceName, or leave it out to have one made from the VNI",
                            destination.interface
                        ),
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
