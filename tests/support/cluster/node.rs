//! Network namespaces of the lab's nodes and pods, entered from the test's own process.

use std::{
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::Cluster;
use crate::namespace::within;

/// Runs a command of this machine in a network namespace, and returns its standard output.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn in_network(network: &Path, command: &[&str]) -> String {
    let output = Command::new("nsenter").arg(format!("--net={}", network.display())).args(command).output();
    let output = output.expect("nsenter runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A UDP socket on a port of a network namespace.
///
/// # Errors
/// If the namespace cannot be entered, or the port is taken.
pub fn udp_socket(network: &Path, port: u16) -> io::Result<UdpSocket> {
    within(network, move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// Everything in a network namespace that looks like a part of a tap, as `ip`, `tc` and `nft` show it.
///
/// # Panics
/// If one of them fails.
#[must_use]
pub fn traces(network: &Path) -> Vec<String> {
    let parsed = |command: &[&str]| -> Vec<Value> {
        let text = in_network(network, command);
        // Some versions print nothing instead of an empty list.
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).expect("iproute2 prints JSON") }
    };
    let links = parsed(&["ip", "-j", "-d", "link", "show"]);
    let qdiscs = parsed(&["tc", "-j", "qdisc", "show"]);
    // Any VXLAN device, and whatever else is in the group of PodTap's devices.
    let of_tap = |link: &&Value| link["linkinfo"]["info_kind"] == "vxlan" || link["group"] == "1886675312";
    let devices = links.iter().filter(of_tap).map(|link| format!("device {}", link["ifname"]));
    let clsacts = qdiscs.iter().filter(|q| q["kind"] == "clsact").map(|q| format!("clsact on {}", q["dev"]));
    let tables = in_network(network, &["nft", "list", "tables"]);
    let tables = tables.lines().filter(|table| table.contains("podtap")).map(str::to_owned);
    devices.chain(clsacts).chain(tables).collect()
}

/// Path of the network namespace of a node.
///
/// # Panics
/// If the node does not run.
#[must_use]
pub fn namespace_of_node(lab: &Cluster, node: &str) -> PathBuf {
    let name = lab.tool("lab", &["exec", node, "--", "readlink", "/proc/self/ns/net"]).expect("the node runs");
    processes()
        .map(|process| process.join("ns/net"))
        .filter(|path| fs::read_link(path).is_ok_and(|link| link == Path::new(name.trim())))
        .min_by_key(|path| started(path))
        .expect("a process of the node is visible from the machine")
}

/// Path of the network namespace of a pod, found by its UID in the cgroups of its processes.
///
/// # Errors
/// If no process of the pod runs, or none yet.
pub fn namespace_of_pod(uid: &str) -> io::Result<PathBuf> {
    let escaped = uid.replace('-', "_");
    processes()
        .filter(|process| {
            fs::read_to_string(process.join("cgroup")).is_ok_and(|c| c.contains(uid) || c.contains(&escaped))
        })
        .map(|process| process.join("ns/net"))
        .filter(|path| path.exists())
        .min_by_key(|path| started(path))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no process of the pod {uid}")))
}

/// Start time of a process, given a path below its directory. The oldest process of a pod or node is the last to end.
fn started(path: &Path) -> u64 {
    // Field 22 (proc_pid_stat(5)); the name before it, in parentheses, may contain anything.
    let read = || {
        let stat = fs::read_to_string(path.parent()?.parent()?.join("stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
    };
    read().unwrap_or(u64::MAX)
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
}
