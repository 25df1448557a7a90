//! The pods that a process may belong to, from the text of its `/proc/PID/cgroup`. Pure.
//!
//! The kubelet names a pod's cgroup after its UID, whatever the container runtime:
//! - driver `cgroupfs`: `/kubepods/burstable/pod0b5c.../<container>`;
//! - driver `systemd`: `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b5c_....slice/cri-containerd-<container>.scope`,
//!   with underscores, since systemd reads a dash as the end of the parent's name (systemd.slice(5));
//! - both at once, if runtime and kubelet disagree: `/system.slice/containerd.service/kubepods-pod0b5c_....slice:cri-containerd:<container>`.
//!
//! A prefix may precede them (kind, `--cgroup-root`), or `/../..` if the reader is in a cgroup namespace
//! (`cgroup_namespaces(7)`). Version 1 has a line per hierarchy, version 2 a single one.

/// The UIDs of all pods that the paths name, normalised as by [`normal`]: several in nested clusters.
pub fn pod_uids(cgroup: &str) -> impl Iterator<Item = String> {
    cgroup
        .lines()
        // hierarchy-ID:controller-list:cgroup-path
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.split(['/', ':']))
        .filter_map(uid_of_component)
        .map(normal)
}

/// A UID in the form in which UIDs are compared: with dashes for systemd's underscores.
#[must_use]
pub fn normal(uid: &str) -> String {
    uid.replace('_', "-")
}

fn uid_of_component(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod")?.1,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!uid.is_empty() && uid.bytes().all(plain)).then_some(uid)
}

#[cfg(test)]
mod tests;
