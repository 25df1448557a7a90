use serde::{Deserialize, Serialize};

/// The EtherType of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct EtherType(u16);

/// Smaller numbers are lengths (IEEE 802.3, 3.2.6).
const MIN: u16 = 0x0600;
/// IPv4, ARP, VLAN tag, IPv6, service VLAN tag: what pods send.
const TAKEN: [u16; 5] = [0x0800, 0x0806, 0x8100, 0x86dd, 0x88a8];

/// The number cannot be the EtherType of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:#06x} cannot be the EtherType of probes: use 0x0600 or more, and none of IP, ARP and VLAN tags")]
pub struct EtherTypeError(u16);

impl EtherType {
    /// The number, as IEEE assigns it.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Local experimental 1 (IEEE 802, table 9-3): assigned to nothing.
impl Default for EtherType {
    fn default() -> Self {
        Self(0x88b5)
    }
}

impl TryFrom<u16> for EtherType {
    type Error = EtherTypeError;

    fn try_from(number: u16) -> Result<Self, EtherTypeError> {
        if number < MIN || TAKEN.contains(&number) { Err(EtherTypeError(number)) } else { Ok(Self(number)) }
    }
}

impl From<EtherType> for u16 {
    fn from(ether_type: EtherType) -> Self {
        ether_type.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_send_is_no_ether_type_of_probes() {
        for number in [0, 0x05ff, 0x0800, 0x0806, 0x8100, 0x86dd, 0x88a8] {
            assert_eq!(EtherType::try_from(number), Err(EtherTypeError(number)));
        }
        for number in [0x0600, 0x88b5, 0x88b6, 0xffff] {
            assert_eq!(EtherType::try_from(number).map(EtherType::get), Ok(number));
        }
    }
}
