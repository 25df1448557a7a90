//! Bounds of the flow table.

use std::time::Duration;

/// Bounds of the table, and its times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows at once. Beyond it, those that are idle for longest are reported and forgotten.
    pub flows: usize,
    /// Bytes of the beginnings of streams, until they tell a server's name.
    pub beginnings: usize,
    /// Bytes of the names that DNS and TLS give to flows. Beyond it, flows have none.
    pub names_of_flows: usize,
    /// Answers of DNS servers: client and address.
    pub names: usize,
    /// Handshakes whose other view may still come.
    pub handshakes: usize,
    /// Translations that conntrack told.
    pub translations: usize,
    /// Fragmented datagrams whose ports are known.
    pub fragments: usize,
    /// An active flow is reported this often.
    pub active: Duration,
    /// A flow is reported after this time without a frame.
    pub idle: Duration,
    /// TCP connections without frames are remembered this long.
    pub open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 128_000,
            beginnings: 8 << 20,
            names_of_flows: 8 << 20,
            names: 32_768,
            handshakes: 65_536,
            translations: 32_768,
            fragments: 4096,
            active: Duration::from_secs(60),
            idle: Duration::from_secs(15),
            open: Duration::from_secs(2 * 60 * 60),
        }
    }
}
