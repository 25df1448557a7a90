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
use crate::wait::{PATIENCE, until};

/// What a Kubernetes node is to the tap-helper: PID, mount and network namespaces, with a bridge for pods.
///
/// Pods are 10.88.0.0/24 and `fd88::/64`; the underlay between nodes is 10.66.0.0/24 and `fd66::/64`.
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
    /// Creates a node that is connected to no other.
    ///
    /// # Panics
    /// When the test may not create namespaces.
    #[must_use]
    pub fn new() -> Self {
        let number = residue::register();
        let directory = std::env::temp_dir().join(format!("podtap-dataplane.{}.{number}", std::process::id()));
        fs::create_dir(&directory).expect("a directory can be created");
        let network = Network::new();
        let init = init(&network);
        let namespace = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", init.id())).expect("init runs");
        let (pids, mounts) = (namespace("pid"), namespace("mnt"));
        network.ip("link add cni0 type bridge mcast_snooping 0\nlink set cni0 addrgenmode none\n\
                    addr add 10.88.0.1/24 dev cni0\naddr add fd88::1/64 dev cni0 nodad\nlink set cni0 up\n");
        Self { cgroup: Cgroup::new(), init, pids, mounts, network, directory, attached: AtomicU32::new(0) }
    }

    /// Creates two nodes, connected by a veth pair of the given MTU: 10.66.0.1 and `fd66::1`, 10.66.0.2 and `fd66::2`.
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
        // The kernel may take a second to notify IPv6 that a link is up.
        for address in ["10.66.0.2", "fd66::2"] {
            until("the nodes reach each other", PATIENCE, || {
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

    /// A directory that is deleted with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Connects a network to the bridge by an interface, with the addresses 10.88.0.N and `fd88::N`, which it returns.
    ///
    /// # Panics
    /// When an interface of that name exists already.
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

    /// A network on the bridge that belongs to no pod: a client of pods.
    #[must_use]
    pub fn client(&self) -> Network {
        let network = Network::new();
        self.attach(&network, "eth0");
        network
    }

    /// Mounts a network namespace on the node, as container runtimes and `ip netns` do, so that it needs no process.
    ///
    /// # Panics
    /// When that fails.
    pub fn mount(&self, network: &Network) {
        let target = self.directory.join(format!("netns{}", self.attached.fetch_add(1, Ordering::Relaxed)));
        File::create(&target).expect("a file can be created");
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.init.id());
        let target = target.display().to_string();
        let mut command = Command::new("nsenter");
        command.args([&*mounts, "mount", "--bind", "/proc/self/ns/net", &target]);
        let status = self.spawn(Some(network), &mut command).wait().expect("a child can be waited for");
        assert!(status.success(), "{command:?}: {status}");
    }

    /// A directory for the helper's socket, accessible to root and the agent's group, like a pod's `emptyDir` with `fsGroup`.
    pub(super) fn socket_directory(&self) -> PathBuf {
        let path = self.directory.join("run");
        if !path.exists() {
            fs::create_dir(&path).expect("a directory can be created");
            chown(&path, None, Some(AGENT_UID)).expect("root may");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2770)).expect("root may");
        }
        path
    }

    /// Runs a shell script in the node's namespaces, and returns its output. Network namespaces that it names live as long as the node.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        // `ip netns` writes below /run, and other nodes share that directory.
        let script = format!("set -e\nmountpoint -q /run || mount -t tmpfs none /run\n{script}");
        let mut shell = Command::new("sh");
        let child = self.spawn(None, shell.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().expect("a child can be waited for");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("the output is text")
    }

    /// A network namespace that [`shell`](Self::shell) created by `ip netns add`.
    #[must_use]
    #[track_caller]
    pub fn named_network(&self, name: &str) -> Network {
        Network::open(&PathBuf::from(format!("/proc/{}/root/run/netns/{name}", self.init.id())))
    }

    /// Starts a process in the node's PID namespace, with an empty standard input. It also gets the node's mounts and network, unless it
    /// belongs to a pod with another network.
    pub(super) fn spawn(&self, pod: Option<&Network>, command: &mut Command) -> Child {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS).expect("root may");
                setns(&self.pids, CloneFlags::CLONE_NEWPID).expect("the node runs");
                setns(pod.unwrap_or(&self.network), CloneFlags::CLONE_NEWNET).expect("the network exists");
                if pod.is_none() {
                    setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("the node runs");
                }
                command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
            });
            thread.join().expect("the node runs")
        })
    }
}

/// Starts the node's first process. It lives until the pipe to it is closed; all other processes of the node end with it.
fn init(network: &Network) -> Child {
    let mut child = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET).expect("the network exists");
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).expect("root may");
            // Without the machine's own namespaces, which are none of the node's.
            let script = "mount --make-rprivate / && mount -t proc proc /proc && { umount -a -t nsfs || true; } \
                          && echo ready && exec cat >/dev/null";
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        });
        thread.join().expect("the thread does not panic").expect("sh runs")
    });
    let mut line = String::new();
    let output = child.stdout.take().expect("stdout is a pipe");
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
        // The kernel kills all other processes of the node before this one has ended. It also waits until the test has waited for those
        // that it started, so pods and helpers have to be dropped before their node.
        let start = Instant::now();
        while matches!(self.init.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                eprintln!("a process of a node was not waited for");
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
