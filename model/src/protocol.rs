//! The protocol between the agent, which knows Kubernetes, and the tap-helper, which knows the kernel.
//!
//! One JSON document per line over a Unix stream socket on which the tap-helper listens. The agent sends [`Request`]s. The helper
//! answers with a [`Report`] at once, and again whenever something changes.
//!
//! Updates are level-triggered: each has the whole desired state of the node, never a difference. Counters are read when they are
//! requested, and do not affect reports.
//!
//! A mirror stops by itself, in the kernel, when the agent has not passed on the API server's confirmation for the orphan timeout
//! ([`NodeState::orphan_timeout_seconds`](crate::NodeState::orphan_timeout_seconds)). The agent renews it well before.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{counters::Counters, node_status::NodeStatus, unix_time::UnixTime};

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
    /// The API server has just confirmed that the desired state is current: let its mirrors run on.
    Renew(Renewal),
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
    /// The API server's clock, if it has just confirmed that this object is current; see [`Renewal::now`]. An update that is sent
    /// again, on another connection, has none: it does not renew what runs already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<UnixTime>,
    /// Its spec, see [`NodeState`](crate::NodeState).
    pub spec: Value,
}

/// The API server's confirmation that a `NodeTap` is current.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Renewal {
    /// UID of the `NodeTap`. A renewal of another one than that of the last update has no effect.
    pub uid: String,
    /// The API server's clock, when it confirmed that. It says how much time is left until [`Tap::expiration_time`], so the clock of
    /// the node does not matter.
    ///
    /// [`Tap::expiration_time`]: crate::Tap::expiration_time
    pub now: UnixTime,
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
