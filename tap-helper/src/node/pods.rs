use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use tap_wire::Pod;

use super::watch::Watch;
use crate::{
    namespace::{Anchor, Candidate, Namespace, NamespaceId, cgroup, locate, within},
    netlink::{RouteSocket, addresses},
};

/// How old a process in the node's namespace must be to prove that the pod belongs there: a container's first process is put into
/// the pod's cgroup before it enters the pod's namespace.
const SETTLED: Duration = Duration::from_secs(2);

/// Where a pod's network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere yet.
    Absent,
    /// In the node's own namespace.
    Host,
    /// In one of its own.
    In(NamespaceId),
}

struct Known {
    pod: Pod,
    place: Place,
    since: Instant,
}

/// The pods that something is wanted of.
#[derive(Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
    watch: Watch,
}

impl Pods {
    /// Takes the pods that something is wanted of now, and forgets the others.
    pub(super) fn want(&mut self, pods: BTreeMap<String, Pod>, now: Instant) {
        self.known.retain(|uid, _| pods.contains_key(uid));
        for (uid, pod) in pods {
            let known =
                self.known.entry(uid).or_insert_with(|| Known { pod: pod.clone(), place: Place::Absent, since: now });
            if known.pod.cgroup_uid != pod.cgroup_uid {
                (known.place, known.since) = (Place::Absent, now);
            }
            known.pod = pod;
        }
        self.rest_or_watch(now);
    }

    pub(super) fn place_of(&self, uid: &str) -> Place {
        self.known.get(uid).map_or(Place::Absent, |known| known.place)
    }

    /// Takes down where a pod was found.
    pub(super) fn place(&mut self, uid: &str, place: Place, now: Instant) {
        if let Some(known) = self.known.get_mut(uid) {
            (known.place, known.since) = (place, now);
        }
        if !self.known.values().any(|known| !matches!(known.place, Place::In(_))) {
            self.watch.stop();
        }
    }

    /// The pods of a namespace are nowhere.
    pub(super) fn leave(&mut self, id: NamespaceId, now: Instant) {
        for known in self.known.values_mut().filter(|known| known.place == Place::In(id)) {
            (known.place, known.since) = (Place::Absent, now);
        }
        self.rest_or_watch(now);
    }

    pub(super) fn any_in(&self, id: NamespaceId) -> bool {
        self.known.values().any(|known| known.place == Place::In(id))
    }

    pub(super) fn watch_due_at(&self) -> Option<Instant> {
        self.watch.due_at()
    }

    pub(super) fn watch_is_due(&self, now: Instant) -> bool {
        self.watch.due_at().is_some_and(|moment| moment <= now)
    }

    /// Looks for pods without a namespace, if it is time to: those found, each with the process it was found by.
    pub(super) fn search(&mut self, own: &Namespace, now: Instant) -> io::Result<Vec<(String, Candidate)>> {
        if !self.watch_is_due(now) {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let absent = self.known.values().filter(|known| known.place == Place::Absent);
        let waiting = absent.map(|known| now.duration_since(known.since)).min();
        let pids = self.watch.take(now, waiting)?;
        let wanted: BTreeMap<String, String> = self
            .known
            .iter()
            .filter(|(_, known)| !matches!(known.place, Place::In(_)))
            .map(|(uid, known)| (cgroup_name(&known.pod), uid.clone()))
            .collect();
        let names: BTreeSet<String> = wanted.keys().cloned().collect();
        let mut found = Vec::new();
        for (name, candidates) in locate(&names, &pids) {
            let Some((uid, known)) = wanted.get(&name).and_then(|uid| Some((uid, self.known.get_mut(uid)?))) else {
                continue;
            };
            let settled = candidates.iter().any(|candidate| candidate.age >= SETTLED);
            let outside = candidates.into_iter().filter(|candidate| candidate.namespace.id() != own.id()).collect();
            match choose(outside, &known.pod) {
                Some(candidate) => found.push((uid.clone(), candidate)),
                None if settled => known.place = Place::Host,
                None => {}
            }
        }
        self.watch.took(began.elapsed(), now);
        Ok(found)
    }

    /// Another process of a pod in a namespace.
    pub(super) fn another_process(&self, id: NamespaceId, pids: &[u32]) -> Option<Anchor> {
        let here = self.known.values().filter(|known| known.place == Place::In(id));
        let names: BTreeSet<String> = here.map(|known| cgroup_name(&known.pod)).collect();
        let mut candidates = locate(&names, pids).into_values().flatten();
        candidates.find(|candidate| candidate.namespace.id() == id).map(|candidate| candidate.anchor)
    }

    fn rest_or_watch(&mut self, now: Instant) {
        if self.known.values().any(|known| !matches!(known.place, Place::In(_))) {
            self.watch.expect(now);
        } else {
            self.watch.stop();
        }
    }
}

fn cgroup_name(pod: &Pod) -> String {
    cgroup::normal(pod.cgroup_uid.as_ref().unwrap_or(&pod.uid))
}

/// The oldest one; if the pod's processes are in several namespaces, the oldest of one that has an address of the pod.
fn choose(candidates: Vec<Candidate>, pod: &Pod) -> Option<Candidate> {
    let first = candidates.first()?.namespace.id();
    let several = candidates.iter().any(|candidate| candidate.namespace.id() != first);
    let fits = |candidate: &Candidate| !several || pod.addresses.is_empty() || has_address(&candidate.namespace, pod);
    let position = candidates.iter().position(fits).unwrap_or(0);
    candidates.into_iter().nth(position)
}

fn has_address(namespace: &Namespace, pod: &Pod) -> bool {
    let read = within(namespace, || addresses(&mut RouteSocket::open()?));
    let found = read.ok().and_then(Result::ok).unwrap_or_default();
    found.iter().any(|address| pod.addresses.contains(&address.address))
}
