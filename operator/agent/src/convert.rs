//! From what the controller wants to what the tap-helper is told, and from what it reports to the status. No I/O.

mod treatment;

use std::{
    collections::BTreeMap,
    net::{AddrParseError, IpAddr},
};

use podtap_api::{
    Direction, ItemState, NodeTapEndpoint, NodeTapPod, NodeTapReceiver, NodeTapReceiverStatus, NodeTapSender,
    NodeTapSenderStatus, NodeTapStatus,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tap_wire::{
    Desired, Endpoint, Features, Pod, Reason, Receiver, ReceiverReport, Report, Sender, SenderReport, State,
};

use self::treatment::{Treatments, number};
use super::order::{Names, RawSpec};

/// Entries of a `NodeTap` that are not passed on, as they stand in its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub senders: Vec<NodeTapSenderStatus>,
    pub receivers: Vec<NodeTapReceiverStatus>,
}

/// Why an entry is not passed on.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(
        "this node's helper does not know the field {0}: it is of another version than the controller, and is replaced by itself"
    )]
    UnknownField(String),
    #[error("this node's helper cannot read the entry: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("{0:?} is not an IP address: {1}")]
    Address(String, AddrParseError),
    #[error("{0:?} is not a network")]
    Network(String),
    #[error("{0} cannot be {1}")]
    Number(&'static str, i64),
    #[error("both truncateBytes and headersOnly are set")]
    TwoTruncations,
    #[error("what is to become of its frames is not said: there is no entry for its tap in spec.treatments")]
    NoTreatment,
    #[error("what is to become of its frames: {0}")]
    Treatment(String),
    #[error("{0} is not a UDP port")]
    Port(i32),
    #[error("{0} is not a VXLAN network identifier")]
    Vni(i64),
}

/// Reads each entry for itself: one that cannot be used stops no other. A field that is not known here makes its entry
/// unusable, since leaving it out could copy more than somebody asked for.
pub fn desired(generation: i64, spec: &RawSpec) -> (Desired, Refused) {
    let RawSpec { senders, receivers, treatments, underlay_mtu } = spec;
    let treatments = Treatments::read(treatments);
    let mut desired = Desired { generation, ..Desired::default() };
    let mut refused = Refused::default();
    for entry in senders {
        match strictly(entry).and_then(|entry| sender(entry, &treatments, *underlay_mtu)) {
            Ok(sender) => desired.senders.push(sender),
            Err(why) => refused.senders.push(NodeTapSenderStatus {
                tap_uid: text(entry, "/tap/uid"),
                pod_uid: text(entry, "/pod/uid"),
                interface: text(entry, "/interface"),
                state: ItemState::Refused,
                reason: Reason::Invalid.as_str().to_owned(),
                message: why.to_string(),
                degraded: Vec::new(),
            }),
        }
    }
    for entry in receivers {
        match strictly(entry).and_then(receiver) {
            Ok(receiver) => desired.receivers.push(receiver),
            Err(why) => refused.receivers.push(NodeTapReceiverStatus {
                tap_uid: text(entry, "/tap/uid"),
                vni: entry.pointer("/vni").and_then(Value::as_i64).unwrap_or_default(),
                state: ItemState::Refused,
                reason: Reason::Invalid.as_str().to_owned(),
                message: why.to_string(),
            }),
        }
    }
    (desired, refused)
}

/// What people call the senders, by the UIDs of tap and pod.
pub fn names(spec: &RawSpec) -> BTreeMap<(String, String), Names> {
    let named = |entry| {
        let names = Names {
            tap_namespace: text(entry, "/tap/namespace"),
            tap_name: text(entry, "/tap/name"),
            pod_namespace: text(entry, "/pod/namespace"),
            pod_name: text(entry, "/pod/name"),
        };
        ((text(entry, "/tap/uid"), text(entry, "/pod/uid")), names)
    };
    spec.senders.iter().map(named).collect()
}

/// The status that says what `report` says, and what was refused before the tap-helper saw it. The same in, the same out.
pub fn status(report: &Report, refused: &Refused) -> NodeTapStatus {
    let mut senders: Vec<_> = report.senders.iter().map(sender_status).collect();
    let mut receivers: Vec<_> = report.receivers.iter().map(receiver_status).collect();
    // What was usable once and is refused now may still be there: while it is, its removal is what counts.
    for entry in &refused.senders {
        if !senders.iter().any(|known| (&known.tap_uid, &known.pod_uid) == (&entry.tap_uid, &entry.pod_uid)) {
            senders.push(entry.clone());
        }
    }
    for entry in &refused.receivers {
        if !receivers.iter().any(|known| known.vni == entry.vni) {
            receivers.push(entry.clone());
        }
    }
    senders.sort_by(|a, b| (&a.tap_uid, &a.pod_uid).cmp(&(&b.tap_uid, &b.pod_uid)));
    receivers.sort_by_key(|receiver| receiver.vni);
    let active = |states: &mut dyn Iterator<Item = ItemState>| {
        i32::try_from(states.filter(|state| *state == ItemState::Active).count()).unwrap_or(i32::MAX)
    };
    NodeTapStatus {
        observed_generation: Some(report.generation),
        active_senders: active(&mut senders.iter().map(|sender| sender.state)),
        active_receivers: active(&mut receivers.iter().map(|receiver| receiver.state)),
        senders,
        receivers,
        features: features(report.features),
    }
}

/// By name, so that one which is tried some day needs no change here.
fn features(features: Features) -> BTreeMap<String, bool> {
    serde_json::to_value(features).and_then(serde_json::from_value).unwrap_or_default()
}

fn strictly<T: DeserializeOwned>(entry: &Value) -> Result<T, Unusable> {
    let mut unknown = None;
    let value = serde_ignored::deserialize(entry, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    })?;
    unknown.map_or(Ok(value), |path| Err(Unusable::UnknownField(path)))
}

fn text(entry: &Value, pointer: &str) -> String {
    entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn sender(entry: NodeTapSender, treatments: &Treatments, underlay_mtu: Option<i64>) -> Result<Sender, Unusable> {
    let destinations = entry.destinations.iter().map(endpoint).collect::<Result<_, _>>()?;
    let treatment = entry.treated.then(|| treatments.of(&entry.tap.uid)).transpose()?;
    let sender = Sender {
        underlay_mtu: underlay_mtu.map(|mtu| number("underlayMTU", mtu)).transpose()?,
        interface: entry.interface,
        direction: match entry.direction {
            Direction::Ingress => tap_wire::Direction::Ingress,
            Direction::Egress => tap_wire::Direction::Egress,
            Direction::Both => tap_wire::Direction::Both,
        },
        ..Sender::of_everything(entry.tap.uid, pod(entry.pod)?, destinations)
    };
    Ok(match treatment {
        Some(treatment) => treatment.apply(sender),
        None => sender,
    })
}

fn receiver(entry: NodeTapReceiver) -> Result<Receiver, Unusable> {
    Ok(Receiver {
        tap: entry.tap.uid,
        vni: vni(entry.vni)?,
        port: port(entry.port)?,
        ipv6: entry.ipv6,
        interface_name: entry.interface_name,
        raw: entry.raw,
        pod: entry.pod.map(pod).transpose()?,
    })
}

fn pod(pod: NodeTapPod) -> Result<Pod, Unusable> {
    let addresses = pod.addresses.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
    Ok(Pod { uid: pod.uid, cgroup_uid: pod.cgroup_uid, addresses })
}

fn endpoint(endpoint: &NodeTapEndpoint) -> Result<Endpoint, Unusable> {
    Ok(Endpoint { address: address(&endpoint.address)?, port: port(endpoint.port)?, vni: vni(endpoint.vni)? })
}

fn address(text: &str) -> Result<IpAddr, Unusable> {
    text.parse().map_err(|error| Unusable::Address(text.to_owned(), error))
}

fn port(port: i32) -> Result<u16, Unusable> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Unusable::Port(port))
}

fn vni(vni: i64) -> Result<u32, Unusable> {
    u32::try_from(vni).ok().filter(|vni| (1..1 << 24).contains(vni)).ok_or(Unusable::Vni(vni))
}

fn sender_status(report: &SenderReport) -> NodeTapSenderStatus {
    NodeTapSenderStatus {
        tap_uid: report.tap.clone(),
        pod_uid: report.pod.clone(),
        interface: report.interface.clone(),
        state: state(report.status.state),
        reason: report.status.reason.as_str().to_owned(),
        message: report.status.message.clone(),
        degraded: report.degraded.clone(),
    }
}

fn receiver_status(report: &ReceiverReport) -> NodeTapReceiverStatus {
    NodeTapReceiverStatus {
        tap_uid: report.tap.clone(),
        vni: report.vni.into(),
        state: state(report.status.state),
        reason: report.status.reason.as_str().to_owned(),
        message: report.status.message.clone(),
    }
}

fn state(state: State) -> ItemState {
    match state {
        State::Active => ItemState::Active,
        State::Waiting => ItemState::Waiting,
        State::Refused => ItemState::Refused,
        State::Failed => ItemState::Failed,
        State::Removing => ItemState::Removing,
    }
}

#[cfg(test)]
mod tests;
