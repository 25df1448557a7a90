//! Resolves each tap against the cluster: its targets, destinations and VNIs, and whether it can be carried out.

use std::net::SocketAddr;

use podtap_model::{FrameFormat, InterfaceName, Reason, Vni};

use crate::{
    failure::Failure,
    names,
    plan::{
        destinations::{self, Family, Resolution},
        expiry::{OnNodes, is_expired},
        interface_names, limits, mirroring_loops, node_budget,
        pod_index::PodIndex,
        tap_plan::{PlannedDestination, SuspendedBy, TapPlan, TapState},
        targets,
        vni::{Refusal, Vnis},
    },
    store::snapshot::Snapshot,
    validate::{
        options::TapOptions,
        policy::Policy,
        spec::{DestinationKind, RequestedDestination, TapSpec},
        tap::{Tap, Validated},
    },
};

/// Resolves all taps, oldest first. Only recorded VNIs are used.
pub fn resolve<'a>(snapshot: &Snapshot, validated: &'a Validated, vnis: &Vnis) -> Vec<TapPlan<'a>> {
    let policy = &validated.policy;
    let on_nodes = OnNodes::of(snapshot);
    let pods = PodIndex::new(snapshot, &validated.taps);
    let plan = |tap: &'a Tap| match &tap.spec {
        Ok(spec) => resolve_tap(snapshot, &pods, policy, tap, spec, vnis, &on_nodes),
        Err(failure) => TapPlan::refused(tap, failure.clone()),
    };
    let mut taps: Vec<TapPlan<'a>> = validated.taps.iter().map(plan).collect();
    limits::taps_per_namespace(&mut taps, policy);
    mirroring_loops::refuse(&mut taps);
    interface_names::resolve_conflicts(&mut taps);
    limits::taps_per_pod(&mut taps, policy);
    node_budget::refuse(&mut taps);
    taps
}

fn resolve_tap<'a>(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &'a Tap,
    spec: &TapSpec,
    vnis: &Vnis,
    on_nodes: &OnNodes<'_>,
) -> TapPlan<'a> {
    let vni = vnis.of_tap(tap, spec, &policy.vni_range);
    let destinations = planned_destinations(snapshot, pods, policy, tap, spec, vnis);
    let consumers = destinations.iter().filter_map(|destination| destination.resolved.as_ref()?.pod());
    let consumers = consumers.map(|pod| &*pod.uid).collect();
    let targets = targets::resolve(snapshot, pods, policy, tap, spec, &consumers);
    let state = if is_expired(tap, spec, snapshot.now) {
        TapState::Expired
    } else if policy.suspend_all {
        TapState::Suspended(SuspendedBy::Policy)
    } else if spec.suspend {
        TapState::Suspended(SuspendedBy::Tap)
    } else if let Some(refusal) = vnis.refusals.get(&tap.reference.uid) {
        TapState::Refused(vni_failure(snapshot, refusal))
    } else if vni.is_none() || destinations.iter().any(|destination| destination.vni.is_none()) {
        TapState::Refused(Failure::new(
            Reason::Pending,
            "the VXLAN network identifier is being recorded: no action needed",
        ))
    } else {
        TapState::Active
    };
    let TapOptions { options, program, .. } = spec.options.clone();
    let (start, expiration) = (on_nodes.start(tap), on_nodes.expiration(tap, spec));
    TapPlan { tap, state, targets, destinations, vni, options, program, start, expiration }
}

fn planned_destinations(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &Tap,
    spec: &TapSpec,
    vnis: &Vnis,
) -> Vec<PlannedDestination> {
    let resolve = |requested| destinations::resolve(snapshot, pods, policy, tap, requested);
    let resolutions: Vec<_> = spec.destinations.iter().map(resolve).collect();
    let resolved: Vec<_> = resolutions.iter().filter_map(|resolution| resolution.resolved.as_ref()).collect();
    let family = destinations::common_family(&resolved);
    let plan = |(resolution, requested): (Resolution, &RequestedDestination)| {
        let vni = vnis.of_destination(tap, spec, requested, &policy.vni_range);
        planned_destination(resolution, requested, vni, family)
    };
    resolutions.into_iter().zip(&spec.destinations).map(plan).collect()
}

fn planned_destination(
    Resolution { resolved, mut failure }: Resolution,
    requested: &RequestedDestination,
    vni: Option<Vni>,
    family: Option<Family>,
) -> PlannedDestination {
    let (interface, frame_format) = match &requested.kind {
        DestinationKind::Node { interface, frame_format, .. }
        | DestinationKind::Pod { interface, frame_format, .. } => {
            (interface_name(interface.as_ref(), vni), *frame_format)
        }
        DestinationKind::External { .. } => (None, FrameFormat::Wire),
    };
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
    PlannedDestination {
        name: requested.name.clone(),
        text: destinations::printable(&requested.kind, pod, interface.as_ref()),
        interface,
        frame_format,
        vni,
        resolved,
        endpoint,
        failure,
    }
}

fn interface_name(requested: Option<&InterfaceName>, vni: Option<Vni>) -> Option<InterfaceName> {
    requested.cloned().or_else(|| vni.map(names::interface))
}

fn vni_failure(snapshot: &Snapshot, refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::InUse { vni, holder } => {
            let tap = snapshot.taps.iter().map(|entry| &entry.object).find(|tap| *tap.uid == **holder);
            let holder = tap.map_or_else(
                || "a deleted tap that a node has not removed yet".to_owned(),
                |tap| format!("the PodTap {}/{}", tap.namespace, tap.name),
            );
            Failure::new(
                Reason::VniInUse,
                format!(
                    "the VXLAN network identifier {vni} belongs to {holder}: this tap waits until it is free; leave out vxlan.vni to have a free one allocated"
                ),
            )
        }
        Refusal::NotAllowed { vni } => Failure::new(
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
