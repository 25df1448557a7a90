//! What a pod belongs to, as far as the pod itself tells.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use podtap_model::Workload;

/// Label of a Deployment's pods: the end of their `ReplicaSet`'s name (deployment controller, `pkg/controller/deployment/sync.go`).
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Bytes of a kind, and of the name of most objects or of an API group.
const MAX_KIND: usize = 63;
const MAX_NAME: usize = 253;

/// The pod's first owner, or the Deployment whose `ReplicaSet` that is. `None`: it has none.
pub fn workload(pod: &ObjectMeta) -> Option<Workload> {
    let OwnerReference { kind, name, api_version, .. } = pod.owner_references.as_ref()?.first()?;
    // Who creates a pod can write there anything, and each node's object has room for so much.
    if kind.len() > MAX_KIND || name.len() > MAX_NAME || api_version.len() > MAX_NAME {
        return None;
    }
    let hash = pod.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH)).filter(|_| kind == "ReplicaSet");
    let deployment = hash.and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    let (kind, name) = deployment.map_or((kind.as_str(), name.as_str()), |deployment| ("Deployment", deployment));
    Some(Workload { kind: kind.to_owned(), name: name.to_owned(), api_version: api_version.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, name: &str, hash: Option<&str>) -> (String, String) {
        let pod = json!({
            "labels": hash.map(|hash| [(TEMPLATE_HASH, hash)].into_iter().collect::<std::collections::BTreeMap<_, _>>()),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u"}],
        });
        let found = workload(&serde_json::from_value(pod).expect("metadata")).expect("an owner");
        assert_eq!(found.api_version, "apps/v1");
        (found.kind, found.name)
    }

    #[test]
    fn a_deployment_is_known_by_the_name_of_its_replica_set() {
        for (kind, name, hash, expected) in [
            ("ReplicaSet", "web-7c9f", Some("7c9f"), ("Deployment", "web")),
            ("ReplicaSet", "my-web-7c9f", Some("7c9f"), ("Deployment", "my-web")),
            // It belongs to no Deployment.
            ("ReplicaSet", "web-7c9f", None, ("ReplicaSet", "web-7c9f")),
            ("ReplicaSet", "web", Some("7c9f"), ("ReplicaSet", "web")),
            ("ReplicaSet", "7c9f", Some("7c9f"), ("ReplicaSet", "7c9f")),
            ("StatefulSet", "db-7c9f", Some("7c9f"), ("StatefulSet", "db-7c9f")),
        ] {
            assert_eq!(of(kind, name, hash), (expected.0.to_owned(), expected.1.to_owned()));
        }
        assert_eq!(workload(&ObjectMeta::default()), None);
        let long = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "n".repeat(254), "uid": "u"}]});
        assert_eq!(workload(&serde_json::from_value(long).expect("metadata")), None);
    }
}
