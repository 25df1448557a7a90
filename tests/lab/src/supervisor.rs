//! The first process of a member: runs its components, restarts those that fail, and reaps orphans.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::{command, command::search_path, progress, state::Lab};

/// A program that runs for as long as its member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Names its log.
    pub name: &'static str,
    /// Its path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// How often a component may fail before the member counts as failed: some exit if what they need is not ready soon enough.
const TOLERATED_DEATHS: usize = 3;

/// The components of the member whose first process this is.
pub struct Supervisor {
    lab: Lab,
    member: String,
    running: HashMap<i32, Component>,
}

impl Supervisor {
    /// A supervisor without components.
    pub fn new(lab: &Lab, member: &str) -> Self {
        Self { lab: lab.clone(), member: member.to_owned(), running: HashMap::new() }
    }

    /// Starts a component.
    pub fn start(&mut self, component: Component) -> Result<()> {
        let path = self.lab.log(&self.member, component.name);
        let log = append(&path)?;
        let mut command = Command::new(&component.program);
        command.args(&component.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // The environment of the shell that starts the lab, for example an HTTP proxy, must not affect the cluster.
        command.env_clear().env("PATH", search_path("")).env("HOME", "/root");
        let child = command.spawn().with_context(|| format!("cannot run {}", component.program.display()))?;
        self.running.insert(child.id().cast_signed(), component);
        Ok(())
    }

    /// Waits for an effect of a component.
    pub fn wait_until(&mut self, what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
        let came = progress::wait_until(patience, || {
            while self.reap(Some(WaitPidFlag::WNOHANG)) {}
            is_so()
        });
        if came { Ok(()) } else { bail!("timed out waiting for {what} after {} s", patience.as_secs()) }
    }

    /// Keeps the components running; never returns.
    pub fn run(mut self) -> ! {
        loop {
            if !self.reap(None) {
                thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Reaps one process that has ended; false if there is none.
    fn reap(&mut self, how: Option<WaitPidFlag>) -> bool {
        let (pid, end) = match waitpid(None, how) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("{signal}")),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return false,
            _ => return true,
        };
        if let Some(component) = self.running.remove(&pid.as_raw()) {
            self.restart(component, &end);
        }
        true
    }

    /// As an init system would: after a pause, so that one that fails at once does not use all of the machine's time.
    fn restart(&mut self, component: Component, end: &str) {
        let name = component.name;
        println!("{name} has died: {end}");
        let record = append(&deaths(&self.lab, &self.member)).and_then(|mut file| Ok(writeln!(file, "{name}: {end}")?));
        thread::sleep(Duration::from_secs(1));
        if let Err(error) = record.and_then(|()| self.start(component)) {
            println!("{name} cannot be started again: {error:#}");
        }
    }
}

/// A restarted member has a clean record.
pub fn forget_deaths(lab: &Lab, member: &str) {
    let _ = fs::remove_file(deaths(lab, member));
}

/// Fails with the component of a member that keeps failing, if any, and the end of its log.
pub fn check(lab: &Lab, member: &str) -> Result<()> {
    let text = fs::read_to_string(deaths(lab, member)).unwrap_or_default();
    if let Some((component, end)) = hopeless(&text) {
        bail!("{component} on {member} keeps failing ({end}). {}", log_end(lab, member, component));
    }
    Ok(())
}

/// The last lines of a component's log, and its path.
pub fn log_end(lab: &Lab, member: &str, component: &str) -> String {
    let path = lab.log(member, component);
    let text = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    format!("The end of {}:\n{}", path.display(), command::last_lines(&text, 15))
}

/// The component that has failed too often, and its last exit status.
fn hopeless(deaths: &str) -> Option<(&str, &str)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    deaths.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| {
        let count = counts.entry(name).or_default();
        *count += 1;
        *count >= TOLERATED_DEATHS
    })
}

fn deaths(lab: &Lab, member: &str) -> PathBuf {
    lab.path("run").join(format!("{member}.deaths"))
}

fn append(path: &Path) -> Result<File> {
    fs::create_dir_all(path.parent().context("a log without a directory")?)?;
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_died_once_is_not_given_up() {
        assert_eq!(hopeless("kubelet: exit code 1\nkube-proxy: SIGKILL\nkubelet: exit code 1\n"), None);
        assert_eq!(hopeless("a: 1\na: 1\nb: 1\na: exit code 2\n"), Some(("a", "exit code 2")));
    }
}
