//! Connections with a translation that there are already.

use nix::libc;
use podtap_model::metadata::Translation;
use rtnetlink::{packet_core::NLM_F_DUMP, sys::Socket};

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
const OPERATION: &str = "read the connections that the node has";

const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_ESTABLISHED` (`include/uapi/linux/netfilter/nf_conntrack_tcp.h`).
const ESTABLISHED: u8 = 3;
/// `IPS_ASSURED` (`include/uapi/linux/netfilter/nf_conntrack_common.h`): both ends sent, of UDP for longer than two seconds.
const IS_ASSURED: u32 = 4;

/// Reads the connections of a network namespace. What is not read yet takes no memory: the kernel goes through its table while it is read.
pub struct ExistingTranslations {
    socket: Socket,
    is_over: bool,
}

impl ExistingTranslations {
    /// Begins to read.
    pub fn open(namespace: &Namespace) -> Result<Self, NetnsError> {
        let socket = netfilter::open(namespace)?;
        let family = u8::try_from(libc::AF_UNSPEC).unwrap_or_default();
        let message = GenericMessage::with_header(GET, [family, 0, 0, 0], &[]);
        socket
            .send(&netfilter::request(message, NLM_F_DUMP, 1), 0)
            .map_err(|error| NetlinkError::socket(OPERATION, &error))?;
        Ok(Self { socket, is_over: false })
    }

    /// Reads the next some hundred connections. Returns those with a translation, or none at the end.
    pub fn next(&mut self) -> Result<Option<Vec<Translation>>, NetlinkError> {
        if self.is_over {
            return Ok(None);
        }
        let answers = netfilter::read(&self.socket, 1, OPERATION)?;
        self.is_over = answers.is_last;
        let lasting = answers.messages.iter().filter(|message| is_lasting(message));
        Ok(Some(lasting.filter_map(translation).collect()))
    }
}

/// Whether it is a connection that is going on. The tuple of another one may be that of the next one in a moment.
fn is_lasting(message: &GenericMessage) -> bool {
    let attributes = message.attributes.as_slice();
    let state = child(attributes, CTA_PROTOINFO).and_then(|info| {
        let tcp = child(info.value(), CTA_PROTOINFO_TCP)?;
        child(tcp.value(), CTA_PROTOINFO_TCP_STATE)?.value().first().copied()
    });
    status(attributes).is_some_and(|status| status & IS_ASSURED != 0) && state.is_none_or(|state| state == ESTABLISHED)
}
