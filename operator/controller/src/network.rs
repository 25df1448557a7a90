//! Networks in CIDR notation.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An address and how many of its leading bits count; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// Not a network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a network such as 192.0.2.0/24 or 2001:db8::/32")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
            (prefix <= if address.is_ipv4() { 32 } else { 128 }).then(|| Self::around(address, prefix))
        };
        parse().ok_or_else(|| ParseNetworkError(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// The network of `prefix` bits that has `address`.
    fn around(address: IpAddr, prefix: u32) -> Self {
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or_default();
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
        };
        Self { address, prefix }
    }

    /// The same addresses in as few networks as possible, sorted: the /24 of each node becomes the range that they were cut from.
    pub fn aggregate(mut networks: Vec<Self>) -> Vec<Self> {
        networks.sort_unstable();
        let mut result: Vec<Self> = Vec::new();
        for network in networks {
            if result.last().is_some_and(|last| last.prefix <= network.prefix && last.contains(network.address)) {
                continue;
            }
            result.push(network);
            // Two halves are a whole, which may be a half.
            while let [.., low, high] = result[..]
                && let Some(whole) = low.joined(high)
            {
                result.truncate(result.len() - 2);
                result.push(whole);
            }
        }
        result
    }

    /// The network of which these two are the halves.
    fn joined(self, other: Self) -> Option<Self> {
        let whole = Self::around(self.address, self.prefix.checked_sub(1)?);
        let are_halves = self != other && self.prefix == other.prefix && whole.contains(other.address);
        are_halves.then_some(whole)
    }

    /// Whether `address` is in it; never for one of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        let host_bits = |length: u32| length - self.prefix;
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u32::from(network) ^ u32::from(address)).checked_shr(host_bits(32)).unwrap_or_default() == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (u128::from(network) ^ u128::from(address)).checked_shr(host_bits(128)).unwrap_or_default() == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().expect("a network");
        network.contains(address.parse().expect("an address"))
    }

    #[test]
    fn membership() {
        assert!(contains("192.0.2.0/24", "192.0.2.255") && !contains("192.0.2.0/24", "192.0.3.0"));
        assert!(contains("192.0.2.10/32", "192.0.2.10") && !contains("192.0.2.10/32", "192.0.2.11"));
        assert!(contains("0.0.0.0/0", "255.1.2.3") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(contains("::/0", "fe80::1"));
    }

    fn aggregate(networks: &[&str]) -> Vec<String> {
        let parsed = networks.iter().map(|text| text.parse().expect("a network")).collect();
        Network::aggregate(parsed).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn few_networks_instead_of_many() {
        let nodes: Vec<String> = (0..256).rev().map(|node| format!("10.244.{node}.0/24")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        assert_eq!(aggregate(&nodes), ["10.244.0.0/16"]);
        assert_eq!(aggregate(&nodes[..255]).len(), 8, "one is missing, and not claimed");
        assert_eq!(aggregate(&["10.1.2.3/8", "10.9.0.0/16", "10.0.0.0/8"]), ["10.0.0.0/8"]);
        assert_eq!(aggregate(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]), ["0.0.0.0/0", "::/0"]);
        assert_eq!(aggregate(&["10.0.1.0/24", "10.0.2.0/24"]), ["10.0.1.0/24", "10.0.2.0/24"]);
        assert_eq!(aggregate(&["fd00:10:244:1::/64", "fd00:10:244::/64"]), ["fd00:10:244::/63"]);
        assert_eq!(aggregate(&["10.0.0.0/32", "10.0.0.1/32", "10.0.0.1/32"]), ["10.0.0.0/31"]);
        assert_eq!(aggregate(&[]), [""; 0]);
    }

    #[test]
    fn what_is_not_a_network() {
        for text in ["192.0.2.0", "192.0.2.0/33", "::/129", "/8", "a/8", "192.0.2.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
