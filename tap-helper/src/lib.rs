//! The privileged half of PodTap's helper pod: it reconciles the mirrors of a node with the desired state that the agent sends.
//!
//! Every request goes through the same stages: a [`podtap_model::DesiredState`] is validated ([`validate`]), the namespaces are observed
//! ([`observe`]), a pure function plans the steps ([`plan`]), which are executed ([`execute`]) and observed again, and a
//! [`podtap_model::Report`] has the result ([`node`]). The state is in the kernel and nowhere else: a helper that ends, for whatever
//! reason, leaves its mirrors running, and the next one finds them by their marks ([`marks`]).
//!
//! Everything runs on one thread, on a tokio runtime that sleeps until the agent or the kernel sends something.
// Only `bpf` has any, with its reasons.
#![deny(unsafe_code)]
#![expect(rustdoc::private_intra_doc_links, reason = "the stages are private, and this is their overview")]

mod ahead;
pub mod apply;
pub mod bpf;
mod deadline;
mod execute;
mod failure;
#[cfg(test)]
mod fixtures;
pub mod inspect;
mod listener;
mod lock;
mod logs;
mod marks;
mod names;
mod namespace;
mod netlink;
mod node;
mod observe;
mod plan;
pub mod probe;
mod program_sets;
pub mod purge;
mod readers;
mod resource;
mod retry;
pub mod serve;
mod settings;
mod shutdown;
mod socket_filter;
mod step;
pub mod supervise;
mod target;
mod validate;

pub use logs::init_logs;
pub use node::NodeError;
