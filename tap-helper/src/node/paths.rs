use std::{collections::BTreeMap, io, net::IpAddr, os::fd::AsFd as _, os::fd::BorrowedFd};

use tap_wire::Sender;

use crate::{
    namespace::{Namespace, within},
    netlink::{Monitor, NetlinkError, RouteSocket, link_mtu, way_to},
};

/// How large packets to destinations may be, as the node's routes and devices say.
#[derive(Default)]
pub(super) struct Paths {
    known: BTreeMap<IpAddr, Option<u32>>,
    /// Hears of routes and devices; there while there are destinations.
    monitor: Option<Monitor>,
}

impl Paths {
    /// Takes the addresses that matter now, and asks for all of them.
    pub(super) fn want<'a>(
        &mut self,
        senders: impl Iterator<Item = &'a Sender>,
        node: &Namespace,
        socket: &mut RouteSocket,
    ) -> io::Result<()> {
        let destinations = senders.flat_map(|sender| &sender.destinations);
        // What is known of those that stay counts until there is an answer.
        let before = |address| self.known.get(address).copied().flatten();
        self.known = destinations.map(|to| (to.address, before(&to.address))).collect();
        if self.known.is_empty() {
            self.monitor = None;
            return Ok(());
        }
        if self.monitor.is_none() {
            // First the ears, then the first look.
            self.monitor = Some(within(node, Monitor::open_for_routes)?.map_err(io::Error::other)?);
        }
        self.look(socket);
        Ok(())
    }

    /// Asks for all of them again; whether one has changed. One that cannot be asked for stays as it was.
    pub(super) fn look(&mut self, socket: &mut RouteSocket) -> bool {
        if let Some(monitor) = &self.monitor {
            monitor.take();
        }
        let mut changed = false;
        for (address, known) in &mut self.known {
            let Ok(mtu) = mtu(socket, *address) else { continue };
            changed |= *known != mtu;
            *known = mtu;
        }
        changed
    }

    /// The least MTU to a sender's destinations, if any is known.
    pub(super) fn mtu(&self, sender: &Sender) -> Option<u32> {
        sender.destinations.iter().filter_map(|to| self.known.get(&to.address).copied().flatten()).min()
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.monitor.as_ref().map(Monitor::as_fd)
    }
}

fn mtu(socket: &mut RouteSocket, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let Some(way) = way_to(socket, address)? else { return Ok(None) };
    let device = match link_mtu(socket, way.interface) {
        Ok(mtu) => mtu,
        Err(error) if error.is_gone() => None,
        Err(error) => return Err(error),
    };
    Ok(way.mtu.into_iter().chain(device).min())
}
