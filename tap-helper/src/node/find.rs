//! Finding the namespaces that matter, and letting go of those that end.

use std::{collections::btree_map::Entry, time::Instant};

use tracing::{info, warn};

use super::{Node, NodeError, netns::Netns};
use crate::{
    namespace::{NamespaceId, PidfdRef, namespaces, pids},
    observe::NetnsKind,
};

impl Node {
    pub(super) fn open_own_netns(&mut self) -> Result<(), NodeError> {
        if !self.netns.contains_key(&self.namespace.id()) {
            let netns = Netns::of_process(1, NetnsKind::Node)?;
            self.netns.insert(netns.namespace.id(), netns);
        }
        Ok(())
    }

    /// Looks for the pods whose namespace is unknown.
    pub(super) async fn search(&mut self, now: Instant) -> Result<(), NodeError> {
        for (uid, candidate) in self.pods.search(&self.namespace, now).await.map_err(NodeError::Processes)? {
            let id = candidate.namespace.id();
            match self.netns.entry(id) {
                Entry::Vacant(entry) => match Netns::new(candidate.namespace, Some(candidate.pidfd), NetnsKind::Pod) {
                    Ok(netns) => {
                        entry.insert(netns);
                    }
                    // The process has just ended, or the helper lacks a capability. The search continues.
                    Err(error) => {
                        // At each of its processes: it decides how many start.
                        if let Some(times) = self.pods.unenterable(&uid, now) {
                            warn!(pod = uid, %error, times, "cannot enter the pod's network namespace; retrying");
                        }
                        continue;
                    }
                },
                Entry::Occupied(mut entry) => {
                    // It was found by its mount.
                    entry.get_mut().process.get_or_insert(candidate.pidfd);
                }
            }
            self.pods.found(&uid, id, now);
            info!(pod = self.netns_name(id), "pod runs");
            if let Some(netns) = self.netns.get_mut(&id) {
                netns.dirty = true;
            }
        }
        Ok(())
    }

    /// Finds another process for a namespace, or releases the namespace, so that the kernel can delete it.
    pub(super) async fn process_ended(&mut self, id: NamespaceId, now: Instant) -> Result<(), NodeError> {
        let pids = pids().map_err(NodeError::Processes)?;
        let process = if self.pods.any_in(id) {
            self.pods.another_process(id, &pids)
        } else {
            namespaces(&pids).get(&id).and_then(|pid| PidfdRef::to(*pid).ok())
        };
        if let (Some(process), Some(netns)) = (process, self.netns.get_mut(&id)) {
            netns.process = Some(process);
            return Ok(());
        }
        info!(pod = self.netns_name(id), "pod ended");
        self.pods.forget(id, now);
        self.preload_is_due = true;
        // The namespace may outlive its processes: CRI-O keeps it mounted between two runs of a pod's only container. Until then, no
        // helper could find our resources in it, so they are removed now.
        if let Some(netns) = self.netns.get_mut(&id) {
            netns.is_new = false;
        }
        self.converge(id, now).await;
        match self.netns.get_mut(&id) {
            // Only this process knows the namespace: it is kept until they are removed.
            Some(netns) if !netns.leftovers.is_empty() => netns.process = None,
            _ => {
                self.netns.remove(&id);
                self.resources.forget_netns(id);
            }
        }
        self.search(now).await
    }
}
