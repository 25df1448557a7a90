use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Oversize, Protocol};

/// What becomes of the frames of all senders of one tap that are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapTreatment {
    /// UID of the tap.
    pub tap_uid: String,
    /// Which frames are copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<NodeTapFilter>,
    /// The first so many bytes of each frame are copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate_bytes: Option<i32>,
    /// The headers of each frame are copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headers_only: bool,
    /// One of so many flows is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_in_flows: Option<i32>,
    /// Bits per second that are copied at most, per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<i64>,
    /// Frames per second that are copied at most, per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<i64>,
    /// What becomes of copies that do not fit the path.
    #[serde(default)]
    pub oversize: Oversize,
    /// Flows between these networks are copied at the end that accepted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<NodeTapDeduplicate>,
}

/// Which frames are copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapFilter {
    /// Frames that match one of these; all, if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<NodeTapMatch>,
    /// But no frames that match one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<NodeTapMatch>,
    /// And only frames for which this program of classic BPF returns something else than 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expression: Vec<NodeTapInstruction>,
}

/// Matches a frame for which all of its parts hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapMatch {
    /// Protocol above IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Ports of either side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NodeTapPorts>,
    /// Networks of the other side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapPorts {
    /// The first one.
    pub first: i32,
    /// The last one.
    pub last: i32,
}

/// An instruction of classic BPF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapInstruction {
    /// What it does.
    pub code: i32,
    /// Instructions to skip if a jump's condition holds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jt: i32,
    /// Instructions to skip if it does not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jf: i32,
    /// Operand.
    pub k: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Networks between which a flow is copied once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapDeduplicate {
    /// Of pods.
    #[serde(default)]
    pub pod_networks: Vec<String>,
    /// Of services.
    #[serde(default)]
    pub service_networks: Vec<String>,
}
