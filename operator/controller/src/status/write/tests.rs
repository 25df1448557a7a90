use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::at;

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
    assert!(!differs(&status(vec![foreign.clone(), ours("Waiting")]), &status(vec![ours("Waiting")])));
    assert!(differs(&status(vec![foreign]), &status(vec![ours("Waiting")])));
    assert!(differs(&status(vec![ours("Waiting")]), &status(vec![ours("Expired")])));
    let more = PodTapStatus { tapped_pods: 1, ..status(vec![]) };
    assert!(differs(&status(vec![]), &more));
}

#[test]
fn a_status_is_the_same_after_it_was_stored() {
    let new = PodTapStatus {
        start_time: Some(Time(whole_seconds(Timestamp::new(1_800_000_000, 123_456_789).expect("a time")))),
        expires_at: Some(Time(at(60))),
        ..status(vec![ours("Waiting")])
    };
    let stored: PodTapStatus = serde_json::from_value(json!(new)).expect("it can be read");
    assert!(!differs(&stored, &new), "it would be written at every pass");
}

#[test]
fn of_an_object_that_is_not_understood_all_conditions_say_so_and_others_stay() {
    let old = json!([{"type": "Reviewed", "odd": true}, ours("Waiting")]);
    let new = unreadable_conditions(&old, 3, "unknown variant `Sideways`", at(9));
    let list = new.as_array().expect("a list");
    assert_eq!(list.len(), OURS.len() + 1);
    assert_eq!(list[OURS.len()], old[0]);
    for (condition, kind) in list.iter().zip(OURS) {
        assert_eq!((condition["type"].as_str(), condition["reason"].as_str()), (Some(kind), Some("InvalidSpec")));
        assert_eq!(condition["observedGeneration"], 3);
        assert!(condition["message"].as_str().is_some_and(|message| message.contains("`Sideways`")));
    }
    assert_eq!(list[0]["lastTransitionTime"], json!(Time(at(0))), "it was False before");
    assert_eq!(unreadable_conditions(&new, 3, "unknown variant `Sideways`", at(99)), new, "nothing new to write");
}
