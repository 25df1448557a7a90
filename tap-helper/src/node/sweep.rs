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

/// The state of the search.
#[derive(Default)]
pub(super) struct Sweep {
    /// Where namespaces are still to be found in this round.
    left: Vec<Source>,
    /// Namespaces that were found in this round.
    found: BTreeSet<NamespaceId>,
    /// What cannot be searched, and why.
    failures: BTreeMap<String, String>,
    /// The same for the last complete round.
    last_failures: BTreeMap<String, String>,
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
        if !self.last_failures.contains_key(&what) {
            warn!(namespace = what, %error, "cannot search");
        }
        self.failures.insert(what, error.to_string());
    }

    /// A sentence for each namespace that could not be searched.
    pub(super) fn failures(&self) -> Vec<String> {
        let sentence = |(what, error): (&String, &String)| format!("{what}: {error}.");
        self.last_failures.iter().take(REPORTED).map(sentence).collect()
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
            self.sweep.last_failures = mem::take(&mut self.sweep.failures);
            self.sweep.complete = true;
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
