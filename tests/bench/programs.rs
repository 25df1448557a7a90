//! Programs of this machine in the network namespaces of the lab, with a time limit, and never left running.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// `command` in a network namespace; the kernel kills it when this process ends.
pub fn command(network: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nsenter"]).arg(format!("--net={}", network.display())).args(words);
    command.stdin(Stdio::null());
    command
}

/// The output of a command that may take so many seconds. If it fails, the error is its standard error, or that it hung.
pub fn bounded(network: &Path, seconds: u32, words: &[&str]) -> Result<String, String> {
    let limit = seconds.to_string();
    let bounded: Vec<&str> = ["timeout", "-k", "1", &limit].into_iter().chain(words.iter().copied()).collect();
    let output = command(network, &bounded).output().map_err(|error| format!("{words:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else if output.status.code() == Some(124) {
        Err(format!("{words:?}: not within {seconds} s"))
    } else {
        let message = text(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
        Err(format!("{words:?}: {}", message.trim().chars().take(300).collect::<String>()))
    }
}

/// A program in the background, killed when dropped.
pub struct Background(pub Child);

impl Background {
    /// Starts it, without its output.
    pub fn start(network: &Path, words: &[&str]) -> Self {
        let child = command(network, words).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{words:?}: {error}")))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
