//! Taking the lab down, from any state.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

use crate::addresses::CONTROL_PLANE;
use crate::progress::{say, step};
use crate::{cgroup, machine, member, mounts, relay, state::Lab};

/// The state that is removed. Programs and images stay for the next lab; logs stay to be read.
const REMOVED: [&str; 7] = ["nodes", "etcd", "pki", "pki.partial", "run", "kubeconfig", "images/loaded"];

/// Ends everything that the lab runs, and restores the machine.
pub fn down(lab: &Lab) -> Result<()> {
    let _lock = lab.lock()?;
    if REMOVED.iter().any(|name| lab.path(name).exists()) {
        return step("taking the lab down", || clear(lab));
    }
    // Even without any state: it may have been deleted while the lab was up.
    clear(lab)?;
    say("the lab is down");
    Ok(())
}

fn clear(lab: &Lab) -> Result<()> {
    // The nodes first: without the control plane, they would log only errors.
    let nodes = lab.nodes();
    for member in nodes.iter().map(String::as_str).chain([CONTROL_PLANE, relay::NAME]) {
        member::kill(lab, member)?;
    }
    member::end_strays(lab)?;
    cgroup::sweep(lab, None)?;
    mounts::sweep(lab)?;
    for name in REMOVED {
        remove(lab, name)?;
    }
    machine::leave(lab)
}

fn remove(lab: &Lab, name: &str) -> Result<()> {
    let path = lab.path(name);
    let result = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
