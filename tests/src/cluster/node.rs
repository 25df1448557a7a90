//! Network namespaces of the lab's nodes and pods, as the test's own process sees them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Cluster;

/// Path of the network namespace of a node.
///
/// # Panics
/// When the node does not run.
#[must_use]
pub fn namespace_of_node(lab: &Cluster, node: &str) -> PathBuf {
    let name = lab.tool("lab", &["exec", node, "--", "readlink", "/proc/self/ns/net"]).expect("the node runs");
    processes()
        .map(|process| process.join("ns/net"))
        .find(|path| fs::read_link(path).is_ok_and(|link| link == Path::new(name.trim())))
        .expect("a process of the node is visible from the machine")
}

/// Path of the network namespace of a pod, found by its UID in the cgroups of its processes.
///
/// # Errors
/// When no process of the pod runs (yet).
pub fn namespace_of_pod(uid: &str) -> io::Result<PathBuf> {
    let escaped = uid.replace('-', "_");
    processes()
        .filter(|process| {
            fs::read_to_string(process.join("cgroup")).is_ok_and(|c| c.contains(uid) || c.contains(&escaped))
        })
        .map(|process| process.join("ns/net"))
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no process of the pod {uid}")))
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
}
