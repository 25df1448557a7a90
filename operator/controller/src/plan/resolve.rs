//! Resolves each tap against the cluster: its targets, destinations and VNIs, and whether it can be carried out.

use std::net::SocketAddr;

use podtap_model::{FrameFormat, Reason, Vni};

use crate::{
    failure::Failure,
    names,
    plan::{
        destinations::{self, Family, Resolution},
        interface_names, limits, mirroring_loops, node_budget,
        pod_index::PodIndex,
        tap_plan::{MetadataUse, PlannedDestination, TapPlan},
        targets,
        vni::{self, Refusal, Vnis},
    },
    store::snapshot::Snapshot,
    validate::{
        options::TapOptions,
        policy::Policy,
        spec::{DestinationKind, RequestedDestination, TapSpec},
        state::TapState,
        tap::{Tap, Validated},
    },
};

/// Resolves all taps, oldest first. `previous` are the VNIs of the last reconcile of this leader.
pub fn resolve<'a>(snapshot: &Snapshot, validated: &'a Validated, previous: &Vnis) -> (Vec<TapPlan<'a>>, Vnis) {
    let policy = &validated.policy;
    let pods = PodIndex::new(snapshot, &validated.taps);
    let plan = |tap: &'a Tap| match (&tap.state, &tap.spec) {
        (TapState::Active, Ok(spec)) => resolve_tap(snapshot, &pods, policy, tap, spec),
        (_, Ok(spec)) => TapPlan::unresolved(tap, spec.destinations.iter().map(unresolved).collect()),
        (_, Err(_)) => TapPlan::unresolved(tap, Vec::new()),
    };
    let mut taps: Vec<TapPlan<'a>> = validated.taps.iter().map(plan).collect();
    let vnis = assign_vnis(&mut taps, snapshot, policy, previous);
    mirroring_loops::refuse(&mut taps);
    interface_names::resolve_conflicts(&mut taps);
    limits::taps_per_pod(&mut taps, policy);
    node_budget::refuse(&mut taps, snapshot, policy);
    (taps, vnis)
}

/// The plan of one tap without VNIs.
fn resolve_tap<'a>(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &'a Tap,
    spec: &TapSpec,
) -> TapPlan<'a> {
    let destinations = planned_destinations(snapshot, pods, policy, tap, spec);
    let consumers = destinations.iter().filter_map(|destination| destination.resolved.as_ref()?.pod());
    let consumers = consumers.map(|pod| &*pod.uid).collect();
    let targets = targets::resolve(snapshot, pods, policy, tap, spec, &consumers);
    let TapOptions { options, program, .. } = spec.options.clone();
    TapPlan { tap, state: tap.state.clone(), targets, destinations, vni: None, options, program }
}

fn assign_vnis(taps: &mut [TapPlan<'_>], snapshot: &Snapshot, policy: &Policy, previous: &Vnis) -> Vnis {
    let active = taps.iter().filter(|plan| plan.state == TapState::Active);
    let active: Vec<_> = active.filter_map(|plan| Some((plan.tap, plan.tap.spec.as_ref().ok()?))).collect();
    let vnis = vni::allocate(previous, &active, snapshot, &policy.vni_range);
    for plan in taps {
        let uid = &plan.tap.reference.uid;
        if let Some(refusal) = vnis.refusals.get(uid) {
            plan.state = TapState::Refused(vni_failure(*refusal));
        }
        let (Some(assigned), Ok(spec)) = (vnis.assigned.get(uid), &plan.tap.spec) else { continue };
        plan.vni = Some(assigned.tap);
        for (destination, requested) in plan.destinations.iter_mut().zip(&spec.destinations) {
            let vni = if requested.is_external() {
                Some(assigned.tap)
            } else {
                assigned.receivers.get(&requested.name).copied()
            };
            *destination = with_vni(destination.clone(), requested, vni);
        }
    }
    vnis
}

fn planned_destinations(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &Tap,
    spec: &TapSpec,
) -> Vec<PlannedDestination> {
    let resolve = |requested| destinations::resolve(snapshot, pods, policy, tap, requested);
    let resolutions: Vec<_> = spec.destinations.iter().map(resolve).collect();
    let resolved: Vec<_> = resolutions.iter().filter_map(|resolution| resolution.resolved.as_ref()).collect();
    let family = destinations::common_family(&resolved);
    let plan = |(resolution, requested): (Resolution, &RequestedDestination)| {
        planned_destination(resolution, requested, family)
    };
    resolutions.into_iter().zip(&spec.destinations).map(plan).collect()
}

/// A destination that has not been looked up.
fn unresolved(requested: &RequestedDestination) -> PlannedDestination {
    let (interface, frame_format) = match &requested.kind {
        DestinationKind::Node { interface, frame_format, .. }
        | DestinationKind::Pod { interface, frame_format, .. } => (interface.clone(), *frame_format),
        DestinationKind::External { .. } => (None, FrameFormat::Wire),
        // Its counts need neither segments of the right size nor checksums; sensors do: see `planned_destination`.
        DestinationKind::Collector => (None, FrameFormat::Raw),
    };
    PlannedDestination {
        name: requested.name.clone(),
        text: destinations::printable(&requested.kind, None, interface.as_ref()),
        interface,
        frame_format,
        is_probed: !matches!(requested.kind, DestinationKind::External { probe: false, .. }),
        metadata: match requested.kind {
            DestinationKind::Collector
            | DestinationKind::Pod { packet_socket: true, .. }
            | DestinationKind::External { metadata: true, .. } => MetadataUse::Wanted,
            DestinationKind::External { metadata: false, .. } => MetadataUse::Refused,
            DestinationKind::Node { .. } | DestinationKind::Pod { packet_socket: false, .. } => MetadataUse::Dropped,
        },
        packet_socket: matches!(requested.kind, DestinationKind::Pod { packet_socket: true, .. }),
        vni: None,
        resolved: None,
        endpoint: None,
        failure: None,
    }
}

fn planned_destination(
    Resolution { resolved, mut failure }: Resolution,
    requested: &RequestedDestination,
    family: Option<Family>,
) -> PlannedDestination {
    let unresolved = unresolved(requested);
    let in_family = |address: &&_| Some(Family::of(**address)) == family;
    let address = resolved.as_ref().and_then(|resolved| resolved.addresses().iter().find(in_family));
    let endpoint = resolved.as_ref().zip(address).map(|(resolved, ip)| SocketAddr::new(*ip, resolved.port()));
    if resolved.is_some() && endpoint.is_none() {
        failure = Some(Failure::new(
            Reason::AddressFamilyMismatch,
            "the destinations of this tap have no address family in common, and the mirrored frames of a tap are sent either over IPv4 or over IPv6: create one tap for each family",
        ));
    }
    let pod = resolved.as_ref().and_then(|resolved| resolved.pod());
    let text = destinations::printable(&requested.kind, pod, unresolved.interface.as_ref());
    let to_sensors = requested.is_collector() && pod.is_some_and(|pod| pod.has_sensors);
    let frame_format = if to_sensors { FrameFormat::Wire } else { unresolved.frame_format };
    PlannedDestination { text, frame_format, resolved, endpoint, failure, ..unresolved }
}

/// The destination with its VNI, from which its interface is named unless the spec names it.
fn with_vni(destination: PlannedDestination, requested: &RequestedDestination, vni: Option<Vni>) -> PlannedDestination {
    let named = vni.filter(|_| !requested.is_external()).map(names::interface);
    let interface = destination.interface.or(named);
    let pod = destination.resolved.as_ref().and_then(|resolved| resolved.pod());
    let text = destinations::printable(&requested.kind, pod, interface.as_ref());
    PlannedDestination { text, interface, vni, ..destination }
}

fn vni_failure(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::InUse(vni) => Failure::new(
            Reason::VniInUse,
            format!(
                "the VXLAN network identifier {vni} is in use: this tap waits until it is free; leave out vxlan.vni to have a free one allocated"
            ),
        ),
        Refusal::NotAllowed(vni) => Failure::new(
            Reason::NotAllowedByPolicy,
            format!(
                "the VXLAN network identifier {vni} is outside of spec.vniRange of the PodTapPolicy default: choose another one, or leave out vxlan.vni to have a free one allocated"
            ),
        ),
        Refusal::Exhausted => Failure::new(
            Reason::VniExhausted,
            "all VXLAN network identifiers of spec.vniRange of the PodTapPolicy default are taken: ask the cluster's administrator to widen it, or delete a tap",
        ),
    }
}
