use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use podtap_model::Pod;

use super::watch::ProcessWatch;
use crate::{
    logs::Repeated,
    namespace::{Candidate, Namespace, NamespaceId, PidfdRef, cgroup, locate},
    netlink::{Connection, addresses},
};

/// How old a process in the node's namespace must be to prove that the pod uses the node's network: the runtime puts a container's
/// first process into the pod's cgroup before it enters the pod's namespace.
const SETTLED: Duration = Duration::from_secs(2);

/// The network namespace of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodNetns {
    /// Not found yet.
    Unknown,
    /// The node's own.
    Host,
    /// A namespace of its own.
    Own(NamespaceId),
}

struct Known {
    pod: Pod,
    netns: PodNetns,
    since: Instant,
    unenterable: Repeated,
}

/// The pods of senders and receivers.
#[derive(Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
    watch: ProcessWatch,
}

impl Pods {
    /// Takes the pods that matter now, and forgets the others.
    pub(super) fn set(&mut self, pods: BTreeMap<String, Pod>, now: Instant) {
        self.known.retain(|uid, _| pods.contains_key(uid));
        for (uid, pod) in pods {
            let known = self.known.entry(uid).or_insert_with(|| Known {
                pod: pod.clone(),
                netns: PodNetns::Unknown,
                since: now,
                unenterable: Repeated::default(),
            });
            if known.pod.config_hash != pod.config_hash {
                (known.netns, known.since) = (PodNetns::Unknown, now);
            }
            known.pod = pod;
        }
        self.watch_if_incomplete(now);
    }

    pub(super) fn netns_of(&self, uid: &str) -> PodNetns {
        self.known.get(uid).map_or(PodNetns::Unknown, |known| known.netns)
    }

    /// Records the namespace of a pod.
    pub(super) fn found(&mut self, uid: &str, id: NamespaceId, now: Instant) {
        if let Some(known) = self.known.get_mut(uid) {
            (known.netns, known.since, known.unenterable) = (PodNetns::Own(id), now, Repeated::default());
        }
        if !self.is_incomplete() {
            self.watch.stop();
        }
    }

    /// Records that the namespace of a pod cannot be entered. Returns how often since it was logged last, if it is to be logged.
    pub(super) fn unenterable(&mut self, uid: &str, now: Instant) -> Option<u32> {
        self.known.get_mut(uid)?.unenterable.failed(now)
    }

    /// Forgets a namespace: its pods have to be found again.
    pub(super) fn forget(&mut self, id: NamespaceId, now: Instant) {
        for known in self.known.values_mut().filter(|known| known.netns == PodNetns::Own(id)) {
            (known.netns, known.since) = (PodNetns::Unknown, now);
        }
        self.watch_if_incomplete(now);
    }

    /// The pods of a namespace.
    pub(super) fn in_netns(&self, id: NamespaceId) -> impl Iterator<Item = &Pod> {
        self.known.values().filter(move |known| known.netns == PodNetns::Own(id)).map(|known| &known.pod)
    }

    pub(super) fn any_in(&self, id: NamespaceId) -> bool {
        self.known.values().any(|known| known.netns == PodNetns::Own(id))
    }

    pub(super) fn watch_due_at(&self) -> Option<Instant> {
        self.watch.due_at()
    }

    pub(super) fn watch_is_due(&self, now: Instant) -> bool {
        self.watch.due_at().is_some_and(|moment| moment <= now)
    }

    /// Looks for pods without a namespace, if that is due. Returns the pods found, each with a process of it.
    pub(super) async fn search(&mut self, own: &Namespace, now: Instant) -> io::Result<Vec<(String, Candidate)>> {
        if !self.watch_is_due(now) {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let unknown = self.known.values().filter(|known| known.netns == PodNetns::Unknown);
        let waiting = unknown.map(|known| now.duration_since(known.since)).min();
        let pids = self.watch.take(now, waiting)?;
        let missing: BTreeMap<String, String> = self
            .known
            .iter()
            .filter(|(_, known)| !matches!(known.netns, PodNetns::Own(_)))
            .map(|(uid, known)| (cgroup_name(&known.pod), uid.clone()))
            .collect();
        let names: BTreeSet<String> = missing.keys().cloned().collect();
        let mut found = Vec::new();
        for (name, candidates) in locate(&names, &pids) {
            let Some((uid, known)) = missing.get(&name).and_then(|uid| Some((uid, self.known.get_mut(uid)?))) else {
                continue;
            };
            let settled = candidates.iter().any(|candidate| candidate.age >= SETTLED);
            let outside = candidates.into_iter().filter(|candidate| candidate.namespace.id() != own.id()).collect();
            match choose(outside, &known.pod).await {
                Some(candidate) => found.push((uid.clone(), candidate)),
                None if settled => known.netns = PodNetns::Host,
                None => {}
            }
        }
        self.watch.took(start.elapsed(), now);
        Ok(found)
    }

    /// Another process of a pod in a namespace.
    pub(super) fn another_process(&self, id: NamespaceId, pids: &[u32]) -> Option<PidfdRef> {
        let here = self.known.values().filter(|known| known.netns == PodNetns::Own(id));
        let names: BTreeSet<String> = here.map(|known| cgroup_name(&known.pod)).collect();
        let mut candidates = locate(&names, pids).into_values().flatten();
        candidates.find(|candidate| candidate.namespace.id() == id).map(|candidate| candidate.pidfd)
    }

    fn is_incomplete(&self) -> bool {
        self.known.values().any(|known| !matches!(known.netns, PodNetns::Own(_)))
    }

    fn watch_if_incomplete(&mut self, now: Instant) {
        if self.is_incomplete() {
            self.watch.expect(now);
        } else {
            self.watch.stop();
        }
    }
}

fn cgroup_name(pod: &Pod) -> String {
    cgroup::normal(pod.config_hash.as_deref().unwrap_or(&pod.uid))
}

/// The oldest candidate; if the pod's processes are in several namespaces, the oldest in one that has an address of the pod.
async fn choose(mut candidates: Vec<Candidate>, pod: &Pod) -> Option<Candidate> {
    let first = candidates.first()?.namespace.id();
    let several = candidates.iter().any(|candidate| candidate.namespace.id() != first);
    let mut chosen = 0;
    if several && !pod.addresses.is_empty() {
        for (position, candidate) in candidates.iter().enumerate() {
            if has_address(&candidate.namespace, pod).await {
                chosen = position;
                break;
            }
        }
    }
    Some(candidates.swap_remove(chosen))
}

async fn has_address(namespace: &Rc<Namespace>, pod: &Pod) -> bool {
    let Ok(netlink) = Connection::open(namespace) else { return false };
    let found = addresses(&netlink).await.unwrap_or_default();
    found.iter().any(|address| pod.addresses.contains(&address.address))
}
