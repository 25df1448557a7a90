//! Existing connections with a translation.

use podtap_model::metadata::Translation;
use rtnetlink::{packet_core::NLM_F_DUMP, sys::Socket};
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::{MESSAGE, status, translation};
use crate::{
    namespace::Namespace,
    netlink::{
        error::{NetlinkError, NetnsError},
        generic::GenericMessage,
        netfilter,
        nla::child,
    },
};

/// Subsystem `NFNL_SUBSYS_CTNETLINK` and command `IPCTNL_MSG_CT_GET`.
const GET: u16 = MESSAGE | 1;
/// `AF_UNSPEC`: IPv4 and IPv6.
const ANY_FAMILY: u8 = 0;
const OPERATION: &str = "read the connections of the node";

const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_ESTABLISHED` (`include/uapi/linux/netfilter/nf_conntrack_tcp.h`).
const ESTABLISHED: u8 = 3;
/// `IPS_ASSURED` (`include/uapi/linux/netfilter/nf_conntrack_common.h`): both ends sent, of UDP for longer than two seconds.
const IS_ASSURED: u32 = 4;

/// The kernel fills datagrams as large as a reader has room for, up to this (`netlink_dump`, `net/netlink/af_netlink.c`): about 150
/// connections.
const DATAGRAM: usize = 32 << 10;
/// The kernel reads ahead in its table while a socket has room. With little, one datagram waits, and the next one is filled when that is
/// read: what is read is as old as the read before.
const LITTLE: usize = 4 << 10;

/// Reads the connections of a network namespace.
pub struct ExistingTranslations {
    socket: Socket,
    buffer: Vec<u8>,
    is_over: bool,
}

impl ExistingTranslations {
    /// Begins to read.
    pub fn open(namespace: &Namespace) -> Result<Self, NetnsError> {
        let socket = netfilter::open(namespace)?;
        set_socket_recv_buffer_size(&socket, LITTLE).map_err(|error| NetlinkError::socket(OPERATION, &error.into()))?;
        let message = GenericMessage::with_header(GET, [ANY_FAMILY, 0, 0, 0], &[]);
        let request = netfilter::request(message, NLM_F_DUMP, 1);
        socket.send(&request, 0).map_err(|error| NetlinkError::socket(OPERATION, &error))?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), is_over: false })
    }

    /// Reads on: a datagram. Returns the established connections with a translation, or none at the end.
    pub fn next(&mut self) -> Result<Option<Vec<Translation>>, NetlinkError> {
        if self.is_over {
            return Ok(None);
        }
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0).map_err(|error| NetlinkError::socket(OPERATION, &error))?;
        let answers = netfilter::answers(&self.buffer, 1, OPERATION)?;
        self.is_over = answers.is_last;
        let established = answers.messages.iter().filter(|message| is_established(message));
        Ok(Some(established.filter_map(translation).collect()))
    }
}

/// Whether both ends use a connection. The tuple of another one may be that of the next one in a moment.
fn is_established(message: &GenericMessage) -> bool {
    let attributes = message.attributes.as_slice();
    let state = child(attributes, CTA_PROTOINFO).and_then(|info| {
        let tcp = child(info.value(), CTA_PROTOINFO_TCP)?;
        child(tcp.value(), CTA_PROTOINFO_TCP_STATE)?.value().first().copied()
    });
    status(attributes).is_some_and(|status| status & IS_ASSURED != 0) && state.is_none_or(|state| state == ESTABLISHED)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DefaultNla;

    use super::*;
    use crate::netlink::{conntrack::CTA_STATUS, nla::nested};

    #[test]
    fn connections_that_are_over_or_unanswered_are_not_established() {
        const TIME_WAIT: u8 = 7;
        const TRANSLATED: u32 = 0x20;
        for (status, state, expected) in [
            (TRANSLATED | IS_ASSURED, None, true),
            (TRANSLATED, None, false),
            (TRANSLATED | IS_ASSURED, Some(ESTABLISHED), true),
            (TRANSLATED | IS_ASSURED, Some(TIME_WAIT), false),
            (TRANSLATED, Some(ESTABLISHED), false),
        ] {
            let mut attributes = vec![DefaultNla::new(CTA_STATUS, status.to_be_bytes().to_vec())];
            attributes.extend(state.map(|state| {
                let state = DefaultNla::new(CTA_PROTOINFO_TCP_STATE, vec![state]);
                nested(CTA_PROTOINFO, &[nested(CTA_PROTOINFO_TCP, &[state])])
            }));
            let message = GenericMessage::with_header(MESSAGE, [2, 0, 0, 0], &attributes);
            assert_eq!(is_established(&message), expected, "{status} {state:?}");
        }
        assert!(!is_established(&GenericMessage::with_header(MESSAGE, [2, 0, 0, 0], &[])));
    }
}
