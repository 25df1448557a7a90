//! Stage 3: who has which VXLAN network identifier. Pure; `claims.rs` writes it down.
//!
//! # Guarantees
//! - No VNI is claimed by two destinations. A tap that has one keeps it for as long as policy and wish allow it.
//! - A VNI is free again only when no node holds the tap that had it: copies of two taps never mix at a receiver.
//! - Wishes are served oldest first, and before anything is allocated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use podtap_api::VniRange;

use crate::{store::objects::CachedNodeTap, validate::tap::{Spec, Tap, RequestedDestination}};

/// Which destination of which tap. Slot 0 is the tap's primary VNI, which its external destinations and its first
/// receiver use; each further receiver has the slot of its index in the spec, since a node cannot have two receivers
/// of one VNI.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub tap: String,
    pub slot: usize,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tap, self.slot)
    }
}

impl FromStr for Claim {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (tap, slot) = text.rsplit_once('/').ok_or(())?;
        Ok(Self { tap: tap.to_owned(), slot: slot.parse().map_err(|_| ())? })
    }
}

/// The record: VNI to claim.
pub type Claims = BTreeMap<i64, Claim>;

/// The VNI of a claim, out of those that suit: of several, one is on its way out. What the status shows is preferred.
pub fn find(claims: &Claims, claim: &Claim, shown: Option<i64>, suits: impl Fn(i64) -> bool) -> Option<i64> {
    let is_it = |vni: &i64| suits(*vni) && claims.get(vni) == Some(claim);
    shown
        .filter(is_it)
        .or_else(|| claims.iter().find(|(vni, other)| *other == claim && suits(**vni)).map(|(vni, _)| *vni))
}

/// Why a tap has no VNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another tap, given by its UID, has the wished one.
    InUse { vni: i64, holder: String },
    /// The wished one is outside of the range.
    NotAllowed { vni: i64 },
    /// All of the range are taken.
    Exhausted,
}

/// The slots of a tap's destinations, in the order of the spec.
pub fn slots(destinations: &[RequestedDestination]) -> Vec<usize> {
    let mut first = true;
    let slot = |(index, wanted): (usize, &RequestedDestination)| match wanted {
        RequestedDestination::External { .. } => 0,
        RequestedDestination::Node { .. } | RequestedDestination::Pod { .. } => {
            if std::mem::take(&mut first) {
                0
            } else {
                index
            }
        }
    };
    destinations.iter().enumerate().map(slot).collect()
}

/// What nodes hold, by what was written to them and what they say.
#[derive(Debug, Default)]
struct Held<'a> {
    /// Taps by VNI.
    vnis: BTreeMap<i64, BTreeSet<&'a str>>,
    /// Taps that any node knows of.
    taps: BTreeSet<&'a str>,
    /// Those of them that a node may hold otherwise than written.
    unsettled: BTreeSet<&'a str>,
}

impl<'a> Held<'a> {
    fn new(node_taps: &'a BTreeMap<String, Arc<CachedNodeTap>>) -> Self {
        let mut held = Self::default();
        for node in node_taps.values() {
            let spec = node.spec.iter();
            let senders = spec.clone().flat_map(|spec| &spec.senders);
            let receivers = spec.flat_map(|spec| &spec.receivers);
            let sent = senders.flat_map(|s| s.destinations.iter().map(|d| (d.vni, s.tap.uid.as_str())));
            let received = receivers.map(|r| (r.vni, r.tap.uid.as_str()));
            let reported = node.status.receivers.iter().map(|r| (r.vni, r.tap_uid.as_str()));
            let mut taps: BTreeSet<&str> = node.status.senders.iter().map(|s| s.tap_uid.as_str()).collect();
            for (vni, tap) in sent.chain(received).chain(reported) {
                held.vnis.entry(vni).or_default().insert(tap);
                taps.insert(tap);
            }
            if !node.has_observed(node.generation) {
                held.unsettled.extend(&taps);
            }
            held.taps.extend(taps);
        }
        held
    }
}

/// The result of this stage.
#[derive(Debug, Default, PartialEq)]
pub struct Allocation {
    /// What is to be recorded.
    pub claims: Claims,
    /// Taps, by UID, that do not get all they need.
    pub refusals: BTreeMap<String, Refusal>,
}

/// Decides anew from what is recorded, wished and held. `taps` are those that are to have VNIs, oldest first.
pub fn allocate(
    recorded: &Claims,
    taps: &[(&Tap, &Spec)],
    node_taps: &BTreeMap<String, Arc<CachedNodeTap>>,
    range: &VniRange,
) -> Allocation {
    let held = Held::new(node_taps);
    let mut work = Work { recorded, held: &held, range, claims: Claims::new(), refusals: BTreeMap::new() };
    let demands: Vec<Demand<'_>> = taps.iter().flat_map(|(tap, spec)| demands(tap, spec)).collect();
    work.keep(&demands);
    work.keep_what_nodes_hold(&demands);
    let open: Vec<&Demand<'_>> = demands.iter().filter(|demand| !work.is_served(demand)).collect();
    // The record was lost, or is younger than this status: what a tap shows is its own, unless somebody else's by now.
    let (recalled, open): (Vec<&Demand<'_>>, Vec<&Demand<'_>>) =
        open.into_iter().partition(|demand| work.recall(demand));
    drop(recalled);
    let (wished, open): (Vec<&Demand<'_>>, Vec<&Demand<'_>>) = open.into_iter().partition(|d| d.wish.is_some());
    for demand in wished {
        work.wish(demand);
    }
    let mut next = range.first;
    for demand in open {
        work.lowest(demand, &mut next);
    }
    Allocation { claims: work.claims, refusals: work.refusals }
}

/// One VNI that one tap needs.
#[derive(Debug)]
struct Demand<'a> {
    claim: Claim,
    wish: Option<i64>,
    /// What the tap's status shows for it.
    shown: Option<i64>,
    tap: &'a Tap,
}

fn demands<'a>(tap: &'a Tap, spec: &Spec) -> Vec<Demand<'a>> {
    // The primary one is needed in any case: it is what the status shows.
    let slots: BTreeSet<usize> = slots(&spec.destinations).into_iter().chain([0]).collect();
    let demand = |slot: usize| Demand {
        claim: Claim { tap: tap.reference.uid.clone(), slot },
        wish: spec.vni.filter(|_| slot == 0),
        shown: if slot == 0 { tap.status.vni } else { tap.status.destinations.get(slot).and_then(|d| d.vni) },
        tap,
    };
    slots.into_iter().map(demand).collect()
}

struct Work<'a> {
    recorded: &'a Claims,
    held: &'a Held<'a>,
    range: &'a VniRange,
    claims: Claims,
    refusals: BTreeMap<String, Refusal>,
}

impl Work<'_> {
    fn suits(&self, demand: &Demand<'_>, vni: i64) -> bool {
        self.range.contains(vni) && demand.wish.is_none_or(|wish| wish == vni)
    }

    fn is_served(&self, demand: &Demand<'_>) -> bool {
        self.claims.iter().any(|(vni, claim)| *claim == demand.claim && self.suits(demand, *vni))
    }

    /// Claims that still suit stay.
    fn keep(&mut self, demands: &[Demand<'_>]) {
        let mut by_claim: BTreeMap<&Claim, Vec<i64>> = BTreeMap::new();
        for (vni, claim) in self.recorded {
            by_claim.entry(claim).or_default().push(*vni);
        }
        for demand in demands {
            let vnis = by_claim.get(&demand.claim).map(Vec::as_slice).unwrap_or_default();
            let mut suiting = vnis.iter().copied().filter(|vni| self.suits(demand, *vni));
            let shown = demand.shown.filter(|shown| suiting.clone().any(|vni| vni == *shown));
            if let Some(vni) = shown.or_else(|| suiting.next()) {
                self.claims.insert(vni, demand.claim.clone());
            }
        }
    }

    /// Other claims stay while a node may still hold what they were for.
    fn keep_what_nodes_hold(&mut self, demands: &[Demand<'_>]) {
        let living: BTreeSet<&str> = demands.iter().map(|demand| demand.claim.tap.as_str()).collect();
        for (vni, claim) in self.recorded {
            let tap = claim.tap.as_str();
            let is_held = if living.contains(tap) {
                self.held.unsettled.contains(tap) || self.held.vnis.get(vni).is_some_and(|taps| taps.contains(tap))
            } else {
                self.held.taps.contains(tap)
            };
            if is_held {
                self.claims.entry(*vni).or_insert_with(|| claim.clone());
            }
        }
    }

    /// Who else has the VNI.
    fn other_holder(&self, vni: i64, tap: &str) -> Option<String> {
        let claimed = self.claims.get(&vni).map(|claim| claim.tap.as_str());
        let held = self.held.vnis.get(&vni).into_iter().flatten().copied();
        claimed.into_iter().chain(held).find(|holder| *holder != tap).map(str::to_owned)
    }

    fn recall(&mut self, demand: &Demand<'_>) -> bool {
        let free = |vni: &i64| {
            self.suits(demand, *vni)
                && !self.claims.contains_key(vni)
                && self.other_holder(*vni, &demand.claim.tap).is_none()
        };
        let Some(vni) = demand.shown.filter(free) else { return false };
        self.claims.insert(vni, demand.claim.clone());
        true
    }

    fn wish(&mut self, demand: &Demand<'_>) {
        let tap = &demand.claim.tap;
        let Some(vni) = demand.wish else { return };
        let refusal = if !self.range.contains(vni) {
            Refusal::NotAllowed { vni }
        } else if let Some(holder) = self.other_holder(vni, tap) {
            Refusal::InUse { vni, holder }
        } else {
            // Also where another slot of the same tap had it: that one is on its way out.
            self.claims.insert(vni, demand.claim.clone());
            return;
        };
        self.refusals.insert(demand.tap.reference.uid.clone(), refusal);
    }

    /// The lowest free one from `next` on; below `next` none is free.
    fn lowest(&mut self, demand: &Demand<'_>, next: &mut i64) {
        while self.claims.contains_key(next) || self.held.vnis.contains_key(next) {
            *next += 1;
        }
        if *next > self.range.last {
            self.refusals.entry(demand.claim.tap.clone()).or_insert(Refusal::Exhausted);
            return;
        }
        self.claims.insert(*next, demand.claim.clone());
    }
}

#[cfg(test)]
mod tests;
