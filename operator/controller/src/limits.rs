//! Part of stage 4: what the policy says is too much. Pure.

use std::collections::BTreeMap;

use super::{
    build::{Outcome, Standing},
    problem::Problem,
    reason,
    validate::Policy,
};

/// The oldest taps of a namespace win: one tenant alone must not fill the objects that all share.
pub fn taps_per_namespace(outcomes: &mut [Outcome<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_namespace).unwrap_or(usize::MAX);
    let mut taps: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_executed()) {
        let tap = outcome.tap;
        let taps = taps.entry(tap.reference.namespace.as_str()).or_default();
        *taps += 1;
        if *taps > limit {
            outcome.standing = Standing::Refused(Problem::new(
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
pub fn taps_per_pod(outcomes: &mut [Outcome<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_pod).unwrap_or(usize::MAX);
    let mut taps: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_executed()) {
        for target in outcome.targets.pods.iter_mut().filter(|target| target.problem.is_none()) {
            let taps = taps.entry(target.pod.uid.clone()).or_default();
            *taps += 1;
            if *taps > limit {
                target.problem = Some(Problem::new(
                    reason::TOO_MANY_TAPS,
                    format!(
                        "the pod is under {limit} older taps, and limits.tapsPerPod of the PodTapPolicy allows no more: delete one of them, or ask the cluster's administrator"
                    ),
                ));
            }
        }
    }
}
