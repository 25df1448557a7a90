//! What people and programs read.

pub mod flows;
pub mod list;
pub mod map;
