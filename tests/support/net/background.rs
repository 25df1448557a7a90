use std::{
    fs::File,
    io::Read as _,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use super::Node;
use crate::wait::until;

/// A shell script that runs in a node's PID namespace, killed when dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
}

impl Background {
    /// Starts a script.
    #[must_use]
    pub fn start(node: &Node, script: &str) -> Self {
        Self { child: node.spawn(None, Command::new("sh").args(["-c", script])) }
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child can be waited for")
    }

    /// Waits until the machine has started this many further processes.
    ///
    /// # Panics
    /// When the script ends, or after half a minute.
    pub fn until_forked(&mut self, count: u64) {
        let start = forks();
        until("the processes have started", Duration::from_secs(30), || {
            assert!(matches!(self.child.try_wait(), Ok(None)), "the script runs");
            let forked = forks() - start;
            if forked >= count { Ok(()) } else { Err(format!("{forked} of {count}")) }
        });
    }
}

/// Processes and threads that the machine has started since it booted (`proc_stat(5)`).
fn forks() -> u64 {
    let mut text = String::new();
    File::open("/proc/stat").and_then(|mut file| file.read_to_string(&mut text)).expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix("processes "));
    line.and_then(|number| number.parse().ok()).expect("/proc/stat has the number of processes")
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
