//! Which of the wanted items contradict themselves, each other, or a limit. Pure, and before anything is touched.

mod wish;

use std::collections::BTreeMap;

use tap_wire::{Desired, MAX_INTERFACE_NAME, Pod, Reason, Receiver, Sender};

use crate::{
    failure::Failure,
    names::{SENDER_PORT, SENDER_VNIS},
    settings,
    step::SenderKey,
};

/// Most destinations of one sender.
const MAX_DESTINATIONS: usize = 4;
/// Longest UID, so that two fit into an alias.
const MAX_UID: usize = 64;
/// Largest VXLAN network identifier: they have 24 bits.
const MAX_VNI: u32 = (1 << 24) - 1;

/// Why a sender must not be attempted, as far as its own description tells.
pub fn sender(sender: &Sender, desired: &Desired) -> Result<(), Failure> {
    uid("The tap's UID", &sender.tap)?;
    pod(&sender.pod)?;
    if !sender.interface.is_empty() {
        interface_name(&sender.interface)?;
    }
    let count = sender.destinations.len();
    if count == 0 || count > MAX_DESTINATIONS {
        return Err(invalid(format!("There are {count} destinations; there must be 1 to {MAX_DESTINATIONS}.")));
    }
    for destination in &sender.destinations {
        vni(destination.vni)?;
        if destination.port == 0 {
            return Err(invalid(format!("The destination {} has no UDP port.", destination.address)));
        }
        if destination.address.is_unspecified() || destination.address.is_multicast() {
            return Err(invalid(format!("{} is not the address of one host.", destination.address)));
        }
        if destination.address.is_ipv6() != sender.destinations[0].address.is_ipv6() {
            return Err(invalid(
                "The destinations mix IPv4 and IPv6, but one tunnel has one family: use one of them.".to_owned(),
            ));
        }
    }
    wish::check(sender).map_err(invalid)?;
    settings::check(sender).map_err(|error| invalid(format!("The tap asks for too much: {error}.")))?;
    if desired.senders.iter().filter(|other| SenderKey::of(other) == SenderKey::of(sender)).count() > 1 {
        return Err(invalid("The same pod is wanted twice under the same tap.".to_owned()));
    }
    let consumer = |receiver: &&Receiver| {
        receiver.tap == sender.tap && receiver.pod.as_ref().is_some_and(|pod| pod.uid == sender.pod.uid)
    };
    if desired.receivers.iter().any(|receiver| consumer(&receiver)) {
        return Err(invalid(
            "The pod receives the copies of this tap: tapping it would copy copies. Exclude it from the targets."
                .to_owned(),
        ));
    }
    Ok(())
}

/// Why a receiver must not be attempted, as far as its own description tells.
pub fn receiver(receiver: &Receiver, desired: &Desired) -> Result<(), Failure> {
    uid("The tap's UID", &receiver.tap)?;
    if let Some(consumer) = &receiver.pod {
        pod(consumer)?;
    }
    vni(receiver.vni)?;
    interface_name(&receiver.interface_name)?;
    if receiver.port == 0 {
        return Err(invalid("The receiver has no UDP port.".to_owned()));
    }
    if receiver.port == SENDER_PORT && SENDER_VNIS.contains(&receiver.vni) {
        return Err(invalid(format!(
            "VNI {} on UDP port {SENDER_PORT} is PodTap's own: choose another one.",
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

/// The pods that are wanted, by UID.
///
/// Where two items describe one pod differently, the one with addresses counts: it is the newer one.
#[must_use]
pub fn pods(desired: &Desired) -> BTreeMap<String, Pod> {
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    let receivers = desired.receivers.iter().filter_map(|receiver| receiver.pod.as_ref());
    for pod in desired.senders.iter().map(|sender| &sender.pod).chain(receivers) {
        let known = pods.entry(pod.uid.clone()).or_insert_with(|| pod.clone());
        if known.addresses.is_empty() {
            *known = pod.clone();
        }
    }
    pods
}

fn pod(pod: &Pod) -> Result<(), Failure> {
    uid("The pod's UID", &pod.uid)?;
    pod.cgroup_uid.as_deref().map_or(Ok(()), hash)
}

/// The hash that names a static pod's cgroup, 128 bits in hexadecimal digits (`applyDefaults`, pkg/kubelet/config/common.go of
/// Kubernetes). It comes from an annotation that users can write: with anything else, say another pod's UID, a tap of their own pod
/// would become one of that pod.
fn hash(text: &str) -> Result<(), Failure> {
    if text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(invalid("The pod's annotation kubernetes.io/config.hash is none that a kubelet makes.".to_owned()))
}

fn uid(what: &str, text: &str) -> Result<(), Failure> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if text.is_empty() || text.len() > MAX_UID || !plain {
        return Err(invalid(format!("{what} must be 1 to {MAX_UID} letters, digits, '-', '_' or '.'.")));
    }
    Ok(())
}

fn vni(vni: u32) -> Result<(), Failure> {
    if vni == 0 || vni > MAX_VNI {
        return Err(invalid(format!("VNI {vni} is not one: they are 1 to {MAX_VNI}.")));
    }
    Ok(())
}

/// What the kernel takes (`dev_valid_name`, net/core/dev.c), less '%', which it would expand to a number.
fn interface_name(name: &str) -> Result<(), Failure> {
    let odd =
        |character: char| character.is_whitespace() || character.is_control() || matches!(character, '/' | ':' | '%');
    if name.is_empty() || name.len() > MAX_INTERFACE_NAME || name == "." || name == ".." || name.contains(odd) {
        return Err(invalid(format!(
            "{name:?} cannot be the name of an interface: 1 to {MAX_INTERFACE_NAME} bytes, without '/', ':', '%' and spaces."
        )));
    }
    Ok(())
}

fn invalid(message: String) -> Failure {
    Failure::refused(Reason::Invalid, message)
}
