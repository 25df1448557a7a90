//! The directory of a checkout's lab, and the name that distinguishes it from the labs of other checkouts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The file that identifies a directory as a checkout.
const MARK: &str = "tests/lab/go.mod";

/// The lab of one checkout: all of its files are in `target/lab`.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The checkout.
    pub root: PathBuf,
    /// `target/lab` in it.
    pub state: PathBuf,
    /// `podtap-` and six digits derived from the state's path: the name of what is outside of it (cgroups, the machine record).
    pub id: String,
}

impl Lab {
    /// Finds the checkout: `LAB_DIR`, or the one of the program's file, or of the working directory, or the one it was compiled in.
    pub fn find() -> Result<Self> {
        if let Some(root) = std::env::var_os("LAB_DIR") {
            let root = PathBuf::from(root);
            if !root.join(MARK).is_file() {
                bail!("LAB_DIR={} is not a checkout of PodTap: it has no {MARK}", root.display());
            }
            return Self::at(&root);
        }
        let program = std::env::current_exe().unwrap_or_default();
        let working = std::env::current_dir().unwrap_or_default();
        let compiled = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = [program.as_path(), &working, compiled]
            .into_iter()
            .find_map(checkout_above)
            .context("no checkout of PodTap here; run this inside of one or set LAB_DIR to it")?;
        Self::at(root)
    }

    /// The lab of the checkout `root`.
    pub fn at(root: &Path) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("cannot find {}", root.display()))?;
        // A node has its own /run, and would not see its state there.
        if root.starts_with("/run") || root.starts_with("/var/run") {
            bail!("the checkout is below /run, which each node of the lab replaces by its own; move it elsewhere");
        }
        let state = root.join("target/lab");
        let id = format!("podtap-{}", &crate::digest::hex(state.as_os_str().as_encoded_bytes())[..6]);
        Ok(Self { root, state, id })
    }

    /// A path below the state.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.state.join(below)
    }

    /// A built program.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.state.join("bin").join(name)
    }

    /// A certificate, key or kubeconfig.
    pub fn pki(&self, name: &str) -> PathBuf {
        self.state.join("pki").join(name)
    }

    /// What a node keeps after a power cut, and its configuration.
    pub fn node(&self, node: &str) -> PathBuf {
        self.state.join("nodes").join(node)
    }

    /// The log of one component of a member (a node or `cp`).
    pub fn log(&self, member: &str, component: &str) -> PathBuf {
        self.state.join("log").join(member).join(format!("{component}.log"))
    }

    /// All nodes that have been started since the lab came up, in order.
    pub fn nodes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("nodes")).into_iter().flatten().flatten();
        let mut nodes: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| crate::addresses::number(name).is_ok())
            .collect();
        nodes.sort();
        nodes
    }

    /// Excludes other commands that change this lab until the returned value is dropped.
    pub fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.state).with_context(|| format!("cannot create {}", self.state.display()))?;
        let path = self.path("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("lab: another command is changing this lab; waiting for it");
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The innermost directory above `path` (or itself) that is a checkout.
fn checkout_above(path: &Path) -> Option<&Path> {
    path.ancestors().find(|directory| directory.join(MARK).is_file())
}

/// Writes a file in one piece: a reader sees the old content or the new one, also after a crash.
pub fn write_whole(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let directory = path.parent().context("a file without a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn a_path_deep_inside_belongs_to_its_checkout() {
        let root = checkout().canonicalize().expect("the checkout");
        assert_eq!(checkout_above(&root.join("target/lab/bin/lab")), Some(root.as_path()));
        assert_eq!(checkout_above(Path::new("/")), None);
    }

    #[test]
    fn the_identity_depends_on_the_path_only() {
        let (a, b) = (Lab::at(&checkout()).expect("lab"), Lab::at(&checkout()).expect("lab"));
        assert_eq!(a.id, b.id);
        assert_eq!(a.id.len(), "podtap-".len() + 6);
    }

    #[test]
    fn a_file_written_whole_leaves_nothing_beside_it() {
        let directory = std::env::temp_dir().join(format!("podtap-lab-state-{}", std::process::id()));
        let file = directory.join("file");
        write_whole(&file, "one").expect("write");
        write_whole(&file, "two").expect("write again");
        assert_eq!(fs::read_to_string(&file).expect("read"), "two");
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
        fs::remove_dir_all(&directory).expect("remove");
    }
}
