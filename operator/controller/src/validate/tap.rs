//! Stage 2: objects become what the later stages can rely on. Raw specs go no further than here.
//!
//! The API server checks most of this already (CEL). It is checked again, because objects can be older than the rules.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::LabelSelector, jiff::Timestamp};
use kube::core::{ParseExpressionError, Selector, SelectorExt as _};
use podtap_api::{
    Destination, Direction, ExternalDestination, Limits, NodeDestination, PodDestination, PodTapPolicySpec, PodTapSpec,
    PodTapStatus, TapReference, Targets, VniRange,
};

use crate::{failure::Failure, network::{Network, ParseNetworkError}, reason, store::{cache::Entry, objects::{CachedPod, CachedPolicy, CachedTap}, snapshot::Snapshot}, validate::options::{self, MirrorOptions}};

/// Longest duration of a tap in seconds: a year.
const MAX_DURATION: i64 = 31_536_000;

/// Why a spec cannot be carried out, whatever the cluster looks like.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error(
        "set exactly one of targets.podNames and targets.podSelector; podSelector: {{}} selects every pod of the namespace"
    )]
    TargetForms,
    #[error("set exactly one of name and podSelector in the pod of destination {0}")]
    PodForms(usize),
    #[error("set exactly one of node, pod and external in destination {0}")]
    DestinationForms(usize),
    #[error("raw is about the interface at a node or pod: leave it out of destination {0}, which is external")]
    RawExternal(usize),
    #[error("give one to four destinations, not {0}")]
    DestinationCount(usize),
    #[error("the selector in {place} is not one: {source}. Use the operators In, NotIn, Exists and DoesNotExist")]
    Selector { place: &'static str, source: ParseExpressionError },
    #[error(
        "{0:?} is not an IPv4 or IPv6 address: external.address must be the address of one host, for example 192.0.2.10"
    )]
    Address(String),
    #[error("{0} is not a UDP port: external.port must be between 1 and 65535")]
    Port(i32),
    #[error(
        "{0:?} is not a name that Linux takes for an interface: at most 15 characters, without slash, colon, percent sign or space"
    )]
    InterfaceName(String),
    #[error("{0} is not a VXLAN network identifier: vxlan.vni must be between 1 and 16777215, or left out")]
    Vni(i64),
    #[error("durationSeconds must be between 1 and 31536000 (a year), not {0}; leave it out for a tap without an end")]
    Duration(i64),
}

/// Which pods.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    Names(BTreeSet<String>),
    Labels(Selector),
}

impl Selection {
    pub fn matches(&self, pod: &CachedPod) -> bool {
        match self {
            Self::Names(names) => names.contains(&pod.name),
            Self::Labels(selector) => selector.matches(&pod.labels),
        }
    }
}

/// Where copies are wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestedDestination {
    /// An interface on a node.
    Node { name: String, interface: String, raw: bool },
    /// An interface in a pod of the tap's namespace.
    Pod { selection: Selection, interface: String, raw: bool },
    /// A VXLAN endpoint.
    External { address: IpAddr, port: u16 },
}

/// What a tap asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub selection: Selection,
    pub interface: String,
    pub direction: Direction,
    pub options: MirrorOptions,
    pub max_pods: usize,
    pub destinations: Vec<RequestedDestination>,
    pub vni: Option<i64>,
    pub duration_seconds: Option<i64>,
    pub suspend: bool,
}

/// A tap that is not being deleted.
#[derive(Clone, Debug)]
pub struct Tap {
    pub reference: TapReference,
    pub created: Timestamp,
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: String,
    pub finalizers: Vec<String>,
    /// The status as it was last seen.
    pub status: PodTapStatus,
    /// What it asks for; why nothing can be done about it where that makes no sense.
    pub spec: Result<Spec, Failure>,
}

impl Tap {
    /// Older taps win. Of those made in one second, the one that already copies does, then the lower UID, which nobody can choose.
    pub fn age(&self) -> (Timestamp, bool, &str) {
        (self.created, self.status.start_time.is_none(), &self.reference.uid)
    }
}

/// What taps may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Networks of external destinations; a sentence for the user where there are none to ask.
    pub external: Result<Vec<Network>, NoPolicy>,
    pub vni_range: VniRange,
    pub receiver_port: u16,
    pub underlay_mtu: Option<i32>,
    pub excluded_namespaces: BTreeSet<String>,
    pub limits: Limits,
}

/// Why no external destination is allowed at all.
#[derive(Clone, Debug, PartialEq)]
pub enum NoPolicy {
    /// There is no `PodTapPolicy`.
    Absent,
    /// There is one that cannot be read.
    Unreadable(String),
}

/// The result of this stage.
#[derive(Debug)]
pub struct Validated {
    pub policy: Policy,
    /// Oldest first.
    pub taps: Vec<Tap>,
    /// Objects whose fields cannot be read.
    pub unreadable: Vec<Entry<CachedTap>>,
    /// Objects that are being deleted, readable or not.
    pub deleting: Vec<Entry<CachedTap>>,
}

/// Sorts the objects into what can be worked with and what cannot. Never fails: one bad object stops no other.
pub fn validate(snapshot: &Snapshot) -> Validated {
    let mut validated = Validated {
        policy: policy(snapshot.policy.as_deref()),
        taps: Vec::new(),
        unreadable: Vec::new(),
        deleting: Vec::new(),
    };
    for entry in &snapshot.taps {
        match &entry.fact.body {
            _ if entry.fact.deleting.is_some() => validated.deleting.push(entry.clone()),
            Err(_) => validated.unreadable.push(entry.clone()),
            Ok((spec, status)) => validated.taps.push(Tap {
                reference: reference(&entry.fact),
                created: entry.fact.created,
                generation: entry.fact.generation,
                version: entry.version.clone(),
                finalizers: entry.fact.finalizers.clone(),
                status: status.clone(),
                spec: self::spec(spec, snapshot, &entry.fact.uid),
            }),
        }
    }
    validated.taps.sort_by(|a, b| a.age().cmp(&b.age()));
    validated
}

/// How other objects refer to the tap.
pub fn reference(tap: &CachedTap) -> TapReference {
    TapReference { namespace: tap.namespace.clone(), name: tap.name.clone(), uid: tap.uid.clone() }
}

fn spec(spec: &PodTapSpec, snapshot: &Snapshot, uid: &str) -> Result<Spec, Failure> {
    let failure = |invalid: Invalid| Failure::new(reason::INVALID_SPEC, invalid.to_string());
    let standing = || options::standing(snapshot, uid);
    let options = MirrorOptions::new(spec, &snapshot.expressions, standing).map_err(|invalid| invalid.failure());
    // What is wrong for good is told before what is only not known yet.
    let rest = rest_of_spec(spec).map_err(failure)?;
    Ok(Spec { options: options?, ..rest })
}

fn rest_of_spec(spec: &PodTapSpec) -> Result<Spec, Invalid> {
    // What becomes of the frames is looked at in treatment.rs.
    let PodTapSpec { targets, direction, destinations, vxlan, duration_seconds, suspend, .. } = spec;
    let Targets { pod_names, pod_selector, interface, max_pods } = targets;
    if !(1..=4).contains(&destinations.len()) {
        return Err(Invalid::DestinationCount(destinations.len()));
    }
    let vni = vxlan.as_ref().and_then(|vxlan| vxlan.vni);
    if let Some(vni) = vni.filter(|vni| !(1..1 << 24).contains(vni)) {
        return Err(Invalid::Vni(vni));
    }
    if let Some(seconds) = duration_seconds.filter(|seconds| !(1..=MAX_DURATION).contains(seconds)) {
        return Err(Invalid::Duration(seconds));
    }
    let names = pod_names.as_ref().map(|names| names.iter().cloned().collect());
    Ok(Spec {
        selection: selection(names, pod_selector.as_ref(), "targets", || Invalid::TargetForms)?,
        interface: interface_name(interface)?,
        direction: *direction,
        options: MirrorOptions::default(),
        max_pods: usize::try_from(*max_pods).unwrap_or_default().max(1),
        destinations: destinations.iter().enumerate().map(wanted).collect::<Result<_, _>>()?,
        vni,
        duration_seconds: *duration_seconds,
        suspend: *suspend,
    })
}

fn wanted((index, destination): (usize, &Destination)) -> Result<RequestedDestination, Invalid> {
    let Destination { node, pod, external, raw } = destination;
    let raw = *raw;
    match (node, pod, external) {
        (Some(NodeDestination { name, interface_name: interface }), None, None) => {
            Ok(RequestedDestination::Node { name: name.clone(), interface: interface_name(interface)?, raw })
        }
        (None, Some(PodDestination { name, pod_selector, interface_name: interface }), None) => {
            let names = name.as_ref().map(|name| BTreeSet::from([name.clone()]));
            let form = || Invalid::PodForms(index + 1);
            let selection = selection(names, pod_selector.as_ref(), "the pod of a destination", form)?;
            Ok(RequestedDestination::Pod { selection, interface: interface_name(interface)?, raw })
        }
        (None, None, Some(_)) if raw => Err(Invalid::RawExternal(index + 1)),
        (None, None, Some(ExternalDestination { address, port })) => Ok(RequestedDestination::External {
            address: address.parse().map_err(|_| Invalid::Address(address.clone()))?,
            port: u16::try_from(*port).ok().filter(|port| *port > 0).ok_or(Invalid::Port(*port))?,
        }),
        _ => Err(Invalid::DestinationForms(index + 1)),
    }
}

fn selection(
    names: Option<BTreeSet<String>>,
    selector: Option<&LabelSelector>,
    place: &'static str,
    not_one: impl Fn() -> Invalid,
) -> Result<Selection, Invalid> {
    match (names, selector) {
        (Some(names), None) => Ok(Selection::Names(names)),
        (None, Some(selector)) => {
            let selector =
                Selector::try_from(selector.clone()).map_err(|source| Invalid::Selector { place, source })?;
            Ok(Selection::Labels(selector))
        }
        _ => Err(not_one()),
    }
}

fn interface_name(name: &str) -> Result<String, Invalid> {
    // dev_valid_name() in net/core/dev.c; a percent sign asks the kernel for a number in its place.
    let valid = name.len() <= tap_wire::MAX_INTERFACE_NAME
        && !matches!(name, "." | "..")
        && !name.chars().any(|c| c.is_whitespace() || matches!(c, '/' | ':' | '%'));
    if valid { Ok(name.to_owned()) } else { Err(Invalid::InterfaceName(name.to_owned())) }
}

fn policy(fact: Option<&CachedPolicy>) -> Policy {
    let (spec, no_policy) = match fact {
        Some(Ok(spec)) => (spec.clone(), None),
        Some(Err(error)) => (default_policy(), Some(NoPolicy::Unreadable(error.clone()))),
        None => (default_policy(), Some(NoPolicy::Absent)),
    };
    // A network that cannot be read allows nothing; the others stand.
    let networks = spec.allowed_external_cidrs.iter().map(|cidr| cidr.parse());
    Policy {
        external: no_policy.map_or_else(|| Ok(networks.filter_map(Result::<_, ParseNetworkError>::ok).collect()), Err),
        vni_range: spec.vni_range,
        receiver_port: u16::try_from(spec.receiver_port).unwrap_or(14789),
        // One that cannot be is none.
        underlay_mtu: spec.underlay_mtu.filter(|mtu| (576..=65_535).contains(mtu)),
        excluded_namespaces: spec.excluded_namespaces.into_iter().collect(),
        limits: spec.limits,
    }
}

/// What holds without a policy: the same defaults as those of an empty one.
fn default_policy() -> PodTapPolicySpec {
    PodTapPolicySpec { receiver_port: 14789, ..PodTapPolicySpec::default() }
}

#[cfg(test)]
mod tests;
