use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    task::{Context, Poll},
};

use podtap_model::DesiredSender;

use crate::{
    namespace::Namespace,
    netlink::{Connection, NetlinkError, NetnsError, Subscription, link_mtu, route_to},
};

/// The paths to the destinations, by the node's routes and devices.
#[derive(Default)]
pub(super) struct Paths {
    known: BTreeMap<IpAddr, Path>,
    /// Reports changes of routes and devices while there are destinations.
    subscription: Option<Subscription>,
}

/// The path to one address.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Path {
    mtu: Option<u32>,
    /// The address is one of the node.
    local: bool,
    source: Option<IpAddr>,
}

impl Paths {
    /// Takes the addresses that matter now, and requests the route to each.
    pub(super) async fn set_destinations<'a>(
        &mut self,
        senders: impl Iterator<Item = &'a DesiredSender>,
        node: &Namespace,
        netlink: &Connection,
    ) -> Result<(), NetnsError> {
        let destinations = senders.flat_map(|sender| &sender.tap.destinations);
        // What is known of an address that stays is valid until the next answer.
        let before = |address| self.known.get(address).copied().unwrap_or_default();
        self.known = destinations.map(|to| (to.address, before(&to.address))).collect();
        if self.known.is_empty() {
            self.subscription = None;
            return Ok(());
        }
        if self.subscription.is_none() {
            // Before the first request, so that no change is missed.
            self.subscription = Some(Subscription::open_for_routes(node)?);
        }
        self.refresh(netlink).await;
        Ok(())
    }

    /// Requests all routes again, and returns whether a path has changed. One that cannot be read stays as it was.
    pub(super) async fn refresh(&mut self, netlink: &Connection) -> bool {
        if let Some(subscription) = &mut self.subscription {
            subscription.take();
        }
        let mut changed = false;
        for (address, known) in &mut self.known {
            let Ok(path) = path(netlink, *address).await else { continue };
            changed |= *known != path;
            *known = path;
        }
        changed
    }

    /// The least MTU to a sender's destinations, if any is known.
    pub(super) fn mtu(&self, sender: &DesiredSender) -> Option<u32> {
        sender.tap.destinations.iter().filter_map(|to| self.known.get(&to.address)?.mtu).min()
    }

    /// Whether an address is one of the node.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.known.get(&address).is_some_and(|path| path.local)
    }

    /// The source addresses of packets to the destinations on other hosts, sorted.
    pub(super) fn sources(&self) -> Vec<IpAddr> {
        let remote = self.known.values().filter(|path| !path.local);
        remote.filter_map(|path| path.source).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Ready when a route or device has changed.
    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.subscription.as_mut().map_or(Poll::Pending, |subscription| subscription.poll_changed(context))
    }
}

async fn path(netlink: &Connection, address: IpAddr) -> Result<Path, NetlinkError> {
    let Some(route) = route_to(netlink, address).await? else { return Ok(Path::default()) };
    let device = match link_mtu(netlink, route.interface).await {
        Ok(mtu) => mtu,
        Err(error) if error.is_gone() => None,
        Err(error) => return Err(error),
    };
    Ok(Path { mtu: route.mtu.into_iter().chain(device).min(), local: route.local, source: route.source })
}
