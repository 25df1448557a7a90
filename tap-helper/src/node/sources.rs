use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use podtap_backoff::Backoff;
use podtap_model::{Count, DesiredState, Reason, Receiver};
use tracing::{info, warn};

use crate::{
    failure::{Failure, sentence},
    namespace::Namespace,
    netlink::{NetlinkError, NetnsError, SourceFilter},
};

const NFTABLES: &str = "nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET), which every receiver needs";

/// Who may send to the node's receivers. A receiver exists only while the kernel drops what others send to its port.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// None before the first desired state.
    desired: Option<SourceFilter>,
    /// The ports at which the kernel filters.
    filtered: BTreeSet<u16>,
    failure: Option<Failure>,
    backoff: Option<Backoff>,
    due: Option<Instant>,
}

impl Sources {
    /// Takes what the receivers of a desired state need.
    pub(super) fn set(&mut self, desired: &DesiredState, now: Instant) {
        let ports: BTreeSet<u16> = desired.receivers.iter().map(|receiver| receiver.port).collect();
        let sources = if ports.is_empty() { BTreeSet::new() } else { desired.sources.iter().copied().collect() };
        let filter = SourceFilter { ports, sources };
        if !filter.ports.is_empty() || self.desired.as_ref() != Some(&filter) {
            self.due = Some(now);
        }
        self.desired = Some(filter);
    }

    /// Plans a check of the kernel's state.
    pub(super) fn check_at(&mut self, moment: Instant) {
        if self.desired.is_some() {
            self.due = Some(moment);
        }
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due
    }

    /// Filters, if receivers need that. Returns whether other receivers can exist than before.
    pub(super) fn install(&mut self, node: &Namespace, now: Instant) -> bool {
        let Some(filter) = self.desired.as_ref().filter(|filter| !filter.ports.is_empty()) else { return false };
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        let before = self.filtered.clone();
        match install(node, filter) {
            Ok(()) => {
                self.filtered.clone_from(&filter.ports);
                (self.failure, self.backoff, self.due) = (None, None, None);
            }
            // A table that exists stays in force.
            Err(error) => self.failed(&error, now),
        }
        before != self.filtered
    }

    /// Removes the filter, if no receiver needs it. To be called when the receivers are removed.
    pub(super) fn remove(&mut self, node: &Namespace, now: Instant) {
        if self.desired.as_ref().is_none_or(|filter| !filter.ports.is_empty()) || self.due.is_none_or(|due| due > now) {
            return;
        }
        self.filtered.clear();
        let removed = SourceFilter::read(node).and_then(|table| match table {
            Some(_) => SourceFilter::remove(node).inspect(|()| info!("no longer filters by source")),
            None => Ok(()),
        });
        match removed {
            Ok(()) => (self.failure, self.backoff, self.due) = (None, None, None),
            Err(error) => self.failed(&error, now),
        }
    }

    /// Why the receiver cannot exist.
    pub(super) fn failure(&self, receiver: &Receiver) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| !self.filtered.contains(&receiver.port))
    }

    fn failed(&mut self, error: &NetnsError, now: Instant) {
        warn!(%error, "cannot filter by source");
        let backoff =
            self.backoff.get_or_insert_with(|| Backoff::new(Duration::from_millis(500), Duration::from_secs(30)));
        self.due = Some(now + backoff.pause());
        self.failure = Some(match error {
            NetnsError::Netlink(error) => failure(error),
            NetnsError::Enter(_) => Failure::failed(Reason::KernelError, format!("{error}. This is retried.")),
        });
    }
}

/// What was dropped until now; none without a filter.
pub(super) fn dropped(node: &Namespace) -> Result<Option<Count>, NetnsError> {
    Ok(SourceFilter::read(node)?.map(|table| table.dropped()))
}

fn install(node: &Namespace, filter: &SourceFilter) -> Result<(), NetnsError> {
    let table = SourceFilter::read(node)?;
    if table.as_ref().is_some_and(|table| table.is(filter)) {
        return Ok(());
    }
    filter.install(node, table.as_ref())?;
    info!(ports = ?filter.ports, sources = filter.sources.len(), "filters by source");
    Ok(())
}

fn failure(error: &NetlinkError) -> Failure {
    if error.is_unsupported() || error.errno == Errno::ENOENT {
        let advice = format!("The node's kernel lacks {NFTABLES}: load its module, or use another kernel.");
        return Failure::failed(Reason::KernelFeatureMissing, sentence(error, &advice));
    }
    Failure::kernel(error)
}
