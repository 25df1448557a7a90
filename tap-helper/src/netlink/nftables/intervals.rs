//! Networks as disjoint intervals, which is how nftables takes them.

use std::{collections::BTreeSet, net::IpAddr};

use podtap_model::IpNet;

use super::expression::Family;

/// One end of an interval: its first address, or the one after its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Start(Vec<u8>),
    End(Vec<u8>),
}

/// The networks of a family, merged and in ascending order. An interval up to the highest address has no end.
pub(super) fn intervals(networks: &BTreeSet<IpNet>, family: Family) -> Vec<Bound> {
    let bits = family.bits();
    let range = |network: &IpNet| {
        let number = |address| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        (network.addr().is_ipv4() == (bits == 32)).then(|| (number(network.network()), number(network.broadcast())))
    };
    let mut ranges: Vec<(u128, u128)> = networks.iter().filter_map(range).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let bytes = |number: u128| number.to_be_bytes()[16 - bits / 8..].to_vec();
    let highest = u128::MAX >> (128 - bits);
    let bounds = |(first, last): (u128, u128)| {
        let end = (last < highest).then(|| Bound::End(bytes(last + 1)));
        std::iter::once(Bound::Start(bytes(first))).chain(end)
    };
    merged.into_iter().flat_map(bounds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn intervals_are_disjoint_and_not_adjacent() {
        let start = |a: [u8; 4]| Bound::Start(a.to_vec());
        let end = |a: [u8; 4]| Bound::End(a.to_vec());
        let nodes = networks(&["10.0.0.2/32", "10.0.0.1/32", "10.0.0.9/32", "10.0.0.8/31", "fd00::1/128"]);
        let four = [start([10, 0, 0, 1]), end([10, 0, 0, 3]), start([10, 0, 0, 8]), end([10, 0, 0, 10])];
        assert_eq!(intervals(&nodes, Family::V4), four);
        let six = |last: u8| [&[0xfd][..], &[0; 14], &[last]].concat();
        assert_eq!(intervals(&nodes, Family::V6), [Bound::Start(six(1)), Bound::End(six(2))]);
        let all = networks(&["0.0.0.0/0", "::/0", "10.0.0.0/8"]);
        assert_eq!(intervals(&all, Family::V4), [start([0; 4])]);
        assert_eq!(intervals(&all, Family::V6), [Bound::Start(vec![0; 16])]);
        assert_eq!(intervals(&networks(&[]), Family::V4), []);
    }
}
