//! Entering namespaces: new ones, to start a member of the lab, or those of a running member.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::command::search_path;
use crate::process::Process;
use crate::signals;
use crate::state::Lab;

/// The namespaces of a member, as named in `/proc`. The mount namespace comes last: after joining it, the others could no longer be found.
const KINDS: [(&str, CloneFlags); 5] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Starts a member in new namespaces. Its first process lives as long as the member: killing it is a power cut.
///
/// Runs in a process of its own, because a new PID namespace affects only children, and every other namespace also the process itself.
pub fn begin(lab: &Lab, member: &str) -> Result<()> {
    let path = lab.log(member, "init");
    fs::create_dir_all(path.parent().context("a log without a directory")?)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    // Afterwards the kernel would report a path that may not exist for us, for example in a chroot.
    let program = env::current_exe()?;
    let all = KINDS.iter().fold(CloneFlags::empty(), |all, (_, kind)| all | *kind);
    unshare(all).context("cannot create namespaces; the lab needs root")?;
    let mut first = Command::new(program);
    first.args(["init", member]).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // It becomes an orphan when this process ends, right after this.
    first.spawn().context("cannot begin the first process")?;
    Ok(())
}

/// Runs a command in all namespaces of a member and returns its exit code as a shell would.
pub fn enter(member: &Process, words: &[String]) -> Result<u8> {
    let working = env::current_dir().unwrap_or_else(|_| "/".into());
    let (program, arguments) = words.split_first().context("no command was given")?;
    let open = |(kind, flag)| {
        Ok((File::open(member.namespace(kind)).with_context(|| format!("cannot open its {kind} namespace"))?, flag))
    };
    let namespaces = KINDS.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    for (namespace, kind) in namespaces {
        setns(namespace, kind).context("cannot join its namespaces; the lab needs root")?;
    }
    // The root if the node lacks the directory, for example below /run.
    env::set_current_dir(working).or_else(|_| env::set_current_dir("/"))?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", search_path(&env::var("PATH").unwrap_or_default()));
    signals::run(command).or_else(|error| {
        eprintln!("lab: cannot run {program}: {error}");
        Ok(if error.kind() == ErrorKind::NotFound { 127 } else { 126 })
    })
}

/// Runs a closure in a member's network namespace, and in none of its others. Sockets that it opens stay there.
pub fn within_network<T: Send>(member: &Process, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(member.namespace("net")).context("the member has no network; is it up? (lab status)")?;
    // A short-lived thread joins the namespace; the others stay in theirs.
    let inside = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot join a network namespace; the lab needs root")?;
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow!("the work within the network panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_namespace_is_joined_last() {
        assert_eq!(KINDS[KINDS.len() - 1].0, "mnt");
    }
}
