//! The schema accepts every example: the types can decode it, and no rule refuses it.

use std::{collections::BTreeSet, fs};

use kube::core::cel::Validator;
use podtap_api::{PodTap, PodTapPolicy, definitions};
use serde_json::Value;

/// All documents of all examples, with their file's name.
fn documents() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(super::top().join("examples")).expect("examples/ exists") {
        let path = entry.expect("examples/ is readable").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).expect("an example is text");
            let parsed: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.extend(parsed.into_iter().map(|document| (name.clone(), document)));
        }
    }
    found
}

#[test]
fn every_example_is_accepted() {
    let mut kinds = BTreeSet::new();
    for (file, document) in documents() {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        // Decoded and encoded again, so that it has the defaults that the API server fills in.
        let object = match kind.as_str() {
            "PodTap" => serde_json::from_value::<PodTap>(document).map(|o| serde_json::to_value(o).expect("JSON")),
            "PodTapPolicy" => {
                serde_json::from_value::<PodTapPolicy>(document).map(|o| serde_json::to_value(o).expect("JSON"))
            }
            _ => continue,
        }
        .unwrap_or_else(|e| panic!("{file}: {e}"));
        let (_, definition) =
            definitions().into_iter().find(|(_, d)| d.spec.names.kind == kind).expect("the kind is ours");
        let schema = definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.clone());
        let schema = serde_json::to_value(schema).expect("a schema is JSON");
        if let Err(errors) = Validator::new().validate(&schema, &object, None) {
            panic!("{file}: {errors:?}");
        }
        kinds.insert(kind);
    }
    assert!(kinds.contains("PodTap"), "examples/ has no PodTap at all");
}
