//! What people and programs read.

pub mod flows;
pub mod graph;
pub mod list;
pub mod map;
pub mod queue;
