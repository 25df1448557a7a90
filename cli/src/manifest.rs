//! Taps as documents that a person may commit.

use podtap_api::{PodTap, definitions};
use serde_json::Value;

use crate::exit::{Failure, Outcome};

/// The object without fields that have their default value, as a person would write it.
pub fn document(tap: &PodTap) -> Value {
    let mut document = whole(tap);
    drop_defaults(&mut document["spec"], &spec_schema());
    document
}

/// The object with all fields, so that those of a tap that exists change to what is requested.
pub fn whole(tap: &PodTap) -> Value {
    let mut document = serde_json::to_value(tap).expect("a PodTap can be written");
    if let Some(document) = document.as_object_mut() {
        document.remove("status");
    }
    if let Some(metadata) = document["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    document
}

/// The schema of `spec` of a `PodTap`.
pub fn spec_schema() -> Value {
    let [(_, definition), ..] = definitions();
    let definition = serde_json::to_value(definition).expect("a definition can be written");
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

fn drop_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let schema = &schema["properties"][name];
                drop_defaults(field, schema);
                schema.get("default").is_none_or(|default| default != field)
            });
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_defaults(item, &schema["items"])),
        _ => {}
    }
}

/// A document as YAML.
pub fn yaml(document: &Value) -> Outcome<String> {
    serde_saphyr::to_string(document).map_err(|error| Failure::error(format!("cannot write YAML: {error}")))
}

/// A document as JSON.
pub fn json(document: &Value) -> String {
    format!("{document:#}\n")
}
