//! The spare set, which also shows whether the kernel can run programs at all.

use std::time::{Duration, Instant};

use podtap_backoff::Backoff;
use tracing::warn;

use crate::{
    bpf::{BpfError, Programs, Settings},
    failure::{Failure, unloadable},
};

/// Intervals between attempts to load programs.
fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
}

/// A set for the first senders of the next tap whose options need no code of its own.
///
/// If it cannot be loaded, this is tried again, with growing intervals: the reason may be temporary.
#[derive(Debug)]
pub struct Spare {
    programs: Option<Programs>,
    failure: Option<(Failure, Instant)>,
    backoff: Backoff,
}

impl Spare {
    /// Loads it for the first time.
    pub(super) fn new(now: Instant) -> Self {
        let mut spare = Self { programs: None, failure: None, backoff: backoff() };
        spare.loaded(Programs::load(&Settings::default(), None), now);
        spare
    }

    /// Why no programs can be loaded, if the last attempt failed.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref().map(|(failure, _)| failure)
    }

    /// When to try again, if the last attempt failed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.failure.as_ref().map(|(_, moment)| *moment)
    }

    /// Whether to load it now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.programs.is_none() && self.retry_at().is_none_or(|moment| moment <= now)
    }

    /// Gives it away, if it suits.
    pub(super) fn take_if(&mut self, suits: impl Fn(&Programs) -> bool) -> Option<Programs> {
        self.programs.take_if(|programs| suits(programs))
    }

    /// Takes the result of an attempt. Returns whether programs can be loaded again.
    pub(super) fn loaded(&mut self, result: Result<Programs, BpfError>, now: Instant) -> bool {
        match result {
            Ok(programs) => {
                self.programs = Some(programs);
                self.backoff = backoff();
                self.failure.take().is_some()
            }
            Err(error) => {
                let failure = unloadable(&error);
                if self.failure() != Some(&failure) {
                    warn!(%error, "cannot load eBPF programs");
                }
                self.failure = Some((failure, now + self.backoff.pause()));
                false
            }
        }
    }
}
