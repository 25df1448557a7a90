//! Whether a tap is carried out, by its spec, its status and the policy alone.
//!
//! Nothing is compiled or resolved for the others: a namespace can have thousands of them.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use podtap_model::Reason;

use crate::{
    failure::Failure,
    store::tap::DecodeError,
    validate::{expiry::expiration, policy::Policy, tap::Tap},
};

/// Whether a tap is carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum TapState {
    /// Carried out, as far as its targets and destinations allow.
    Active,
    /// Suspended.
    Suspended(SuspendedBy),
    /// Its duration is over.
    Expired,
    /// Not carried out at all.
    Refused(Failure),
}

/// What suspends a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuspendedBy {
    /// `suspendAll` of the policy, whatever the tap has.
    Policy,
    /// A policy that cannot be decoded, before which none is known: it may forbid anything.
    UnreadablePolicy(DecodeError),
    /// `suspend` of the tap.
    Tap,
}

/// Decides the state of each tap. The taps are to be given oldest first: the oldest of a namespace win its quota, since one tenant
/// must not fill what all share. A tap counts even while it has no destination, since it keeps its VNIs.
pub fn decide(taps: &mut [Tap], policy: &Policy, now: Timestamp) {
    let limit = usize::try_from(policy.limits.taps_per_namespace).unwrap_or(usize::MAX);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for tap in taps {
        tap.state = requested(tap, policy, now);
        if tap.state != TapState::Active {
            continue;
        }
        let namespace = &tap.reference.namespace;
        let count = counts.entry(namespace.clone()).or_default();
        *count += 1;
        if *count > limit {
            let message = if tap.reference.is_cluster_scoped() {
                format!(
                    "there are {limit} older ClusterPodTaps, and limits.tapsPerNamespace of the PodTapPolicy allows no more: delete one of them, or raise the limit"
                )
            } else {
                format!(
                    "the namespace {namespace} has {limit} older taps, and limits.tapsPerNamespace of the PodTapPolicy allows no more: delete one of them, select several pods by one tap, or ask the cluster's administrator"
                )
            };
            tap.state = TapState::Refused(Failure::new(Reason::TooManyTaps, message));
        }
    }
}

/// The state without quotas.
fn requested(tap: &Tap, policy: &Policy, now: Timestamp) -> TapState {
    let spec = match &tap.spec {
        Ok(spec) => spec,
        Err(failure) => return TapState::Refused(failure.clone()),
    };
    let end = tap.start.zip(spec.duration).map(|(start, duration)| expiration(start, duration));
    if end.is_some_and(|end| end <= now) {
        TapState::Expired
    } else if let Some(cause) = &policy.suspends_all {
        TapState::Suspended(cause.clone())
    } else if spec.suspend {
        TapState::Suspended(SuspendedBy::Tap)
    } else {
        TapState::Active
    }
}
