use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Network, Node};
use crate::wait::{PATIENCE, until};

/// A pod as the tap-helper sees it: a process in a cgroup with the pod's UID, in its own network namespace.
#[derive(Debug)]
pub struct Pod {
    /// UID.
    pub uid: String,
    /// Addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    network: Network,
    process: Option<Child>,
    cgroup: PathBuf,
}

impl Pod {
    /// Starts a pod with `eth0` on the node's bridge.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        let mut pod = Self::prepared(node);
        pod.run(node);
        pod
    }

    /// Creates a pod without a process but with a network, which container runtimes set up before they start the first process.
    #[must_use]
    pub fn prepared(node: &Node) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let uid = format!("5f0d6c1e-0000-4000-8000-{:012x}", COUNT.fetch_add(1, Ordering::Relaxed));
        let network = Network::new();
        let addresses = node.attach(&network, "eth0").to_vec();
        network.ip("route add default via 10.88.0.1\nroute add default via fd88::1\n");
        Self::with(node, uid, network, addresses)
    }

    /// Starts a pod that shares the node's network. [`Self::network`] is then an unrelated network.
    #[must_use]
    pub fn on_host_network(node: &Node) -> Self {
        let mut pod = Self::with(node, "5f0d6c1e-1111-4000-8000-000000000000".to_owned(), Network::new(), Vec::new());
        let script = format!("echo 0 >{}/cgroup.procs && exec sleep infinity", pod.cgroup.display());
        pod.process = Some(node.spawn(Some(node.network()), Command::new("sh").args(["-c", &script])));
        pod
    }

    fn with(node: &Node, uid: String, network: Network, addresses: Vec<IpAddr>) -> Self {
        let cgroup = node.cgroup.below(&format!("kubepods/burstable/pod{uid}/9c5d7c0f6e8b4a3d"));
        Self { uid, addresses, network, process: None, cgroup }
    }

    /// Starts its first process as container runtimes do: the process enters the cgroup while still in the node's network, and then the
    /// pod's network.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(&mut self, node: &Node) {
        self.process = Some(self.start_process(node));
    }

    /// Starts another process, and ends the previous one.
    ///
    /// # Panics
    /// When it does not start.
    pub fn replace(&mut self, node: &Node) {
        let next = self.start_process(node);
        self.stop();
        self.process = Some(next);
    }

    fn start_process(&self, node: &Node) -> Child {
        let script = format!(
            "echo 0 >{}/cgroup.procs && exec nsenter --net={} sleep infinity",
            self.cgroup.display(),
            self.network.path().display()
        );
        let process = node.spawn(Some(node.network()), Command::new("sh").args(["-c", &script]));
        let expected = fs::read_link(self.network.path()).expect("the network exists");
        until("the pod's process is in its network", PATIENCE, || {
            let now = fs::read_link(format!("/proc/{}/ns/net", process.id())).map_err(|error| error.to_string())?;
            if now == expected { Ok(()) } else { Err(format!("{}", now.display())) }
        });
        process
    }

    /// Ends its process. Its network stays as long as this value, as it does until a runtime removes the sandbox.
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a child can be ended");
            process.wait().expect("a child can be waited for");
        }
    }

    /// Its network namespace.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The pod as in a `NodeTap`.
    ///
    /// # Panics
    /// When its UID is invalid.
    #[must_use]
    pub fn model(&self) -> podtap_model::Pod {
        podtap_model::Pod {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: self.uid.parse().expect("a UID"),
            config_hash: None,
            addresses: self.addresses.clone(),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        // As CNI plugins do. The kernel deletes the namespace later, and until then it would still receive broadcasts.
        let _ = self.network.try_run(&["ip", "link", "del", "eth0"], "");
    }
}
