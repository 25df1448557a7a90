//! The spec of a tap without its mirror options.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::jiff::SignedDuration;
use kube::core::{ParseExpressionError, Selector, SelectorExt as _};
use podtap_api::{
    ClusterTargets, CollectorDestination, Destination, ExternalDestination, MirrorSpec, NodeDestination,
    ObjectSelector, PodDestination, Targets, Vxlan,
};
use podtap_model::{Direction, FrameFormat, InterfaceName, Vni, bounds::DESTINATIONS};

use crate::{
    store::{
        pod::CachedPod,
        tap::{CachedSpec, CachedTargets},
    },
    validate::options::TapOptions,
};

/// Longest duration of a tap: a year.
const MAX_DURATION: SignedDuration = SignedDuration::from_hours(8760);

/// Why a spec cannot be carried out, whatever the cluster looks like.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    #[error(
        "set exactly one of targets.podNames and targets.podSelector; podSelector: {{}} selects every pod of the namespace"
    )]
    TargetForms,
    #[error("set exactly one of name and podSelector in the pod of the destination {0}")]
    PodForms(String),
    #[error("leave out pod.namespace of the destination {0}: a PodTap mirrors to pods of its own namespace")]
    NamespaceOfPod(String),
    #[error("set pod.namespace in the destination {0}: a ClusterPodTap has no namespace of its own")]
    NoNamespaceOfPod(String),
    #[error("set exactly one of node, pod, external and collector in the destination {0}")]
    DestinationForms(String),
    #[error(
        "frameFormat is about the interface on a node or in a pod: leave it out of the destination {0}, which is external"
    )]
    ExternalFrameFormat(String),
    #[error("set one to four destinations, not {0}")]
    DestinationCount(usize),
    #[error("two destinations have the name {0}: give each its own")]
    DestinationName(String),
    #[error(
        "the selector in {place} has the unknown field {field}: put labels under matchLabels, for example matchLabels: {{app: web}}"
    )]
    SelectorField { place: &'static str, field: String },
    #[error("the selector in {place} is invalid: {source}. Use the operators In, NotIn, Exists and DoesNotExist")]
    Selector { place: &'static str, source: ParseExpressionError },
    #[error("0 is not a UDP port: external.port must be between 1 and 65535")]
    Port,
    #[error("duration must be between 1s and 8760h (a year), not {0}; leave it out for a tap without an end")]
    Duration(kube::core::Duration),
}

/// Where in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// In the tap's own namespace.
    Namespace,
    /// In the namespaces and on the nodes with these labels.
    Cluster { namespaces: Selector, nodes: Selector },
}

/// Which pods of a namespace.
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

/// A destination as the spec requests it.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedDestination {
    /// Unique within the tap.
    pub name: String,
    pub kind: DestinationKind,
}

/// Where mirrored frames are requested to arrive. The interface is unset if its name follows from the VNI.
#[derive(Clone, Debug, PartialEq)]
pub enum DestinationKind {
    /// An interface on a node.
    Node { name: String, interface: Option<InterfaceName>, frame_format: FrameFormat },
    /// An interface in a pod.
    Pod {
        namespace: String,
        selection: Selection,
        interface: Option<InterfaceName>,
        frame_format: FrameFormat,
        packet_socket: bool,
    },
    /// A VXLAN endpoint.
    External { address: IpAddr, port: u16, probe: bool, metadata: bool },
    /// A pod of PodTap's collector.
    Collector,
}

impl RequestedDestination {
    pub fn is_external(&self) -> bool {
        matches!(self.kind, DestinationKind::External { .. })
    }

    pub fn is_collector(&self) -> bool {
        self.kind == DestinationKind::Collector
    }
}

/// A valid spec.
#[derive(Clone, Debug, PartialEq)]
pub struct TapSpec {
    pub scope: Scope,
    pub selection: Selection,
    pub interface: Option<InterfaceName>,
    pub direction: Direction,
    pub options: TapOptions,
    pub max_pods: usize,
    /// At least one.
    pub destinations: Vec<RequestedDestination>,
    pub vni: Option<Vni>,
    pub duration: Option<SignedDuration>,
    pub suspend: bool,
}

impl TapSpec {
    /// Checks everything but the mirror options, which the caller fills in. `namespace` is that of the tap, and empty for a tap of the
    /// cluster.
    pub fn without_options(CachedSpec { targets, mirror }: &CachedSpec, namespace: &str) -> Result<Self, InvalidSpec> {
        let MirrorSpec { direction, options: _, destinations, vxlan, duration, suspend } = mirror;
        let RequestedTargets { scope, selection, interface, max_pods } = requested_targets(targets)?;
        if !DESTINATIONS.contains(&destinations.len()) {
            return Err(InvalidSpec::DestinationCount(destinations.len()));
        }
        let mut names = BTreeSet::new();
        if let Some(repeated) = destinations.iter().find(|destination| !names.insert(&destination.name)) {
            return Err(InvalidSpec::DestinationName(repeated.name.clone()));
        }
        let destination = |requested| destination(requested, namespace);
        Ok(Self {
            scope,
            selection,
            interface: interface.clone(),
            direction: *direction,
            options: TapOptions::default(),
            max_pods: usize::try_from(max_pods).unwrap_or(usize::MAX).max(1),
            destinations: destinations.iter().map(destination).collect::<Result<_, _>>()?,
            vni: vxlan.as_ref().and_then(|&Vxlan { vni }| vni),
            duration: duration.map(self::duration).transpose()?,
            suspend: *suspend,
        })
    }
}

struct RequestedTargets<'a> {
    scope: Scope,
    selection: Selection,
    interface: &'a Option<InterfaceName>,
    max_pods: u32,
}

fn requested_targets(targets: &CachedTargets) -> Result<RequestedTargets<'_>, InvalidSpec> {
    Ok(match targets {
        CachedTargets::Namespaced(Targets { pod_names, pod_selector, interface, max_pods }) => {
            let names = pod_names.as_ref().map(|names| names.iter().cloned().collect());
            let selection = selection(names, pod_selector.as_ref(), "targets", || InvalidSpec::TargetForms)?;
            RequestedTargets { scope: Scope::Namespace, selection, interface, max_pods: *max_pods }
        }
        CachedTargets::Cluster(ClusterTargets {
            namespace_selector,
            pod_selector,
            node_selector,
            interface,
            max_pods,
        }) => {
            let scope = Scope::Cluster {
                namespaces: selector(namespace_selector, "targets.namespaceSelector")?,
                nodes: selector(node_selector, "targets.nodeSelector")?,
            };
            let selection = Selection::Labels(selector(pod_selector, "targets")?);
            RequestedTargets { scope, selection, interface, max_pods: *max_pods }
        }
    })
}

fn duration(duration: kube::core::Duration) -> Result<SignedDuration, InvalidSpec> {
    let valid = Some(duration).filter(|duration| !duration.is_negative());
    let valid = valid.and_then(|duration| SignedDuration::try_from(std::time::Duration::from(duration)).ok());
    let valid = valid.filter(|duration| (SignedDuration::from_secs(1)..=MAX_DURATION).contains(duration));
    valid.ok_or(InvalidSpec::Duration(duration))
}

fn destination(destination: &Destination, tap_namespace: &str) -> Result<RequestedDestination, InvalidSpec> {
    let Destination { name: own_name, node, pod, external, collector, frame_format } = destination;
    let frame_format = *frame_format;
    let kind = match (node, pod, external, collector) {
        (Some(NodeDestination { name, interface_name }), None, None, None) => {
            DestinationKind::Node { name: name.clone(), interface: interface_name.clone(), frame_format }
        }
        (None, Some(PodDestination { namespace, name, pod_selector, interface_name, packet_socket }), None, None) => {
            let namespace = match namespace {
                None if tap_namespace.is_empty() => return Err(InvalidSpec::NoNamespaceOfPod(own_name.clone())),
                Some(_) if !tap_namespace.is_empty() => return Err(InvalidSpec::NamespaceOfPod(own_name.clone())),
                None => tap_namespace.to_owned(),
                Some(namespace) => namespace.clone(),
            };
            let names = name.as_ref().map(|name| BTreeSet::from([name.clone()]));
            let forms = || InvalidSpec::PodForms(own_name.clone());
            let selection = selection(names, pod_selector.as_ref(), "the pod of a destination", forms)?;
            let (interface, packet_socket) = (interface_name.clone(), *packet_socket);
            DestinationKind::Pod { namespace, selection, interface, frame_format, packet_socket }
        }
        (None, None, Some(_), None) if frame_format != FrameFormat::Wire => {
            return Err(InvalidSpec::ExternalFrameFormat(own_name.clone()));
        }
        (None, None, Some(ExternalDestination { port: 0, .. }), None) => return Err(InvalidSpec::Port),
        (None, None, Some(ExternalDestination { address, port, probe, metadata }), None) => {
            DestinationKind::External { address: *address, port: *port, probe: *probe, metadata: *metadata }
        }
        (None, None, None, Some(CollectorDestination {})) => DestinationKind::Collector,
        _ => return Err(InvalidSpec::DestinationForms(own_name.clone())),
    };
    Ok(RequestedDestination { name: own_name.clone(), kind })
}

fn selection(
    names: Option<BTreeSet<String>>,
    labels: Option<&ObjectSelector>,
    place: &'static str,
    forms: impl Fn() -> InvalidSpec,
) -> Result<Selection, InvalidSpec> {
    match (names, labels) {
        (Some(names), None) => Ok(Selection::Names(names)),
        (None, Some(labels)) => Ok(Selection::Labels(selector(labels, place)?)),
        _ => Err(forms()),
    }
}

fn selector(
    ObjectSelector { selector, unknown }: &ObjectSelector,
    place: &'static str,
) -> Result<Selector, InvalidSpec> {
    if let Some(field) = unknown.keys().next() {
        return Err(InvalidSpec::SelectorField { place, field: field.clone() });
    }
    Selector::try_from(selector.clone()).map_err(|source| InvalidSpec::Selector { place, source })
}
