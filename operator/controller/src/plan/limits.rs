//! Part of stage 4: what the policy says is too much. Pure.

use std::collections::BTreeMap;

use crate::{failure::Failure, plan::build::{TapPlan, TapState}, reason, validate::tap::Policy};

/// The oldest taps of a namespace win: one tenant alone must not fill the objects that all share.
pub fn taps_per_namespace(taps_: &mut [TapPlan<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_namespace).unwrap_or(usize::MAX);
    let mut taps: BTreeMap<&str, usize> = BTreeMap::new();
    for tap in taps_.iter_mut().filter(|tap| tap.is_executed()) {
        let tap = tap.tap;
        let taps = taps.entry(tap.reference.namespace.as_str()).or_default();
        *taps += 1;
        if *taps > limit {
            tap.standing = TapState::Refused(Failure::new(
                reason::TOO_MANY_TAPS,
                format!(
                    "the namespace {} has {limit} older taps, and limits.tapsPerNamespace of the PodTapPolicy allows no more: delete one of them, select several pods by one tap, or ask the cluster's administrator",
                    tap.reference.namespace
                ),
            ));
        }
    }
}

/// The oldest taps of a pod win.
pub fn taps_per_pod(taps_: &mut [TapPlan<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_pod).unwrap_or(usize::MAX);
    let mut taps: BTreeMap<String, usize> = BTreeMap::new();
    for tap in taps_.iter_mut().filter(|tap| tap.is_executed()) {
        for target in tap.targets.pods.iter_mut().filter(|target| target.failure.is_none()) {
            let taps = taps.entry(target.pod.uid.clone()).or_default();
            *taps += 1;
            if *taps > limit {
                target.failure = Some(Failure::new(
                    reason::TOO_MANY_TAPS,
                    format!(
                        "the pod is under {limit} older taps, and limits.tapsPerPod of the PodTapPolicy allows no more: delete one of them, or ask the cluster's administrator"
                    ),
                ));
            }
        }
    }
}
