//! Records for tests.

use podtap_flow::{Counts, End, Endpoint, Missing, Opener, Record, StreamTotals, Timestamp, packet};

/// A connection of one frame from 10.0.0.1 to port 80 of 10.0.0.2, at so many seconds. Of each second one, a byte is missing.
pub fn record(number: u64) -> Record {
    let end = |last: u8, port| Endpoint { address: [10, 0, 0, last].into(), port };
    Record {
        source: 0,
        protocol: packet::TCP,
        client: end(1, 40_000),
        server: end(2, 80),
        opener: Opener::Syn,
        start: Timestamp::from_seconds(number),
        from: Timestamp::from_seconds(number),
        to: Timestamp::from_seconds(number),
        sent: Counts { frames: 1, ..Counts::default() },
        received: Counts::default(),
        totals: [
            StreamTotals { missing: Missing { by_mirror: number % 2, by_collector: 0 }, retransmitted: 0 },
            StreamTotals::default(),
        ],
        icmp: None,
        handshake: None,
        failure: None,
        end: End::Finished,
        is_first: true,
        preexisting: false,
        degraded: false,
        translated: None,
        translated_by: None,
        zone: None,
        dns_name: None,
        query: None,
        responses: Vec::new(),
        sni: None,
        connection: None,
    }
}
