//! What a tap would do, from what was read.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use podtap_api::{Limits, PodTapPolicySpec, VniRange};
use podtap_model::{Direction, Oversize, Reason};
use serde::Serialize;

use super::{
    place::Place,
    rows::{Context, Row, RowState, rows},
    wire::{Family, common_family},
};
use crate::{
    console::counted,
    exit::Exit,
    pods::{Cause, Surroundings},
    selector,
    tap::Tap,
};

/// What was read.
#[derive(Debug, Default)]
pub struct Known {
    /// Whether the tap exists, with this spec.
    pub exists: bool,
    /// The pods that its selection matches. None if the user may not list them.
    pub pods: Option<Vec<Pod>>,
    /// What else decides about them.
    pub around: Surroundings,
    /// Its destinations.
    pub places: Vec<Place>,
    /// The taps that count for the quota of its namespace, without itself. None if the user may not list them.
    pub rivals: Option<Vec<Tap>>,
    /// If it asks for a VNI: the taps that the user may list, of which one may have it.
    pub vni_holders: Vec<Tap>,
    /// What the API server refuses.
    pub denials: Vec<Denial>,
    /// What is not known, or should be known.
    pub warnings: Vec<String>,
}

/// What would be denied, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// What denies it.
    pub by: By,
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
}

/// What can deny a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum By {
    /// The user lacks a right.
    #[serde(rename = "rbac")]
    Rbac,
    /// The API server refuses the object: its schema, or a policy for admission.
    #[serde(rename = "admission")]
    Admission,
    /// The `PodTapPolicy`.
    #[serde(rename = "policy")]
    Policy,
    /// A quota of the `PodTapPolicy`.
    #[serde(rename = "quota")]
    Quota,
}

impl std::fmt::Display for By {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Rbac => "RBAC",
            Self::Admission => "the API server",
            Self::Policy => "the PodTapPolicy",
            Self::Quota => "a quota of the PodTapPolicy",
        })
    }
}

/// What a tap would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The tap, for people.
    pub tap: String,
    /// Whether it exists already, with this spec.
    pub exists: bool,
    /// Whether it mirrors already, as far as it is not refused: it exists, and is not suspended.
    #[serde(skip)]
    pub is_observed: bool,
    /// What it selects, for people.
    pub selection: String,
    /// Frames of which direction.
    pub direction: Direction,
    /// None if the user may not list pods.
    pub pods: Option<Vec<Row>>,
    /// Its destinations.
    pub destinations: Vec<Place>,
    /// What happens to mirrored frames that exceed the path MTU and cannot be segmented.
    pub oversize: Oversize,
    /// Over what they are sent. None if that is not known.
    pub family: Option<Family>,
    /// What would be created. None if the tap exists.
    pub creates: Option<Creates>,
    /// What would be denied.
    pub denials: Vec<Denial>,
    /// What is not known, or should be known.
    pub warnings: Vec<String>,
}

/// What would be created.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Creates {
    /// Devices in pods.
    pub senders: usize,
    /// Interfaces that receive.
    pub receivers: usize,
    /// The VNI that the spec asks for.
    pub vni: Option<u32>,
    /// Those of which others are taken. None if the user may not read the policy.
    pub vni_range: Option<VniRange>,
    /// How many VNIs.
    pub vnis: usize,
    /// Nodes that get a helper pod. None if the user may not read which nodes have one.
    pub helper_pods: Option<BTreeSet<String>>,
}

impl Report {
    /// What `tap` does, or would do: one that is suspended, when it is resumed.
    pub fn of(tap: &Tap, known: Known) -> Self {
        let Known { exists, pods, around, places, rivals, vni_holders, mut denials, mut warnings } = known;
        let policy = policy(&around);
        let places = with_conflicts(places, tap, &around);
        let usable = places.iter().filter(|place| place.refusal.is_none());
        let family = common_family(&usable.map(|place| place.addresses.as_slice()).collect::<Vec<_>>());
        let places = with_family(places, family);
        let active = tap.resumed();
        let is_observed = exists && !tap.mirror().suspend;
        let context = Context {
            tap: &active,
            exists,
            is_observed,
            around: &around,
            places: &places,
            family,
            policy: policy.as_ref(),
        };
        let rows = pods.map(|pods| rows(context, pods));
        if let Some(policy) = &policy {
            denials.extend(beyond_quota(tap, exists, rivals.as_deref(), &policy.limits));
            denials.extend(vni_denial(tap, &vni_holders, &policy.vni_range));
        }
        warnings.extend(own_warnings(tap, rows.as_deref(), &around, &places, exists));
        let creates =
            (!exists).then(|| creates(tap, rows.as_deref().unwrap_or_default(), &places, &around, policy.as_ref()));
        Self {
            tap: tap.to_string(),
            exists,
            is_observed,
            selection: selection(tap),
            direction: tap.mirror().direction,
            pods: rows,
            destinations: places,
            oversize: tap.mirror().options.oversize,
            family,
            creates,
            denials,
            warnings,
        }
    }

    /// Pods that would be tapped.
    pub fn tapped(&self) -> usize {
        self.rows().filter(|row| row.state == RowState::Ok).count()
    }

    /// All pods of the table.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.pods.iter().flatten()
    }

    /// What the command ends with.
    pub fn exit(&self, strict: bool) -> Exit {
        let is_refused = |row: &Row| matches!(row.state, RowState::Refused(_));
        let refused_places = self.destinations.iter().filter(|place| place.refusal.is_some()).count();
        let has_pods = self.pods.is_none() || self.rows().any(|row| !is_refused(row));
        if self.denials.iter().any(|denial| denial.by == By::Rbac) {
            Exit::NotPermitted
        } else if !self.denials.is_empty() || !has_pods || refused_places == self.destinations.len() {
            Exit::Refused
        } else if refused_places > 0 || self.rows().any(is_refused) || (strict && !self.warnings.is_empty()) {
            Exit::Partly
        } else {
            Exit::Done
        }
    }
}

/// The policy with its defaults; none if the user may not read it.
fn policy(around: &Surroundings) -> Option<PodTapPolicySpec> {
    let policy = around.policy.as_ref().map(|policy| policy.spec.clone()).unwrap_or_default();
    Some(policy).filter(|_| around.is_policy_known)
}

/// What it selects, for people.
fn selection(tap: &Tap) -> String {
    match tap {
        Tap::Namespaced(tap) => {
            let namespace = tap.namespace().unwrap_or_default();
            match (&tap.spec.targets.pod_names, &tap.spec.targets.pod_selector) {
                (Some(names), _) => format!("{namespace} ({})", names.join(", ")),
                (None, Some(selector)) => format!("{namespace} ({})", selector::text(&selector.selector)),
                (None, None) => namespace,
            }
        }
        Tap::Cluster(tap) => {
            let targets = &tap.spec.targets;
            let text = |what: &str, selector: &podtap_api::ObjectSelector| {
                format!("{what}: {}", selector::text(&selector.selector).replace("every pod", "all"))
            };
            let parts = [
                text("namespaces", &targets.namespace_selector),
                text("pods", &targets.pod_selector),
                text("nodes", &targets.node_selector),
            ];
            format!("the cluster ({})", parts.join("; "))
        }
    }
}

/// Destinations in which the name of the interface is taken by another tap.
fn with_conflicts(places: Vec<Place>, tap: &Tap, around: &Surroundings) -> Vec<Place> {
    let holder = |place: &Place| {
        let (interface, node) = (place.interface.as_ref()?, place.node.as_ref()?);
        let node = around.node_taps.iter().flatten().find(|other| other.name_any() == *node)?;
        let receivers = node.spec.0.receivers.iter().filter(|receiver| *receiver.tap.uid != *tap.uid());
        let mut receivers = receivers.filter(|receiver| *receiver.interface_name == **interface);
        receivers.find(|receiver| receiver.pod.as_ref().map(|pod| &*pod.uid) == place.pod.as_deref())
    };
    let with_conflict = |place: Place| match holder(&place) {
        Some(receiver) if place.refusal.is_none() => {
            let message = format!("the interface {} belongs to the {}", receiver.interface_name, receiver.tap);
            Place { refusal: Some(Cause::new(Reason::InterfaceNameConflict, message)), ..place }
        }
        _ => place,
    };
    places.into_iter().map(with_conflict).collect()
}

/// Destinations that have no address of the family of the first one.
fn with_family(places: Vec<Place>, family: Option<Family>) -> Vec<Place> {
    let mut usable = places.iter().filter(|place| place.refusal.is_none());
    let are_known = usable.all(|place| !place.addresses.is_empty());
    if family.is_some() || !are_known {
        return places;
    }
    let message = "the destinations have no address family in common: create one tap for each";
    let refusal = Cause::new(Reason::AddressFamilyMismatch, message);
    places.into_iter().map(|place| Place { refusal: place.refusal.or(Some(refusal.clone())), ..place }).collect()
}

/// Of two taps, the older one wins: that which is planned is the youngest.
fn beyond_quota(tap: &Tap, exists: bool, rivals: Option<&[Tap]>, limits: &Limits) -> Option<Denial> {
    let running = rivals?.iter().filter(|rival| rival.uid() != tap.uid() && is_running(rival)).count();
    let limit = usize::try_from(limits.taps_per_namespace).unwrap_or(usize::MAX);
    (!exists && running >= limit).then(|| {
        let place = tap.namespace().map_or("the cluster".to_owned(), |namespace| format!("the namespace {namespace}"));
        let message = format!("{place} has {}, and limits.tapsPerNamespace allows no more", counted(running, "tap"));
        Denial { by: By::Quota, cause: Cause::new(Reason::TooManyTaps, message) }
    })
}

fn is_running(tap: &Tap) -> bool {
    let reasons = [Reason::Suspended, Reason::Expired, Reason::InvalidSpec].map(Reason::as_str);
    !tap.ready().is_some_and(|ready| reasons.contains(&ready.reason.as_str()))
}

/// Why it cannot have the VNI that it asks for.
fn vni_denial(tap: &Tap, taps: &[Tap], range: &VniRange) -> Option<Denial> {
    let vni = tap.mirror().vxlan.as_ref()?.vni?;
    if !range.contains(vni) {
        let message = format!("the VNI {vni} is outside of vniRange, {}-{}", range.first, range.last);
        return Some(Denial { by: By::Policy, cause: Cause::new(Reason::NotAllowedByPolicy, message) });
    }
    let has = |other: &&Tap| {
        let status = other.status();
        let vnis = status.into_iter().flat_map(|status| status.destinations.iter().filter_map(|to| to.vni));
        let own = status.and_then(|status| status.vni);
        other.uid() != tap.uid() && own.into_iter().chain(vnis).any(|other| other == vni)
    };
    let holder = taps.iter().find(has)?;
    let message = format!("the {holder} has the VNI {vni}");
    Some(Denial { by: By::Policy, cause: Cause::new(Reason::VniInUse, message) })
}

fn own_warnings(tap: &Tap, rows: Option<&[Row]>, around: &Surroundings, places: &[Place], exists: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut unread = |is_unread: bool, what: &str| {
        if is_unread {
            warnings.push(format!("you may not read {what}"));
        }
    };
    unread(rows.is_none(), "the pods that the tap selects");
    unread(!around.is_policy_known, "the PodTapPolicy, which may forbid more than is told here");
    unread(around.nodes.is_none(), "nodes, which may have opted out");
    unread(around.node_taps.is_none(), "NodeTaps, which tell what the nodes do already");
    for place in places {
        unread(place.unread.is_some(), place.unread.unwrap_or_default());
    }
    if tap.mirror().suspend {
        warnings.push("it is suspended: it mirrors nothing until it is resumed".to_owned());
    }
    if tap.mirror().options.expression().is_some() && !exists {
        warnings
            .push("filter.expression is not checked here: the controller compiles it when the tap exists".to_owned());
    }
    for row in rows.unwrap_or_default() {
        warnings.extend(row.degraded.iter().map(|message| format!("pod {}: {message}", row.pod)));
    }
    warnings
}

fn creates(
    tap: &Tap,
    rows: &[Row],
    places: &[Place],
    around: &Surroundings,
    policy: Option<&PodTapPolicySpec>,
) -> Creates {
    let usable = || places.iter().filter(|place| place.refusal.is_none());
    let receivers = usable().filter(|place| !place.is_external).count();
    let tapped = || rows.iter().filter(|row| row.state == RowState::Ok);
    let nodes = tapped().filter_map(|row| row.node.clone()).chain(usable().filter_map(|place| place.node.clone()));
    // A node has a helper pod as long as it has a NodeTap.
    let with_helper =
        around.node_taps.as_ref().map(|all| all.iter().map(ResourceExt::name_any).collect::<BTreeSet<String>>());
    let vni = tap.mirror().vxlan.as_ref().and_then(|vxlan| vxlan.vni);
    Creates {
        senders: tapped().count(),
        receivers,
        vni: vni.map(u32::from),
        vni_range: policy.map(|policy| policy.vni_range.clone()),
        // All external destinations share one with the first receiver.
        vnis: receivers.max(1),
        helper_pods: with_helper.map(|with_helper| nodes.filter(|node| !with_helper.contains(node)).collect()),
    }
}
