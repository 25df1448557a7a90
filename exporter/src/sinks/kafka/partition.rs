//! Which partition a record goes to.

use std::net::SocketAddr;

use crate::{
    flow::{End, Flow},
    record::Record,
};

/// What all reports of a flow have in common, in both directions: its `ConnId`, else its protocol and its ends.
pub fn key(record: &Record) -> String {
    let connection = record.lines().find_map(|line| line.flow.connection.clone());
    connection.or_else(|| record.lines().next().map(|line| ends(&line.flow))).unwrap_or_default()
}

fn ends(flow: &Flow) -> String {
    let text = |end: &End| match (end.address, end.port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => String::new(),
    };
    let mut ends = [text(&flow.source), text(&flow.destination)];
    ends.sort();
    format!("{} {}", flow.protocol, ends.join(" "))
}

/// The partition of so many that Kafka's own clients choose for a key, so that streams of both can be joined.
pub fn partition_of(key: &str, partitions: u32) -> u32 {
    (murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions
}

/// `MurmurHash2` of 32 bits, with the seed of Kafka.
fn murmur2(data: &[u8]) -> u32 {
    const FACTOR: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    #[expect(clippy::cast_possible_truncation, reason = "keys are short")]
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(FACTOR);
        word = (word ^ (word >> 24)).wrapping_mul(FACTOR);
        hash = hash.wrapping_mul(FACTOR) ^ word;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let rest = rest.iter().rev().fold(0, |rest, byte| rest << 8 | u32::from(*byte));
        hash = (hash ^ rest).wrapping_mul(FACTOR);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures::line;

    #[test]
    fn hashes_are_those_of_kafka() {
        // The values of org.apache.kafka.common.utils.UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        // A negative hash has a partition, too.
        assert_eq!(partition_of("21", 7), ((-973_932_308_i32).cast_unsigned() & 0x7fff_ffff) % 7);
    }

    #[test]
    fn both_directions_have_one_key() {
        let [sent, received] = [line(40_000, false), line(40_000, true)].map(Some);
        let both = key(&Record { sent: sent.clone(), received: received.clone() });
        assert_eq!(both, "6 10.0.0.1:40000 10.0.0.2:80");
        assert_eq!(key(&Record { sent, received: None }), both);
        assert_eq!(key(&Record { sent: None, received }), both);
        assert_ne!(key(&Record { sent: Some(line(40_001, false)), received: None }), both);
    }

    #[test]
    fn connections_have_their_own_key() {
        let mut line = line(40_000, false);
        line.flow.connection = Some("00000001000000ff".to_owned());
        assert_eq!(key(&Record { sent: Some(line), received: None }), "00000001000000ff");
    }

    #[test]
    fn ends_without_ports_have_a_key() {
        let mut flow = line(1, false).flow;
        (flow.protocol, flow.source.port, flow.destination.port) = (58, None, None);
        flow.source.address = Some("fd00::2".parse().expect("an address"));
        assert_eq!(ends(&flow), "58 10.0.0.2 fd00::2");
    }
}
