//! The protocol between the agent, which knows Kubernetes, and the tap-helper, which knows the kernel.
//!
//! One JSON document per line over a Unix stream socket on which the tap-helper listens. The agent sends [`Request`]s. The helper
//! answers with a [`Report`] at once, and again whenever something changes.
//!
//! Updates are level-triggered: each has the whole desired state of the node, never a difference. Counters are read when they are
//! requested, and do not affect reports.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{counters::Counters, node_status::NodeStatus};

/// Longest line that either side accepts, in bytes without the newline.
///
/// A sender is about 300 bytes, and a tap with the largest filter that the API accepts about 8,000: this is enough for any node.
pub const MAX_MESSAGE: usize = 16 << 20;

/// A message to the tap-helper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Make this the state of the node.
    Apply(DesiredUpdate),
    /// Read the counters. The number identifies the answer; of several requests that wait, only the newest is answered.
    Counters(u64),
}

/// The spec of this node's `NodeTap`, as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DesiredUpdate {
    /// UID of the `NodeTap`; none when there is no such object, and everything is to be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Generation of the `NodeTap`.
    pub generation: i64,
    /// Its spec, see [`NodeState`](crate::NodeState).
    pub spec: Value,
}

/// A message from the tap-helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// The state of the node.
    Report(Report),
    /// The counters.
    Counters(Counters),
    /// The last message cannot be processed; the previous desired state stays in force.
    Rejected(String),
}

/// The state of the node, and the update that it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// [`DesiredUpdate::uid`] of the update that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The status for that `NodeTap`.
    pub status: NodeStatus,
}
