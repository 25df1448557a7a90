//! The cgroups that hold a node's pods.
//!
//! A node shares the machine's cgroup trees with everything else, so each has its own root: `/<lab>/<node>`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{machine, progress, state::Lab};

/// Controllers that kubelet requires of a root on v2, if the machine has them, and `io`, which pods may use.
const DELEGATED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Where all programs expect cgroups.
const TOP: &str = "/sys/fs/cgroup";

/// How the machine's cgroups are laid out.
#[derive(Debug, PartialEq, Eq)]
pub enum Layout {
    /// A tree per controller. Systemd's own tree and a `unified` one beside them count, too: runc leaves directories in each.
    V1(Vec<PathBuf>),
    /// One tree.
    V2(PathBuf),
}

impl Layout {
    /// Detects what this machine has mounted.
    pub fn of_this_machine() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        Self::from_mounts(&mounts).context("no cgroups are mounted below /sys/fs/cgroup; containers cannot run here")
    }

    /// Decides from the text of `/proc/mounts` as runc and kubelet do: by the file system of `/sys/fs/cgroup` itself. A v1 tree below a
    /// unified one belongs to another program: some VPN programs mount `net_cls` there.
    fn from_mounts(mounts: &str) -> Option<Self> {
        let of_kind = |kind: &'static str| {
            mounts.lines().filter_map(move |line| {
                let mut fields = line.split(' ').skip(1);
                let (target, found) = (fields.next()?, fields.next()?);
                (found == kind && Path::new(target).starts_with(TOP)).then(|| PathBuf::from(target))
            })
        };
        let unified: Vec<_> = of_kind("cgroup2").collect();
        if unified.iter().any(|tree| tree == Path::new(TOP)) {
            return Some(Self::V2(TOP.into()));
        }
        let mut trees: Vec<_> = of_kind("cgroup").collect();
        if trees.is_empty() {
            return None;
        }
        trees.extend(unified);
        trees.dedup();
        Some(Self::V1(trees))
    }

    fn trees(&self) -> &[PathBuf] {
        match self {
            Self::V1(trees) => trees,
            Self::V2(tree) => std::slice::from_ref(tree),
        }
    }
}

/// The root of a node's cgroups, as configured in kubelet.
pub fn root(lab: &Lab, node: &str) -> String {
    format!("/{}/{node}", lab.id)
}

/// Creates a node's root in every tree.
pub fn make(lab: &Lab, node: &str) -> Result<()> {
    let layout = Layout::of_this_machine()?;
    for tree in layout.trees() {
        let above = tree.join(&lab.id);
        let own = above.join(node);
        fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
        if matches!(layout, Layout::V1(_)) {
            // An empty cpuset admits no process, and a new one starts empty.
            fill_cpuset(tree, &above)?;
            fill_cpuset(&above, &own)?;
        } else {
            delegate(lab, tree, &[&above, &own])?;
        }
    }
    Ok(())
}

fn fill_cpuset(above: &Path, below: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read(above.join(file)) {
            let path = below.join(file);
            fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// On v2 a group has the controllers that its parent enables for it, and so on up to the root.
fn delegate(lab: &Lab, tree: &Path, below: &[&Path]) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(tree.join(file)).with_context(|| format!("cannot read {file} of {}", tree.display()))
    };
    let available = read("cgroup.controllers")?;
    let missing = lacking(&available, &read("cgroup.subtree_control")?);
    if !missing.is_empty() {
        machine::note_controllers(lab, &missing)?;
        hand_down(tree, &missing).with_context(|| {
            format!(
                "the machine's top cgroup does not hand down {}. In a container, move its processes out of the top first: \
                 mkdir {1}/init && for p in $(cat {1}/cgroup.procs); do echo $p > {1}/init/cgroup.procs; done",
                missing.join(", "),
                tree.display()
            )
        })?;
    }
    for group in below {
        let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
        hand_down(group, &lacking(&available, &enabled))?;
    }
    Ok(())
}

/// The controllers to enable: required, available, and not enabled yet.
fn lacking(available: &str, enabled: &str) -> Vec<String> {
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|word| word == name);
    DELEGATED.into_iter().filter(|name| has(available, name) && !has(enabled, name)).map(str::to_owned).collect()
}

fn hand_down(group: &Path, controllers: &[String]) -> Result<()> {
    for controller in controllers {
        let path = group.join("cgroup.subtree_control");
        fs::write(&path, format!("+{controller}"))
            .with_context(|| format!("cannot add {controller} to {}", path.display()))?;
    }
    Ok(())
}

/// Disables the controllers that [`make`] had enabled in the machine's root group.
pub fn take_back(controllers: &[String]) {
    let Ok(Layout::V2(tree)) = Layout::of_this_machine() else {
        return;
    };
    for controller in controllers {
        // Fails if other programs use it by now, and then it has to stay.
        let _ = fs::write(tree.join("cgroup.subtree_control"), format!("-{controller}"));
    }
}

/// Removes the cgroups of one node, or of the lab, with what runc has left in them. Their processes must have ended.
pub fn sweep(lab: &Lab, node: Option<&str>) -> Result<()> {
    for tree in Layout::of_this_machine()?.trees() {
        let top = node.map_or_else(|| tree.join(&lab.id), |node| tree.join(&lab.id).join(node));
        // A process leaves its group shortly after it has ended.
        let gone = progress::wait_until(Duration::from_secs(10), || {
            remove_groups(&top);
            !top.exists()
        });
        anyhow::ensure!(
            gone,
            "cannot remove {}: see which processes are in it with find {0} -name cgroup.procs | xargs cat",
            top.display()
        );
    }
    Ok(())
}

/// Deepest first. The files in a group are removed with it.
fn remove_groups(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_trees_are_v1_even_with_a_unified_one_beside_them() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /elsewhere cgroup rw 0 0\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from).to_vec();
        assert_eq!(Layout::from_mounts(mounts), Some(Layout::V1(expected)));
    }

    #[test]
    fn one_tree_is_v2() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(Layout::from_mounts(mounts), Some(Layout::V2("/sys/fs/cgroup".into())));
        let with_somebodys_own = format!("{mounts}net_cls /sys/fs/cgroup/net_cls cgroup rw,net_cls 0 0\n");
        assert_eq!(Layout::from_mounts(&with_somebodys_own), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(Layout::from_mounts("proc /proc proc rw 0 0\n"), None);
        assert_eq!(Layout::from_mounts("cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"), None);
    }

    #[test]
    fn only_what_exists_and_is_not_enabled_is_handed_down() {
        assert_eq!(lacking("cpuset cpu io memory pids rdma", "cpu memory"), ["cpuset", "io", "pids"]);
        assert!(lacking("cpu pids", "cpu pids").is_empty());
    }
}
