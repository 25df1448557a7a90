//! A node: kubelet, containerd and kube-proxy in their own namespaces.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::addresses::{API_PORT, FABRIC, machine_id, node_address, number};
use crate::node_config::{self, Machine};
use crate::supervisor::{Component, Supervisor};
use crate::{
    cgroup, cluster, command, fabric, member, mounts, prerequisites::find_program, process::Process, state::Lab,
    state::write_whole,
};

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Starts it from outside, and connects it to the fabric.
pub fn start(lab: &Lab, control_plane: &Process, node: &str) -> Result<()> {
    let number = number(node)?;
    configure(lab, node)?;
    // A power cut leaves the cgroups of the running pods behind.
    cgroup::sweep(lab, Some(node))?;
    cgroup::make(lab, node)?;
    let first = member::begin(lab, node)?;
    fabric::attach(control_plane, number, &first)
}

/// Cuts its power.
pub fn kill(lab: &Lab, node: &str) -> Result<bool> {
    number(node)?;
    let was_up = member::kill(lab, node)?;
    cgroup::sweep(lab, Some(node))?;
    Ok(was_up)
}

/// Writes the configuration of its components.
fn configure(lab: &Lab, node: &str) -> Result<()> {
    let number = number(node)?;
    let state = lab.node(node);
    for (directory, _) in mounts::DISK {
        fs::create_dir_all(state.join(directory))?;
    }
    fs::create_dir_all(state.join("manifests"))?;
    let machine = look_at_machine(&state)?;
    let kubelet = node_config::kubelet(lab, node, &cgroup::root(lab, node));
    write_whole(&state.join("machine-id"), machine_id(number))?;
    write_whole(&state.join("containerd.toml"), node_config::containerd(machine))?;
    write_whole(&state.join("kubelet.json"), serde_json::to_vec_pretty(&kubelet)?)?;
    write_whole(&state.join("kube-proxy.json"), serde_json::to_vec_pretty(&node_config::kube_proxy(lab, node))?)?;
    write_whole(&state.join("cni/net.d/10-lab.conflist"), serde_json::to_vec_pretty(&node_config::cni(number))?)
}

fn look_at_machine(state: &Path) -> Result<Machine> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let file_system = statfs(state).with_context(|| format!("cannot look at {}", state.display()))?;
    Ok(Machine {
        may_lower_oom_score: node_config::has_sys_resource(&status),
        on_overlayfs: file_system.filesystem_type() == OVERLAYFS_SUPER_MAGIC,
    })
}

/// What its first process does.
pub fn init(lab: &Lab, node: &str) -> Result<()> {
    let number = number(node)?;
    nix::unistd::sethostname(node)?;
    mounts::for_node(lab, node)?;
    fabric::configure_node(number)?;
    set("net/ipv4/ip_forward")?;
    // Pods of one bridge that reach each other by a service address need it; see machine.rs.
    let _ = set("net/bridge/bridge-nf-call-iptables");

    let mut supervisor = Supervisor::new(lab, node);
    supervisor.start(containerd(lab, node)?)?;
    supervisor.wait_until("containerd", Duration::from_secs(60), || UnixStream::connect(CONTAINERD).is_ok())?;
    // Before kubelet, which would otherwise start pods whose images are not loaded.
    for archive in archives(lab) {
        import(lab, node, &archive)?;
    }
    // Both back off if they start too early. After this time they may start anyway, and report what is wrong.
    let patience = Duration::from_secs(120);
    let address = SocketAddr::new(FABRIC.parse()?, API_PORT);
    let _ = supervisor.wait_until("the API server", patience, || {
        TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
    });
    supervisor.start(kubelet(lab, node)?)?;
    // Its role does not exist before the API server is ready; kubelet needs none.
    let identity = lab.pki("kube-proxy.kubeconfig");
    let _ = supervisor.wait_until("the API server's readiness", patience, || cluster::is_ready(lab, &identity));
    supervisor.start(kube_proxy(lab, node))?;
    supervisor.run()
}

/// The archives that every node has, in the order of their creation.
fn archives(lab: &Lab) -> Vec<PathBuf> {
    let tars = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = tars(lab.path("images")).chain(tars(lab.path("images/loaded")));
    let mut archives: Vec<_> =
        all.filter(|path| path.extension().is_some_and(|extension| extension == "tar")).collect();
    archives.sort();
    archives
}

/// Imports an image into the node's containerd; called inside the node.
pub fn import(lab: &Lab, node: &str, archive: &Path) -> Result<()> {
    let snapshotter = look_at_machine(&lab.node(node))?.snapshotter();
    let mut ctr = Command::new("ctr");
    ctr.args(["--namespace", "k8s.io", "images", "import", "--snapshotter", snapshotter]).arg(archive);
    command::run(&mut ctr).map(drop)
}

fn containerd(lab: &Lab, node: &str) -> Result<Component> {
    let config = lab.node(node).join("containerd.toml");
    Ok(Component {
        name: "containerd",
        program: find_program("containerd").context("containerd is not installed")?,
        arguments: vec!["--config".into(), config.display().to_string()],
    })
}

fn kubelet(lab: &Lab, node: &str) -> Result<Component> {
    let arguments = vec![
        format!("--config={}", lab.node(node).join("kubelet.json").display()),
        format!("--kubeconfig={}", lab.pki(&format!("{node}.kubeconfig")).display()),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", node_address(number(node)?)),
        "--v=2".into(),
    ];
    Ok(Component { name: "kubelet", program: lab.bin("kubelet"), arguments })
}

fn kube_proxy(lab: &Lab, node: &str) -> Component {
    let config = lab.node(node).join("kube-proxy.json");
    Component {
        name: "kube-proxy",
        program: lab.bin("kube-proxy"),
        arguments: vec![format!("--config={}", config.display())],
    }
}

fn set(switch: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(switch), "1").with_context(|| format!("cannot switch {switch} on"))
}
