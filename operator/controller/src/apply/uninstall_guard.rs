//! The policy that refuses to delete, while a node mirrors, what is needed to end that: the controller, which removes the finalizers of
//! taps, its permissions and its namespace. Deleting the manifest as a whole would otherwise leave mirrors running until their orphan
//! timeout, and taps that cannot be deleted. A controller that starts needs the definitions, too, but that of `PodTap` can be deleted: it
//! stays until its taps have ended.
//!
//! It is no part of the manifest: the API server admits every deletion of an admission policy, so that the first refused attempt to
//! delete the manifest would delete it, and the second one succeed. Each leader applies it. It belongs to the controller's `ClusterRole`,
//! which it protects itself: when that is deleted, the garbage collector deletes the policy, whether a controller runs or not.

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    rbac::v1::ClusterRole,
};
use kube::{
    Api, Client, Resource,
    api::Patch,
    core::{ClusterResourceScope, PartialObjectMeta},
};
use podtap_runtime::client::in_time;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    apply::context::patch_params,
    names::{self, LABEL_NAME},
};

/// Name of the policy and of its binding.
const NAME: &str = "podtap-uninstall";

/// A node without any of this is clean, as in [`CachedNodeTap::is_empty`](crate::store::node_tap::CachedNodeTap::is_empty).
const IS_EMPTY: &str = "params.?spec.?senders.orValue([]).size() == 0 && params.?spec.?receivers.orValue([]).size() == 0 && \
    params.?status.?senders.orValue([]).size() == 0 && params.?status.?receivers.orValue([]).size() == 0 && \
    params.?status.?leftovers.orValue([]).size() == 0";

const MESSAGE: &str = "'PodTap has mirrors on the node ' + params.metadata.name + '. Delete all taps and wait until their nodes are \
    clean: kubectl delete podtap --all --all-namespaces; kubectl delete clusterpodtap --all. Then repeat this. If that node is gone for good: kubectl delete nodetap ' + \
    params.metadata.name";

/// Why the policy could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the ClusterRole {}", names::CONTROLLER)]
    Owner(#[source] kube::Error),
    #[error("cannot apply the ValidatingAdmissionPolicy {NAME}")]
    Apply(#[source] kube::Error),
}

/// The policy, and whether this leader has applied it.
pub struct UninstallGuard {
    client: Client,
    namespace: String,
    is_applied: bool,
}

impl UninstallGuard {
    /// Sends no request.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), is_applied: false }
    }

    pub fn is_applied(&self) -> bool {
        self.is_applied
    }

    /// Creates policy and binding, or updates those of another version.
    pub async fn apply(&mut self) -> Result<(), Error> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let role = in_time(roles.get_metadata(names::CONTROLLER)).await.map_err(Error::Owner)?;
        let owner = role.metadata.uid.unwrap_or_default();
        self.apply_object::<ValidatingAdmissionPolicy>(policy(&self.namespace), &owner).await.map_err(Error::Apply)?;
        self.apply_object::<ValidatingAdmissionPolicyBinding>(binding(), &owner).await.map_err(Error::Apply)?;
        self.is_applied = true;
        Ok(())
    }

    async fn apply_object<K>(&self, spec: Value, owner: &str) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let object = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {
                "name": NAME,
                "labels": {
                    LABEL_NAME: names::PRODUCT,
                    "app.kubernetes.io/part-of": names::PRODUCT,
                    "app.kubernetes.io/managed-by": names::CONTROLLER,
                },
                "ownerReferences": [{
                    "apiVersion": ClusterRole::api_version(&()),
                    "kind": ClusterRole::kind(&()),
                    "name": names::CONTROLLER,
                    "uid": owner,
                }],
            },
            "spec": spec,
        });
        let _: PartialObjectMeta<K> =
            in_time(api.patch_metadata(NAME, &patch_params().force(), &Patch::Apply(object))).await?;
        Ok(())
    }
}

/// Evaluated once per `NodeTap`: any of them can refuse.
fn policy(namespace: &str) -> Value {
    let rule = |groups: &[&str], resources: &[&str]| json!({"apiGroups": groups, "apiVersions": ["*"], "operations": ["DELETE"], "resources": resources});
    // Not `resourceNames`: the request that deletes a collection has no name (k8s.io/apiserver, pkg/endpoints/handlers/delete.go).
    let is_needed = format!(
        "oldObject.metadata.name in (request.resource.resource == 'namespaces' ? ['{namespace}'] : \
         request.resource.resource == 'customresourcedefinitions' ? ['clusterpodtaps.podtap.dev', 'nodetaps.podtap.dev', 'podtappolicies.podtap.dev'] : \
         ['{}'])",
        names::CONTROLLER
    );
    json!({
        // Without the definition of NodeTap there is nothing to protect.
        "failurePolicy": "Ignore",
        "paramKind": {"apiVersion": "podtap.dev/v1alpha1", "kind": "NodeTap"},
        "matchConstraints": {"resourceRules": [
            rule(&[""], &["namespaces", "serviceaccounts"]),
            rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"]),
            rule(&["apps"], &["deployments"]),
            rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings", "clusterroles", "clusterrolebindings"]),
        ]},
        "matchConditions": [
            {"name": "is-needed", "expression": is_needed},
            {
                "name": "of-this-installation",
                "expression": format!("oldObject.metadata.?namespace.orValue('') in ['', '{namespace}']"),
            },
            // A namespace that is being deleted anyway.
            {
                "name": "not-the-namespace-controller",
                "expression": "!(request.userInfo.username in \
                    ['system:serviceaccount:kube-system:namespace-controller', 'system:kube-controller-manager'])",
            },
        ],
        "validations": [{"expression": IS_EMPTY, "reason": "Forbidden", "messageExpression": MESSAGE}],
    })
}

fn binding() -> Value {
    json!({
        "policyName": NAME,
        "validationActions": ["Deny"],
        "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::fake_api::FakeApi;

    const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/podtap-controller";
    const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/podtap-uninstall";
    const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/podtap-uninstall";

    #[tokio::test]
    async fn it_is_applied_with_the_controllers_role_as_its_owner() {
        let api = FakeApi::default();
        api.put(ROLE, &json!({"metadata": {"name": "podtap-controller", "uid": "uid-of-role"}}));
        let mut guard = UninstallGuard::new(api.client(), "mirrors");
        api.refuse("bindings", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        guard.apply().await.expect_err("the binding is refused");
        assert!(!guard.is_applied());
        api.refuse_nothing();
        guard.apply().await.expect("it is applied");
        assert!(guard.is_applied());
        for path in [POLICIES, BINDINGS] {
            let object = api.get(path).expect("it exists");
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-of-role");
        }
        let policy: ValidatingAdmissionPolicy =
            serde_json::from_value(api.get(POLICIES).expect("it exists")).expect("the API server decodes it");
        let spec = policy.spec.expect("a spec");
        let conditions = spec.match_conditions.expect("some");
        assert!(conditions[0].expression.contains("'namespaces' ? ['mirrors']"), "{}", conditions[0].expression);
        assert!(conditions[1].expression.ends_with("in ['', 'mirrors']"), "{}", conditions[1].expression);
        let rules = spec.match_constraints.and_then(|constraints| constraints.resource_rules).expect("some");
        assert!(rules.iter().all(|rule| rule.resource_names.is_none()), "deleting a collection has no name");
        let binding: ValidatingAdmissionPolicyBinding =
            serde_json::from_value(api.get(BINDINGS).expect("it exists")).expect("the API server decodes it");
        assert_eq!(binding.spec.and_then(|spec| spec.policy_name).as_deref(), Some(NAME));
    }
}
