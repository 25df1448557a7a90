//! The search for what earlier helpers left, in every network namespace that a process is in or that is mounted.
//!
//! It is repeated: a namespace may not be readable now, and a helper may have died while it removed something. Namespaces are visited one
//! by one, between which pods are tapped. Nothing is reported before the first round is complete: a report without an entry says that
//! nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    rc::Rc,
    time::Instant,
};

use tracing::{info, warn};

use super::{Node, NodeError, netns::Netns, pace::Pace, sources::receivers};
use crate::{
    namespace::{Namespace, NamespaceId, PidfdRef, Source, sources},
    netlink::{Connection, NetnsError},
    observe::{NetnsKind, observe},
};

/// Processes whose namespace is identified in one step, unless one of them has to be visited.
const PROCESSES: usize = 64;
/// Namespaces that a report names because they cannot be searched, or have something that cannot be removed.
pub(super) const REPORTED: usize = 16;

/// How often something could not be searched for the same reason in a round, by what it is and the reason.
type Failures = BTreeMap<(String, String), u32>;

/// The state of the search.
#[derive(Default)]
pub(super) struct Sweep {
    /// Where namespaces are still to be found in this round.
    left: Vec<Source>,
    /// Namespaces that were found in this round.
    found: BTreeSet<NamespaceId>,
    /// What cannot be searched.
    failures: Failures,
    /// The same for the last complete round.
    last_failures: Failures,
    /// Whether a round is complete. The first one has no pauses.
    complete: bool,
    pace: Pace,
}

impl Sweep {
    /// When the next step is due; none between two rounds.
    pub(super) fn due_at(&self) -> Option<Instant> {
        (!self.left.is_empty()).then(|| self.pace.due_at())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.left.is_empty() && self.pace.is_due(now)
    }

    /// Starts another round, unless one is not complete.
    fn start(&mut self) -> Result<(), NodeError> {
        if self.left.is_empty() {
            self.left = sources().map_err(NodeError::Processes)?;
            // The next one is the last.
            self.left.reverse();
            self.found.clear();
            self.pace = Pace::default();
        }
        Ok(())
    }

    /// Whether every namespace was searched.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    fn failed(&mut self, what: String, error: &dyn std::error::Error) {
        *self.failures.entry((what, error.to_string())).or_default() += 1;
    }

    /// Completes a round, and logs what could not be searched, unless that was so in the last round. Not each time: a process decides
    /// how many processes and namespaces there are.
    fn finish(&mut self) {
        let (new, further) = self.new_failures();
        for ((what, error), times) in new {
            warn!(namespace = what, error, times, "cannot search");
        }
        if further > 0 {
            warn!(further, "cannot search further namespaces");
        }
        self.last_failures = mem::take(&mut self.failures);
        self.complete = true;
    }

    /// The failures to log for this round, and the number of further ones.
    fn new_failures(&self) -> (Failures, usize) {
        let new = self.failures.iter().filter(|(cause, _)| !self.last_failures.contains_key(cause));
        let mut new = new.map(|(cause, times)| (cause.clone(), *times));
        let logged = new.by_ref().take(REPORTED).collect();
        (logged, new.count())
    }

    /// A sentence for each namespace that could not be searched.
    pub(super) fn failures(&self) -> Vec<String> {
        self.last_failures.keys().take(REPORTED).map(|(what, error)| format!("{what}: {error}.")).collect()
    }
}

impl Node {
    /// Searches all namespaces at once.
    pub async fn sweep_all(&mut self) -> Result<(), NodeError> {
        self.sweep.start()?;
        while !self.sweep.left.is_empty() {
            self.sweep_step().await;
        }
        Ok(())
    }

    /// Starts to search all namespaces, in steps.
    pub(super) fn start_sweep(&mut self) -> Result<(), NodeError> {
        self.sweep.start()
    }

    /// Searches the next namespace that is not known.
    pub(super) async fn sweep_step(&mut self) {
        let start = Instant::now();
        for _ in 0..PROCESSES {
            let Some(source) = self.sweep.left.pop() else { break };
            let namespace = match source.open() {
                Ok(Some(namespace)) => namespace,
                Ok(None) => continue,
                Err(error) => {
                    self.sweep.failed("Network namespaces of processes or mounts".to_owned(), &error);
                    continue;
                }
            };
            let id = namespace.id();
            if !self.sweep.found.insert(id) || self.netns.contains_key(&id) {
                continue;
            }
            if let Err(error) = self.visit(&source, Rc::new(namespace)).await {
                self.sweep.failed(format!("Network namespace {}", id.inode()), &error);
            }
            break;
        }
        if self.sweep.complete {
            self.sweep.pace.pause(start.elapsed());
        }
        if self.sweep.left.is_empty() {
            self.sweep.finish();
        }
    }

    /// Takes a namespace under control if it has something of ours.
    async fn visit(&mut self, source: &Source, namespace: Rc<Namespace>) -> Result<(), NetnsError> {
        let kind = if namespace.id() == self.namespace.id() { NetnsKind::Node } else { NetnsKind::Pod };
        let netlink = Connection::open(&namespace)?;
        let netlink = if kind == NetnsKind::Node { netlink.unlimited() } else { netlink };
        let observed = observe(&netlink, kind).await?;
        if !observed.has_ours() {
            return Ok(());
        }
        let process = match (kind, source) {
            // If it has ended meanwhile, the namespace is released as soon as nothing of ours is left in it.
            (NetnsKind::Pod, Source::Process(pid)) => PidfdRef::to(*pid).ok(),
            _ => None,
        };
        let id = namespace.id();
        info!(namespace = id.inode(), "found");
        let mut netns = Netns::new(namespace, process, kind)?;
        netns.receivers = receivers(&observed);
        self.netns.insert(id, netns);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const PROCESSES: &str = "Network namespaces of processes or mounts";

    /// The lines of a round, each with what it is about, and the number of failures that none is about.
    fn round(sweep: &mut Sweep, failures: impl IntoIterator<Item = (String, io::ErrorKind)>) -> (Failures, usize) {
        for (what, kind) in failures {
            sweep.failed(what, &io::Error::from(kind));
        }
        let logged = sweep.new_failures();
        sweep.finish();
        logged
    }

    #[test]
    fn what_cannot_be_searched_is_logged_once_for_each_reason() {
        let mut sweep = Sweep::default();
        let [denied, busy] = [io::ErrorKind::PermissionDenied, io::ErrorKind::ResourceBusy];
        let processes = |kind| (0..5000).map(move |_| (PROCESSES.to_owned(), kind));
        let cause = |kind: io::ErrorKind| (PROCESSES.to_owned(), io::Error::from(kind).to_string());
        let denials: Failures = [(cause(denied), 5000)].into();
        assert_eq!(round(&mut sweep, processes(denied)), (denials, 0));
        assert_eq!(sweep.failures().len(), 1);
        assert_eq!(round(&mut sweep, processes(denied)), (Failures::new(), 0), "it is known");
        // Another reason, also among many with the same one.
        let both = processes(denied).chain(processes(busy));
        assert_eq!(round(&mut sweep, both), ([(cause(busy), 5000)].into(), 0));
        round(&mut sweep, []);
        assert_eq!(sweep.failures(), Vec::<String>::new());
        assert_eq!(round(&mut sweep, processes(busy)), ([(cause(busy), 5000)].into(), 0), "it is new again");
    }

    #[test]
    fn many_namespaces_are_logged_as_a_number() {
        let mut sweep = Sweep::default();
        let namespaces = (0..5000).map(|number| (format!("Network namespace {number}"), io::ErrorKind::OutOfMemory));
        let (logged, further) = round(&mut sweep, namespaces);
        assert_eq!((logged.len(), further), (REPORTED, 5000 - REPORTED));
    }
}
