//! What the control plane and the nodes share: a first process in its own namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::addresses::{CONTROL_PLANE, number};
use crate::{command, process::Process, progress, relay, state::Lab, supervisor};

/// The record of a member's first process.
pub fn record(lab: &Lab, member: &str) -> PathBuf {
    lab.path("run").join(format!("{member}.json"))
}

/// The first process of a member that is up.
pub fn running(lab: &Lab, member: &str) -> Option<Process> {
    Process::running(&record(lab, member))
}

/// The nodes that are up, in order.
pub fn running_nodes(lab: &Lab) -> Vec<String> {
    lab.nodes().into_iter().filter(|node| running(lab, node).is_some()).collect()
}

/// The first process of a member, or an error that tells how to start it.
pub fn expect(lab: &Lab, member: &str) -> Result<Process> {
    if member != CONTROL_PLANE {
        number(member)?;
    }
    let advice = if member == CONTROL_PLANE || running(lab, CONTROL_PLANE).is_none() {
        "lab up".to_owned()
    } else {
        format!("lab node-start {member}")
    };
    running(lab, member).with_context(|| format!("{member} is not up; start it with: {advice}"))
}

/// Starts a member and waits until it has recorded itself.
pub fn begin(lab: &Lab, member: &str) -> Result<Process> {
    supervisor::forget_deaths(lab, member);
    command::run(Command::new(lab.bin("lab")).args(["begin", member]).env("LAB_DIR", &lab.root))?;
    let mut process = None;
    progress::wait_until(Duration::from_secs(10), || {
        process = running(lab, member);
        process.is_some()
    });
    process.with_context(|| format!("{member} does not start. {}", supervisor::log_end(lab, member, "init")))
}

/// Fails with the reason if a member has ended or one of its components keeps failing.
pub fn check(lab: &Lab, member: &str) -> Result<()> {
    supervisor::check(lab, member)?;
    if running(lab, member).is_none() {
        bail!("{member} has ended. {}", supervisor::log_end(lab, member, "init"));
    }
    Ok(())
}

/// Ends what runs for this lab without a record, because its state was deleted or the start was interrupted.
pub fn end_strays(lab: &Lab) -> Result<()> {
    let program = lab.bin("lab");
    let records = fs::read_dir(lab.path("run")).into_iter().flatten().flatten();
    let known: Vec<_> = records.filter_map(|entry| Process::recorded(&entry.path())).collect();
    let strays = Process::all_of(&program, &["begin", "init", relay::NAME]);
    strays.into_iter().filter(|process| !known.contains(process)).try_for_each(|process| process.kill())
}

/// Ends a member with everything in it; false if it was not up.
pub fn kill(lab: &Lab, member: &str) -> Result<bool> {
    let process = Process::recorded(&record(lab, member));
    if let Some(process) = &process {
        process.kill()?;
    }
    let _ = fs::remove_file(record(lab, member));
    Ok(process.is_some())
}
