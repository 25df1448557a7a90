//! What people and programs read.

pub mod flows;
pub mod graph;
pub mod map;
pub mod otterize;
pub mod queue;
