//! Connections whose addresses the node translates, as conntrack tells (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`): new ones as
//! they begin, and existing ones.

mod existing;

use std::{
    mem,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use super::{
    error::NetnsError,
    generic::GenericMessage,
    nla::{child, children},
    subscription::open,
};
use crate::{
    namespace::Namespace,
    socket_filter::{self, jump, statement},
};
pub use existing::ExistingTranslations;
use futures_util::Stream as _;
use nix::libc;
use podtap_model::metadata::{Translation, Tuple};
use rtnetlink::{
    packet_core::{NetlinkPayload, NlaBuffer},
    proto::{NetlinkCodec, NetlinkFramed},
    sys::{TokioSocket, protocols::NETLINK_NETFILTER},
};

/// `NFNLGRP_CONNTRACK_NEW` (include/uapi/linux/netfilter/nfnetlink.h).
const NEW: u32 = 1;
/// Subsystem `NFNL_SUBSYS_CTNETLINK` and command `IPCTNL_MSG_CT_NEW`.
const MESSAGE: u16 = 1 << 8;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// `IPS_SRC_NAT` and `IPS_DST_NAT` (`include/uapi/linux/netfilter/nf_conntrack_common.h`).
const IS_TRANSLATED: u32 = 0x30;
/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS: u32 = 16 + 4;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER: u32 = 4;

/// Translations that wait to be taken. Those that find no room are lost, as those that the socket has no room for.
const MOST: usize = 4096;

/// A subscription to translated connections of one network namespace. As with [`Subscription`](super::Subscription), what was not taken
/// waits in the socket, whose size the kernel bounds: a node with many connections costs no memory.
pub struct Translations {
    socket: NetlinkFramed<GenericMessage, TokioSocket, NetlinkCodec>,
    taken: Vec<Translation>,
    has_failed: bool,
}

impl Translations {
    /// Subscribes. The kernel drops connections without translation before they wake the helper.
    pub fn open(namespace: &Namespace) -> Result<Self, NetnsError> {
        let socket = open(namespace, NETLINK_NETFILTER, "subscribe to translated connections", |socket| {
            // Before the first message.
            socket_filter::attach(socket, &only_translated())?;
            socket.add_membership(NEW)
        })?;
        Ok(Self { socket: NetlinkFramed::new(socket), taken: Vec::new(), has_failed: false })
    }

    /// Ready when there are some, or the socket has failed; [`Self::take`] tells then.
    pub fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.taken.len() < MOST
            && let Poll::Ready(received) = Pin::new(&mut self.socket).poll_next(context)
        {
            // What the kernel dropped because it was not read in time is a message, too.
            let Some((message, _)) = received else {
                self.has_failed = true;
                break;
            };
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                self.taken.extend(translation(&message));
            }
        }
        if self.taken.is_empty() && !self.has_failed { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Takes all until now, without waiting. None if the socket has failed.
    pub fn take(&mut self) -> Option<Vec<Translation>> {
        let _ = self.poll_changed(&mut Context::from_waker(Waker::noop()));
        (!self.has_failed).then(|| mem::take(&mut self.taken))
    }
}

/// A socket filter that keeps messages about connections with a translation. The extension finds an attribute of a message
/// (`SKF_AD_NLATTR`, net/core/filter.c); numbers in messages are in network byte order, as socket filters read them.
fn only_translated() -> [libc::sock_filter; 9] {
    let find_attribute = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR).cast_unsigned();
    [
        statement(libc::BPF_LD | libc::BPF_IMM, HEADERS),
        statement(libc::BPF_LDX | libc::BPF_IMM, CTA_STATUS.into()),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, find_attribute),
        // Without a status, it is not known.
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 4, 0),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, ATTRIBUTE_HEADER),
        jump(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, IS_TRANSLATED, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

/// The translation that a message reports; none of what has no ports, such as ICMP.
fn translation(message: &GenericMessage) -> Option<Translation> {
    if message.family != MESSAGE {
        return None;
    }
    let attributes = message.attributes.as_slice();
    if status(attributes)? & IS_TRANSLATED == 0 {
        return None;
    }
    let (protocol, original) = tuple(&child(attributes, CTA_TUPLE_ORIG)?)?;
    let (_, reply) = tuple(&child(attributes, CTA_TUPLE_REPLY)?)?;
    let zone = child(attributes, CTA_ZONE).and_then(|zone| port(&zone)).unwrap_or_default();
    Some(Translation { protocol, original, reply, zone })
}

fn status(attributes: &[u8]) -> Option<u32> {
    child(attributes, CTA_STATUS)?.value().first_chunk().copied().map(u32::from_be_bytes)
}

/// Protocol, addresses and ports.
fn tuple(attribute: &NlaBuffer<&[u8]>) -> Option<(u8, Tuple)> {
    let (addresses, protocol) = (child(attribute.value(), CTA_TUPLE_IP)?, child(attribute.value(), CTA_TUPLE_PROTO)?);
    let address = |v4, v6| {
        children(addresses.value()).find_map(|address| match address.kind() {
            kind if kind == v4 => Some(IpAddr::from(*address.value().first_chunk::<4>()?)),
            kind if kind == v6 => Some(IpAddr::from(*address.value().first_chunk::<16>()?)),
            _ => None,
        })
    };
    let number = child(protocol.value(), CTA_PROTO_NUM)?.value().first().copied()?;
    let of_kind = |kind| child(protocol.value(), kind).and_then(|value| port(&value));
    Some((
        number,
        Tuple {
            source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            source_port: of_kind(CTA_PROTO_SRC_PORT)?,
            destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            destination_port: of_kind(CTA_PROTO_DST_PORT)?,
        },
    ))
}

fn port(attribute: &NlaBuffer<&[u8]>) -> Option<u16> {
    attribute.value().first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DefaultNla;

    use super::*;
    use crate::netlink::nla::nested;

    fn value(kind: u16, bytes: &[u8]) -> DefaultNla {
        DefaultNla::new(kind, bytes.to_vec())
    }

    fn tuple_of(kind: u16, addresses: &[DefaultNla; 2], protocol: u8, ports: [u16; 2]) -> DefaultNla {
        let protocol = [
            value(CTA_PROTO_NUM, &[protocol]),
            value(CTA_PROTO_SRC_PORT, &ports[0].to_be_bytes()),
            value(CTA_PROTO_DST_PORT, &ports[1].to_be_bytes()),
        ];
        nested(kind, &[nested(CTA_TUPLE_IP, addresses), nested(CTA_TUPLE_PROTO, &protocol)])
    }

    fn v4(source: [u8; 4], destination: [u8; 4]) -> [DefaultNla; 2] {
        [value(CTA_IP_V4_SRC, &source), value(CTA_IP_V4_DST, &destination)]
    }

    fn message(status: u32) -> GenericMessage {
        let attributes = [
            tuple_of(CTA_TUPLE_ORIG, &v4([10, 0, 0, 1], [10, 96, 0, 10]), 17, [40000, 53]),
            tuple_of(CTA_TUPLE_REPLY, &v4([10, 0, 0, 2], [10, 0, 0, 1]), 17, [5353, 40000]),
            value(CTA_STATUS, &status.to_be_bytes()),
            value(CTA_ZONE, &7_u16.to_be_bytes()),
        ];
        GenericMessage::with_header(MESSAGE, [2, 0, 0, 0], &attributes)
    }

    #[test]
    fn a_translated_connection_has_both_tuples() {
        let found = translation(&message(0x28)).expect("a translation");
        let tuple = |source: [u8; 4], source_port, destination: [u8; 4], destination_port| Tuple {
            source: source.into(),
            source_port,
            destination: destination.into(),
            destination_port,
        };
        let expected = Translation {
            protocol: 17,
            original: tuple([10, 0, 0, 1], 40000, [10, 96, 0, 10], 53),
            reply: tuple([10, 0, 0, 2], 5353, [10, 0, 0, 1], 40000),
            zone: 7,
        };
        assert_eq!(found, expected);
        assert_eq!(translation(&message(0x08)), None, "it is not translated");
    }

    #[test]
    fn damaged_messages_are_none() {
        let whole = message(0x28);
        // Without its last attribute, the zone, it is complete.
        let complete = whole.attributes.len() - 8;
        for length in 0..whole.attributes.len() {
            let mut damaged = whole.clone();
            damaged.attributes.truncate(length);
            assert_eq!(translation(&damaged).is_some(), length >= complete, "{length} of {complete}");
        }
        assert_eq!(translation(&GenericMessage::with_header(0, [2, 0, 0, 0], &[])), None);
    }
}
