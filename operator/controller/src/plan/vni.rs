//! Which destination of which tap has which VXLAN network identifier. Pure.
//!
//! A VNI is derived from the tap's UID and the destination's name, so that every allocation gives the same one, and that it cannot
//! be guessed without the UID. If it is taken, the next one of the same sequence is used. Nothing is recorded beside the
//! statuses of the taps and the `NodeTap`s, which show the VNIs that are used.
//!
//! # Guarantees
//! - No VNI is assigned to two taps, nor to two receivers of a tap. A destination keeps its VNI for as long as policy and spec allow,
//!   wherever it is in the list of destinations, also under the next leader.
//! - A VNI is free again only when no node has it: mirrored frames of two taps never mix at a receiver.
//! - No agent can make VNIs unavailable: what a node reports counts if the node was told so. That is known from its `NodeTap`'s spec, from
//!   the status of the tap, or by this leader. Other VNIs that it reports are assigned last, and to a tap that requests them.
//! - What a tap gets depends on older taps and on what is in use, not on younger taps. Two controllers, one of which does not know the
//!   youngest taps yet, assign the same VNIs to the others.

mod in_use;

use std::collections::{BTreeMap, HashMap, HashSet};

use podtap_api::VniRange;
use podtap_model::{Uid, Vni};

use crate::{
    names,
    store::snapshot::Snapshot,
    validate::{spec::TapSpec, tap::Tap},
};
use in_use::InUse;

/// How many VNIs of a sequence are tried before the range is searched.
const ATTEMPTS: u32 = 32;
/// The name of the tap's own VNI, which no destination has.
const TAP: &str = "";

/// The VNIs of one tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapVnis {
    /// The VNI of the tap. All of its external destinations use it, and one of its receivers.
    pub tap: Vni,
    /// The VNI of each receiver, by the name of the destination. A node cannot have two receivers of one VNI.
    pub receivers: BTreeMap<String, Vni>,
}

/// Why a tap has no VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another tap has the requested one.
    InUse(Vni),
    /// The requested one is outside of the policy's range.
    NotAllowed(Vni),
    /// All of the range are taken.
    Exhausted,
}

/// The VNIs of all taps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vnis {
    pub assigned: BTreeMap<Uid, TapVnis>,
    /// Taps that do not get all they need.
    pub refusals: BTreeMap<Uid, Refusal>,
    /// VNIs that are no longer assigned, and that nodes may still have for a tap.
    pub released: BTreeMap<Vni, Uid>,
}

/// Allocates VNIs. `previous` is the last result of this leader; `taps` are those that need VNIs, oldest first.
pub fn allocate(previous: &Vnis, taps: &[(&Tap, &TapSpec)], snapshot: &Snapshot, range: &VniRange) -> Vnis {
    let in_use = InUse::new(&snapshot.node_taps, &told(previous, snapshot));
    let held = held(previous, &in_use);
    let mut work = Allocator { in_use: &in_use, held, range, owners: HashMap::new(), is_exhausted: false };
    let mut demands: Vec<Demand<'_>> = taps.iter().flat_map(|(tap, spec)| demands(previous, tap, spec)).collect();
    work.keep(&mut demands, |work, demand, vni| demand.is_decided || work.in_use.is_of(vni, demand.tap));
    // Nodes need not have what a status shows, for example while no pod matches.
    work.keep(&mut demands, |work, demand, vni| !work.is_taken(vni, demand.tap));
    let mut vnis = Vnis::default();
    for demand in &mut demands {
        if demand.vni.is_none() {
            match work.assign(demand) {
                Ok(vni) => demand.vni = Some(vni),
                Err(refusal) => drop(vnis.refusals.entry(demand.tap.clone()).or_insert(refusal)),
            }
        }
    }
    vnis.released = work.released();
    for Demand { tap, names, vni, .. } in demands {
        let Some(vni) = vni.filter(|_| !vnis.refusals.contains_key(tap)) else { continue };
        // The demand for the tap's own VNI comes first.
        let entry =
            vnis.assigned.entry(tap.clone()).or_insert_with(|| TapVnis { tap: vni, receivers: BTreeMap::new() });
        entry.receivers.extend(names.into_iter().map(|name| (name.to_owned(), vni)));
    }
    vnis
}

/// The VNIs that taps have, or had when this leader began, apart from those in the specs of nodes.
fn told<'a>(previous: &'a Vnis, snapshot: &'a Snapshot) -> HashSet<(Vni, &'a str)> {
    let assigned = previous.assigned.iter().flat_map(|(tap, vnis)| of_tap(vnis).map(move |vni| (vni, &**tap)));
    let released = previous.released.iter().map(|(vni, tap)| (*vni, &**tap));
    let shown = snapshot.taps.iter().filter_map(|entry| {
        let (_, status) = entry.object.body.as_ref().ok()?;
        let vnis = status.destinations.iter().filter_map(|destination| destination.vni).chain(status.vni);
        Some(vnis.map(move |vni| (vni, &*entry.object.reference.uid)))
    });
    assigned.chain(released).chain(shown.flatten()).collect()
}

fn of_tap(vnis: &TapVnis) -> impl Iterator<Item = Vni> {
    vnis.receivers.values().copied().chain([vnis.tap])
}

/// One VNI that a tap needs.
#[derive(Debug)]
struct Demand<'a> {
    tap: &'a Uid,
    /// What it is derived from: [`TAP`], or the name of a destination.
    key: &'a str,
    /// The receivers that use it.
    names: Vec<&'a str>,
    requested: Option<Vni>,
    /// What it was before.
    shown: Option<Vni>,
    /// This leader has assigned that.
    is_decided: bool,
    vni: Option<Vni>,
}

/// What a tap needs: a VNI of its own, and one for each receiver that does not use it.
fn demands<'a>(previous: &Vnis, tap: &'a Tap, spec: &'a TapSpec) -> Vec<Demand<'a>> {
    let decided = previous.assigned.get(&tap.reference.uid);
    let of_tap = decided.map_or(tap.status.vni, |vnis| Some(vnis.tap));
    let of_receiver = |name: &str| match decided {
        Some(vnis) => vnis.receivers.get(name).copied(),
        None => tap.status.destination(name)?.vni,
    };
    let receivers: Vec<&str> =
        spec.destinations.iter().filter(|d| !d.is_external()).map(|destination| destination.name.as_str()).collect();
    let has_external = receivers.len() < spec.destinations.len();
    let sharing = receivers.iter().copied().find(|name| of_tap.is_some() && of_receiver(name) == of_tap);
    let (sharing, shown) = match sharing {
        // If the destination that shared it is gone, external destinations keep it. Without any, another receiver takes its place.
        None if of_tap.is_none() || !has_external => {
            let next = receivers.iter().copied().find(|name| of_receiver(name).is_some());
            let next = next.or_else(|| receivers.first().copied());
            (next, next.and_then(of_receiver).or(of_tap.filter(|_| next.is_none())))
        }
        sharing => (sharing, of_tap),
    };
    let demand = |key, names, requested, shown: Option<Vni>| Demand {
        tap: &tap.reference.uid,
        key,
        names,
        requested,
        shown,
        is_decided: decided.is_some() && shown.is_some(),
        vni: None,
    };
    let own = demand(TAP, sharing.into_iter().collect(), spec.vni, shown);
    let others = receivers.iter().filter(|name| Some(**name) != sharing);
    std::iter::once(own).chain(others.map(|name| demand(name, vec![*name], None, of_receiver(name)))).collect()
}

/// What was assigned before, and which nodes may still have for the same tap.
fn held<'a>(previous: &'a Vnis, in_use: &InUse<'_>) -> HashMap<Vni, &'a Uid> {
    let assigned = previous.assigned.iter().flat_map(|(tap, vnis)| of_tap(vnis).map(move |vni| (vni, tap)));
    let before = previous.released.iter().map(|(vni, tap)| (*vni, tap)).chain(assigned);
    before.filter(|(vni, tap)| in_use.may_be_of(*vni, tap)).collect()
}

struct Allocator<'a> {
    in_use: &'a InUse<'a>,
    held: HashMap<Vni, &'a Uid>,
    range: &'a VniRange,
    /// The taps to which VNIs are assigned.
    owners: HashMap<Vni, &'a Uid>,
    is_exhausted: bool,
}

impl<'a> Allocator<'a> {
    /// Lets demands keep what they had if `may` holds.
    fn keep(&mut self, demands: &mut [Demand<'a>], may: impl Fn(&Self, &Demand<'a>, Vni) -> bool) {
        for demand in demands.iter_mut().filter(|demand| demand.vni.is_none()) {
            let is_suitable =
                |vni: &Vni| self.range.contains(*vni) && demand.requested.is_none_or(|requested| requested == *vni);
            let shown = demand.shown.filter(is_suitable);
            demand.vni = shown.filter(|vni| !self.owners.contains_key(vni) && may(self, demand, *vni));
            if let Some(vni) = demand.vni {
                self.owners.insert(vni, demand.tap);
            }
        }
    }

    /// Whether a VNI cannot be assigned to the tap.
    fn is_taken(&self, vni: Vni, tap: &Uid) -> bool {
        #[cfg(test)]
        tests::EXAMINED.set(tests::EXAMINED.get() + 1);
        self.owners.contains_key(&vni) || self.is_of_another(vni, tap)
    }

    /// Whether another tap has the VNI, or may still have it.
    fn is_of_another(&self, vni: Vni, tap: &Uid) -> bool {
        self.in_use.is_of_another(vni, tap) || self.held.get(&vni).is_some_and(|holder| *holder != tap)
    }

    fn assign(&mut self, demand: &Demand<'a>) -> Result<Vni, Refusal> {
        let vni = match demand.requested {
            Some(vni) if !self.range.contains(vni) => return Err(Refusal::NotAllowed(vni)),
            Some(vni) if self.is_taken(vni, demand.tap) => return Err(Refusal::InUse(vni)),
            Some(vni) => vni,
            None => self.derive(demand)?,
        };
        self.owners.insert(vni, demand.tap);
        Ok(vni)
    }

    fn derive(&mut self, demand: &Demand<'a>) -> Result<Vni, Refusal> {
        let sequence = || (0..ATTEMPTS).map(|attempt| derived(self.range, demand.tap, demand.key, attempt));
        // A node has it although neither this leader nor the status knows it: the last leader ended in between.
        let is_own = |vni: &Vni| self.in_use.is_of(*vni, demand.tap) && !self.is_taken(*vni, demand.tap);
        let is_free = |vni: &Vni| !self.in_use.is_claimed(*vni) && !self.is_taken(*vni, demand.tap);
        if let Some(vni) = sequence().find(is_own).or_else(|| sequence().find(is_free)) {
            return Ok(vni);
        }
        let is_left = |vni: &Vni| !self.is_taken(*vni, demand.tap);
        let found = if self.is_exhausted {
            None
        } else {
            self.search(demand, is_free).or_else(|| self.search(demand, is_left))
        };
        self.is_exhausted = found.is_none();
        found.ok_or(Refusal::Exhausted)
    }

    /// Searches the range from the end of the sequence on. Among one VNI more than there are taken ones, one is free.
    fn search(&self, demand: &Demand<'_>, is_suitable: impl Fn(&Vni) -> bool) -> Option<Vni> {
        let start = derived(self.range, demand.tap, demand.key, ATTEMPTS).get();
        let (first, last) = (self.range.first.get(), self.range.last.get());
        let taken = self.owners.len() + self.in_use.len() + self.held.len();
        let numbers = (start..=last).chain(first..start).take(taken + 1);
        let mut vnis = numbers.filter_map(|number| Vni::try_from(number).ok());
        vnis.find(is_suitable)
    }

    /// What is no longer assigned to the tap that had it, while nodes may still have it.
    fn released(&self) -> BTreeMap<Vni, Uid> {
        let released = self.held.iter().filter(|(vni, tap)| self.owners.get(vni) != Some(tap));
        released.map(|(vni, tap)| (*vni, (*tap).clone())).collect()
    }
}

/// The VNI that a sequence has at a position.
pub fn derived(range: &VniRange, tap: &Uid, key: &str, attempt: u32) -> Vni {
    let size = u64::from(range.last.get() - range.first.get()) + 1;
    // A UID contains no slash.
    let number = names::hash(format!("{tap}/{attempt}/{key}").as_bytes()) % size;
    let offset = u32::try_from(number).unwrap_or_default();
    Vni::try_from(range.first.get() + offset).unwrap_or(range.first)
}

#[cfg(test)]
mod tests;
