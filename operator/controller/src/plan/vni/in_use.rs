//! Which VNIs nodes have, or may still have.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use podtap_model::Vni;

use crate::store::node_tap::CachedNodeTap;

/// The VNIs in the specs and statuses of all `NodeTap`s.
#[derive(Debug, Default)]
pub struct InUse<'a> {
    /// The taps that use a VNI, by their UIDs.
    taps: BTreeMap<Vni, BTreeSet<&'a str>>,
    /// VNIs that nodes report without having been told, as far as is known.
    claimed: BTreeSet<Vni>,
    /// Taps on nodes that have not applied their spec yet: they may use other VNIs than these objects show.
    unobserved: BTreeSet<&'a str>,
}

impl<'a> InUse<'a> {
    /// `told` has VNIs of taps that nodes were told besides those in their specs.
    pub fn new(node_taps: &'a BTreeMap<String, Arc<CachedNodeTap>>, told: &HashSet<(Vni, &str)>) -> Self {
        let mut in_use = Self::default();
        for node in node_taps.values() {
            let spec = node.spec.iter();
            let sent = spec.clone().flat_map(|spec| &spec.taps);
            let sent = sent.flat_map(|tap| tap.destinations.iter().map(|endpoint| (endpoint.vni, &*tap.uid)));
            let received = spec.flat_map(|spec| &spec.receivers).map(|r| (r.vni, &*r.tap.uid));
            let requested: BTreeSet<(Vni, &str)> = sent.chain(received).collect();
            let sending = node.status.sent_vnis.iter();
            let sending = sending.flat_map(|sent| sent.vnis.iter().map(|vni| (*vni, sent.tap_uid.as_str())));
            let receiving = node.status.receivers.iter();
            let receiving = receiving.filter_map(|r| Some((r.vni.try_into().ok()?, r.tap_uid.as_str())));
            let mut taps: BTreeSet<&str> = node.status.senders.iter().map(|s| s.tap_uid.as_str()).collect();
            for (vni, tap) in requested.iter().copied().chain(sending).chain(receiving) {
                if requested.contains(&(vni, tap)) || told.contains(&(vni, tap)) {
                    in_use.taps.entry(vni).or_default().insert(tap);
                } else {
                    in_use.claimed.insert(vni);
                }
                taps.insert(tap);
            }
            if !node.has_observed(node.generation) {
                in_use.unobserved.extend(&taps);
            }
        }
        in_use
    }

    /// Whether a node has the VNI for the tap.
    pub fn is_of(&self, vni: Vni, tap: &str) -> bool {
        self.taps.get(&vni).is_some_and(|taps| taps.contains(tap))
    }

    /// Whether a node has the VNI for another tap.
    pub fn is_of_another(&self, vni: Vni, tap: &str) -> bool {
        self.taps.get(&vni).is_some_and(|taps| taps.iter().any(|other| *other != tap))
    }

    /// Whether a node reports the VNI, without having been told.
    pub fn is_claimed(&self, vni: Vni) -> bool {
        self.claimed.contains(&vni)
    }

    /// Whether a node may have the VNI, which the tap has released.
    pub fn may_be_of(&self, vni: Vni, tap: &str) -> bool {
        self.is_of(vni, tap) || self.unobserved.contains(tap)
    }

    /// How many VNIs nodes have or report.
    pub fn len(&self) -> usize {
        self.taps.len() + self.claimed.len()
    }
}
