//! Keys that look like opting out.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use podtap_api::EXCLUDE;

/// Prefix of every label and annotation of PodTap.
const PREFIX: &str = "podtap.dev/";

/// How many unknown keys of an object are kept: enough to see what is wrong.
const MAX_UNKNOWN: usize = 4;

/// The keys under `podtap.dev/` that PodTap does not read, such as a mistyped opt-out, each with `label` or `annotation` before it.
pub fn unknown_keys(meta: &ObjectMeta) -> Vec<String> {
    let keys = maps(meta).flat_map(|(kind, map)| map.keys().map(move |key| (kind, key)));
    let unknown = keys.filter(|(_, key)| key.starts_with(PREFIX) && *key != EXCLUDE);
    unknown.take(MAX_UNKNOWN).map(|(kind, key)| format!("{kind} {key}")).collect()
}

fn maps(meta: &ObjectMeta) -> impl Iterator<Item = (&'static str, &BTreeMap<String, String>)> {
    let maps = [("label", &meta.labels), ("annotation", &meta.annotations)];
    maps.into_iter().filter_map(|(kind, map)| Some((kind, map.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::object;

    fn meta(labels: &serde_json::Value, annotations: &serde_json::Value) -> ObjectMeta {
        object(json!({"labels": labels, "annotations": annotations}))
    }

    #[test]
    fn unknown_keys_are_found_and_bounded() {
        let labels = json!({"app": "web", EXCLUDE: "true", "podtap.dev/exlude": "true"});
        let annotations = json!({"podtap.dev/Exclude": "", "example.com/podtap.dev": ""});
        let found = unknown_keys(&meta(&labels, &annotations));
        assert_eq!(found, ["label podtap.dev/exlude", "annotation podtap.dev/Exclude"]);
        let many: serde_json::Map<_, _> = (0..100).map(|number| (format!("podtap.dev/{number}"), json!(""))).collect();
        assert_eq!(unknown_keys(&meta(&many.into(), &json!({}))).len(), MAX_UNKNOWN);
    }
}
