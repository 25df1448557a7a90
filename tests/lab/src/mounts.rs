//! A member's view of the machine's file system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::state::Lab;

/// Directories of a node that survive a power cut: the name below its state, and the path that the node sees.
pub const DISK: [(&str, &str); 5] = [
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("cni-state", "/var/lib/cni"),
    ("cni", "/etc/cni"),
    ("log", "/var/log"),
];

const NOTHING: Option<&str> = None;

/// For the control plane: its own view of processes and network devices.
pub fn for_control_plane() -> Result<()> {
    keep_to_ourselves()?;
    own_proc()?;
    file_system("sysfs", "/sys")
}

/// For a node: also the directories that each machine has for itself.
pub fn for_node(lab: &Lab, node: &str) -> Result<()> {
    keep_to_ourselves()?;
    own_proc()?;
    file_system("tmpfs", "/run")?;
    own_sys()?;
    let state = lab.node(node);
    for (below, target) in DISK {
        bind(&state.join(below), target)?;
    }
    if Path::new("/etc/machine-id").exists() {
        bind(&state.join("machine-id"), "/etc/machine-id")?;
    }
    // kubelet and runc rely on seeing each other's mounts, as on a machine with systemd.
    change(MsFlags::MS_SHARED)
}

/// Stops mount propagation to the machine, where everything mounted here would appear otherwise.
fn keep_to_ourselves() -> Result<()> {
    change(MsFlags::MS_PRIVATE)
}

fn change(propagation: MsFlags) -> Result<()> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | propagation, NOTHING).context("cannot change how mounts propagate")
}

fn own_proc() -> Result<()> {
    file_system("proc", "/proc")
}

/// A sysfs shows the network devices of the namespace that it was mounted in. Ours needs the machine's cgroup trees as well.
fn own_sys() -> Result<()> {
    let aside = "/run/cgroup";
    fs::create_dir(aside).with_context(|| format!("cannot create {aside}"))?;
    mount(Some("/sys/fs/cgroup"), aside, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
        .context("cannot set the cgroups aside")?;
    file_system("sysfs", "/sys")?;
    mount(Some(aside), "/sys/fs/cgroup", NOTHING, MsFlags::MS_MOVE, NOTHING).context("cannot put the cgroups back")?;
    fs::remove_dir(aside).with_context(|| format!("cannot remove {aside}"))?;
    // What a pod pins there belongs to its node. Not every kernel has it.
    let _ = file_system("bpf", "/sys/fs/bpf");
    Ok(())
}

fn file_system(kind: &str, target: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Executable, because CSI drivers and the like put programs into /run.
    let flags = if kind == "tmpfs" { flags } else { flags | MsFlags::MS_NOEXEC };
    mount(Some(kind), target, Some(kind), flags, NOTHING).with_context(|| format!("cannot mount {kind} on {target}"))
}

fn bind(source: &Path, target: &str) -> Result<()> {
    mount(Some(source), target, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
        .with_context(|| format!("cannot mount {} on {target}", source.display()))
}

/// Unmounts what a crash may have left below the state in the machine's own mount namespace.
pub fn sweep(lab: &Lab) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    // Later mounts are on or inside earlier ones.
    for target in below(&mounts, &lab.state).iter().rev() {
        umount2(*target, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    Ok(())
}

fn below<'a>(mountinfo: &'a str, directory: &Path) -> Vec<&'a Path> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    targets.filter(|target| target.starts_with(directory)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_state_are_swept() {
        let mountinfo = "21 1 0:1 / / rw - ext4 a rw\n22 21 0:2 / /c/target/lab/nodes/n1 rw - tmpfs b rw\n\
                         23 21 0:3 / /c/target/labrador rw - tmpfs c rw\n24 22 0:4 / /c/target/lab/nodes/n1/x rw - proc d rw\n";
        let expected = ["/c/target/lab/nodes/n1", "/c/target/lab/nodes/n1/x"].map(Path::new);
        assert_eq!(below(mountinfo, Path::new("/c/target/lab")), expected);
    }

    #[test]
    fn every_mount_point_that_may_be_missing_is_made_by_the_lab() {
        for (_, target) in DISK.iter().filter(|(_, target)| *target != "/var/log") {
            assert!(crate::machine::MOUNT_POINTS.contains(target), "{target}");
        }
    }
}
