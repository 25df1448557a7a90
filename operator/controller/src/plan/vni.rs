//! Which destination of which tap has which VXLAN network identifier. Pure; `apply::vni_record` records the result.
//!
//! # Guarantees
//! - No VNI is claimed by two taps, nor by two receivers of a tap. A destination keeps its VNI for as long as policy and spec allow,
//!   wherever it is in the list of destinations.
//! - A VNI is free again only when no node has anything of the tap that had it: mirrored frames of two taps never mix at a receiver.
//! - Requested VNIs are assigned oldest tap first, and before any is allocated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use podtap_api::VniRange;
use podtap_model::{Uid, Vni};

use crate::{
    store::node_tap::CachedNodeTap,
    validate::{
        spec::{RequestedDestination, TapSpec},
        tap::Tap,
    },
};

/// A destination of a tap. The claim of the tap's primary destination is also used by all of its external destinations; each further
/// receiver has a claim of its own, since a node cannot have two receivers of one VNI.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub tap: Uid,
    pub destination: String,
}

/// Not a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a claim: TAP-UID/DESTINATION")]
pub struct ParseClaimError;

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tap, self.destination)
    }
}

impl FromStr for Claim {
    type Err = ParseClaimError;

    fn from_str(text: &str) -> Result<Self, ParseClaimError> {
        let (tap, destination) = text.split_once('/').ok_or(ParseClaimError)?;
        let tap = tap.parse().map_err(|_| ParseClaimError)?;
        if destination.is_empty() {
            Err(ParseClaimError)
        } else {
            Ok(Self { tap, destination: destination.to_owned() })
        }
    }
}

/// The record: VNI to claim.
pub type Claims = BTreeMap<Vni, Claim>;

/// Why a tap has no VNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another tap, given by its UID, has the requested one.
    InUse { vni: Vni, holder: String },
    /// The requested one is outside of the policy's range.
    NotAllowed { vni: Vni },
    /// All of the range are taken.
    Exhausted,
}

/// The VNIs of all taps, as they are recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vnis {
    pub claims: Claims,
    /// Taps that do not get all they need.
    pub refusals: BTreeMap<Uid, Refusal>,
    /// The destination whose claim is that of the tap.
    pub primary: BTreeMap<Uid, String>,
}

impl Vnis {
    /// The VNI of the tap.
    pub fn of_tap(&self, tap: &Tap, spec: &TapSpec, range: &VniRange) -> Option<Vni> {
        let destination = self.primary.get(&tap.reference.uid)?;
        let is_suitable = |vni| range.contains(vni) && spec.vni.is_none_or(|requested| requested == vni);
        self.find(tap, destination, tap.status.vni, is_suitable)
    }

    /// The VNI of one of its destinations.
    pub fn of_destination(
        &self,
        tap: &Tap,
        spec: &TapSpec,
        destination: &RequestedDestination,
        range: &VniRange,
    ) -> Option<Vni> {
        let primary = self.primary.get(&tap.reference.uid)?;
        if destination.is_external() || destination.name == *primary {
            return self.of_tap(tap, spec, range);
        }
        let shown = tap.status.destination(&destination.name).and_then(|shown| shown.vni);
        self.find(tap, &destination.name, shown, |vni| range.contains(vni))
    }

    /// The suitable VNI of a claim. There can be several: one is being released. The one in the status comes first.
    fn find(&self, tap: &Tap, destination: &str, shown: Option<Vni>, is_suitable: impl Fn(Vni) -> bool) -> Option<Vni> {
        let is_claimed = |vni: &Vni| {
            let claim = self.claims.get(vni);
            let is_own = |claim: &Claim| claim.tap == tap.reference.uid && claim.destination == destination;
            is_suitable(*vni) && claim.is_some_and(is_own)
        };
        shown.filter(is_claimed).or_else(|| self.claims.keys().copied().find(is_claimed))
    }
}

/// Allocates VNIs from what is recorded, requested and in use on nodes. `taps` are those that need VNIs, oldest first.
pub fn allocate(
    recorded: &Claims,
    taps: &[(&Tap, &TapSpec)],
    node_taps: &BTreeMap<String, Arc<CachedNodeTap>>,
    range: &VniRange,
) -> Vnis {
    let in_use = InUse::new(node_taps);
    let demands: Vec<Demand<'_>> = taps.iter().flat_map(|(tap, spec)| demands(recorded, tap, spec)).collect();
    let mut work = Allocator { recorded, in_use: &in_use, range, vnis: Vnis::default() };
    for (tap, spec) in taps {
        work.vnis.primary.insert(tap.reference.uid.clone(), primary(recorded, tap, spec).to_owned());
    }
    work.keep_recorded(&demands);
    work.keep_in_use(&demands);
    let open: Vec<&Demand<'_>> = demands.iter().filter(|demand| !work.is_satisfied(demand)).collect();
    // The record was lost, or is older than the status: a tap keeps what its status shows, unless another one has it by now.
    let open: Vec<&Demand<'_>> = open.into_iter().filter(|demand| !work.restore(demand)).collect();
    let (requested, open): (Vec<&Demand<'_>>, Vec<&Demand<'_>>) =
        open.into_iter().partition(|demand| demand.requested.is_some());
    for demand in requested {
        work.assign_requested(demand);
    }
    let mut next = range.first;
    for demand in open {
        work.assign_lowest(demand, &mut next);
    }
    work.vnis
}

/// The name of the destination whose claim is that of the tap: as recorded; else the receiver that has the VNI of the status; else
/// the first receiver; of external destinations alone the first one. None of this depends on the order once a VNI is assigned.
fn primary<'a>(recorded: &'a Claims, tap: &Tap, spec: &'a TapSpec) -> &'a str {
    let receivers = || spec.destinations.iter().filter(|destination| !destination.is_external());
    let is_used = |name: &str| {
        spec.destinations.iter().any(RequestedDestination::is_external) || receivers().any(|d| d.name == name)
    };
    let claim = tap.status.vni.and_then(|vni| recorded.get(&vni)).filter(|claim| claim.tap == tap.reference.uid);
    let recorded = claim.map(|claim| claim.destination.as_str()).filter(|name| is_used(name));
    let shown = |d: &&RequestedDestination| {
        let vni = tap.status.destination(&d.name).and_then(|shown| shown.vni);
        vni.is_some() && vni == tap.status.vni
    };
    let destination = || receivers().find(shown).or_else(|| receivers().next()).or_else(|| spec.destinations.first());
    recorded.or_else(|| destination().map(|destination| destination.name.as_str())).unwrap_or_default()
}

/// Which VNIs and taps nodes have, in their specs or in their statuses.
#[derive(Debug, Default)]
struct InUse<'a> {
    /// Taps by VNI.
    vnis: BTreeMap<Vni, BTreeSet<&'a str>>,
    /// Taps that any node has.
    taps: BTreeSet<&'a str>,
    /// Those of them that a node may have with other VNIs than its spec says.
    unobserved: BTreeSet<&'a str>,
}

impl<'a> InUse<'a> {
    fn new(node_taps: &'a BTreeMap<String, Arc<CachedNodeTap>>) -> Self {
        let mut in_use = Self::default();
        for node in node_taps.values() {
            let spec = node.spec.iter();
            let sent = spec.clone().flat_map(|spec| &spec.taps);
            let sent = sent.flat_map(|tap| tap.destinations.iter().map(|endpoint| (endpoint.vni, &*tap.uid)));
            let received = spec.flat_map(|spec| &spec.receivers).map(|r| (r.vni, &*r.tap.uid));
            let reported = node.status.receivers.iter();
            let reported = reported.filter_map(|r| Some((r.vni.try_into().ok()?, r.tap_uid.as_str())));
            let mut taps: BTreeSet<&str> = node.status.senders.iter().map(|s| s.tap_uid.as_str()).collect();
            for (vni, tap) in sent.chain(received).chain(reported) {
                in_use.vnis.entry(vni).or_default().insert(tap);
                taps.insert(tap);
            }
            if !node.has_observed(node.generation) {
                in_use.unobserved.extend(&taps);
            }
            in_use.taps.extend(taps);
        }
        in_use
    }
}

/// One VNI that one tap needs.
#[derive(Debug)]
struct Demand<'a> {
    claim: Claim,
    requested: Option<Vni>,
    /// What the tap's status shows for it.
    shown: Option<Vni>,
    tap: &'a Tap,
}

fn demands<'a>(recorded: &Claims, tap: &'a Tap, spec: &TapSpec) -> Vec<Demand<'a>> {
    let primary = primary(recorded, tap, spec);
    let claim = |name: &str| Claim { tap: tap.reference.uid.clone(), destination: name.to_owned() };
    let receivers = spec.destinations.iter().filter(|d| !d.is_external() && d.name != primary);
    let first = Demand { claim: claim(primary), requested: spec.vni, shown: tap.status.vni, tap };
    let further = receivers.map(|d| Demand {
        claim: claim(&d.name),
        requested: None,
        shown: tap.status.destination(&d.name).and_then(|shown| shown.vni),
        tap,
    });
    std::iter::once(first).chain(further).collect()
}

struct Allocator<'a> {
    recorded: &'a Claims,
    in_use: &'a InUse<'a>,
    range: &'a VniRange,
    vnis: Vnis,
}

impl Allocator<'_> {
    fn is_suitable(&self, demand: &Demand<'_>, vni: Vni) -> bool {
        self.range.contains(vni) && demand.requested.is_none_or(|requested| requested == vni)
    }

    fn is_satisfied(&self, demand: &Demand<'_>) -> bool {
        self.vnis.claims.iter().any(|(vni, claim)| *claim == demand.claim && self.is_suitable(demand, *vni))
    }

    /// Claims that are still suitable stay.
    fn keep_recorded(&mut self, demands: &[Demand<'_>]) {
        let mut by_claim: BTreeMap<&Claim, Vec<Vni>> = BTreeMap::new();
        for (vni, claim) in self.recorded {
            by_claim.entry(claim).or_default().push(*vni);
        }
        for demand in demands {
            let vnis = by_claim.get(&demand.claim).map(Vec::as_slice).unwrap_or_default();
            let mut suitable = vnis.iter().copied().filter(|vni| self.is_suitable(demand, *vni));
            let shown = demand.shown.filter(|shown| suitable.clone().any(|vni| vni == *shown));
            if let Some(vni) = shown.or_else(|| suitable.next()) {
                self.vnis.claims.insert(vni, demand.claim.clone());
            }
        }
    }

    /// Other claims stay for as long as a node may have what they were for.
    fn keep_in_use(&mut self, demands: &[Demand<'_>]) {
        let existing: BTreeSet<&Uid> = demands.iter().map(|demand| &demand.claim.tap).collect();
        for (vni, claim) in self.recorded {
            let tap = &*claim.tap;
            let is_in_use = if existing.contains(&claim.tap) {
                self.in_use.unobserved.contains(tap) || self.in_use.vnis.get(vni).is_some_and(|taps| taps.contains(tap))
            } else {
                self.in_use.taps.contains(tap)
            };
            if is_in_use {
                self.vnis.claims.entry(*vni).or_insert_with(|| claim.clone());
            }
        }
    }

    /// Another tap that has the VNI.
    fn other_holder(&self, vni: Vni, tap: &str) -> Option<String> {
        let claimed = self.vnis.claims.get(&vni).map(|claim| &*claim.tap);
        let in_use = self.in_use.vnis.get(&vni).into_iter().flatten().copied();
        claimed.into_iter().chain(in_use).find(|holder| *holder != tap).map(str::to_owned)
    }

    fn restore(&mut self, demand: &Demand<'_>) -> bool {
        let is_free = |vni: &Vni| {
            self.is_suitable(demand, *vni)
                && !self.vnis.claims.contains_key(vni)
                && self.other_holder(*vni, &demand.claim.tap).is_none()
        };
        let Some(vni) = demand.shown.filter(is_free) else { return false };
        self.vnis.claims.insert(vni, demand.claim.clone());
        true
    }

    fn assign_requested(&mut self, demand: &Demand<'_>) {
        let Some(vni) = demand.requested else { return };
        let refusal = if !self.range.contains(vni) {
            Refusal::NotAllowed { vni }
        } else if let Some(holder) = self.other_holder(vni, &demand.claim.tap) {
            Refusal::InUse { vni, holder }
        } else {
            // Even if another destination of the same tap had it: that one gets another.
            self.vnis.claims.insert(vni, demand.claim.clone());
            return;
        };
        self.vnis.refusals.insert(demand.tap.reference.uid.clone(), refusal);
    }

    /// Assigns the lowest free VNI from `next` on; below `next` none is free.
    fn assign_lowest(&mut self, demand: &Demand<'_>, next: &mut Vni) {
        while self.vnis.claims.contains_key(next) || self.in_use.vnis.contains_key(next) {
            match Vni::try_from(next.get() + 1) {
                Ok(following) if following <= self.range.last => *next = following,
                _ => {
                    self.vnis.refusals.entry(demand.claim.tap.clone()).or_insert(Refusal::Exhausted);
                    return;
                }
            }
        }
        self.vnis.claims.insert(*next, demand.claim.clone());
    }
}

#[cfg(test)]
mod tests;
