//! What mirrored frames are on the wire.

use std::net::IpAddr;

use serde::Serialize;

/// The address family over which the mirrored frames of a tap are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }

    /// Bytes that a mirrored frame has more than the pod's: Ethernet, IP, UDP and VXLAN (RFC 7348, section 5). It is also how much longer
    /// than the pod's MTU the IP packet is, which has the pod's Ethernet header in it and not the outer one.
    pub fn overhead(self) -> u32 {
        const ETHERNET_UDP_VXLAN: u32 = 14 + 8 + 8;
        ETHERNET_UDP_VXLAN
            + match self {
                Self::IPv4 => 20,
                Self::IPv6 => 40,
            }
    }
}

/// The family that all destinations have; of two, that of the first destination's first address. None if they have none in common, or a
/// destination's addresses are not known.
pub fn common_family(destinations: &[&[IpAddr]]) -> Option<Family> {
    let has = |addresses: &[IpAddr], family| addresses.iter().any(|address| Family::of(*address) == family);
    let mut families = destinations.first()?.iter().map(|address| Family::of(*address));
    families.find(|family| destinations.iter().all(|addresses| has(addresses, *family)))
}

/// The mirrored frames of a pod on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wire {
    /// Whether they leave the pod's node. None: it is not known where they are sent to.
    pub leaves_node: Option<bool>,
    /// Bytes that each is longer than the pod's.
    pub additional_bytes: Option<u32>,
    /// The longest IP packet that carries one.
    pub longest_packet: Option<u32>,
    /// The path MTU to which they are clamped, if it is known that they are.
    pub clamped_to: Option<u32>,
}

impl Wire {
    /// Of a pod with this MTU, on a path that carries at most `underlay`.
    pub fn of(leaves_node: Option<bool>, family: Option<Family>, mtu: Option<u32>, underlay: Option<u32>) -> Self {
        let additional_bytes = family.map(Family::overhead);
        let longest_packet = mtu.zip(additional_bytes).map(|(mtu, more)| mtu + more);
        let clamped_to =
            longest_packet.zip(underlay).filter(|(packet, underlay)| packet > underlay).map(|(_, underlay)| underlay);
        let clamped_to = clamped_to.filter(|_| leaves_node == Some(true));
        Self { leaves_node, additional_bytes, longest_packet, clamped_to }
    }

    /// For a table.
    pub fn text(&self) -> String {
        if self.leaves_node == Some(false) {
            return "local".to_owned();
        }
        let Some(more) = self.additional_bytes else { return "-".to_owned() };
        let packet = self.longest_packet.map(|packet| format!(", packets to {packet}")).unwrap_or_default();
        let clamped = self.clamped_to.map(|mtu| format!(", clamped to {mtu}")).unwrap_or_default();
        format!("+{more}{packet}{clamped}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_grow_by_the_headers_of_vxlan() {
        assert_eq!((Family::IPv4.overhead(), Family::IPv6.overhead()), (50, 70));
        for (leaves, family, mtu, underlay, text) in [
            (Some(false), Some(Family::IPv4), Some(1500), Some(1400), "local"),
            (Some(true), Some(Family::IPv4), None, Some(1400), "+50"),
            (Some(true), Some(Family::IPv6), Some(1430), Some(1500), "+70, packets to 1500"),
            (Some(true), Some(Family::IPv6), Some(1431), Some(1500), "+70, packets to 1501, clamped to 1500"),
            (None, Some(Family::IPv4), Some(1500), Some(1400), "+50, packets to 1550"),
            (Some(true), None, Some(1500), Some(1400), "-"),
        ] {
            assert_eq!(Wire::of(leaves, family, mtu, underlay).text(), text);
        }
    }

    #[test]
    fn destinations_share_a_family() {
        let parse = |text: &[&str]| text.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
        let family = |all: &[&[&str]]| {
            let all: Vec<_> = all.iter().map(|text| parse(text)).collect();
            common_family(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        let (v4, v6) = ("192.0.2.1", "2001:db8::1");
        assert_eq!(family(&[&[v4, v6]]), Some(Family::IPv4));
        assert_eq!(family(&[&[v4, v6], &[v6]]), Some(Family::IPv6));
        assert_eq!(family(&[&[v4], &[v6]]), None);
        assert_eq!(family(&[&[v4], &[]]), None);
    }
}
