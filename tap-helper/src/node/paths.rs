use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use podtap_model::{DesiredSender, bounds::MAX_SOURCE_ADDRESSES};

use super::pace::Pace;
use crate::{
    bpf::Reach,
    namespace::Namespace,
    netlink::{Connection, NetlinkError, NetnsError, Subscription, link_mtu, route_to},
    settings,
};

/// What requesting all paths counts for, at least, in the pause after it: there may be thousands of changes per second.
const LEAST_COST: Duration = Duration::from_millis(50);

/// The paths to the destinations, by the node's routes and devices.
#[derive(Default)]
pub(super) struct Paths {
    known: BTreeMap<IpAddr, Path>,
    /// Reports changes of routes and devices while there are destinations.
    subscription: Option<Subscription>,
    /// Whether something may have changed.
    outdated: bool,
    pace: Pace,
}

/// The path to one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Path {
    mtu: Option<u32>,
    /// The address is one of the node.
    local: bool,
    source: Option<IpAddr>,
}

impl Paths {
    /// Takes the addresses that matter now, requests the path to each, and returns whether one has changed that mattered before.
    pub(super) async fn set_destinations<'a>(
        &mut self,
        senders: impl Iterator<Item = &'a DesiredSender>,
        node: &Namespace,
        netlink: &Connection,
    ) -> Result<bool, NetnsError> {
        let destinations = senders.flat_map(|sender| &sender.tap.destinations);
        // The path to an address that stays is valid until the next answer.
        let before = mem::take(&mut self.known);
        let known = |address| before.get(address).copied().unwrap_or_default();
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
        Ok(before.iter().any(|(address, path)| self.known.get(address).is_some_and(|now| now != path)))
    }

    /// Requests all paths again, and returns whether one has changed. One that cannot be read stays as it was.
    pub(super) async fn refresh(&mut self, netlink: &Connection) -> bool {
        let start = Instant::now();
        if let Some(subscription) = &mut self.subscription {
            subscription.take();
        }
        let mut changed = false;
        for (address, known) in &mut self.known {
            let Ok(path) = path(netlink, *address).await else { continue };
            changed |= *known != path;
            *known = path;
        }
        self.refreshed(start.elapsed());
        changed
    }

    fn refreshed(&mut self, cost: Duration) {
        self.outdated = false;
        self.pace.pause(cost.max(LEAST_COST));
    }

    /// Records that something may have changed.
    pub(super) fn changed(&mut self) {
        self.outdated = true;
    }

    /// When to request the paths again: at once after a change, and with pauses while there are more.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.outdated.then(|| self.pace.due_at())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.outdated && self.pace.is_due(now)
    }

    /// What matters of the paths to a sender's destinations.
    pub(super) fn of(&self, sender: &DesiredSender) -> settings::Paths {
        let paths = || sender.tap.destinations.iter().filter_map(|to| self.known.get(&to.address));
        let reach = match (paths().any(|path| path.local), paths().any(|path| !path.local)) {
            (true, true) => Reach::Mixed,
            (true, false) => Reach::Local,
            (false, _) => Reach::Remote,
        };
        settings::Paths { mtu: paths().filter_map(|path| path.mtu).min(), reach }
    }

    /// Whether an address is one of the node.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.known.get(&address).is_some_and(|path| path.local)
    }

    /// The source addresses of packets to the destinations on other hosts, sorted; as many as a report may have.
    pub(super) fn sources(&self) -> Vec<IpAddr> {
        let remote = self.known.values().filter(|path| !path.local);
        let sources: BTreeSet<IpAddr> = remote.filter_map(|path| path.source).collect();
        sources.into_iter().take(MAX_SOURCE_ADDRESSES).collect()
    }

    /// Ready when a route or device has changed, unless that is known.
    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.outdated {
            return Poll::Pending;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_requested_at_once_and_then_with_pauses() {
        let mut paths = Paths::default();
        let start = Instant::now();
        assert_eq!((paths.due_at(), paths.is_due(start)), (None, false), "nothing has changed");
        paths.changed();
        assert!(paths.is_due(start), "the first change");
        for cost in [Duration::ZERO, Duration::from_secs(2)] {
            paths.refreshed(cost);
            assert_eq!(paths.due_at(), None);
            paths.changed();
            let pause = 3 * cost.max(LEAST_COST);
            let due = paths.due_at().expect("there was another change");
            assert!(due >= start + pause && !paths.is_due(start + pause / 2) && paths.is_due(due), "{cost:?}");
            // A flood of changes does not postpone it.
            paths.changed();
            assert_eq!(paths.due_at(), Some(due));
        }
    }
}
