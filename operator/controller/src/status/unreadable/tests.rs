use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::at;

#[test]
fn all_conditions_of_an_object_that_cannot_be_decoded_say_so_and_others_stay() {
    let error = DecodeError("unknown variant `Sideways`".to_owned());
    let pending = json!({
        "type": "Ready", "status": "False", "reason": "Pending", "message": "m", "observedGeneration": 1,
        "lastTransitionTime": at(0).to_string(),
    });
    let old = json!([{"type": "Reviewed", "odd": true}, pending]);
    let new = conditions(&old, 3, &error, at(9));
    let list = new.as_array().expect("a list");
    assert_eq!(list.len(), OWN_TYPES.len() + 1);
    assert_eq!(list[OWN_TYPES.len()], old[0]);
    for (condition, kind) in list.iter().zip(OWN_TYPES) {
        assert_eq!((condition["type"].as_str(), condition["reason"].as_str()), (Some(kind), Some("InvalidSpec")));
        assert_eq!(condition["observedGeneration"], 3);
        assert!(condition["message"].as_str().is_some_and(|message| message.contains("`Sideways`")));
    }
    assert_eq!(list[0]["lastTransitionTime"], json!(Time(at(0))), "it was False before");
    assert_eq!(conditions(&new, 3, &error, at(99)), new, "nothing new to write");
}
