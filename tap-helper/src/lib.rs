//! The privileged half of PodTap's helper pod: it makes a node hold the mirrors that the agent asks for.
//!
//! Everything goes through the same stages: a [`tap_wire::Desired`] is validated ([`validate`]), what is there is observed
//! ([`observe`]), a pure function says what to do ([`plan`]), which is done ([`execute`]) and observed again, and a
//! [`tap_wire::Report`] says what came out ([`node`]). The state is in the kernel and nowhere else: a helper that ends, for whatever
//! reason, leaves its mirrors running, and the next one finds them by their marks ([`marks`]).
// Only `bpf` has any, with the reasons.
#![deny(unsafe_code)]

pub mod apply;
pub mod backoff;
pub mod bpf;
pub mod contract;
pub mod execute;
pub mod failure;
pub mod inspect;
pub mod lock;
pub mod log;
pub mod marks;
pub mod names;
pub mod namespace;
pub mod netlink;
pub mod node;
pub mod observe;
pub mod plan;
pub mod purge;
pub mod serve;
pub mod settings;
pub mod step;
pub mod target;
pub mod validate;
