//! Translations of the node's connections, from its conntrack.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use podtap_model::metadata::Translation;
use tracing::warn;

use crate::{
    namespace::Namespace,
    netlink::{ExistingTranslations, NetnsError, Translations},
};

/// How long existing connections are not read after something asked for it: pods are often tapped in batches.
const SOON: Duration = Duration::from_secs(1);
/// How often they are read, for collectors that were started meanwhile. Of 100,000 connections, it takes a quarter of a second of CPU time.
const REREAD: Duration = Duration::from_secs(300);
/// Reads at a time: some hundred connections, which take a millisecond or two.
const READS: usize = 5;

/// New connections as they begin, and existing ones.
pub(super) struct Conntrack {
    new: Translations,
    /// While existing ones are read.
    existing: Option<ExistingTranslations>,
    /// When they are read next. What is being read is read to its end first.
    next: Instant,
}

impl Conntrack {
    pub(super) fn open(node: &Namespace, now: Instant) -> Result<Self, NetnsError> {
        Ok(Self { new: Translations::open(node)?, existing: None, next: now + SOON })
    }

    /// Ready when new connections have begun.
    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.new.poll_changed(context)
    }

    /// Takes the new connections until now. None if the subscription has failed.
    pub(super) fn take(&mut self) -> Option<Vec<Translation>> {
        self.new.take()
    }

    /// Has the existing connections read again.
    pub(super) fn read_soon(&mut self, now: Instant) {
        self.next = self.next.min(now + SOON);
    }

    /// When to [begin](Self::begin).
    pub(super) fn begins_at(&self) -> Option<Instant> {
        self.existing.is_none().then_some(self.next)
    }

    /// Begins to read the existing connections, if that is due.
    pub(super) fn begin(&mut self, node: &Namespace, now: Instant) {
        if self.begins_at().is_none_or(|moment| moment > now) {
            return;
        }
        self.next = now + REREAD;
        let existing = ExistingTranslations::open(node);
        self.existing = existing.inspect_err(|error| warn!(%error, "existing translations are not sent")).ok();
    }

    pub(super) const fn is_reading(&self) -> bool {
        self.existing.is_some()
    }

    /// Reads on, until there are `room` connections that are wanted.
    ///
    /// What the kernel has read ahead must not wait: the tuple of a connection may be that of another one by then. Without room, it is read
    /// again later.
    pub(super) fn read(
        &mut self,
        room: usize,
        is_wanted: impl Fn(&Translation) -> bool,
        now: Instant,
    ) -> Vec<Translation> {
        let mut found = Vec::new();
        if room == 0 && self.existing.take().is_some() {
            self.read_soon(now);
        }
        for _ in 0..READS {
            let Some(existing) = self.existing.as_mut().filter(|_| found.len() < room) else { break };
            match existing.next() {
                Ok(Some(translations)) => found.extend(translations.into_iter().filter(&is_wanted)),
                Ok(None) => self.existing = None,
                Err(error) => {
                    warn!(%error, "some existing translations are not sent");
                    self.existing = None;
                }
            }
        }
        found
    }
}
