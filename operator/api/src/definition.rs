//! The custom resource definitions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{ClusterPodTap, NodeTap, PodTap, PodTapPolicy};

/// The definitions of all kinds, with the file each is committed as under `crds/`.
#[must_use]
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 4] {
    [
        ("podtaps.yaml", normalized(PodTap::crd(), Rules::Keep)),
        ("clusterpodtaps.yaml", normalized(with_columns_of::<PodTap>(ClusterPodTap::crd()), Rules::Keep)),
        // The controller has validated what it writes there, and a rule that rejects one tap would stop all taps of the node.
        ("nodetaps.yaml", normalized(NodeTap::crd(), Rules::Drop)),
        ("podtappolicies.yaml", normalized(PodTapPolicy::crd(), Rules::Keep)),
    ]
}

/// With what `kubectl get` shows of another kind.
fn with_columns_of<K: CustomResourceExt>(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for (version, other) in definition.spec.versions.iter_mut().zip(K::crd().spec.versions) {
        version.additional_printer_columns = other.additional_printer_columns;
    }
    definition
}

/// What to do with the CEL rules of the types.
#[derive(Clone, Copy, PartialEq)]
enum Rules {
    Keep,
    Drop,
}

fn normalized(mut definition: CustomResourceDefinition, rules: Rules) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            normalize(schema, rules);
        }
    }
    definition
}

fn normalize(schema: &mut JSONSchemaProps, rules: Rules) {
    if rules == Rules::Drop {
        schema.x_kubernetes_validations = None;
    }
    // Without it, the API server drops an explicit `null` as if the field were unset (`PruneNonNullableNullsWithoutDefaults`,
    // apiextensions-apiserver/pkg/apiserver/schema/defaulting). The derive marks every `Option` as nullable, which keeps the null,
    // and `has()` in CEL takes it for a value: `node: null` beside `pod: {...}` would be two destinations in one.
    schema.nullable = None;
    // Lists of Kubernetes' own types, such as the values of a selector, are atomic there as well.
    if schema.type_.as_deref() == Some("array") && schema.x_kubernetes_list_type.is_none() {
        schema.x_kubernetes_list_type = Some("atomic".to_owned());
    }
    schema.properties.iter_mut().flatten().for_each(|(_, property)| normalize(property, rules));
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        normalize(values, rules);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => normalize(item, rules),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(|item| normalize(item, rules)),
        None => {}
    }
}
