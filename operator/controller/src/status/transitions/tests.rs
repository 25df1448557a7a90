use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podtap_api::CONDITION_TARGETS_RESOLVED;

use super::*;
use crate::fixtures::at;

fn status(conditions: &[(&str, bool, Reason)], failures: &[(&str, Reason)]) -> PodTapStatus {
    let condition = |(kind, is_true, reason): &(&str, bool, Reason)| Condition {
        type_: (*kind).to_owned(),
        status: if *is_true { "True" } else { "False" }.to_owned(),
        reason: reason.to_string(),
        message: format!("{kind} {reason}"),
        observed_generation: None,
        last_transition_time: Time(at(0)),
    };
    let failure = |(pod, reason): &(&str, Reason)| TapFailure {
        pod: (*pod).to_owned(),
        node: None,
        reason: *reason,
        message: String::new(),
    };
    PodTapStatus {
        conditions: conditions.iter().map(condition).collect(),
        failures: failures.iter().map(failure).collect(),
        ..PodTapStatus::default()
    }
}

fn reported(old: &PodTapStatus, new: &PodTapStatus) -> Vec<(Reason, bool)> {
    occurrences(old, new).into_iter().map(|o| (o.reason, o.is_warning)).collect()
}

#[test]
fn established_is_reported_once() {
    let ready = status(&[(CONDITION_READY, true, Reason::AsExpected)], &[]);
    assert_eq!(reported(&PodTapStatus::default(), &ready), [(Reason::TapEstablished, false)]);
    let mut reworded = ready.clone();
    reworded.conditions[0].message = "3 pods are mirrored".into();
    assert_eq!(reported(&ready, &reworded), []);
    // Ready for another reason is still Ready.
    reworded.conditions[0].reason = Reason::NoPodsMatch.to_string();
    assert_eq!(reported(&ready, &reworded), []);
    assert_eq!(reported(&reworded, &ready), []);
}

#[test]
fn pending_is_not_reported() {
    let waiting = status(&[(CONDITION_READY, false, Reason::Pending), (CONDITION_TAPPED, false, Reason::Pending)], &[]);
    assert_eq!(reported(&PodTapStatus::default(), &waiting), []);
}

#[test]
fn failures_of_the_whole_tap() {
    for reason in [Reason::VniInUse, Reason::MirroringLoop, Reason::InvalidSpec] {
        let all = [CONDITION_READY, CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED];
        let refused = status(&all.map(|kind| (kind, false, reason)), &[]);
        assert_eq!(reported(&PodTapStatus::default(), &refused), [(reason, true)]);
    }
}

#[test]
fn a_destination_that_does_not_exist() {
    let missing = status(
        &[(CONDITION_READY, false, Reason::NodeNotFound), (CONDITION_DESTINATIONS_READY, false, Reason::NodeNotFound)],
        &[],
    );
    assert_eq!(reported(&PodTapStatus::default(), &missing), [(Reason::DestinationUnavailable, true)]);
}

#[test]
fn a_helper_pod_is_reported_once_and_not_for_each_pod() {
    let failing = status(
        &[
            (CONDITION_DESTINATIONS_READY, false, Reason::HelperPodFailed),
            (CONDITION_TAPPED, false, Reason::HelperPodFailed),
        ],
        &[("a", Reason::HelperPodFailed), ("b", Reason::HelperPodFailed)],
    );
    assert_eq!(reported(&PodTapStatus::default(), &failing), [(Reason::HelperPodFailed, true)]);
}

#[test]
fn each_pod_that_fails_is_reported_once() {
    let old = status(&[], &[("a", Reason::InterfaceNotFound)]);
    let new = status(
        &[],
        &[("a", Reason::InterfaceNotFound), ("b", Reason::DestinationIsTarget), ("c", Reason::KernelError)],
    );
    assert_eq!(reported(&old, &new), [(Reason::TargetUnsupported, true), (Reason::TapFailed, true)]);
}

#[test]
fn a_node_that_goes_is_reported_once_for_each_tap() {
    let failures: Vec<(String, Reason)> = (0..16).map(|pod| (format!("p{pod}"), Reason::NodeNotReady)).collect();
    let failures: Vec<(&str, Reason)> = failures.iter().map(|(pod, reason)| (pod.as_str(), *reason)).collect();
    let new = status(&[], &failures);
    let reported = occurrences(&PodTapStatus::default(), &new);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(reported[0].note.starts_with("pod p0, and 15 other pods: "), "{}", reported[0].note);
}

#[test]
fn the_policy_can_forbid_a_vni_or_a_destination() {
    let all = [CONDITION_READY, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED];
    let mut refused = status(&all.map(|kind| (kind, false, Reason::NotAllowedByPolicy)), &[]);
    refused.conditions[0].message = "the VXLAN network identifier 7 is outside of spec.vniRange".to_owned();
    for condition in &mut refused.conditions[1..] {
        condition.message = "see Ready".to_owned();
    }
    assert_eq!(reported(&PodTapStatus::default(), &refused), [(Reason::NotAllowedByPolicy, true)]);
    // An external address: the tap as a whole could be carried out.
    refused.conditions[1].message = refused.conditions[0].message.clone();
    assert_eq!(reported(&PodTapStatus::default(), &refused), [(Reason::DestinationUnavailable, true)]);
}
