//! The contract between the agent, which knows Kubernetes, and the tap-helper, which knows the kernel.
//!
//! One JSON document per line over a Unix stream socket on which the tap-helper listens. The agent sends
//! [`ToHelper`], the helper answers with [`FromHelper`] at once and again whenever something changes.
//!
//! The messages are level-triggered: a [`Desired`] is everything that the node is to hold, never a difference. [`Counters`] are
//! read when they are asked for, and sent once. They do not touch the rest: reports come as if nobody had asked.
//! Nothing here is a path, a command or an image: whoever takes over the agent can ask for mirrors, and for nothing else.

mod counters;
mod desired;
mod program;
mod report;
mod wish;

pub use counters::{Count, Counters, DirectionCounters, SenderCounters};
pub use desired::{Desired, Direction, Endpoint, Pod, Receiver, Sender};
pub use program::{ProgramError, check_program};
pub use report::{Features, Reason, ReceiverReport, Report, SenderReport, State, Status};
pub use wish::{
    Deduplicate, Filter, Instruction, Limit, MAX_INSTRUCTIONS, MAX_MATCHES, MAX_NETWORKS, MAX_RATE, MAX_RULES,
    MIN_TRUNCATED, Match, Network, Oversize, PortRange, Protocol, Truncate,
};

use serde::{Deserialize, Serialize};

/// Longest line that either side accepts, in bytes without the newline.
///
/// A sender with four endpoints is about 600 bytes, and one with the largest filter that the API takes about 60,000: this is
/// more than 250 pods under such a tap each need.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Longest interface name, in bytes: `IFNAMSIZ` less the terminating zero (include/uapi/linux/if.h).
pub const MAX_INTERFACE_NAME: usize = 15;

/// A message to the tap-helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ToHelper {
    /// Make the node hold exactly this.
    Desired(Desired),
    /// Say what was counted. The number tells the answer; of several requests that wait, only the newest one is answered.
    Counters(u64),
}

/// A message from the tap-helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum FromHelper {
    /// What the node holds.
    Report(Report),
    /// What was counted.
    Counters(Counters),
    /// The last message could not be taken; what was wanted before stays in force.
    Rejected(String),
}
