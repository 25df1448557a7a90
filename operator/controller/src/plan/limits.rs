//! The quota of taps per pod; that of a namespace is decided before, see [`state`](crate::validate::state).

use std::collections::BTreeMap;

use podtap_model::{Reason, Uid};

use crate::{failure::Failure, plan::tap_plan::TapPlan, validate::policy::Policy};

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
