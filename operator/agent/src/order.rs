//! What the tap-helper is told, and where that comes from.

use std::{collections::BTreeMap, sync::Arc};

use kube::{
    Resource,
    api::{ObjectMeta, ResourceExt as _},
};
use podtap_api::{NodeTap, NodeTapStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tap_wire::{Desired, ToHelper};

use super::convert::{self, Refused};

/// A `NodeTap` whose entries are not read yet, so that one which cannot be read does not hide the others.
#[derive(Resource, Clone, Debug, Default, Serialize, Deserialize)]
#[resource(inherit = NodeTap)]
pub struct RawNodeTap {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: RawSpec,
    #[serde(default)]
    pub status: Option<Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RawSpec {
    #[serde(default)]
    pub senders: Vec<Value>,
    #[serde(default)]
    pub receivers: Vec<Value>,
    #[serde(default)]
    pub treatments: Vec<Value>,
    #[serde(default, rename = "underlayMTU")]
    pub underlay_mtu: Option<i64>,
}

/// A message to the tap-helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub origin: Arc<Origin>,
    pub message: ToHelper,
    /// What people call the senders of the message, by the UIDs of tap and pod.
    pub names: BTreeMap<(String, String), Names>,
}

/// What people call a tap and a pod that is under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub tap_namespace: String,
    pub tap_name: String,
    pub pod_namespace: String,
    pub pod_name: String,
}

/// The state of the `NodeTap` that an order comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// UID of the object; empty when there is none.
    pub uid: String,
    pub generation: i64,
    pub refused: Refused,
}

impl Order {
    pub fn new(object: &RawNodeTap) -> Self {
        let generation = object.metadata.generation.unwrap_or_default();
        let (desired, refused) = convert::desired(generation, &object.spec);
        let names = convert::names(&object.spec);
        let origin = Origin { uid: object.uid().unwrap_or_default(), generation, refused };
        Self { origin: origin.into(), message: ToHelper::Desired(desired), names }
    }

    /// The order to remove everything.
    pub fn nothing() -> Self {
        let message = ToHelper::Desired(Desired::default());
        Self { origin: Origin::default().into(), message, names: BTreeMap::new() }
    }
}

/// What the API server has of this node's `NodeTap`, as far as its status goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub uid: String,
    pub version: String,
    /// `None` also for a status that is not one of ours: it is written anew.
    pub status: Option<NodeTapStatus>,
}

impl Seen {
    pub fn new(object: &RawNodeTap) -> Self {
        Self {
            uid: object.uid().unwrap_or_default(),
            version: object.resource_version().unwrap_or_default(),
            status: object.status.as_ref().and_then(|status| NodeTapStatus::deserialize(status).ok()),
        }
    }
}
