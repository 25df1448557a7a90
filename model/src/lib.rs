//! The data that PodTap's programs share, each type once from YAML to kernel.
//!
//! - [`MirrorOptions`] is the part of a `PodTap` that says which frames are mirrored and how. The same type is in the `NodeTap`
//!   and in what the tap-helper reads.
//! - [`NodeState`] is the spec of a `NodeTap`: the desired state of a node, written by the controller, passed on unchanged by
//!   the agent, resolved by the tap-helper ([`DesiredState`]).
//! - [`NodeStatus`] is the status of a `NodeTap`, written by the tap-helper and published unchanged by the agent.
//! - [`Request`] and [`Response`] are the protocol between agent and tap-helper.
//! - [`PathEvent`] is what pods of `kubectl podtap doctor --network` report.
//! - [`Reason`] has every reason of conditions, failures, events and node reports, [`bounds`] every limit.
//!
//! No message has a field that is a path, a command or an image: an attacker who takes over the agent can ask for mirrors, and
//! for nothing else.
//!
//! # Guarantees
//! Decoding is strict. A field that this version does not know makes its entry unreadable, since ignoring a filter or a limit
//! would mirror more than was asked for. [`NodeState::decode`] confines that to the entry.
//!
//! The feature `schema` adds JSON schemas and CEL rules for the API server. The tap-helper does not enable it.

pub mod bounds;
mod counters;
mod decode;
mod desired;
mod direction;
mod endpoint;
mod ether_type;
mod filter;
mod identity;
pub mod metadata;
mod node_state;
mod node_status;
mod options;
mod packet_socket;
mod path_event;
mod program;
mod protocol;
mod quantity;
mod reason;
#[cfg(feature = "schema")]
mod schema;
mod unix_time;

pub use counters::{Count, Counters, DirectionCounters, ReceiverCounters, SenderCounters};
pub use decode::DecodeError;
pub use desired::{DesiredSender, DesiredState};
pub use direction::Direction;
pub use endpoint::{Endpoint, FrameFormat, Vni, VniError};
pub use ether_type::{EtherType, EtherTypeError};
pub use filter::{Filter, FilterError, Match, PortRange, Protocol};
pub use identity::{ConfigHash, IdentityError, InterfaceName, Pod, PodDetails, TapReference, Uid, Workload};
pub use ipnet::IpNet;
pub use node_state::{NodeState, Receiver, Sender, Tap};
pub use node_status::{NodeStatus, ReceiverStatus, SenderStatus, SentVnis, State};
pub use options::{Deduplicate, Handshakes, Limit, MirrorOptions, OptionsError, Oversize, Sample, Truncate};
pub use packet_socket::{MAX_PACKET_SOCKET_MESSAGE, PACKET_SOCKET_ADDRESS, PacketSocket};
pub use path_event::PathEvent;
pub use program::{Instruction, Program, ProgramError, ProgramId, check_program};
pub use protocol::{DesiredUpdate, MAX_MESSAGE, Renewal, Report, Request, Response};
pub use quantity::{Quantity, QuantityError};
pub use reason::Reason;
pub use unix_time::{UnixTime, UnixTimeError};
