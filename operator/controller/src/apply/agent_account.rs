//! The account of the agent of one node, and its rights: it reads the `NodeTap` of its node, and writes the status of that. A token stolen
//! from a node tells nothing about other nodes.
//!
//! An account per node, because RBAC knows accounts and names of objects, but not the node that a token belongs to. Policies of admission
//! do, but do not see reads.

use k8s_openapi::{
    api::{
        core::v1::ServiceAccount,
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{PostParams, Resource},
};
use podtap_api::{GROUP, NodeTap};
use podtap_runtime::client::in_time;
use serde::{Serialize, de::DeserializeOwned};

use crate::names::{self, LABEL_NAME};

/// The objects of one agent. Their name contains a hash of the `NodeTap`'s UID: they are never changed, and deleted with it by the
/// garbage collector.
pub struct AgentAccount {
    pub account: ServiceAccount,
    pub role: ClusterRole,
    pub binding: ClusterRoleBinding,
}

impl AgentAccount {
    pub fn new(namespace: &str, node: &str, node_tap_uid: &str) -> Self {
        let name = names::agent_account(node, node_tap_uid);
        let metadata = |namespace: Option<&str>| ObjectMeta {
            name: Some(name.clone()),
            namespace: namespace.map(str::to_owned),
            labels: Some(labels().map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![owner(node, node_tap_uid)]),
            ..ObjectMeta::default()
        };
        let rule = |resource: &str, verbs: &[&str]| PolicyRule {
            api_groups: Some(vec![GROUP.to_owned()]),
            resources: Some(vec![resource.to_owned()]),
            resource_names: Some(vec![node.to_owned()]),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
            ..PolicyRule::default()
        };
        let subject = Subject {
            kind: ServiceAccount::kind(&()).into_owned(),
            name: name.clone(),
            namespace: Some(namespace.to_owned()),
            ..Subject::default()
        };
        Self {
            account: ServiceAccount {
                metadata: metadata(Some(namespace)),
                automount_service_account_token: Some(false),
                ..ServiceAccount::default()
            },
            role: ClusterRole {
                metadata: metadata(None),
                // For lists and watches, the name is the field selector `metadata.name`.
                rules: Some(vec![
                    rule("nodetaps", &["get", "list", "watch"]),
                    rule("nodetaps/status", &["get", "patch"]),
                ]),
                ..ClusterRole::default()
            },
            binding: ClusterRoleBinding {
                metadata: metadata(None),
                role_ref: RoleRef {
                    api_group: ClusterRole::group(&()).into_owned(),
                    kind: ClusterRole::kind(&()).into_owned(),
                    name: name.clone(),
                },
                subjects: Some(vec![subject]),
            },
        }
    }

    /// Creates what does not exist. Its content follows from its name.
    pub async fn create(&self, client: &Client) -> Result<(), kube::Error> {
        let namespace = self.account.metadata.namespace.as_deref().unwrap_or_default();
        create(&Api::namespaced(client.clone(), namespace), &self.account).await?;
        create(&Api::all(client.clone()), &self.role).await?;
        create(&Api::all(client.clone()), &self.binding).await
    }
}

/// A reference to the node's `NodeTap`.
pub fn owner(node: &str, node_tap_uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: NodeTap::api_version(&()).into_owned(),
        kind: NodeTap::kind(&()).into_owned(),
        name: node.to_owned(),
        uid: node_tap_uid.to_owned(),
        ..OwnerReference::default()
    }
}

pub fn labels() -> [(&'static str, &'static str); 3] {
    [
        (LABEL_NAME, names::PRODUCT),
        ("app.kubernetes.io/part-of", names::PRODUCT),
        ("app.kubernetes.io/managed-by", names::CONTROLLER),
    ]
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let post = PostParams { field_manager: Some(names::CONTROLLER.to_owned()), ..PostParams::default() };
    match in_time(api.create(&post, object)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_has_the_rights_to_the_node_tap_of_its_node() {
        let AgentAccount { account, role, binding } = AgentAccount::new("podtap-system", "n1", "uid");
        let rules = role.rules.expect("some");
        assert!(rules.iter().all(|rule| rule.resource_names.as_deref() == Some(&["n1".to_owned()])), "{rules:?}");
        let verbs: Vec<_> = rules.iter().flat_map(|rule| &rule.verbs).collect();
        assert_eq!(verbs, ["get", "list", "watch", "get", "patch"]);
        let subjects = binding.subjects.expect("some");
        assert_eq!((subjects.len(), &subjects[0].name), (1, account.metadata.name.as_ref().expect("a name")));
        assert_eq!(Some(binding.role_ref.name), role.metadata.name);
        for metadata in [account.metadata, role.metadata, binding.metadata] {
            assert_eq!(metadata.owner_references.expect("one")[0].uid, "uid", "deleted with the NodeTap");
        }
    }

    #[test]
    fn the_next_node_tap_of_a_node_has_another_account() {
        let name = |uid| AgentAccount::new("podtap-system", "n1", uid).account.metadata.name;
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"), "the garbage collector may still delete the previous one");
    }
}
