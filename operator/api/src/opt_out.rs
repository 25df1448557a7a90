use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::EXCLUDE;

/// Whether the object's label or annotation opts it out of every tap. Every value but `false` does: the owner who writes `yes`, or leaves
/// the value out, means the same.
#[must_use]
pub fn is_excluded(meta: &ObjectMeta) -> bool {
    let maps = [&meta.labels, &meta.annotations].into_iter().flatten();
    maps.into_iter().any(|map| map.get(EXCLUDE).is_some_and(|value| value != "false"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(labels: &Value, annotations: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"labels": labels, "annotations": annotations})).expect("metadata")
    }

    #[test]
    fn whatever_is_not_false_opts_out() {
        let none = json!({});
        for value in ["true", "yes", "True", "1", "", "FALSE"] {
            let value = json!({EXCLUDE: value});
            assert!(is_excluded(&meta(&value, &none)) && is_excluded(&meta(&none, &value)), "{value:?}");
        }
        let not = json!({EXCLUDE: "false"});
        assert!(!is_excluded(&meta(&not, &not)));
        assert!(is_excluded(&meta(&not, &json!({EXCLUDE: "true"}))), "of two, the one that opts out");
        assert!(!is_excluded(&meta(&json!({"podtap.dev/exlude": "true"}), &none)));
    }
}
