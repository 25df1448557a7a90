use std::{
    collections::BTreeSet,
    mem,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use podtap_backoff::Backoff;
use podtap_model::{Count, DesiredState, Reason, Receiver};
use tracing::{info, warn};

use super::Node;
use crate::{
    failure::{Failure, sentence},
    marks::Mark,
    namespace::Namespace,
    netlink::{NetlinkError, NetnsError, SourceFilter},
    observe::Observed,
    retry::backoff,
};

const NFTABLES: &str = "nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET), which every receiver needs";

/// How often it is checked that nothing else has changed the table: no receiver is unprotected for longer than 5 seconds. A subscription
/// (`NFNLGRP_NFTABLES`) would report every change of the node's other tables, too, which some proxies change all the time.
const CHECK: Duration = Duration::from_secs(3);

/// Who may send to the node's receivers. A receiver exists only while the kernel drops what others send to it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// None before the first desired state.
    desired: Option<SourceFilter>,
    /// The receivers for which the kernel filters.
    installed: BTreeSet<(u16, u32)>,
    /// For what was observed then.
    observed: Option<Observation>,
    failure: Option<Failure>,
    backoff: Option<Backoff>,
    due: Option<Instant>,
}

/// The receivers that exist, requested or not: they are protected until they are gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Observation {
    receivers: BTreeSet<(u16, u32)>,
    /// Whether every namespace was searched.
    is_complete: bool,
}

impl Sources {
    /// Takes what the receivers of a desired state need.
    pub(super) fn set(&mut self, desired: &DesiredState, now: Instant) {
        let receivers = desired.receivers.iter().map(key).collect();
        self.desired = Some(SourceFilter { receivers, sources: desired.sources.iter().copied().collect() });
        self.due = Some(now);
    }

    /// Plans an update.
    pub(super) fn update_at(&mut self, moment: Instant) {
        if self.desired.is_some() {
            self.due = Some(moment);
        }
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due
    }

    /// Filters for the receivers that are requested, or that were observed. To be called before any is created. While not all are observed,
    /// those of the table stay. Returns whether others may exist than before.
    pub(super) fn update(&mut self, node: &Namespace, observed: Observation, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        let has_changed = self.failure.is_none() && self.observed.as_ref() != Some(&observed);
        let Some(desired) = self.desired.as_ref().filter(|_| is_due || has_changed) else { return false };
        let before = mem::take(&mut self.installed);
        match apply(node, desired, &observed) {
            Ok(receivers) => {
                self.installed = receivers;
                self.observed = Some(observed);
                self.due = (!self.installed.is_empty()).then(|| now + CHECK);
                (self.failure, self.backoff) = (None, None);
            }
            // A table that exists stays in force.
            Err(error) => {
                self.installed.clone_from(&before);
                self.failed(&error, now);
            }
        }
        before != self.installed
    }

    /// Why the receiver cannot exist.
    pub(super) fn failure(&self, receiver: &Receiver) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| !self.installed.contains(&key(receiver)))
    }

    fn failed(&mut self, error: &NetnsError, now: Instant) {
        warn!(%error, "cannot filter by source");
        self.due = Some(now + self.backoff.get_or_insert_with(backoff).pause());
        self.failure = Some(match error {
            NetnsError::Netlink(error) => failure(error),
            NetnsError::Enter(_) => Failure::failed(Reason::KernelError, format!("{error}. This is retried.")),
        });
    }
}

fn key(receiver: &Receiver) -> (u16, u32) {
    (receiver.port, receiver.vni.get())
}

/// What was dropped until now; none without a filter.
pub(super) fn dropped(node: &Namespace) -> Result<Option<Count>, NetnsError> {
    Ok(SourceFilter::read(node)?.map(|table| table.dropped()))
}

/// Makes the table filter, or removes it if there are no receivers. Returns for which receivers it filters.
fn apply(node: &Namespace, desired: &SourceFilter, observed: &Observation) -> Result<BTreeSet<(u16, u32)>, NetnsError> {
    let table = SourceFilter::read(node)?;
    let mut filter = desired.clone();
    filter.receivers.extend(&observed.receivers);
    filter.receivers.extend(table.iter().filter(|_| !observed.is_complete).flat_map(|table| &table.receivers));
    if filter.receivers.is_empty() {
        if table.is_some() {
            SourceFilter::remove(node)?;
            info!("no longer filters by source");
        }
    } else if !table.as_ref().is_some_and(|table| table.is(&filter)) {
        filter.install(node, table.as_ref())?;
        info!(receivers = filter.receivers.len(), sources = filter.sources.len(), "filters by source");
    }
    Ok(filter.receivers)
}

/// The receivers in a namespace.
pub(super) fn receivers(observed: &Observed) -> BTreeSet<(u16, u32)> {
    let genuine = observed.ours().filter(|link| observed.is_genuine(link));
    let receivers = genuine.filter(|link| matches!(Mark::of(link), Some(Mark::Receiver(_))));
    receivers.filter_map(|link| link.vxlan).map(|vxlan| (vxlan.port, vxlan.vni)).collect()
}

impl Node {
    /// Filters for the receivers that are requested or exist.
    pub(super) fn update_sources(&mut self, now: Instant) {
        let receivers = self.netns.values().flat_map(|netns| netns.receivers.iter().copied()).collect();
        let observation = Observation { receivers, is_complete: self.sweep.is_complete() };
        if self.sources.update(&self.namespace, observation, now) {
            self.mark_all_dirty();
        }
    }
}

fn failure(error: &NetlinkError) -> Failure {
    if error.is_unsupported() || error.errno == Errno::ENOENT {
        let advice = format!("The node's kernel lacks {NFTABLES}: load its module, or use another kernel.");
        return Failure::failed(Reason::KernelFeatureMissing, sentence(error, &advice));
    }
    Failure::kernel(error)
}
