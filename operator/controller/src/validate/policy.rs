//! The policy, with its defaults.

use std::{collections::BTreeSet, time::Duration};

use podtap_api::{Limits, PodTapPolicySpec, VniRange};
use podtap_model::{
    IpNet,
    bounds::{ORPHAN_TIMEOUT_SECONDS, UNDERLAY_MTU},
};

use crate::store::tap::{CachedPolicy, DecodeError};

/// What taps may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Networks of external destinations.
    pub external: Result<Vec<IpNet>, NoPolicy>,
    pub vni_range: VniRange,
    pub receiver_port: u16,
    /// Networks from which receivers accept mirrored frames besides the nodes.
    pub receiver_sources: Vec<IpNet>,
    pub underlay_mtu: Option<u32>,
    pub excluded_namespaces: BTreeSet<String>,
    pub limits: Limits,
    /// How long mirrors go on when nothing confirms them.
    pub orphan_timeout_seconds: u32,
    pub suspend_all: bool,
}

/// Why no external destination is allowed at all.
#[derive(Clone, Debug, PartialEq)]
pub enum NoPolicy {
    /// There is no `PodTapPolicy`.
    Absent,
    /// It cannot be decoded.
    Unreadable(DecodeError),
}

impl Policy {
    pub fn new(cached: Option<&CachedPolicy>) -> Self {
        let (spec, no_policy) = match cached {
            Some(Ok(spec)) => (spec.clone(), None),
            Some(Err(error)) => (PodTapPolicySpec::default(), Some(NoPolicy::Unreadable(error.clone()))),
            None => (PodTapPolicySpec::default(), Some(NoPolicy::Absent)),
        };
        Self {
            external: no_policy.map_or(Ok(spec.allowed_external_cidrs), Err),
            vni_range: spec.vni_range,
            receiver_port: spec.receiver_port,
            receiver_sources: spec.receiver_source_cidrs,
            // An impossible MTU counts as unset.
            underlay_mtu: spec.underlay_mtu.filter(|mtu| UNDERLAY_MTU.contains(mtu)),
            excluded_namespaces: spec.excluded_namespaces.into_iter().collect(),
            limits: spec.limits,
            orphan_timeout_seconds: orphan_timeout_seconds(spec.orphan_timeout.into()),
            suspend_all: spec.suspend_all,
        }
    }
}

/// The nearest timeout that nodes accept.
fn orphan_timeout_seconds(timeout: Duration) -> u32 {
    let (shortest, longest) = ORPHAN_TIMEOUT_SECONDS.into_inner();
    u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).clamp(shortest, longest)
}
