//! Identifying our processes. A PID alone is not enough: after a crash it may belong to another program.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::progress;

/// A process, identified by its PID, its start time (in ticks since boot), and the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The PID in the machine's PID namespace.
    pub pid: i32,
    started: u64,
    boot: String,
}

impl Process {
    /// The calling process, by the mounted `/proc`: for the first process of a PID namespace that has not mounted its own yet, that is the
    /// machine's PID.
    pub fn own() -> Result<Self> {
        let pid = fs::read_link("/proc/self").context("cannot read /proc/self")?;
        let pid = pid.to_str().and_then(|pid| pid.parse().ok()).context("/proc/self is not a PID")?;
        Self::of(pid).context("cannot read /proc/self/stat")
    }

    fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: read_stat(pid)?.started, boot: boot().ok()? })
    }

    /// All that run `program` with one of these words as the first argument.
    pub fn all_of(program: &Path, words: &[&str]) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_meant = |pid: &i32| {
            let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| is_program(&path, program));
            runs && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0).nth(1).is_some_and(|word| words.iter().any(|w| w.as_bytes() == word))
            })
        };
        pids.filter(is_meant).filter_map(Self::of).collect()
    }

    /// Records the calling process in `record`.
    pub fn record_own(record: &Path) -> Result<()> {
        crate::state::write_whole(record, serde_json::to_vec(&Self::own()?)?)
    }

    /// The process of a record, if it exists in any state. A record that cannot be read counts as none: a crash may leave anything.
    pub fn recorded(record: &Path) -> Option<Self> {
        let process: Self = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
        process.is_alive().then_some(process)
    }

    /// The process of a record, if it runs and is not ending. An ending process has left its namespaces, but still waits for all that ran
    /// in them.
    pub fn running(record: &Path) -> Option<Self> {
        Self::recorded(record).filter(|process| process.namespace("net").exists())
    }

    /// Whether it still runs. One that has ended but was not reaped by its parent does not.
    pub fn is_alive(&self) -> bool {
        let same_boot = boot().is_ok_and(|boot| boot == self.boot);
        same_boot
            && read_stat(self.pid)
                .is_some_and(|stat| stat.started == self.started && stat.state != 'Z' && stat.state != 'X')
    }

    /// Kills it and waits until it has ended. All other processes of a PID namespace end with its first one.
    pub fn kill(&self) -> Result<()> {
        if self.is_alive() {
            // It may end by itself in between: nothing is left to do then.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        if !progress::wait_until(Duration::from_secs(30), || !self.is_alive()) {
            bail!("process {} does not end; look at /proc/{}/stack", self.pid, self.pid);
        }
        Ok(())
    }

    /// One of its namespaces (`net`, `mnt`, ...).
    pub fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }
}

/// The kernel marks the path of a program whose file was deleted or replaced.
fn is_program(path: &Path, program: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    path.strip_suffix(b" (deleted)").unwrap_or(path) == program.as_os_str().as_encoded_bytes()
}

struct Stat {
    state: char,
    started: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses, which may contain anything, so count from its end.
fn parse_stat(line: &str) -> Option<Stat> {
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, started })
}

/// Tells one boot of the machine from another.
pub fn boot() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot ID")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat("42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 20")
            .expect("a stat line");
        assert_eq!((stat.state, stat.started), ('S', 987_654));
        assert!(parse_stat("42 (cut").is_none());
    }

    #[test]
    fn this_process_is_alive_and_another_with_its_id_is_not_it() {
        let own = Process::own().expect("own");
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own.clone() }.is_alive());
        assert!(!Process { boot: "another".into(), ..own }.is_alive());
    }

    #[test]
    fn a_program_is_found_also_when_its_file_was_replaced() {
        let program = Path::new("/c/target/lab/bin/lab");
        assert!(is_program(Path::new("/c/target/lab/bin/lab"), program));
        assert!(is_program(Path::new("/c/target/lab/bin/lab (deleted)"), program));
        assert!(!is_program(Path::new("/c/target/lab/bin/lab2"), program));
        assert!(!is_program(Path::new("/d/target/lab/bin/lab"), program));
    }

    #[test]
    fn a_process_is_found_by_its_program_and_first_argument() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        // `spawn` returns when the child has a new address space, shortly before that has its arguments (fs/exec.c).
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read(format!("/proc/{}/cmdline", child.id())).expect("its command line").is_empty() {
            assert!(std::time::Instant::now() < deadline, "a child without arguments");
            std::thread::yield_now();
        }
        let program = fs::read_link(format!("/proc/{}/exe", child.id())).expect("its program");
        let found =
            |word| Process::all_of(&program, &[word]).iter().any(|process| process.pid == child.id().cast_signed());
        let answers = (found("60"), found("61"));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(answers, (true, false));
    }
}
