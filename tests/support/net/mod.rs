//! Nodes and pods made of namespaces, for the dataplane tier: what the tap-helper sees of a Kubernetes node, without Kubernetes.
//!
//! A [`Node`] has its own PID, mount and network namespaces; its [`Pod`]s are processes in cgroups that carry their UID. Descriptors of the
//! test's process keep everything alive: however that process ends, the kernel removes all of it except cgroup directories, which the
//! next run removes ([`residue`]).

mod agent;
mod background;
mod cgroup;
mod desired;
mod helper;
mod network;
mod node;
mod pod;
mod program;
pub mod residue;
mod state;
pub mod traffic;

pub use agent::{AGENT_UID, Agent};
pub use background::Background;
pub use cgroup::MemoryCgroup;
pub use desired::{Desired, NODE_TAP, Sender, now};
pub use helper::Helper;
pub use network::Network;
pub use node::Node;
pub use pod::Pod;
pub use program::Program;
pub use state::{Mirror, Snapshot};
