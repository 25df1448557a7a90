use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::IpAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{AGENT_UID, Network, cgroup::Cgroup, residue};
use crate::wait::until;

/// A Kubernetes node as the tap-helper sees it: PIDs, mounts and a network, with a bridge for pods.
///
/// Pods are in 10.88.0.0/24 and `fd88::/64`; the underlay between nodes is 10.66.0.0/24 and `fd66::/64`.
#[derive(Debug)]
pub struct Node {
    pub(super) cgroup: Cgroup,
    init: Child,
    pids: File,
    mounts: File,
    network: Network,
    directory: PathBuf,
    attached: AtomicU32,
}

impl Node {
    /// A new one, alone on its network.
    ///
    /// # Panics
    /// If this process may not create namespaces.
    #[must_use]
    pub fn new() -> Self {
        let number = residue::register();
        let directory = std::env::temp_dir().join(format!("podtap-dataplane.{}.{number}", std::process::id()));
        fs::create_dir(&directory).expect("a directory can be made");
        let network = Network::new();
        let init = init(&network);
        let namespace = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", init.id())).expect("init runs");
        let (pids, mounts) = (namespace("pid"), namespace("mnt"));
        network.ip("link add cni0 type bridge mcast_snooping 0\nlink set cni0 addrgenmode none\n\
                    addr add 10.88.0.1/24 dev cni0\naddr add fd88::1/64 dev cni0 nodad\nlink set cni0 up\n");
        Self { cgroup: Cgroup::new(), init, pids, mounts, network, directory, attached: AtomicU32::new(0) }
    }

    /// Two nodes with a cable of the given MTU between them: 10.66.0.1 and `fd66::1`, 10.66.0.2 and `fd66::2`.
    #[must_use]
    pub fn pair(mtu: u32) -> (Self, Self) {
        let (one, two) = (Self::new(), Self::new());
        let path = two.network.path().display();
        one.network.ip(&format!("link add under0 mtu {mtu} type veth peer name under0 mtu {mtu} netns {path}\n"));
        for (number, node) in [(1, &one), (2, &two)] {
            node.network.ip(&format!(
                "link set under0 addrgenmode none\naddr add 10.66.0.{number}/24 dev under0\n\
                 addr add fd66::{number}/64 dev under0 nodad\nlink set under0 up\n"
            ));
            node.network.run("ethtool -K under0 tso off gso off gro off tx off");
        }
        // It may take a second until IPv6 has noticed that a link is up.
        for address in ["10.66.0.2", "fd66::2"] {
            until("the nodes reach each other", Duration::from_secs(10), || {
                one.network.try_run(&["ping", "-q", "-c", "1", "-W", "0.2", address], "")
            });
        }
        (one, two)
    }

    /// Its network namespace.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A directory, removed with the node.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connects a network to the bridge by an interface, and returns its addresses, 10.88.0.N and `fd88::N`.
    ///
    /// # Panics
    /// If the network has an interface of that name.
    pub fn attach(&self, network: &Network, interface: &str) -> [IpAddr; 2] {
        let number = 10 + self.attached.fetch_add(1, Ordering::Relaxed);
        self.network.ip(&format!(
            "link add veth{number} type veth peer name {interface} netns {}\nlink set veth{number} addrgenmode none\n\
             link set veth{number} master cni0 up\n",
            network.path().display()
        ));
        network.ip(&format!(
            "link set {interface} addrgenmode none\naddr add 10.88.0.{number}/24 dev {interface}\n\
             addr add fd88::{number:x}/64 dev {interface} nodad\nlink set {interface} up\n"
        ));
        network.as_on_the_wire(interface);
        let addresses = [format!("10.88.0.{number}"), format!("fd88::{number:x}")];
        addresses.map(|address| address.parse().expect("these are addresses"))
    }

    /// A network on the bridge that belongs to no pod, for a pod to communicate with.
    #[must_use]
    pub fn client(&self) -> Network {
        let network = Network::new();
        self.attach(&network, "eth0");
        network
    }

    /// A directory for the helper's socket, with the owner and mode of a pod's `emptyDir` with `fsGroup`.
    pub(super) fn socket_directory(&self) -> PathBuf {
        let path = self.directory.join("run");
        if !path.exists() {
            fs::create_dir(&path).expect("a directory can be made");
            chown(&path, None, Some(AGENT_UID)).expect("root may");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2770)).expect("root may");
        }
        path
    }

    /// Starts a process that sees only the processes of the node. A process of a pod gets the given network, any other the node's
    /// mounts and network. Standard input is empty.
    pub(super) fn spawn(&self, pod: Option<&Network>, command: &mut Command) -> Child {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS).expect("root may");
                setns(&self.pids, CloneFlags::CLONE_NEWPID).expect("the node runs");
                setns(pod.unwrap_or(&self.network), CloneFlags::CLONE_NEWNET).expect("the network is there");
                if pod.is_none() {
                    setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("the node runs");
                }
                command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
            });
            thread.join().expect("the node runs")
        })
    }
}

/// The node's first process. It ends when the pipe to it is closed, and all other processes of the node end with it.
fn init(network: &Network) -> Child {
    let mut child = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET).expect("the network is there");
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).expect("root may");
            let script = "mount --make-rprivate / && mount -t proc proc /proc && echo ready && exec cat >/dev/null";
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        });
        thread.join().expect("the thread does not panic").expect("sh runs")
    });
    let mut line = String::new();
    let output = child.stdout.take().expect("it is a pipe");
    BufReader::new(output).read_line(&mut line).expect("a pipe can be read");
    assert_eq!(line, "ready\n", "a node's first process starts");
    child
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.init.stdin.take());
        // The kernel reports this process as ended after all others of the node, and after the test has waited for those that it
        // started: pods and helpers have to be dropped before their node.
        let start = Instant::now();
        while matches!(self.init.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(10) {
                eprintln!("a process of a node was not waited for: drop pods and helpers first");
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
