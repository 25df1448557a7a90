use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A label selector of pods, namespaces or nodes that keeps the fields it does not know.
///
/// Without them, `podSelector: {app: web}` (`matchLabels` is missing) would be `{}` after the API server has pruned it, and select
/// every pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectSelector {
    /// The selector.
    #[serde(flatten)]
    pub selector: LabelSelector,
    /// Fields that a selector does not have.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl JsonSchema for ObjectSelector {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ObjectSelector".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = LabelSelector::json_schema(generator);
        schema.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
        schema
    }
}

impl From<LabelSelector> for ObjectSelector {
    fn from(selector: LabelSelector) -> Self {
        Self { selector, unknown: BTreeMap::new() }
    }
}
