//! The policy, with its defaults.

use std::{collections::BTreeSet, time::Duration};

use podtap_api::{Limits, PodTapPolicySpec, VniRange};
use podtap_model::{
    EtherType, IpNet,
    bounds::{ORPHAN_TIMEOUT_SECONDS, UNDERLAY_MTU},
};

use crate::{store::tap::CachedPolicy, validate::state::SuspendedBy};

/// What taps may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Networks of external destinations. None: there is no `PodTapPolicy`.
    pub external: Option<Vec<IpNet>>,
    pub vni_range: VniRange,
    pub receiver_port: u16,
    /// Networks from which receivers accept mirrored frames besides the nodes.
    pub receiver_sources: Vec<IpNet>,
    pub underlay_mtu: Option<u32>,
    pub probe_ether_type: Option<EtherType>,
    /// Labels of pods of which receivers of metadata are told.
    pub metadata_labels: Vec<String>,
    pub excluded_namespaces: BTreeSet<String>,
    pub limits: Limits,
    /// How long mirrors go on when nothing confirms them.
    pub orphan_timeout_seconds: u32,
    /// What suspends all taps, if anything does.
    pub suspends_all: Option<SuspendedBy>,
}

impl Policy {
    /// A policy that cannot be decoded changes nothing: the `last` one that could be counts. Without one, nothing is mirrored, since it
    /// may forbid anything.
    pub fn new(cached: Option<&CachedPolicy>, last: Option<&CachedPolicy>) -> Self {
        let default = PodTapPolicySpec::default();
        let (spec, unreadable) = match (cached, last) {
            (Some(Ok(spec)), _) | (Some(Err(_)), Some(Ok(spec))) => (spec.clone(), None),
            (Some(Err(error)), _) => (default, Some(error)),
            (None, _) => (default, None),
        };
        let suspends_all = match unreadable {
            Some(error) => Some(SuspendedBy::UnreadablePolicy(error.clone())),
            None => spec.suspend_all.then_some(SuspendedBy::Policy),
        };
        Self {
            external: cached.map(|_| spec.allowed_external_cidrs),
            vni_range: spec.vni_range,
            receiver_port: spec.receiver_port,
            receiver_sources: spec.receiver_source_cidrs,
            // An impossible MTU counts as unset.
            underlay_mtu: spec.underlay_mtu.filter(|mtu| UNDERLAY_MTU.contains(mtu)),
            // Likewise.
            probe_ether_type: spec.probe_ether_type.and_then(|number| number.try_into().ok()),
            metadata_labels: spec.metadata_labels,
            excluded_namespaces: spec.excluded_namespaces.into_iter().collect(),
            limits: spec.limits,
            orphan_timeout_seconds: orphan_timeout_seconds(spec.orphan_timeout.into()),
            suspends_all,
        }
    }
}

/// The nearest timeout that nodes accept.
fn orphan_timeout_seconds(timeout: Duration) -> u32 {
    let (shortest, longest) = ORPHAN_TIMEOUT_SECONDS.into_inner();
    u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).clamp(shortest, longest)
}
