//! The preloaded set, which also shows whether the kernel can run programs at all.

use std::time::Instant;

use podtap_backoff::Backoff;
use tracing::warn;

use crate::{
    bpf::{BpfError, Programs, Settings},
    failure::{Failure, unloadable},
    retry::backoff,
};

/// A set for the first senders of the next tap whose options need no code of its own.
///
/// If it cannot be loaded, this is tried again, with growing intervals: the reason may be temporary.
#[derive(Debug)]
pub(super) struct Preloaded {
    programs: Option<Programs>,
    failure: Option<(Failure, Instant)>,
    backoff: Backoff,
}

impl Preloaded {
    /// Loads it for the first time.
    pub(super) fn new(now: Instant) -> Self {
        let mut preloaded = Self { programs: None, failure: None, backoff: backoff() };
        preloaded.finished(Programs::load(&Settings::default(), None), now);
        preloaded
    }

    /// Why no programs can be loaded, if the last attempt failed.
    pub(super) fn failure(&self) -> Option<&Failure> {
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

    /// Gives it away, if it supports the settings.
    pub(super) fn take_for(&mut self, settings: &Settings) -> Option<Programs> {
        self.programs.take_if(|programs| programs.maps().supports(settings))
    }

    /// Takes the result of an attempt. Returns whether programs can be loaded again.
    pub(super) fn finished(&mut self, result: Result<Programs, BpfError>, now: Instant) -> bool {
        match result {
            Ok(programs) => {
                self.programs = Some(programs);
                self.recover()
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

    /// Records that programs were loaded. Returns whether they could not be before.
    pub(super) fn recover(&mut self) -> bool {
        self.backoff = backoff();
        self.failure.take().is_some()
    }
}
