//! `filter.expression`: from pcap-filter text to instructions of classic BPF.
//!
//! # Expected flow
//! The controller compiles each expression once, so that users see errors at once. Nodes get instructions, which they check like
//! everything else. libpcap reads the text in a separate [process]: a parser in C that is fed by anybody who may write a tap must
//! not share memory with the controller's token, and an expression that crashes or blocks it must not stop other taps.
//!
//! # Guarantees
//! The same text gives the same result everywhere: no name is resolved, since the process can open neither files nor sockets.

pub mod compiled;
mod libpcap;
mod position;
pub mod process;

pub use libpcap::{CompileError, compile};
