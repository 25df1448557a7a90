//! Which peers have series of their own: those with most bytes.

use std::{collections::HashMap, net::IpAddr};

/// An address, and its port if it is that of a server.
pub type Peer = (IpAddr, Option<u16>);

/// Peers that have series of their own.
const NAMED: usize = 200;
/// Others whose bytes are remembered, at most.
const CANDIDATES: usize = 4096;
/// Weights are halved so often, in milliseconds.
const HALF_LIFE: u64 = 60 * 1000;

/// Weighs peers by their bytes, those of recent minutes most.
///
/// One that is not named replaces the lightest one that is if it has twice its weight. So many peers of little traffic, as of a scan, neither
/// displace others nor follow each other fast.
#[derive(Debug, Default)]
pub struct Top {
    named: HashMap<Peer, u64>,
    candidates: HashMap<Peer, u64>,
    /// No named peer is lighter.
    lightest: u64,
    halved: u64,
}

impl Top {
    /// Weighs a peer. Returns whether it has series of its own. `now` is in milliseconds since 1970.
    pub fn weigh(&mut self, peer: Peer, bytes: u64, now: u64) -> bool {
        self.halve(now);
        if let Some(weight) = self.named.get_mut(&peer) {
            *weight = weight.saturating_add(bytes);
            return true;
        }
        let weight = self.candidates.remove(&peer).unwrap_or_default().saturating_add(bytes);
        let mut is_named = self.named.len() < NAMED;
        if !is_named && weight / 2 > self.lightest {
            let lightest = self.named.iter().min_by_key(|(_, weight)| **weight).map(|(peer, weight)| (*peer, *weight));
            if let Some((lightest, least)) = lightest {
                self.lightest = least;
                is_named = weight / 2 > least;
                if is_named {
                    self.named.remove(&lightest);
                    self.candidate(lightest, least);
                }
            }
        }
        if is_named {
            // It may be the lightest now.
            self.lightest = self.lightest.min(weight);
            self.named.insert(peer, weight);
        } else {
            self.candidate(peer, weight);
        }
        is_named
    }

    /// Remembers a peer. If there are too many, the lighter half is forgotten.
    fn candidate(&mut self, peer: Peer, weight: u64) {
        self.candidates.insert(peer, weight);
        if self.candidates.len() > CANDIDATES {
            let mut weights: Vec<u64> = self.candidates.values().copied().collect();
            let (_, median, _) = weights.select_nth_unstable(CANDIDATES / 2);
            let median = *median;
            self.candidates.retain(|_, weight| *weight > median);
        }
    }

    fn halve(&mut self, now: u64) {
        if now.abs_diff(self.halved) < HALF_LIFE {
            return;
        }
        self.halved = now;
        self.lightest /= 2;
        for weights in [&mut self.named, &mut self.candidates] {
            weights.retain(|_, weight| {
                *weight /= 2;
                *weight > 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(number: u32) -> Peer {
        (Ipv4Addr::from(number).into(), Some(443))
    }

    #[test]
    fn a_scan_displaces_no_one_and_what_has_traffic_is_found_in_it() {
        let mut top = Top::default();
        for number in 0..100 {
            assert!(top.weigh(peer(number), 1_000_000, 1));
        }
        let mut named = 0;
        for number in 1000..201_000 {
            named += u32::from(top.weigh(peer(number), 60, 1));
            // One that is new has some traffic among them.
            if number % 1000 == 0 && top.weigh(peer(200), 500, 1) {
                named += 1;
            }
        }
        // The first ones, and the one with traffic: at once, or when it has twice as much as one of these.
        assert!((290..=300).contains(&named), "{named}");
        assert!((0..100).all(|number| top.weigh(peer(number), 1, 1)));
        assert_eq!(top.named.len(), NAMED);
        assert!(top.candidates.len() <= CANDIDATES);
    }

    #[test]
    fn what_was_heavy_once_makes_room() {
        let mut top = Top::default();
        for number in 0..200 {
            assert!(top.weigh(peer(number), 1_000_000, 1));
        }
        assert!(!top.weigh(peer(1000), 100_000, 1));
        assert!(top.weigh(peer(1000), 100_000, 1 + 5 * HALF_LIFE) || top.weigh(peer(1000), 10_000_000, 1));
        let mut now = 1;
        for _ in 0..30 {
            now += HALF_LIFE;
            top.halve(now);
        }
        assert_eq!((top.named.len(), top.candidates.len()), (0, 0));
    }
}
