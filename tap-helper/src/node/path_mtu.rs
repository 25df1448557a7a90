use std::{
    collections::BTreeMap,
    mem,
    net::IpAddr,
    task::{Context, Poll},
};

use podtap_model::DesiredSender;

use crate::{
    namespace::Namespace,
    netlink::{Connection, NetlinkError, NetnsError, Subscription, link_mtu, route_to},
};

/// The path MTU to each destination, by the node's routes and devices.
#[derive(Default)]
pub(super) struct PathMtus {
    known: BTreeMap<IpAddr, Option<u32>>,
    /// Reports changes of routes and devices while there are destinations.
    subscription: Option<Subscription>,
}

impl PathMtus {
    /// Takes the addresses that matter now, requests the MTU of each, and returns whether one has changed that mattered before.
    pub(super) async fn set_destinations<'a>(
        &mut self,
        senders: impl Iterator<Item = &'a DesiredSender>,
        node: &Namespace,
        netlink: &Connection,
    ) -> Result<bool, NetnsError> {
        let destinations = senders.flat_map(|sender| &sender.tap.destinations);
        // The MTU of an address that stays is valid until the next answer.
        let before = mem::take(&mut self.known);
        let known = |address| before.get(address).copied().flatten();
        self.known = destinations.map(|to| (to.address, known(&to.address))).collect();
        if self.known.is_empty() {
            self.subscription = None;
            return Ok(false);
        }
        if self.subscription.is_none() {
            // Before the first request, so that no change is missed.
            self.subscription = Some(Subscription::open_for_routes(node)?);
        }
        self.refresh(netlink).await;
        Ok(before.iter().any(|(address, mtu)| self.known.get(address).is_some_and(|now| now != mtu)))
    }

    /// Requests all MTUs again, and returns whether one has changed. One that cannot be read keeps its value.
    pub(super) async fn refresh(&mut self, netlink: &Connection) -> bool {
        if let Some(subscription) = &mut self.subscription {
            subscription.take();
        }
        let mut changed = false;
        for (address, known) in &mut self.known {
            let Ok(mtu) = mtu(netlink, *address).await else { continue };
            changed |= *known != mtu;
            *known = mtu;
        }
        changed
    }

    /// The least MTU to a sender's destinations, if any is known.
    pub(super) fn of(&self, sender: &DesiredSender) -> Option<u32> {
        sender.tap.destinations.iter().filter_map(|to| self.known.get(&to.address).copied().flatten()).min()
    }

    /// Ready when a route or device has changed.
    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.subscription.as_mut().map_or(Poll::Pending, |subscription| subscription.poll_changed(context))
    }
}

async fn mtu(netlink: &Connection, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let Some(route) = route_to(netlink, address).await? else { return Ok(None) };
    let device = match link_mtu(netlink, route.interface).await {
        Ok(mtu) => mtu,
        Err(error) if error.is_gone() => None,
        Err(error) => return Err(error),
    };
    Ok(route.mtu.into_iter().chain(device).min())
}
