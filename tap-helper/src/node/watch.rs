use std::{
    io,
    time::{Duration, Instant},
};

use crate::namespace::{last_pid, pids};

/// How long after an announcement a pod is awaited closely: the kubelet usually takes one second.
const CLOSELY: Duration = Duration::from_secs(30);
/// How often then. Between the first process of a sandbox and the first container there are about 90 ms.
const SHORTEST: Duration = Duration::from_millis(5);
/// How often when nothing came for long.
const LONGEST: Duration = Duration::from_secs(1);
/// How long after its birth a process may still move to its cgroup and namespace.
const YOUTH: Duration = Duration::from_secs(2);
/// How often all processes are looked at, for one that moved later.
const ALL: Duration = Duration::from_secs(2);
/// More new processes at once than this are looked for in the list of all.
const MANY: u32 = 4096;

/// Notices new processes: cheap enough to be asked two hundred times a second.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The last process identifier that was looked at.
    cursor: u32,
    young: Vec<(u32, Instant)>,
    last_all: Option<Instant>,
    next: Option<Instant>,
}

impl Watch {
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.next
    }

    /// Ends, until [`Self::expect`].
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Looks at all processes next time, and soon.
    pub(super) fn expect(&mut self, now: Instant) {
        self.last_all = None;
        self.next = Some(now);
    }

    /// The processes to look at now; `waiting` is how long something has been awaited that may come soon, none if there is only
    /// something that is to be looked at again now and then.
    pub(super) fn take(&mut self, now: Instant, waiting: Option<Duration>) -> io::Result<Vec<u32>> {
        self.next = Some(now + waiting.map_or(CLOSELY, pause));
        // Before the list, so that what is born meanwhile is looked at next time.
        let last = last_pid()?;
        let new = self.cursor + 1..=last;
        let all = self.last_all.is_none_or(|moment| now.duration_since(moment) >= ALL);
        // Identifiers begin anew at the end of their range.
        let odd = last < self.cursor || last - self.cursor > MANY;
        self.cursor = last;
        self.young.retain(|(_, born)| now.duration_since(*born) < YOUTH);
        if all || odd {
            self.last_all = Some(now);
            return pids();
        }
        self.young.extend(new.map(|pid| (pid, now)));
        Ok(self.young.iter().map(|(pid, _)| *pid).collect())
    }

    /// A look took so long: the next one waits, so that looking costs a quarter of a core at most, whatever starts on the node.
    pub(super) fn took(&mut self, look: Duration, now: Instant) {
        self.next = self.next.map(|next| next.max(now + 3 * look));
    }
}

fn pause(waiting: Duration) -> Duration {
    // A hundredth of what it has taken longer than expected.
    (waiting.saturating_sub(CLOSELY) / 100).clamp(SHORTEST, LONGEST)
}
