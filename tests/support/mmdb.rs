//! Databases of countries and places in the format of `MaxMind` (version 2, <https://maxmind.github.io/MaxMind-DB/>).

use std::net::Ipv4Addr;

/// Bytes before the metadata.
const MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";

/// A record of the search tree.
#[derive(Clone, Copy)]
enum Record {
    Nothing,
    Node(usize),
    /// Offset in the data.
    Data(usize),
}

/// A database of the countries of some networks, which do not overlap: address, length of the prefix, and code.
///
/// # Panics
/// If it does not fit the format.
#[must_use]
pub fn countries(networks: &[(Ipv4Addr, u8, &str)]) -> Vec<u8> {
    let country = |code| map(&[("country", map(&[("iso_code", text(code))]))]);
    let networks: Vec<_> = networks.iter().map(|(address, prefix, code)| (*address, *prefix, country(code))).collect();
    database(&networks)
}

/// Where a network is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// ISO 3166-1.
    pub country: &'static str,
    /// In degrees.
    pub latitude: f64,
    /// In degrees.
    pub longitude: f64,
    /// Postal code.
    pub zip: &'static str,
}

/// A database of the places of some networks, likewise.
///
/// # Panics
/// If it does not fit the format.
#[must_use]
pub fn places(networks: &[(Ipv4Addr, u8, Place)]) -> Vec<u8> {
    let place = |place: &Place| {
        map(&[
            ("country", map(&[("iso_code", text(place.country))])),
            ("location", map(&[("latitude", double(place.latitude)), ("longitude", double(place.longitude))])),
            ("postal", map(&[("code", text(place.zip))])),
        ])
    };
    let networks: Vec<_> = networks.iter().map(|(address, prefix, at)| (*address, *prefix, place(at))).collect();
    database(&networks)
}

/// A database with some data for each network.
fn database(networks: &[(Ipv4Addr, u8, Vec<u8>)]) -> Vec<u8> {
    let (mut nodes, mut data) = (vec![[Record::Nothing; 2]], Vec::<u8>::new());
    for (address, prefix, of_network) in networks {
        let offset = data.len();
        data.extend(of_network);
        let mut node = 0;
        for bit in 0..*prefix {
            let side = (address.to_bits() >> (31 - bit) & 1) as usize;
            if bit + 1 == *prefix {
                nodes[node][side] = Record::Data(offset);
            } else {
                let Record::Node(next) = nodes[node][side] else {
                    nodes.push([Record::Nothing; 2]);
                    let next = nodes.len() - 1;
                    nodes[node][side] = Record::Node(next);
                    node = next;
                    continue;
                };
                node = next;
            }
        }
    }
    let mut file = Vec::new();
    for record in nodes.iter().flatten() {
        let number = match record {
            Record::Nothing => nodes.len(),
            Record::Node(node) => *node,
            Record::Data(offset) => nodes.len() + 16 + offset,
        };
        file.extend(&u32::try_from(number).expect("32 bits").to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(MARKER);
    let count = u32::try_from(nodes.len()).expect("32 bits").to_be_bytes();
    file.extend(map(&[
        ("node_count", [&[0xc4], &count[..]].concat()),
        ("record_size", vec![0xa1, 24]),
        ("ip_version", vec![0xa1, 4]),
        ("database_type", text("Test-Country")),
        // An empty array, and an integer of 64 bits: types without a place in the first byte.
        ("languages", vec![0, 4]),
        ("binary_format_major_version", vec![0xa1, 2]),
        ("binary_format_minor_version", vec![0xa0]),
        ("build_epoch", vec![1, 2, 1]),
        ("description", map(&[])),
    ]));
    file
}

fn text(text: &str) -> Vec<u8> {
    [&[0x40 | u8::try_from(text.len()).ok().filter(|length| *length < 29).expect("short")], text.as_bytes()].concat()
}

fn double(value: f64) -> Vec<u8> {
    [&[0x68], &value.to_be_bytes()[..]].concat()
}

fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, Vec<u8>)| [text(key), value.clone()].concat();
    let size = 0xe0 | u8::try_from(entries.len()).expect("few");
    [size].into_iter().chain(entries.iter().flat_map(entry)).collect()
}
