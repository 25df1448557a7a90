//! The collector beside other programs, without the lab: on a ring that is filled by a generator, and on a file.

mod file;
mod generator;
mod readers;
mod ring;

pub use self::{file::measure as file, ring::measure as ring};
