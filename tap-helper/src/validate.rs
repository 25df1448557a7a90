//! Which requested resources contradict themselves, each other, or a limit. Pure, and done before anything is changed.
//!
//! The types of [`podtap_model`] bound single values: decoding refuses what violates them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use podtap_model::{DesiredSender, DesiredState, Endpoint, Pod, Reason, Receiver, Vni, bounds};

use crate::{
    failure::Failure,
    names::{SENDER_PORT, SENDER_VNIS},
    resource::{Resource, SenderKey},
    settings,
};

/// The resources that are refused because of the request itself, and why. `is_local` tells whether an address is one of the node.
pub fn refused(desired: &DesiredState, is_local: impl Fn(IpAddr) -> bool) -> BTreeMap<Resource, Failure> {
    let others = Others::of(desired);
    let senders = desired.senders.iter().map(|one| (Resource::sender(one), sender(one, &others, &is_local)));
    let receivers = desired.receivers.iter().map(|one| (Resource::receiver(one), receiver(one, &others)));
    senders.chain(receivers).filter_map(|(resource, result)| Some((resource, result.err()?))).collect()
}

/// What a resource may contradict.
#[derive(Default)]
struct Others {
    /// How often each sender is requested.
    senders: BTreeMap<SenderKey, u32>,
    /// Pods that receive the mirrored frames of a tap.
    consumers: BTreeSet<SenderKey>,
    /// How many receivers have each VNI.
    vnis: BTreeMap<u32, u32>,
    /// Port and VNI of each receiver, and whether its socket is IPv6.
    endpoints: BTreeSet<(u16, Vni, bool)>,
}

impl Others {
    fn of(desired: &DesiredState) -> Self {
        let mut others = Self::default();
        for sender in &desired.senders {
            *others.senders.entry(SenderKey::of(sender)).or_default() += 1;
        }
        for receiver in &desired.receivers {
            *others.vnis.entry(receiver.vni.get()).or_default() += 1;
            others.endpoints.insert((receiver.port, receiver.vni, receiver.ipv6));
            let consumer = receiver.pod.as_ref();
            let consumer =
                consumer.map(|pod| SenderKey { tap: receiver.tap.uid.to_string(), pod: pod.uid.to_string() });
            others.consumers.extend(consumer);
        }
        others
    }
}

fn sender(sender: &DesiredSender, others: &Others, is_local: impl Fn(IpAddr) -> bool) -> Result<(), Failure> {
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
    let is_receiver = |to: &Endpoint| others.endpoints.contains(&(to.port, to.vni, to.address.is_ipv6()));
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
    let key = SenderKey::of(sender);
    if others.senders.get(&key).is_some_and(|count| *count > 1) {
        return Err(invalid("The same pod is requested twice under the same tap.".to_owned()));
    }
    if others.consumers.contains(&key) {
        return Err(invalid(
            "The pod receives the mirrored frames of this tap: tapping it would mirror them again. Exclude it from the targets."
                .to_owned(),
        ));
    }
    Ok(())
}

fn receiver(receiver: &Receiver, others: &Others) -> Result<(), Failure> {
    if receiver.port == 0 {
        return Err(invalid("The receiver has no UDP port.".to_owned()));
    }
    if receiver.port == SENDER_PORT && SENDER_VNIS.contains(&receiver.vni.get()) {
        return Err(invalid(format!(
            "VNI {} on UDP port {SENDER_PORT} is reserved for PodTap's sender devices: choose another one.",
            receiver.vni
        )));
    }
    if others.vnis.get(&receiver.vni.get()).is_some_and(|count| *count > 1) {
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
