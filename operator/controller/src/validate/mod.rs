//! From raw objects to what the later stages can rely on. Pure.
//!
//! The API server checks most of this already (schema and CEL). It is checked again, since an object can be older than a rule. What is
//! invalid becomes a [`Failure`](crate::failure::Failure) of its tap, and stops no other tap.

pub mod expiry;
pub mod expression;
pub mod options;
pub mod policy;
pub mod spec;
pub mod state;
pub mod tap;
