//! The quotas of the policy.

use std::collections::BTreeMap;

use podtap_model::{Reason, Uid};

use crate::{
    failure::Failure,
    plan::tap_plan::{TapPlan, TapState},
    validate::policy::Policy,
};

/// The oldest taps of a namespace win: one tenant must not fill what all share. A tap counts even while it has no destination, since it
/// keeps its VNIs.
pub fn taps_per_namespace(taps: &mut [TapPlan<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_namespace).unwrap_or(usize::MAX);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.state == TapState::Active) {
        let namespace = plan.tap.reference.namespace.as_str();
        let count = counts.entry(namespace).or_default();
        *count += 1;
        if *count > limit {
            plan.state = TapState::Refused(Failure::new(
                Reason::TooManyTaps,
                format!(
                    "the namespace {namespace} has {limit} older taps, and limits.tapsPerNamespace of the PodTapPolicy allows no more: delete one of them, select several pods by one tap, or ask the cluster's administrator"
                ),
            ));
        }
    }
}

/// The oldest taps of a pod win.
pub fn taps_per_pod(taps: &mut [TapPlan<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_pod).unwrap_or(usize::MAX);
    let mut counts: BTreeMap<Uid, usize> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.is_executed()) {
        for target in plan.targets.pods.iter_mut().filter(|target| target.failure.is_none()) {
            let count = counts.entry(target.pod.uid.clone()).or_default();
            *count += 1;
            if *count > limit {
                target.failure = Some(Failure::new(
                    Reason::TooManyTaps,
                    format!(
                        "{limit} older taps tap the pod, and limits.tapsPerPod of the PodTapPolicy allows no more: delete one of them, or ask the cluster's administrator"
                    ),
                ));
            }
        }
    }
}
