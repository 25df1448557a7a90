//! Flows of mirrored frames.
//!
//! Pure: no I/O, and no clock but the time of the frames.

mod arena;
mod direction;
pub mod dns;
#[cfg(test)]
mod fixtures;
mod flow;
mod hello;
mod key;
mod limits;
pub mod map;
pub mod named;
pub mod names;
pub mod packet;
pub mod pods;
mod reader;
mod recent;
mod record;
mod stream;
mod table;
mod time;
pub mod tls;
mod waiting;

pub use limits::Limits;
pub use podtap_model::{EtherType, metadata};
pub use record::{Answer, Counts, End, Endpoint, Event, Failure, Missing, Opener, Query, Record, Source, StreamTotals};
pub use table::{AHEAD, Counters, Table};
pub use time::Timestamp;
pub use waiting::Waiting;
