//! `filter.expression`: pcap-filter text becomes instructions of classic BPF.
//!
//! # Expected flow
//! The controller compiles, so that a user learns at once what is wrong, once per expression and not once per node, and the
//! nodes get instructions, which they check like everything else. The text is given to libpcap in a [process] of its own: a
//! parser in C, fed by anybody who may write a tap, must not share memory with what holds the controller's rights, and an
//! expression on which it would crash or never end must stop no other tap.
//!
//! # Guarantees
//! The same text gives the same result everywhere: nothing is looked up, since the process can open neither file nor socket.

mod libpcap;
pub mod process;

pub use libpcap::compile;
