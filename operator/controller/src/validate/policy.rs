//! The policy, with its defaults.

use std::collections::BTreeSet;

use podtap_api::{Limits, PodTapPolicySpec, VniRange};
use podtap_model::{
    IpNet,
    bounds::{RECEIVER_PORT, UNDERLAY_MTU},
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
            Some(Err(error)) => (default_spec(), Some(NoPolicy::Unreadable(error.clone()))),
            None => (default_spec(), Some(NoPolicy::Absent)),
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
        }
    }
}

/// What applies without a policy: the defaults of an empty one.
fn default_spec() -> PodTapPolicySpec {
    PodTapPolicySpec { receiver_port: RECEIVER_PORT, ..PodTapPolicySpec::default() }
}
