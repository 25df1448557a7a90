use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podtap_api::CONDITION_TARGETS_RESOLVED;

use super::*;
use crate::fixtures::at;

fn status(conditions: &[(&str, bool, &str)], failures: &[(&str, &str)]) -> PodTapStatus {
    let condition = |(kind, holds, reason): &(&str, bool, &str)| Condition {
        type_: (*kind).to_owned(),
        status: if *holds { "True" } else { "False" }.to_owned(),
        reason: (*reason).to_owned(),
        message: format!("{kind} {reason}"),
        observed_generation: None,
        last_transition_time: Time(at(0)),
    };
    let failure = |(pod, reason): &(&str, &str)| TapFailure {
        pod: (*pod).to_owned(),
        reason: (*reason).to_owned(),
        ..TapFailure::default()
    };
    PodTapStatus {
        conditions: conditions.iter().map(condition).collect(),
        failures: failures.iter().map(failure).collect(),
        ..PodTapStatus::default()
    }
}

fn told(old: &PodTapStatus, new: &PodTapStatus) -> Vec<(&'static str, bool)> {
    occurrences(old, new).into_iter().map(|o| (o.reason, o.is_warning)).collect()
}

#[test]
fn established_is_told_once() {
    let ready = status(&[(CONDITION_READY, true, reason::ESTABLISHED)], &[]);
    assert_eq!(told(&PodTapStatus::default(), &ready), [(reason::TAP_ESTABLISHED, false)]);
    let mut reworded = ready.clone();
    reworded.conditions[0].message = "3 pods are copied".into();
    assert_eq!(told(&ready, &reworded), []);
}

#[test]
fn waiting_is_no_news() {
    let waiting = status(&[(CONDITION_READY, false, reason::WAITING), (CONDITION_TAPPED, false, reason::WAITING)], &[]);
    assert_eq!(told(&PodTapStatus::default(), &waiting), []);
}

#[test]
fn what_stands_against_the_whole_tap() {
    for reason in [reason::VNI_IN_USE, reason::MIRRORING_LOOP, reason::INVALID_SPEC] {
        let all = [CONDITION_READY, CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED];
        let refused = status(&all.map(|kind| (kind, false, reason)), &[]);
        assert_eq!(told(&PodTapStatus::default(), &refused), [(reason, true)]);
    }
}

#[test]
fn a_destination_that_is_not_there() {
    let missing = status(
        &[
            (CONDITION_READY, false, reason::NODE_NOT_FOUND),
            (CONDITION_DESTINATIONS_READY, false, reason::NODE_NOT_FOUND),
        ],
        &[],
    );
    assert_eq!(told(&PodTapStatus::default(), &missing), [(reason::DESTINATION_UNAVAILABLE, true)]);
}

#[test]
fn a_helper_is_told_of_once_and_not_for_each_pod() {
    let failing = status(
        &[
            (CONDITION_DESTINATIONS_READY, false, reason::HELPER_FAILED),
            (CONDITION_TAPPED, false, reason::HELPER_FAILED),
        ],
        &[("a", reason::HELPER_FAILED), ("b", reason::HELPER_FAILED)],
    );
    assert_eq!(told(&PodTapStatus::default(), &failing), [(reason::HELPER_FAILED, true)]);
}

#[test]
fn each_pod_that_fails_is_told_of_once() {
    let old = status(&[], &[("a", "InterfaceNotFound")]);
    let new = status(&[], &[("a", "InterfaceNotFound"), ("b", reason::DESTINATION_IS_TARGET), ("c", "Kernel")]);
    assert_eq!(told(&old, &new), [(reason::TARGET_UNSUPPORTED, true), (reason::TAP_FAILED, true)]);
}

#[test]
fn notes_fit_whatever_the_message() {
    assert_eq!(shortened("short".into()), "short");
    let long = shortened("ü".repeat(1000));
    assert!(long.len() <= MAX_NOTE && long.ends_with(" ..."), "{}", long.len());
}
