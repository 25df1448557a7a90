use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures_util::Stream as _;
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{AddressFamily, RouteNetlinkMessage, link::LinkMessage},
    proto::{NetlinkCodec, NetlinkFramed},
    sys::{AsyncSocket as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::runtime::Handle;

use super::{
    decode::Message,
    error::{NetlinkError, NetnsError},
    link::Link,
    qdisc::ifindex,
};
use crate::namespace::{Namespace, within};

/// Something that changed in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device was added, changed or deleted.
    Link {
        /// Its ifindex.
        index: u32,
        /// Its name.
        name: String,
        /// [`Link::promiscuous`].
        promiscuous: bool,
    },
    /// A qdisc or filter of a device was added, changed or removed.
    Classifier {
        /// The device's ifindex.
        interface: u32,
    },
    /// An action of some filter was added, changed or removed by itself (`tc actions`).
    Action,
    /// A forwarding entry of a device was added or removed.
    Destination,
    /// An address was added or removed.
    Address,
    /// A route was added or removed.
    Route,
    /// The kernel dropped events because they were not read in time: anything may have changed.
    Lost,
}

/// A subscription to changes in one network namespace. Keeps that namespace alive.
///
/// Unlike a connection it has no task that reads ahead: what has not been taken yet waits in the socket's buffer, whose size the kernel
/// bounds.
pub struct Subscription {
    socket: NetlinkFramed<Message, TokioSocket, NetlinkCodec>,
    events: Vec<Event>,
}

impl Subscription {
    /// Subscribes to everything that matters in a namespace with taps; it misses nothing that happens after this call.
    ///
    /// To forwarding entries only on demand: their group also carries each neighbour's ageing, of which a node may have many.
    pub fn open(namespace: &Namespace, destinations: bool) -> Result<Self, NetnsError> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv6Ifaddr, Link, Neigh, Tc};
        let groups = [Link, Tc, Ipv4Ifaddr, Ipv6Ifaddr];
        Self::to(namespace, groups.into_iter().chain(destinations.then_some(Neigh)))
    }

    /// Subscribes to changes of devices and routes.
    pub fn open_for_routes(namespace: &Namespace) -> Result<Self, NetnsError> {
        use MulticastGroup::{Ipv4Route, Ipv6Route, Link};
        Self::to(namespace, [Link, Ipv4Route, Ipv6Route].into_iter())
    }

    fn to(namespace: &Namespace, groups: impl Iterator<Item = MulticastGroup> + Send) -> Result<Self, NetnsError> {
        let socket = open(namespace, NETLINK_ROUTE, "subscribe to changes", |socket| {
            groups.into_iter().try_for_each(|group| socket.add_membership(group as u32))
        })?;
        Ok(Self { socket: NetlinkFramed::new(socket), events: Vec::new() })
    }

    /// Ready when something has changed; [`Self::take`] has the events then.
    pub fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(received) = Pin::new(&mut self.socket).poll_next(context) {
            let Some((message, _)) = received else {
                // The socket failed.
                self.events.push(Event::Lost);
                break;
            };
            self.events.extend(match message.payload {
                NetlinkPayload::InnerMessage(message) => event(message.0),
                NetlinkPayload::Overrun(_) => Some(Event::Lost),
                _ => None,
            });
        }
        if self.events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Takes all events until now, without waiting.
    pub fn take(&mut self) -> Vec<Event> {
        let _ = self.poll_changed(&mut Context::from_waker(Waker::noop()));
        mem::take(&mut self.events)
    }
}

/// A socket for messages that nothing has requested, in a network namespace.
pub(super) fn open(
    namespace: &Namespace,
    protocol: isize,
    operation: &str,
    subscribe: impl FnOnce(&mut Socket) -> io::Result<()> + Send,
) -> Result<TokioSocket, NetnsError> {
    let runtime = Handle::current();
    let opened = within(namespace, || {
        let _guard = runtime.enter();
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        subscribe(socket.socket_mut())?;
        Ok(socket)
    })?;
    Ok(opened.map_err(|error: io::Error| NetlinkError::socket(operation, &error))?)
}

fn event(message: RouteNetlinkMessage) -> Option<Event> {
    let link = |message: LinkMessage| {
        let Link { index, name, promiscuous, .. } = Link::from(message);
        Some(Event::Link { index, name, promiscuous })
    };
    match message {
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => link(message),
        RouteNetlinkMessage::NewQueueDiscipline(message)
        | RouteNetlinkMessage::DelQueueDiscipline(message)
        | RouteNetlinkMessage::NewTrafficFilter(message)
        | RouteNetlinkMessage::DelTrafficFilter(message) => Some(Event::Classifier { interface: ifindex(&message) }),
        RouteNetlinkMessage::NewTrafficAction(_) | RouteNetlinkMessage::DelTrafficAction(_) => Some(Event::Action),
        // Entries of IPv4 and IPv6 are the pod's neighbours.
        RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
            (message.header.family == AddressFamily::Bridge).then_some(Event::Destination)
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(Event::Address),
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Some(Event::Route),
        _ => None,
    }
}
