//! Connections to the kernel in one network namespace.
//!
//! `netlink-proto`, on which `rtnetlink` is built, frames, sends and receives in a task of its own. This module adds what it leaves to
//! its users: the options of the sockets, the text of errors, another attempt after an interrupted dump, and another socket after an error.

use std::{
    cell::{Cell, RefCell},
    fmt::Debug,
    rc::Rc,
};

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
use tokio::{runtime::Handle, task::AbortHandle};

use super::{
    decode::Message,
    error::{NetlinkError, NetnsError},
    generic::GenericMessage,
};
use crate::namespace::{Namespace, within};

/// The error of a request whose socket failed.
const CLOSED: Errno = Errno::EPIPE;
/// How often an interrupted dump is repeated: a namespace in which that is not enough changes without pause.
const DUMP_ATTEMPTS: u32 = 8;

/// What may be read from a namespace: hundreds of times what a pod usually has, and a few hundredths of a second. A pod that
/// may add devices and filters to its namespace must not exhaust the helper's time and memory.
const ALLOWANCE: Allowance = Allowance { objects: 4096, bytes: 8 << 20 };

/// What may still be read.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    objects: usize,
    bytes: usize,
}

impl Allowance {
    /// Without one more object; none if there was none left.
    fn less(self, bytes: u32) -> Option<Self> {
        let bytes = self.bytes.checked_sub(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        Some(Self { objects: self.objects.checked_sub(1)?, bytes })
    }
}

/// Connections to the routing family and to generic netlink, the latter for ethtool. Their sockets stay in the network namespace in
/// which they were opened.
pub struct Connection {
    namespace: Rc<Namespace>,
    route: Socket<Message>,
    generic: Socket<GenericMessage>,
    /// The number of ethtool's family, once it is known.
    pub(super) ethtool: Cell<Option<u16>>,
    /// What the dumps may still read that share an allowance; none if each has its own.
    shared: Cell<Option<Allowance>>,
    /// Whether dumps are limited at all.
    limited: bool,
}

/// While it exists, the dumps of a connection share an allowance.
pub struct SharedAllowance<'a>(&'a Connection);

impl Drop for SharedAllowance<'_> {
    fn drop(&mut self) {
        self.0.shared.set(None);
    }
}

impl Connection {
    /// Opens one in a network namespace. The tasks that serve it end when it is dropped.
    pub fn open(namespace: &Rc<Namespace>) -> Result<Self, NetnsError> {
        Ok(Self {
            namespace: Rc::clone(namespace),
            route: Socket::open(namespace, NETLINK_ROUTE)?,
            generic: Socket::open(namespace, NETLINK_GENERIC)?,
            ethtool: Cell::new(None),
            shared: Cell::new(None),
            limited: true,
        })
    }

    /// For the node's own namespace, in which only root adds anything: without a limit for dumps.
    #[must_use]
    pub fn unlimited(self) -> Self {
        Self { limited: false, ..self }
    }

    /// Makes the following dumps share an allowance.
    #[must_use]
    pub fn share_allowance(&self) -> SharedAllowance<'_> {
        self.shared.set(Some(ALLOWANCE));
        SharedAllowance(self)
    }

    /// The namespace of its sockets.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Sends a request and waits until the kernel has executed it.
    pub(super) async fn execute(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &str,
    ) -> Result<(), NetlinkError> {
        let (message, flags) = (Message(message), flags | NLM_F_ACK);
        self.route.exchange(&self.namespace, message, flags, operation, |_| None::<()>).await.map(drop)
    }

    /// Requests one object.
    pub(super) async fn get<T>(
        &self,
        message: RouteNetlinkMessage,
        operation: &str,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let read = |reply: Message| read(reply.0);
        let replies = self.route.exchange(&self.namespace, Message(message), NLM_F_ACK, operation, read).await?;
        Ok(replies.found.into_iter().next())
    }

    /// Requests all objects that match. If there are more than may be read, that is an error, and the others are not read.
    pub(super) async fn dump<T>(
        &self,
        message: RouteNetlinkMessage,
        operation: &str,
        mut read: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let message = Message(message.clone());
            let read = |reply: Message| read(reply.0);
            let allowance = self.limited.then(|| self.shared.get().unwrap_or(ALLOWANCE));
            let replies =
                self.route.exchange_within(allowance, &self.namespace, message, NLM_F_DUMP, operation, read).await?;
            if !replies.interrupted {
                if self.shared.get().is_some() {
                    self.shared.set(replies.allowance);
                }
                return Ok(replies.found);
            }
        }
        Err(NetlinkError::new(operation, Errno::EAGAIN))
    }

    /// Sends a request of generic netlink; the first answer that `read` accepts.
    pub(super) async fn generic<T>(
        &self,
        message: GenericMessage,
        operation: &str,
        read: impl FnMut(GenericMessage) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let replies = self.generic.exchange(&self.namespace, message, NLM_F_ACK, operation, read).await?;
        Ok(replies.found.into_iter().next())
    }
}

/// What `netlink-proto` requires of messages.
trait Family: NetlinkSerializable + NetlinkDeserializable + Clone + Debug + Send + Unpin + 'static {}

impl Family for Message {}

impl Family for GenericMessage {}

/// A socket of one netlink protocol.
struct Socket<M: Family> {
    protocol: isize,
    open: RefCell<Open<M>>,
}

/// An open socket, and the task that serves it.
struct Open<M: Family> {
    handle: ConnectionHandle<M>,
    task: AbortHandle,
}

impl<M: Family> Socket<M> {
    fn open(namespace: &Namespace, protocol: isize) -> Result<Self, NetnsError> {
        Ok(Self { protocol, open: RefCell::new(connect(namespace, protocol)?) })
    }

    /// Sends a request and reads the answers to it.
    async fn exchange<T>(
        &self,
        namespace: &Namespace,
        message: M,
        flags: u16,
        operation: &str,
        read: impl FnMut(M) -> Option<T>,
    ) -> Result<Replies<T>, NetlinkError> {
        self.exchange_within(None, namespace, message, flags, operation, read).await
    }

    /// Likewise, but reads no more than is allowed.
    async fn exchange_within<T>(
        &self,
        allowance: Option<Allowance>,
        namespace: &Namespace,
        message: M,
        flags: u16,
        operation: &str,
        read: impl FnMut(M) -> Option<T>,
    ) -> Result<Replies<T>, NetlinkError> {
        let handle = self.open.borrow().handle.clone();
        let replies = exchange(&handle, allowance, message, flags, operation, read).await;
        // Its task ends with the first error of the socket, such as lack of memory. This request failed; the next one gets another
        // socket. With the socket, the kernel also gives up a dump of which enough was read.
        if matches!(&replies, Err(error) if error.errno == CLOSED || error.too_much)
            && let Ok(open) = connect(namespace, self.protocol)
        {
            self.open.replace(open).task.abort();
        }
        replies
    }
}

/// Opens a socket in a network namespace, and spawns the task that serves it.
fn connect<M: Family>(namespace: &Namespace, protocol: isize) -> Result<Open<M>, NetnsError> {
    let runtime = Handle::current();
    let opened = within(namespace, || {
        let _guard = runtime.enter();
        let (mut connection, handle, _) = new_connection::<M>(protocol)?;
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
        let task = tokio::spawn(connection).abort_handle();
        Ok(Open { handle, task })
    })?;
    Ok(opened.map_err(|error| NetlinkError::socket("open a netlink socket", &error))?)
}

/// The kernel's address: port 0.
fn kernel() -> SocketAddr {
    SocketAddr::new(0, 0)
}

/// The kernel's answers to one request.
struct Replies<T> {
    found: Vec<T>,
    /// `NLM_F_DUMP_INTR`: the dumped objects changed meanwhile; some may be missing or doubled.
    interrupted: bool,
    /// What is left of what was allowed.
    allowance: Option<Allowance>,
}

async fn exchange<M: Family, T>(
    handle: &ConnectionHandle<M>,
    allowance: Option<Allowance>,
    message: M,
    flags: u16,
    operation: &str,
    mut read: impl FnMut(M) -> Option<T>,
) -> Result<Replies<T>, NetlinkError> {
    let closed = || NetlinkError::new(operation, CLOSED);
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    request.header.flags = NLM_F_REQUEST | flags;
    let mut stream = handle.request(request, kernel()).map_err(|_| closed())?;
    let mut replies = Replies { found: Vec::new(), interrupted: false, allowance };
    while let Some(reply) = stream.next().await {
        replies.interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
        match reply.payload {
            NetlinkPayload::InnerMessage(message) => {
                if let Some(allowance) = replies.allowance {
                    let left = allowance.less(reply.header.length);
                    replies.allowance = Some(left.ok_or_else(|| NetlinkError::too_much(operation))?);
                }
                replies.found.extend(read(message));
            }
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
