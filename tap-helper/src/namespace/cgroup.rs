//! Which pods a process may belong to, from the text of its `/proc/PID/cgroup`. Pure.
//!
//! The kubelet names a pod's cgroup after its UID, whatever the container runtime:
//! - driver `cgroupfs`: `/kubepods/burstable/pod0b5c.../<container>`;
//! - driver `systemd`: `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b5c_....slice/cri-containerd-<container>.scope`,
//!   with underscores, since a dash means a parent there (systemd.slice(5));
//! - both at once, when runtime and kubelet disagree: `/system.slice/containerd.service/kubepods-pod0b5c_....slice:cri-containerd:<container>`.
//!
//! Before those there may be a prefix (kind, `--cgroup-root`), or `/../..` where the reader is in a cgroup namespace
//! (`cgroup_namespaces(7)`). Version 1 has a line per hierarchy, version 2 one.

/// The UIDs of all pods that the path names, normalised as by [`normal`]; of nested clusters there may be several.
pub fn pod_uids(cgroup: &str) -> impl Iterator<Item = String> {
    cgroup
        .lines()
        // hierarchy-ID:controller-list:cgroup-path
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.split(['/', ':']))
        .filter_map(uid_of_component)
        .map(normal)
}

/// A UID as it is compared: systemd's underscores are dashes.
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
#[path = "cgroup_tests.rs"]
mod tests;
