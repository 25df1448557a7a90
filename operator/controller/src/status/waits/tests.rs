use super::*;
use crate::fixtures::{OWN_NAMESPACE, at, pod, started, uid};

fn cached(pod: k8s_openapi::api::core::v1::Pod) -> CachedPod {
    CachedPod::new(pod, OWN_NAMESPACE)
}

fn lacking(waits: &Waits, pod: &CachedPod, seconds: i64) -> Waits {
    let senders = [(pod, Progress::Pending(String::new()))];
    waits.observe(&PodTapStatus::default(), true, &senders, at(seconds))
}

#[test]
fn time_counts_from_the_first_sight_and_from_the_start_of_a_pod() {
    let (created, running) = (cached(pod("shop", "web", "n1")), cached(started(pod("shop", "web", "n1"))));
    let waits = lacking(&Waits::default(), &created, 0);
    assert_eq!(waits.next(at(0)), Some(at(30)));
    let waits = lacking(&waits, &created, 20);
    assert!(!waits.is_late_for(&created, at(29)) && waits.is_late_for(&created, at(30)));
    let waits = lacking(&waits, &running, 25);
    assert!(!waits.is_late_for(&running, at(54)) && waits.is_late_for(&running, at(55)));
    assert!(!waits.is_late_for_targets(at(29)) && waits.is_late_for_targets(at(30)));
    assert_eq!(waits.next(at(30)), Some(at(55)), "what is late already is no deadline");
    let waits = waits.observe(&PodTapStatus::default(), false, &[(&running, Progress::Active)], at(26));
    assert_eq!(waits, Waits::default());
    assert_eq!((waits.next(at(26)), uid("shop-web") == running.uid), (None, true));
}

#[test]
fn a_clock_that_is_set_back_does_not_prolong_the_time() {
    let pod = cached(started(pod("shop", "web", "n1")));
    let waits = lacking(&Waits::default(), &pod, 10_000);
    let waits = lacking(&waits, &pod, 0);
    assert!(waits.is_late_for(&pod, at(30)) && waits.is_late_for_targets(at(30)));
}
