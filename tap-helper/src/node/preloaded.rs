use std::time::{Duration, Instant};

use podtap_backoff::Backoff;
use tracing::{info, warn};

use crate::{
    bpf::{Programs, Settings},
    failure::{Failure, unloadable},
};

/// Intervals between attempts to load programs.
fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
}

/// Programs for the next sender: the verifier takes a tenth of a second, in which a pod may send its first frames.
///
/// Loading them also shows whether the kernel can run programs at all. If it cannot, this is tried again, with growing intervals: the
/// reason may be temporary.
#[derive(Debug)]
pub(super) struct Preloaded {
    pub(super) programs: Option<Programs>,
    failure: Option<(Failure, Instant)>,
    backoff: Backoff,
}

impl Preloaded {
    pub(super) fn new(now: Instant) -> Self {
        let mut preloaded = Self { programs: None, failure: None, backoff: backoff() };
        preloaded.load(now);
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

    /// Loads programs, if there are none and no failure is recent.
    pub(super) fn load(&mut self, now: Instant) {
        if self.programs.is_some() || self.retry_at().is_some_and(|moment| moment > now) {
            return;
        }
        match Programs::load(&Settings::default(), None) {
            Ok(programs) => {
                self.programs = Some(programs);
                (self.failure, self.backoff) = (None, backoff());
            }
            Err(error) => {
                let failure = unloadable(&error);
                if self.failure() != Some(&failure) {
                    warn!(%error, "cannot load eBPF programs");
                }
                self.failure = Some((failure, now + self.backoff.pause()));
            }
        }
    }

    /// Repeats an attempt that failed, if it is due. Returns whether programs can be loaded now.
    pub(super) fn load_again(&mut self, now: Instant) -> bool {
        if self.failure.is_none() {
            return false;
        }
        self.load(now);
        if self.failure.is_some() {
            return false;
        }
        info!("eBPF programs can be loaded again");
        true
    }
}
