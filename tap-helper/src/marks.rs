//! How PodTap recognises what is its own: a device group, aliases, cookies.
//!
//! The group is set in the request that makes a device, so that there is no moment at which a device of ours carries no
//! mark; the alias, which says whose it is, follows. Filters carry a cookie in their action. Nothing without such a mark
//! is ever changed or removed.

use podtap_model::{Direction, Endpoint};

use crate::{
    names::{Hash, TEMPORARY_PREFIX},
    netlink::{Filter, Hook, Link},
};

/// The device group of all devices of PodTap: "ptap" in ASCII, far from the small numbers that people use.
pub const GROUP: u32 = 0x7074_6170;

/// What every alias of PodTap begins with, of any version.
const ALIAS_PREFIX: &str = "podtap.dev/";
/// What aliases of this version begin with.
const ALIAS_V1: &str = "podtap.dev/v1";
/// What every cookie begins with.
const COOKIE_MAGIC: [u8; 4] = *b"PTap";
/// Version of the cookie's layout.
const COOKIE_VERSION: u8 = 1;

/// Whether a device is one of PodTap's.
#[must_use]
pub fn is_ours(link: &Link) -> bool {
    // Without an alias: made by a helper that ended before it could set it.
    let unfinished = link.alias.is_empty() && link.name.starts_with(TEMPORARY_PREFIX);
    link.group == GROUP
        && ["vxlan", "veth"].contains(&link.kind.as_str())
        && (unfinished || link.alias.starts_with(ALIAS_PREFIX))
}

/// What a device's alias says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A sender device.
    Sender(SenderMark),
    /// A device of a receiver.
    Receiver(ReceiverMark),
}

/// What a sender device's alias says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderMark {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod.
    pub pod: String,
    /// Name of the tapped interface when this was written.
    pub interface: String,
    /// Number of the tapped interface.
    pub interface_index: u32,
    /// Whether the tunnel's addresses are of IPv6: the kernel does not tell.
    pub ipv6: bool,
    /// Hash of directions and destinations, to tell drift without knowing what is wanted.
    pub config: u64,
    /// Whether the tapped interface's clsact was made by PodTap.
    pub clsact_ours: bool,
}

/// Which device of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The one that consumers read: the far end of the pair, or of a raw receiver the VXLAN device itself.
    Interface,
    /// The VXLAN device from which frames go to the pair.
    Tunnel,
    /// The near end of the pair, which cuts superframes and fills in checksums when it sends to the far end.
    Near,
}

impl Part {
    /// As in an alias.
    const ALL: [(Self, &'static str); 3] =
        [(Self::Interface, "receiver"), (Self::Tunnel, "receiver-tunnel"), (Self::Near, "receiver-near")];

    /// What it is called in an alias.
    #[must_use]
    pub fn role(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("", |(_, role)| role)
    }

    fn of_role(role: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == role).map(|(part, _)| *part)
    }
}

/// What the alias of a receiver's device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverMark {
    /// Which of its devices this is.
    pub part: Part,
    /// UID of the tap.
    pub tap: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Whether its socket is of IPv6: the kernel does not tell.
    pub ipv6: bool,
}

impl Mark {
    /// The alias, printable and shorter than the kernel's 256 bytes for UIDs of up to 64.
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
                let role = mark.part.role();
                format!("{ALIAS_V1} {role} tap={} vni={} family={}", mark.tap, mark.vni, family(mark.ipv6))
            }
        }
    }

    /// Reads an alias; none if it is not one of this version, or is damaged.
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
            })),
        }
    }

    /// What the alias of a device of ours says; none also if it is not ours.
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

/// What a filter's cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie {
    /// Hash of tap and pod; of a receiver, of its VNI.
    pub owner: u64,
    /// The hook at which the filter was put. The kernel's answer says the same; with `u32` it may lie.
    pub hook: Hook,
    /// Whether the interface's clsact was made by PodTap: so that this is known when the sender device has gone.
    pub clsact_ours: bool,
}

impl Cookie {
    /// The cookie's 16 bytes, which is all there may be (`TC_COOKIE_MAX_SIZE`).
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

    /// Reads a cookie; none if it is not PodTap's. Of other versions all is taken for what it is in this one.
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
