use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    rc::Rc,
    time::Duration,
};

use super::{Namespace, NamespaceId, PidfdRef, cgroup, process};

/// A process in a pod's cgroup, with its namespace held open.
#[derive(Debug)]
pub struct Candidate {
    /// How long ago it started.
    pub age: Duration,
    /// Its network namespace: the pod's, or still the node's while the runtime prepares a container.
    pub namespace: Rc<Namespace>,
    /// Reports the end of the process.
    pub pidfd: PidfdRef,
}

/// For each requested pod (by normalised UID) the processes in its cgroup among `pids`, the oldest first.
///
/// A process that ends or moves meanwhile is omitted.
#[must_use]
pub fn locate(requested: &BTreeSet<String>, pids: &[u32]) -> BTreeMap<String, Vec<Candidate>> {
    let mut found: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for pid in pids {
        if let Some((uid, candidate)) = candidate(requested, *pid) {
            found.entry(uid).or_default().push(candidate);
        }
    }
    for candidates in found.values_mut() {
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.age));
    }
    found
}

fn candidate(requested: &BTreeSet<String>, pid: u32) -> Option<(String, Candidate)> {
    let before = process::cgroup(pid).ok()?;
    let uid = cgroup::pod_uids(&before).find(|uid| requested.contains(uid))?;
    let pidfd = PidfdRef::to(pid).ok()?;
    let namespace = Rc::new(Namespace::of_process(pid).ok()?);
    let age = process::age(pid).ok()?;
    // The PID may have been reused between the first two.
    let same = process::cgroup(pid).ok()? == before;
    same.then_some((uid, Candidate { age, namespace, pidfd }))
}

/// One process for each distinct network namespace among `pids`.
#[must_use]
pub fn namespaces(pids: &[u32]) -> BTreeMap<NamespaceId, u32> {
    let mut found = BTreeMap::new();
    for pid in pids {
        if let Ok(metadata) = fs::metadata(process::path(*pid, "ns/net")) {
            found.entry(NamespaceId::of(&metadata)).or_insert(*pid);
        }
    }
    found
}
