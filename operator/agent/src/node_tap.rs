//! This node's `NodeTap`, as far as the agent knows it: identity, generation and status. The spec stays JSON, which only the
//! tap-helper decodes.

pub mod watch;

use kube::{
    Resource,
    api::{ObjectMeta, ResourceExt as _},
};
use podtap_api::NodeTap;
use podtap_model::{DesiredUpdate, NodeStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A `NodeTap` whose spec and status are not decoded: an entry that this version cannot read must not hide the others.
#[derive(Resource, Clone, Debug, Default, Serialize, Deserialize)]
#[resource(inherit = NodeTap)]
pub struct RawNodeTap {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Value,
    #[serde(default)]
    pub status: Option<Value>,
}

/// The `NodeTap` is not one of this node, or not complete. Its spec is not applied.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeTap {
    #[error("the NodeTap is that of the node {0:?}")]
    OtherNode(String),
    // Without a UID, the update would say that there is no object, and remove everything.
    #[error("the NodeTap has no UID or no generation")]
    Incomplete,
}

impl RawNodeTap {
    /// Whether it is the `NodeTap` of `node`.
    pub fn check_node(&self, node: &str) -> Result<(), InvalidNodeTap> {
        match self.metadata.name.as_deref() {
            Some(name) if name == node => Ok(()),
            name => Err(InvalidNodeTap::OtherNode(name.unwrap_or_default().to_owned())),
        }
    }

    /// What the tap-helper has to apply, and the status in the API server.
    pub fn into_parts(self) -> Result<(DesiredUpdate, LastStatus), InvalidNodeTap> {
        let resource_version = self.resource_version().unwrap_or_default();
        let (Some(uid), Some(generation)) = (self.metadata.uid, self.metadata.generation) else {
            return Err(InvalidNodeTap::Incomplete);
        };
        let status = self.status.and_then(|status| NodeStatus::deserialize(status).ok());
        let last_status = LastStatus { uid: uid.clone(), resource_version, status };
        Ok((DesiredUpdate { uid: Some(uid), generation, now: None, spec: self.spec }, last_status))
    }
}

/// The update for a node without a `NodeTap`: remove everything.
pub fn remove_everything() -> DesiredUpdate {
    DesiredUpdate { uid: None, generation: 0, now: None, spec: Value::Object(serde_json::Map::new()) }
}

/// The status of this node's `NodeTap` in the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastStatus {
    /// UID of the `NodeTap`.
    pub uid: String,
    pub resource_version: String,
    /// `None` if there is no status, or one that cannot be decoded: it is replaced.
    pub status: Option<NodeStatus>,
}
