use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Namespace, NamespaceId, cgroup, process};

/// A process that stands for a namespace: readable as soon as the process has ended.
#[derive(Debug)]
pub struct Anchor(OwnedFd);

impl Anchor {
    /// Watches a process (Linux 5.3). `ESRCH` if it has ended.
    pub fn on(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }
}

impl AsFd for Anchor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process in a pod's cgroup, with its namespace held open.
#[derive(Debug)]
pub struct Candidate {
    /// How long ago it started.
    pub age: Duration,
    /// Its network namespace, which is the pod's, or, while the runtime prepares a container, still the node's.
    pub namespace: Namespace,
    /// Tells when the process ends.
    pub anchor: Anchor,
}

/// For each of the wanted pods (by normalised UID) the processes in its cgroup among `pids`, the oldest first.
///
/// A process that ends or moves meanwhile is left out.
#[must_use]
pub fn locate(wanted: &BTreeSet<String>, pids: &[u32]) -> BTreeMap<String, Vec<Candidate>> {
    let mut found: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for pid in pids {
        if let Some((uid, candidate)) = candidate(wanted, *pid) {
            found.entry(uid).or_default().push(candidate);
        }
    }
    for candidates in found.values_mut() {
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.age));
    }
    found
}

fn candidate(wanted: &BTreeSet<String>, pid: u32) -> Option<(String, Candidate)> {
    let before = process::cgroup(pid).ok()?;
    let uid = cgroup::pod_uids(&before).find(|uid| wanted.contains(uid))?;
    let anchor = Anchor::on(pid).ok()?;
    let namespace = Namespace::of_process(pid).ok()?;
    let age = process::age(pid).ok()?;
    // The number may have been given to another process between the first two.
    let same = process::cgroup(pid).ok()? == before;
    same.then_some((uid, Candidate { age, namespace, anchor }))
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
