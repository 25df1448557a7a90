//! The files under `crds/` are generated from the Rust types, and the schemas have a shape that the API server handles well.

use std::{fs, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use podtap_api::definitions;
use serde_json::Value;

const COMMAND: &str = "run `make crds` and commit the result";

#[test]
fn committed_definitions_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    for (file, definition) in definitions() {
        let text = fs::read_to_string(directory.join(file)).unwrap_or_else(|e| panic!("crds/{file}: {e}; {COMMAND}"));
        let committed: CustomResourceDefinition = serde_saphyr::from_str(&text).expect("a definition is YAML");
        assert!(committed == definition, "crds/{file} is not current: {COMMAND}");
    }
}

#[test]
fn no_definition_is_left_over() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    let known: Vec<_> = definitions().iter().map(|(file, _)| *file).collect();
    for entry in fs::read_dir(directory).expect("crds/ exists") {
        let name = entry.expect("crds/ is readable").file_name();
        assert!(known.iter().any(|k| name == *k), "crds/{} belongs to no kind: remove it", name.display());
    }
}

#[test]
fn an_explicit_null_is_unset() {
    fn nullable(path: &str, schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                if fields.get("nullable").is_some() {
                    found.push(path.to_owned());
                }
                fields.iter().for_each(|(name, value)| nullable(&format!("{path}.{name}"), value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| nullable(path, item, found)),
            _ => {}
        }
    }
    for (file, definition) in definitions() {
        let mut found = Vec::new();
        nullable(file, &serde_json::to_value(definition).expect("a definition is JSON"), &mut found);
        assert!(found.is_empty(), "the API server would keep null there: {found:?}");
    }
}

#[test]
fn every_list_declares_its_type() {
    fn lists(path: &str, schema: &Value, untyped: &mut Vec<String>, typed: &mut usize) {
        if schema["type"] == "array" {
            match schema["x-kubernetes-list-type"].as_str() {
                Some(_) => *typed += 1,
                None => untyped.push(path.to_owned()),
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            lists(&format!("{path}.{name}"), property, untyped, typed);
        }
        if schema["items"].is_object() {
            lists(&format!("{path}[]"), &schema["items"], untyped, typed);
        }
    }
    let (mut untyped, mut typed) = (Vec::new(), 0);
    for (_, definition) in definitions() {
        let schema = definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema.expect("the kind has a schema")).expect("a schema is JSON");
        lists(&definition.spec.names.kind, &schema, &mut untyped, &mut typed);
    }
    assert_eq!(untyped, [""; 0]);
    assert!(typed > 10, "lists are found");
}
