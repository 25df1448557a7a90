//! The quotas of the policy, and how many senders a node has memory for.

use std::collections::BTreeMap;

use podtap_model::{Reason, Uid, bounds::MAX_SENDERS};

use crate::{
    failure::Failure,
    plan::tap_plan::{TapPlan, TapState},
    validate::policy::Policy,
};

/// The oldest taps of a namespace win: one tenant must not fill the objects that all share.
pub fn taps_per_namespace(taps: &mut [TapPlan<'_>], policy: &Policy) {
    let limit = usize::try_from(policy.limits.taps_per_namespace).unwrap_or(usize::MAX);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.is_executed()) {
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

/// The oldest taps of a node win. With more senders than its memory limit allows for, the kernel would end the tap-helper.
pub fn senders_per_node(taps: &mut [TapPlan<'_>]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.is_executed()) {
        for target in plan.targets.pods.iter_mut().filter(|target| target.failure.is_none()) {
            let node = target.pod.node.clone().unwrap_or_default();
            let count = counts.entry(node.clone()).or_default();
            *count += 1;
            if *count > MAX_SENDERS {
                target.failure = Some(Failure::new(
                    Reason::TooManyTaps,
                    format!(
                        "the pods of the node {node} are tapped {MAX_SENDERS} times by older taps, which is all that its tap-helper has memory for: delete one of them, or select fewer pods"
                    ),
                ));
            }
        }
    }
}
