use kube::CustomResource;
use podtap_model::{NodeState, NodeStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The desired state of a node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "NodeTap",
    status = "NodeStatus",
    derive = "PartialEq",
    doc = "Desired and actual state of all taps on one node. The controller writes the spec, the node's helper pod the status; not for users to write. `kubectl get nodetap NODE -o yaml` shows what a node does.",
    printcolumn(name = "Senders", type_ = "integer", json_path = ".status.activeSenders"),
    printcolumn(name = "Receivers", type_ = "integer", json_path = ".status.activeReceivers"),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedGeneration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub struct NodeTapSpec(pub NodeState);
