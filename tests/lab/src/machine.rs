//! What the lab changes on the machine itself, and how it is restored.
//!
//! The record is in `/run` and shared by all labs of the machine: the first one up saves, the last one down restores. It is written before
//! anything is changed, so that it has the original values after a crash at any point.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{cgroup, command, process::boot, state::Lab, state::write_whole};

const RECORD: &str = "/run/podtap-lab/machine.json";

/// Settings that kubelet always writes for the whole machine, and those that the lab raises.
const SAVED: [&str; 7] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "fs/inotify/max_user_instances",
];

/// The default of 128 per user is too low for two kubelets and two containerds.
const INOTIFY_INSTANCES: u32 = 4096;

/// Where a node mounts its own directories; Kubernetes has these paths compiled in or by convention.
pub const MOUNT_POINTS: [&str; 4] = ["/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni", "/etc/cni"];

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The boot that the record belongs to.
    boot: Option<String>,
    /// The state directories of the labs that are up.
    labs: BTreeSet<PathBuf>,
    /// Settings before the first of them.
    settings: BTreeMap<String, String>,
    /// Directories that had to be created.
    directories: BTreeSet<PathBuf>,
    /// Controllers that were not enabled in the root cgroup before.
    controllers: BTreeSet<String>,
    /// Kernel modules that were not loaded before.
    modules: BTreeSet<String>,
}

impl Record {
    /// The record after a reboot: settings are the machine's own, and no lab has survived. Not every machine empties `/run` at boot.
    fn of_boot(self, boot: &str) -> Self {
        if self.boot.as_deref().is_some_and(|recorded| recorded != boot) {
            return Self { boot: Some(boot.to_owned()), directories: self.directories, ..Self::default() };
        }
        Self { boot: Some(boot.to_owned()), ..self }
    }

    /// Removes a lab; true if no other is left. A lab whose directory was deleted can no longer be taken down, and does not count.
    fn leave(&mut self, lab: &Path, exists: impl Fn(&Path) -> bool) -> bool {
        self.labs.retain(|other| other != lab && exists(other));
        self.labs.is_empty()
    }
}

/// Prepares the machine for a lab.
pub fn enter(lab: &Lab) -> Result<()> {
    change(|record| {
        record.labs.insert(lab.state.clone());
        for name in SAVED {
            // Not every kernel has all of them.
            if let (false, Ok(value)) = (record.settings.contains_key(name), fs::read_to_string(setting(name))) {
                record.settings.insert(name.to_owned(), value.trim().to_owned());
            }
        }
        let missing = MOUNT_POINTS.into_iter().map(PathBuf::from).filter(|directory| !directory.exists());
        record.directories.extend(missing);
        if !Path::new("/proc/sys/net/bridge").exists() {
            record.modules.insert("br_netfilter".into());
        }
        Ok(())
    })?;
    for directory in MOUNT_POINTS {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
    }
    raise("fs/inotify/max_user_instances", INOTIFY_INSTANCES)?;
    load_bridge_filter();
    Ok(())
}

/// Records that these controllers are about to be enabled in the root cgroup.
pub fn note_controllers(lab: &Lab, controllers: &[String]) -> Result<()> {
    change(|record| {
        record.labs.insert(lab.state.clone());
        record.controllers.extend(controllers.iter().cloned());
        Ok(())
    })
}

/// The lab is down: restores everything if no other lab of this machine is up.
pub fn leave(lab: &Lab) -> Result<()> {
    let _alone = lock()?;
    let Some(mut record) = read()? else {
        return Ok(());
    };
    if !record.leave(&lab.state, Path::exists) {
        return write(&record);
    }
    for (name, value) in &record.settings {
        let path = setting(name);
        // Some settings refuse even a write of their current value.
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
            fs::write(&path, value).with_context(|| format!("cannot restore {} to {value}", path.display()))?;
        }
    }
    for directory in record.directories.iter().rev() {
        // Only if it is empty: other programs may have used it meanwhile.
        let _ = fs::remove_dir(directory);
    }
    let controllers: Vec<_> = record.controllers.into_iter().collect();
    cgroup::take_back(&controllers);
    for module in &record.modules {
        // It stays loaded if another program uses it by now.
        let _ = command::line(&format!("modprobe -r {module}"));
    }
    let directory = Path::new(RECORD).parent().context("a record without a directory")?;
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

/// Without it, if a pod reaches another one on its bridge by a service address, the answer bypasses the address translation. Loading it
/// enables filtering for the machine's own bridges as well, so that is disabled again.
fn load_bridge_filter() {
    let switches = Path::new("/proc/sys/net/bridge");
    if !switches.exists() && command::line("modprobe br_netfilter").is_ok() {
        for switch in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"] {
            let _ = fs::write(switches.join(switch), "0");
        }
    }
}

fn raise(name: &str, least: u32) -> Result<()> {
    let path = setting(name);
    let now = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if now.trim().parse::<u32>().is_ok_and(|now| now >= least) {
        return Ok(());
    }
    fs::write(&path, least.to_string())
        .with_context(|| format!("cannot raise {} to {least}; the lab needs root", path.display()))
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn change(edit: impl FnOnce(&mut Record) -> Result<()>) -> Result<()> {
    let _alone = lock()?;
    let mut record = read()?.unwrap_or(Record { boot: Some(boot()?), ..Record::default() });
    edit(&mut record)?;
    write(&record)
}

fn lock() -> Result<File> {
    let path = Path::new(RECORD).with_extension("lock");
    fs::create_dir_all(path.parent().unwrap_or(&path)).context("cannot write to /run; the lab needs root")?;
    loop {
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        // The last lab down also removes the lock: a process that has waited for it holds a deleted file, and tries again.
        if fs::metadata(&path).is_ok_and(|found| file.metadata().is_ok_and(|held| held.ino() == found.ino())) {
            return Ok(file);
        }
    }
}

fn read() -> Result<Option<Record>> {
    match fs::read(RECORD) {
        Ok(text) => {
            let record: Record = serde_json::from_slice(&text)
                .with_context(|| format!("{RECORD} is damaged; if no lab is up on this machine, remove it"))?;
            Ok(Some(record.of_boot(&boot()?)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {RECORD}")),
    }
}

fn write(record: &Record) -> Result<()> {
    write_whole(Path::new(RECORD), serde_json::to_vec_pretty(record)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(labs: &[&str]) -> Record {
        Record { labs: labs.iter().map(PathBuf::from).collect(), ..Record::default() }
    }

    #[test]
    fn the_last_one_out_restores() {
        let mut shared = record(&["/a", "/b"]);
        assert!(!shared.leave(Path::new("/a"), |_| true));
        assert!(shared.leave(Path::new("/b"), |_| true));
    }

    #[test]
    fn a_lab_that_was_deleted_keeps_nobody_waiting() {
        assert!(record(&["/a", "/deleted"]).leave(Path::new("/a"), |lab| lab != Path::new("/deleted")));
    }

    #[test]
    fn of_an_earlier_boot_only_what_lies_on_disk_is_true() {
        let settings: BTreeMap<_, _> = [("kernel/panic".to_owned(), "1".to_owned())].into();
        let directories: BTreeSet<_> = [PathBuf::from("/etc/cni")].into();
        let recorded = |boot: &str| Record {
            boot: Some(boot.into()),
            settings: settings.clone(),
            directories: directories.clone(),
            ..record(&["/a"])
        };
        assert_eq!(recorded("1").of_boot("1"), recorded("1"));
        let later = recorded("1").of_boot("2");
        assert!(later.labs.is_empty() && later.settings.is_empty());
        assert_eq!((later.directories, later.boot.as_deref()), (directories, Some("2")));
    }

    #[test]
    fn leaving_twice_is_leaving_once() {
        let mut shared = record(&["/a", "/b"]);
        assert!(!shared.leave(Path::new("/a"), |_| true));
        assert!(!shared.leave(Path::new("/a"), |_| true));
    }
}
