use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{
    address::{RTM_DELADDR, RTM_NEWADDR},
    error::NetlinkError,
    fdb::{PF_BRIDGE, RTM_DELNEIGH, RTM_NEWNEIGH},
    filter::{RTM_DELTFILTER, RTM_NEWTFILTER},
    link::{self, RTM_DELLINK, RTM_NEWLINK},
    message::u32_at,
    qdisc::{RTM_DELQDISC, RTM_NEWQDISC},
    socket::parts,
};

// include/uapi/linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// Something that changed in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device came, changed or went.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
    },
    /// A qdisc or filter of a device came or went.
    Classifier {
        /// The device's number.
        interface: u32,
    },
    /// A forwarding entry of a device came or went.
    Destination {
        /// The device's number.
        device: u32,
    },
    /// An address came or went.
    Address,
    /// The kernel dropped events since nobody read them: anything may have changed.
    Lost,
}

/// Hears what changes in one network namespace. Keeps that namespace alive.
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Opens one in the network namespace of the calling thread; of everything that happens after this call, it hears.
    ///
    /// Of forwarding entries only on demand: their group also carries each neighbour's ageing, of which a node may have many.
    pub fn open(destinations: bool) -> Result<Self, NetlinkError> {
        let groups = [RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        Self::open_for(groups.into_iter().chain(destinations.then_some(RTNLGRP_NEIGH)))
    }

    /// Likewise, but for changes of devices and routes.
    pub fn open_for_routes() -> Result<Self, NetlinkError> {
        Self::open_for([RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE].into_iter())
    }

    fn open_for(groups: impl Iterator<Item = u32>) -> Result<Self, NetlinkError> {
        let failed = |error| NetlinkError::socket("listen to changes", &error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        for group in groups {
            socket.add_membership(group).map_err(failed)?;
        }
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Takes all events that are there, without waiting.
    pub fn take(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut bytes = Vec::with_capacity(16 << 10);
        loop {
            bytes.clear();
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => events.extend(parts(&bytes).filter_map(|part| read(part.kind, part.payload))),
                Err(error) => match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                    Some(nix::errno::Errno::EINTR) => {}
                    Some(nix::errno::Errno::EAGAIN) => return events,
                    // ENOBUFS, and whatever else: look at everything again.
                    _ => {
                        events.push(Event::Lost);
                        return events;
                    }
                },
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(kind: u16, payload: &[u8]) -> Option<Event> {
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let link = link::read(payload);
            Some(Event::Link { index: link.index, name: link.name })
        }
        RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTFILTER | RTM_DELTFILTER => {
            Some(Event::Classifier { interface: u32_at(payload, 4) })
        }
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            // Those of IPv4 and IPv6 are the neighbours of the pod.
            (payload.first() == Some(&PF_BRIDGE)).then(|| Event::Destination { device: u32_at(payload, 4) })
        }
        RTM_NEWADDR | RTM_DELADDR => Some(Event::Address),
        _ => None,
    }
}
