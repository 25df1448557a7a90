//! Which requested resources contradict themselves, each other, or a limit. Pure, and done before anything is changed.
//!
//! The types of [`podtap_model`] bound single values: decoding refuses what violates them.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use podtap_model::{DesiredSender, DesiredState, Endpoint, Pod, Reason, Receiver, bounds};

use crate::{
    failure::Failure,
    names::{SENDER_PORT, SENDER_VNIS},
    resource::SenderKey,
    settings,
};

/// Why a sender is refused because of the request itself. `is_local` tells whether an address is one of the node.
pub fn sender(
    sender: &DesiredSender,
    desired: &DesiredState,
    is_local: impl Fn(IpAddr) -> bool,
) -> Result<(), Failure> {
    let tap = &sender.tap;
    let count = tap.destinations.len();
    if !bounds::DESTINATIONS.contains(&count) {
        let (min, max) = RangeInclusive::into_inner(bounds::DESTINATIONS);
        return Err(invalid(format!("The tap has {count} destinations; {min} to {max} are allowed.")));
    }
    for destination in &tap.destinations {
        if destination.port == 0 {
            return Err(invalid(format!("The destination {} has no UDP port.", destination.address)));
        }
        if destination.address.is_unspecified() || destination.address.is_multicast() {
            return Err(invalid(format!("{} is not the address of one host.", destination.address)));
        }
        if destination.address.is_ipv6() != tap.destinations[0].address.is_ipv6() {
            return Err(invalid(
                "The destinations mix IPv4 and IPv6, but a VXLAN device has one address family: use one of them."
                    .to_owned(),
            ));
        }
    }
    let is_receiver = |to: &Endpoint| {
        desired.receivers.iter().any(|r| (r.port, r.vni, r.ipv6) == (to.port, to.vni, to.address.is_ipv6()))
    };
    if let Some(to) = tap.destinations.iter().find(|to| is_local(to.address) && !is_receiver(to)) {
        return Err(Failure::refused(
            Reason::ClusterAddress,
            format!(
                "{} is an address of this node, where PodTap has no receiver for the tap: the node would route or answer the mirrored frames as if they were sent to it. Use a node destination.",
                to.address
            ),
        ));
    }
    tap.options.check().map_err(|error| invalid(format!("The mirror options are invalid: {error}.")))?;
    settings::check(sender).map_err(|error| invalid(format!("The mirror options exceed a limit: {error}.")))?;
    if desired.senders.iter().filter(|other| SenderKey::of(other) == SenderKey::of(sender)).count() > 1 {
        return Err(invalid("The same pod is requested twice under the same tap.".to_owned()));
    }
    let is_consumer = |receiver: &&Receiver| {
        receiver.tap.uid == tap.uid && receiver.pod.as_ref().is_some_and(|pod| pod.uid == sender.pod.uid)
    };
    if desired.receivers.iter().any(|receiver| is_consumer(&receiver)) {
        return Err(invalid(
            "The pod receives the mirrored frames of this tap: tapping it would mirror them again. Exclude it from the targets."
                .to_owned(),
        ));
    }
    Ok(())
}

/// Why a receiver is refused because of the request itself.
pub fn receiver(receiver: &Receiver, desired: &DesiredState) -> Result<(), Failure> {
    if receiver.port == 0 {
        return Err(invalid("The receiver has no UDP port.".to_owned()));
    }
    if receiver.port == SENDER_PORT && SENDER_VNIS.contains(&receiver.vni.get()) {
        return Err(invalid(format!(
            "VNI {} on UDP port {SENDER_PORT} is reserved for PodTap's sender devices: choose another one.",
            receiver.vni
        )));
    }
    if desired.receivers.iter().filter(|other| other.vni == receiver.vni).count() > 1 {
        return Err(invalid(format!(
            "Two receivers of this node have VNI {}: choose another one for one of them.",
            receiver.vni
        )));
    }
    Ok(())
}

/// The pods of senders and receivers, by UID.
///
/// If two entries describe one pod differently, the one with addresses wins: it is newer.
#[must_use]
pub fn pods(desired: &DesiredState) -> BTreeMap<String, Pod> {
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    let receivers = desired.receivers.iter().filter_map(|receiver| receiver.pod.as_ref());
    for pod in desired.senders.iter().map(|sender| &sender.pod).chain(receivers) {
        let known = pods.entry(pod.uid.to_string()).or_insert_with(|| pod.clone());
        if known.addresses.is_empty() {
            *known = pod.clone();
        }
    }
    pods
}

fn invalid(message: String) -> Failure {
    Failure::refused(Reason::InvalidSpec, message)
}
