//! The marks by which PodTap recognises its own resources: a device group, aliases and cookies.
//!
//! The group is set in the request that creates a device, so that a device of ours is marked at any time; the alias, which names its
//! owner, follows. Filters carry a cookie in their action. Nothing without such a mark is ever
//! changed or removed, except on these devices.

use podtap_model::{Direction, Endpoint};

use crate::{
    names::{Hash, TEMPORARY_PREFIX},
    netlink::{Filter, Hook, Link},
};

/// The device group of all devices of PodTap: "ptap" in ASCII, far from the small numbers that others use.
pub const GROUP: u32 = 0x7074_6170;

/// Prefix of every alias of PodTap, of any version.
const ALIAS_PREFIX: &str = "podtap.dev/";
/// Prefix of the aliases of this version.
const ALIAS_V1: &str = "podtap.dev/v1";
/// In the aliases of receivers: their frames are raw.
const RAW: &str = "raw";
/// In the alias of a receiver's peer: a reader was found that the kernel does not report.
const UNREPORTED: &str = "unreported";
/// Prefix of every cookie.
const COOKIE_MAGIC: [u8; 4] = *b"PTap";
/// Version of the cookie's layout.
const COOKIE_VERSION: u8 = 1;

/// Whether a device is one of PodTap's.
#[must_use]
pub fn is_ours(link: &Link) -> bool {
    // A device without an alias was created by a helper that ended before it could set one.
    let unfinished = link.alias.is_empty() && link.name.starts_with(TEMPORARY_PREFIX);
    link.group == GROUP
        && ["vxlan", "veth"].contains(&link.kind.as_str())
        && (unfinished || link.alias.starts_with(ALIAS_PREFIX))
}

/// The content of a device's alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A sender device.
    Sender(SenderMark),
    /// A device of a receiver.
    Receiver(ReceiverMark),
}

/// The content of a sender device's alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderMark {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod.
    pub pod: String,
    /// Name of the tapped interface when the alias was set.
    pub interface: String,
    /// Ifindex of the tapped interface.
    pub interface_index: u32,
    /// Whether its outer addresses are IPv6. The kernel does not report that.
    pub ipv6: bool,
    /// Hash of direction and destinations, to detect drift without the desired state.
    pub config: u64,
    /// Whether PodTap created the tapped interface's clsact.
    pub clsact_ours: bool,
}

/// A device of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The interface that consumers read: one device of the veth pair.
    Interface,
    /// The VXLAN device that redirects frames to the veth pair.
    Vxlan,
    /// The interface's veth peer. Unless frames are raw, it segments GSO packets and computes checksums when it sends to the interface.
    Peer,
}

impl Part {
    /// With their roles in an alias.
    const ALL: [(Self, &'static str); 3] =
        [(Self::Interface, "receiver"), (Self::Vxlan, "receiver-vxlan"), (Self::Peer, "receiver-peer")];

    /// Its role, as in an alias.
    #[must_use]
    pub fn role(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("", |(_, role)| role)
    }

    fn of_role(role: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == role).map(|(part, _)| *part)
    }
}

/// The content of the alias of a receiver's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverMark {
    /// Which of the receiver's devices it is.
    pub part: Part,
    /// UID of the tap.
    pub tap: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Whether its socket is IPv6. The kernel does not report that.
    pub ipv6: bool,
    /// Whether the interface shows frames as the kernel has them.
    pub raw: bool,
    /// Whether a reader was found that the kernel does not report, so that the receiver segments always. Only of a [`Part::Peer`].
    pub unreported_reader: bool,
}

impl Mark {
    /// The alias: printable, and shorter than the kernel's limit of 256 bytes for UIDs of up to 64.
    #[must_use]
    pub fn alias(&self) -> String {
        match self {
            Self::Sender(mark) => format!(
                "{ALIAS_V1} sender tap={} pod={} interface={} index={} family={} config={:016x} clsact={}",
                mark.tap,
                mark.pod,
                mark.interface,
                mark.interface_index,
                family(mark.ipv6),
                mark.config,
                if mark.clsact_ours { "ours" } else { "theirs" },
            ),
            Self::Receiver(mark) => {
                let (role, family) = (mark.part.role(), family(mark.ipv6));
                let frames = if mark.raw { RAW } else { "wire" };
                let readers = if mark.unreported_reader { format!(" readers={UNREPORTED}") } else { String::new() };
                format!("{ALIAS_V1} {role} tap={} vni={} family={family} frames={frames}{readers}", mark.tap, mark.vni)
            }
        }
    }

    /// Parses an alias; none if it is damaged or of another version.
    #[must_use]
    pub fn parse(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix(ALIAS_V1)?.strip_prefix(' ')?.split(' ');
        let role = words.next()?;
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        match role {
            "sender" => Some(Self::Sender(SenderMark {
                tap: field("tap")?.to_owned(),
                pod: field("pod")?.to_owned(),
                interface: field("interface")?.to_owned(),
                interface_index: field("index")?.parse().ok()?,
                ipv6: field("family")? == "6",
                config: u64::from_str_radix(field("config")?, 16).ok()?,
                clsact_ours: field("clsact")? == "ours",
            })),
            role => Some(Self::Receiver(ReceiverMark {
                part: Part::of_role(role)?,
                tap: field("tap")?.to_owned(),
                vni: field("vni")?.parse().ok()?,
                ipv6: field("family")? == "6",
                raw: field("frames") == Some(RAW),
                unreported_reader: field("readers") == Some(UNREPORTED),
            })),
        }
    }

    /// The parsed alias of a device; none also if the device is not ours.
    #[must_use]
    pub fn of(link: &Link) -> Option<Self> {
        is_ours(link).then(|| Self::parse(&link.alias)).flatten()
    }
}

fn family(ipv6: bool) -> char {
    if ipv6 { '6' } else { '4' }
}

/// The hash that [`SenderMark::config`] holds.
#[must_use]
pub fn config_hash(direction: Direction, destinations: &[Endpoint]) -> u64 {
    let mut sorted = destinations.to_vec();
    sorted.sort_unstable();
    let texts = sorted.iter().map(|to| format!("{} {} {}", to.address, to.port, to.vni));
    let hash = Hash::new().text(if direction.has_ingress() { "in" } else { "" });
    let hash = hash.text(if direction.has_egress() { "out" } else { "" });
    texts.fold(hash, |hash, text| hash.text(&text)).value()
}

/// The content of a filter's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie {
    /// Hash of tap and pod; for a receiver, of its VNI.
    pub owner: u64,
    /// The hook at which the filter was attached. The kernel reports it too, but for `u32` its answer may be wrong.
    pub hook: Hook,
    /// Whether PodTap created the interface's clsact. Also recorded here because the sender device may be deleted first.
    pub clsact_ours: bool,
}

impl Cookie {
    /// The cookie's 16 bytes, the most that the kernel allows (`TC_COOKIE_MAX_SIZE`).
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&COOKIE_MAGIC);
        bytes[4] = COOKIE_VERSION;
        bytes[5] = match self.hook {
            Hook::Ingress => b'i',
            Hook::Egress => b'e',
        };
        bytes[6] = if self.clsact_ours { b'o' } else { b't' };
        bytes[8..].copy_from_slice(&self.owner.to_be_bytes());
        bytes
    }

    /// Parses a cookie; none if it is not PodTap's. One of another version is parsed as one of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        if bytes[..4] != COOKIE_MAGIC {
            return None;
        }
        Some(Self {
            owner: u64::from_be_bytes(*bytes.last_chunk()?),
            hook: if bytes[5] == b'e' { Hook::Egress } else { Hook::Ingress },
            clsact_ours: bytes[6] == b'o',
        })
    }

    /// The cookie of a filter, if it is one of ours.
    #[must_use]
    pub fn of(filter: &Filter) -> Option<Self> {
        filter.mirror.as_ref().and_then(|mirror| Self::parse(&mirror.cookie))
    }
}
