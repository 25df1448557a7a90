use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::bounds::MAX_VNI;

/// A VXLAN network identifier: 1 to 2^24 - 1 (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// The number is not a VXLAN network identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VXLAN network identifier: use 1 to {MAX_VNI}")]
pub struct VniError(u32);

impl Vni {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(number: u32) -> Result<Self, VniError> {
        if (1..=MAX_VNI).contains(&number) { Ok(Self(number)) } else { Err(VniError(number)) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A VXLAN endpoint (RFC 7348) that mirrored frames are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// IP address in the network of the nodes.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub address: IpAddr,
    /// UDP port.
    #[cfg_attr(feature = "schema", schemars(with = "i32", range(min = 1, max = 65535)))]
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: Vni,
}

/// How an interface on a node or in a pod shows mirrored frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FrameFormat {
    /// As on the wire: GSO packets are segmented, checksums are computed.
    #[default]
    Wire,
    /// As the kernel has them: GSO packets, which tools show as one large frame, and checksums left to the device.
    Raw,
}

impl FrameFormat {
    /// Whether it is the default.
    #[must_use]
    pub fn is_wire(&self) -> bool {
        *self == Self::Wire
    }
}
