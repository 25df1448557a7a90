//! Connections to the kernel in one network namespace.
//!
//! `netlink-proto`, on which `rtnetlink` stands, frames, sends and receives in a task of its own. This module adds what it leaves to its users:
//! the options of the sockets, the text of errors, and the repetition of dumps that were interrupted.

use std::{cell::Cell, fmt::Debug, io};

use futures_util::StreamExt as _;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable,
    },
    packet_route::RouteNetlinkMessage,
    proto::{ConnectionHandle, new_connection},
    sys::{
        AsyncSocket as _, SocketAddr,
        protocols::{NETLINK_GENERIC, NETLINK_ROUTE},
    },
};
use tokio::runtime::Handle;

use super::{
    decode::Message,
    error::{NetlinkError, NetnsError},
    ethtool::GenericMessage,
};
use crate::namespace::{Namespace, within};

/// How often an interrupted dump is repeated: a namespace in which that is not enough changes without pause.
const DUMP_ATTEMPTS: u32 = 8;

/// Connections to the routing family and to generic netlink, the latter for ethtool. Their sockets stay in the network namespace in
/// which they were opened.
pub struct Connection {
    route: ConnectionHandle<Message>,
    pub(super) generic: ConnectionHandle<GenericMessage>,
    /// The number of ethtool's family, once it is known.
    pub(super) ethtool: Cell<Option<u16>>,
}

impl Connection {
    /// Opens one in a network namespace. The tasks that serve it end when it is dropped.
    pub fn open(namespace: &Namespace) -> Result<Self, NetnsError> {
        let runtime = Handle::current();
        within(namespace, || {
            let _guard = runtime.enter();
            let failed = |error| NetlinkError::socket("open a netlink socket", &error);
            let route = connect(NETLINK_ROUTE).map_err(failed)?;
            let generic = connect(NETLINK_GENERIC).map_err(failed)?;
            Ok(Self { route, generic, ethtool: Cell::new(None) })
        })?
    }

    /// Sends a request and waits until the kernel has executed it.
    pub(super) async fn execute(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &str,
    ) -> Result<(), NetlinkError> {
        exchange(&self.route, Message(message), flags | NLM_F_ACK, operation, |_| None::<()>).await.map(drop)
    }

    /// Requests one object.
    pub(super) async fn get<T>(
        &self,
        message: RouteNetlinkMessage,
        operation: &str,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let replies = exchange(&self.route, Message(message), NLM_F_ACK, operation, |reply| read(reply.0)).await?;
        Ok(replies.found.into_iter().next())
    }

    /// Requests all objects that match.
    pub(super) async fn dump<T>(
        &self,
        message: RouteNetlinkMessage,
        operation: &str,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let message = Message(message.clone());
            let replies = exchange(&self.route, message, NLM_F_DUMP, operation, |reply| read(reply.0)).await?;
            if !replies.interrupted {
                return Ok(replies.found);
            }
        }
        Err(NetlinkError::new(operation, Errno::EAGAIN))
    }
}

/// The kernel's address: port 0.
fn kernel() -> SocketAddr {
    SocketAddr::new(0, 0)
}

fn connect<T>(protocol: isize) -> io::Result<ConnectionHandle<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + Debug + Send + Unpin + 'static,
{
    let (mut connection, handle, _) = new_connection::<T>(protocol)?;
    // Every exchange ends with one of these: a stream that ends without is one whose socket failed.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    // Only the kernel may answer, not a process of the pod.
    socket.connect(&kernel())?;
    // Errors with text, and without a copy of the request.
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    // The kernel filters dumps by what the request names (Linux 4.20). Otherwise it dumps the whole namespace.
    socket.set_netlink_get_strict_chk(true)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The kernel's answers to one request.
pub(super) struct Replies<T> {
    pub(super) found: Vec<T>,
    /// `NLM_F_DUMP_INTR`: the dumped objects changed meanwhile; some may be missing or doubled.
    interrupted: bool,
}

/// Sends a request and reads the answers to it.
pub(super) async fn exchange<M, T>(
    handle: &ConnectionHandle<M>,
    message: M,
    flags: u16,
    operation: &str,
    mut read: impl FnMut(M) -> Option<T>,
) -> Result<Replies<T>, NetlinkError>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let closed = || NetlinkError::new(operation, Errno::EPIPE);
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    request.header.flags = NLM_F_REQUEST | flags;
    let mut stream = handle.request(request, kernel()).map_err(|_| closed())?;
    let mut replies = Replies { found: Vec::new(), interrupted: false };
    while let Some(reply) = stream.next().await {
        replies.interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
        match reply.payload {
            NetlinkPayload::InnerMessage(message) => replies.found.extend(read(message)),
            NetlinkPayload::Error(ack) => {
                return NetlinkError::of_ack(operation, &reply.header, &ack).map_or(Ok(replies), Err);
            }
            NetlinkPayload::Done(done) => {
                return NetlinkError::of_done(operation, &reply.header, &done).map_or(Ok(replies), Err);
            }
            _ => {}
        }
    }
    Err(closed())
}
