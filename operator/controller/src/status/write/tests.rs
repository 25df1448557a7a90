use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::{fixtures::at, status::tap_status::whole_seconds};

fn ours(reason: &str) -> Condition {
    Condition {
        type_: "Ready".into(),
        status: "False".into(),
        reason: reason.into(),
        message: "m".into(),
        observed_generation: Some(1),
        last_transition_time: Time(at(0)),
    }
}

fn status(conditions: Vec<Condition>) -> PodTapStatus {
    PodTapStatus { conditions, ..PodTapStatus::default() }
}

#[test]
fn conditions_of_others_do_not_count() {
    let foreign = Condition { type_: "Reviewed".into(), ..ours("ByAnn") };
    assert!(!differs(&status(vec![foreign.clone(), ours("Pending")]), &status(vec![ours("Pending")])));
    assert!(differs(&status(vec![foreign]), &status(vec![ours("Pending")])));
    assert!(differs(&status(vec![ours("Pending")]), &status(vec![ours("Expired")])));
    let more = PodTapStatus { tapped_pods: 1, ..status(vec![]) };
    assert!(differs(&status(vec![]), &more));
}

#[test]
fn a_status_is_the_same_after_it_was_stored() {
    let new = PodTapStatus {
        start_time: Some(Time(whole_seconds(Timestamp::new(1_800_000_000, 123_456_789).expect("a time")))),
        expiration_time: Some(Time(at(60))),
        ..status(vec![ours("Pending")])
    };
    let stored: PodTapStatus = serde_json::from_value(json!(new)).expect("it can be read");
    assert!(!differs(&stored, &new), "it would be written at every reconcile");
}
