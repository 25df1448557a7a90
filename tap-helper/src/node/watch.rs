//! Which processes are examined for pods that are awaited, and when: cheap enough for two hundred polls per second, whatever else starts
//! on the node.
//!
//! New processes are noticed by the PID that the kernel gave last. The proc connector (`drivers/connector/cn_proc.c`) reports them without
//! polls, but only to the initial PID namespace, and one by one: a node that starts thousands of processes per second would wake the helper
//! as often.

use std::{
    collections::VecDeque,
    io, mem,
    time::{Duration, Instant},
};

use crate::namespace::{is_process, last_pid, max_pid, pids};

/// How long after its announcement a pod is polled for at the shortest interval: the kubelet usually takes one second.
const ATTENTIVE: Duration = Duration::from_secs(30);
/// The interval then. Between the first process of a sandbox and the first container there are about 90 ms.
const SHORTEST: Duration = Duration::from_millis(5);
/// The interval when a pod is long overdue.
const LONGEST: Duration = Duration::from_secs(1);
/// How long after its start a process may still move to its cgroup and namespace.
const SETTLING: Duration = Duration::from_secs(2);
/// How long after the kernel gave a PID its process may still appear: `copy_process` (kernel/fork.c) can be preempted between the two.
const APPEARING: Duration = Duration::from_millis(250);
/// How often all processes are listed, for one that moved later.
const ALL: Duration = Duration::from_secs(2);
/// Processes that one poll examines, in a few milliseconds.
const BATCH: usize = 256;
/// New processes that may wait to be examined. With more, all are listed.
const MANY: usize = 8192;

/// Notices new processes.
#[derive(Debug, Default)]
pub(super) struct ProcessWatch {
    /// The last PID that was noticed.
    cursor: u32,
    /// PIDs that were not examined yet.
    new: VecDeque<u32>,
    /// Young processes, which are examined again, and PIDs whose process may still appear.
    young: Vec<Young>,
    /// The rest of the last list of all processes.
    all: Vec<u32>,
    last_all: Option<Instant>,
    next: Option<Instant>,
}

/// A process that may still move, or appear.
#[derive(Clone, Copy, Debug)]
struct Young {
    pid: u32,
    since: Instant,
    /// Whether there has been a process with this PID.
    appeared: bool,
    next: Instant,
}

impl Young {
    /// What to examine again after a look at it. The older a process is, the less likely it still moves: when it is half as old again.
    fn examined(self, is_process: bool, now: Instant) -> Option<Self> {
        let age = now.duration_since(self.since);
        let stays = if is_process { age < SETTLING } else { !self.appeared && age < APPEARING };
        stays.then(|| Self { appeared: is_process, next: now + (age / 2).max(SHORTEST), ..self })
    }
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
        if self.cursor != 0 {
            self.new.extend(since(self.cursor, last, max_pid));
        }
        self.cursor = last;
        if self.new.len() > MANY {
            self.new.clear();
            self.last_all = None;
        }
        if self.last_all.is_none_or(|moment| now.duration_since(moment) >= ALL) {
            self.last_all = Some(now);
            self.all = pids()?;
            // The newest first.
            self.all.sort_unstable();
        }
        Ok(self.batch(now, is_process))
    }

    /// The next processes to examine, without threads and those that have ended: first the new ones, then the young ones that are due.
    fn batch(&mut self, now: Instant, is_process: impl Fn(u32) -> bool) -> Vec<u32> {
        let new = self.new.drain(..self.new.len().min(BATCH));
        let new = new.map(|pid| Young { pid, since: now, appeared: false, next: now });
        let mut batch = Vec::new();
        for young in new.chain(mem::take(&mut self.young)) {
            if young.next > now || batch.len() >= BATCH {
                self.young.push(young);
                continue;
            }
            let is_process = is_process(young.pid);
            if is_process {
                batch.push(young.pid);
            }
            self.young.extend(young.examined(is_process, now));
        }
        let rest = self.all.len().min(BATCH.saturating_sub(batch.len()));
        batch.extend(self.all.drain(self.all.len() - rest..));
        batch
    }

    /// Delays the next poll by what this one took, so that polls cost a quarter of a core at most, whatever starts on the node.
    pub(super) fn took(&mut self, poll: Duration, now: Instant) {
        self.next = self.next.map(|next| next.max(now + 3 * poll));
        if !self.all.is_empty() {
            // The list is not finished.
            self.next = self.next.map(|next| next.min(now + (3 * poll).max(SHORTEST)));
        }
    }
}

/// The PIDs that the kernel gave between two. After the highest one it starts again from the lowest.
fn since(before: u32, last: u32, max: impl FnOnce() -> u32) -> impl Iterator<Item = u32> {
    let (end, wrapped) = if last >= before { (last, 0) } else { (max(), last) };
    (before + 1..=end).chain(1..=wrapped)
}

fn pause(waiting: Duration) -> Duration {
    // A hundredth of the time by which the pod is overdue.
    (waiting.saturating_sub(ATTENTIVE) / 100).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_start_again_from_the_lowest() {
        let between = |before, last| since(before, last, || 10).collect::<Vec<_>>();
        assert_eq!(between(4, 4), [0; 0]);
        assert_eq!(between(4, 7), [5, 6, 7]);
        assert_eq!(between(8, 2), [9, 10, 1, 2]);
    }

    #[test]
    fn processes_are_examined_less_often_as_they_grow_old() {
        let mut watch = ProcessWatch::default();
        let (start, own) = (Instant::now(), std::process::id());
        watch.new.push_back(own);
        // A thread and a PID that no process has are not examined at all.
        watch.new.extend([max_pid(), max_pid()]);
        let mut examined = Vec::new();
        for milliseconds in 0..3000 {
            if watch.batch(start + Duration::from_millis(milliseconds), is_process).contains(&own) {
                examined.push(milliseconds);
            }
        }
        assert_eq!(examined[..8], [0, 5, 10, 15, 23, 35, 53, 80], "{examined:?}");
        assert!(examined.len() < 20 && watch.young.is_empty(), "{examined:?}");
    }
    #[test]
    fn a_process_may_appear_after_its_pid() {
        let mut watch = ProcessWatch::default();
        let start = Instant::now();
        watch.new.extend([7, 8]);
        let mut examined = Vec::new();
        for milliseconds in 0..1000 {
            // 7 appears late and ends, 8 is a thread.
            let is_process = |pid| pid == 7 && (100..200).contains(&milliseconds);
            if watch.batch(start + Duration::from_millis(milliseconds), is_process).contains(&7) {
                examined.push(milliseconds);
            }
            let expected = usize::from(milliseconds < 300) + usize::from(milliseconds < 400);
            assert!(watch.young.len() <= expected, "{milliseconds}: {:?}", watch.young);
        }
        assert_eq!(examined, [120, 180]);
    }
}
