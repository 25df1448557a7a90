use std::{
    io,
    time::{Duration, Instant},
};

use crate::namespace::{last_pid, pids};

/// How long after its announcement a pod is polled for at the shortest interval: the kubelet usually takes one second.
const ATTENTIVE: Duration = Duration::from_secs(30);
/// The interval then. Between the first process of a sandbox and the first container there are about 90 ms.
const SHORTEST: Duration = Duration::from_millis(5);
/// The interval when a pod is long overdue.
const LONGEST: Duration = Duration::from_secs(1);
/// How long after its start a process may still move to its cgroup and namespace.
const SETTLING: Duration = Duration::from_secs(2);
/// How often all processes are listed, for one that moved later.
const ALL: Duration = Duration::from_secs(2);
/// With more new processes at once than this, all are listed.
const MANY: u32 = 4096;

/// Notices new processes: cheap enough for two hundred polls per second.
#[derive(Debug, Default)]
pub(super) struct ProcessWatch {
    /// The last PID that was examined.
    cursor: u32,
    settling: Vec<(u32, Instant)>,
    last_all: Option<Instant>,
    next: Option<Instant>,
}

impl ProcessWatch {
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.next
    }

    /// Ends the watch, until [`Self::expect`].
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Lists all processes at the next poll, which is due at once.
    pub(super) fn expect(&mut self, now: Instant) {
        self.last_all = None;
        self.next = Some(now);
    }

    /// The processes to examine now. `waiting` is how long the newest pod without processes has been awaited; none if there are only
    /// pods to check again from time to time.
    pub(super) fn take(&mut self, now: Instant, waiting: Option<Duration>) -> io::Result<Vec<u32>> {
        self.next = Some(now + waiting.map_or(ATTENTIVE, pause));
        // Before the list, so that a process that starts meanwhile is examined next time.
        let last = last_pid()?;
        let new = self.cursor + 1..=last;
        let all = self.last_all.is_none_or(|moment| now.duration_since(moment) >= ALL);
        // PIDs wrap at the end of their range.
        let jumped = last < self.cursor || last - self.cursor > MANY;
        self.cursor = last;
        self.settling.retain(|(_, start)| now.duration_since(*start) < SETTLING);
        if all || jumped {
            self.last_all = Some(now);
            return pids();
        }
        self.settling.extend(new.map(|pid| (pid, now)));
        Ok(self.settling.iter().map(|(pid, _)| *pid).collect())
    }

    /// Delays the next poll by what this one took, so that polls cost a quarter of a core at most, whatever starts on the node.
    pub(super) fn took(&mut self, poll: Duration, now: Instant) {
        self.next = self.next.map(|next| next.max(now + 3 * poll));
    }
}

fn pause(waiting: Duration) -> Duration {
    // A hundredth of the time by which the pod is overdue.
    (waiting.saturating_sub(ATTENTIVE) / 100).clamp(SHORTEST, LONGEST)
}
