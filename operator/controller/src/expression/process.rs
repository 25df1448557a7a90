//! The process that compiles an expression: `podtap-controller compile-expression`, text in, JSON out.

use std::{
    io::{self, Read as _},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use podtap_model::Instruction;
use podtap_runtime::memory::disable_tracing;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

use crate::expression::CompileError;

/// CPU time after which the kernel ends the process with SIGXCPU. Most expressions take a few milliseconds, one with a hundred ports a
/// fifth of a second, and the longest lists of ports more than this. Beyond the hard limit, it would send SIGKILL, as it does when
/// memory is exhausted.
const SECONDS: u64 = 1;
const HARD_SECONDS: u64 = 2;
/// Limit of the process's address space, which is more than its memory. As many processes as run at the same time fit beside the
/// controller into the chart's memory limit of 256 MiB. With half of it, long expressions fail.
const BYTES: u64 = 64 << 20;
/// How long the controller waits for the process.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest text that the process reads, and longest answer that the controller reads: four times the longest valid program.
const MAX_LENGTH: u64 = 64 << 10;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libpcap rejects the text or fails on it. The same text has the same result each time.
    #[error(transparent)]
    Rejected(CompileError),
    /// The process did not run properly. Another attempt may succeed.
    #[error("the compiler process failed: {0}")]
    Process(#[from] io::Error),
}

/// Output of the process. An instruction is `[code, jt, jf, k]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Answer {
    Program(Vec<(u16, u8, u8, u32)>),
    Error(String),
}

/// Entry point of the process.
pub fn serve() -> io::Result<()> {
    // Other compiler processes may have another tenant's text.
    disable_tracing()?;
    let limit = |resource, amount| setrlimit(resource, Rlimit { current: Some(amount), maximum: Some(amount) });
    setrlimit(Resource::Cpu, Rlimit { current: Some(SECONDS), maximum: Some(HARD_SECONDS) })?;
    limit(Resource::As, BYTES)?;
    limit(Resource::Core, 0)?;
    // No further file and no socket: names cannot be resolved, and a compromised parser reaches nothing.
    limit(Resource::Nofile, 0)?;
    let mut text = String::new();
    io::stdin().take(MAX_LENGTH).read_to_string(&mut text)?;
    let answer = match super::compile(&text) {
        Ok(program) => {
            Answer::Program(program.iter().map(|&Instruction { code, jt, jf, k }| (code, jt, jf, k)).collect())
        }
        Err(CompileError(error)) => Answer::Error(error),
    };
    serde_json::to_writer(io::stdout(), &answer)?;
    Ok(())
}

/// Starts compiler processes.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Default for Compiler {
    /// This binary, even if the file has been replaced since.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec!["compile-expression".into()] }
    }
}

impl Compiler {
    /// A shell script in place of the compiler.
    #[cfg(test)]
    pub fn shell(script: &str) -> Self {
        Self { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

    /// Compiles an expression in a new process.
    pub async fn compile(&self, expression: &str) -> Result<Vec<Instruction>, Error> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A process that does not read it exits, and the exit status says why.
            let _ = input.write_all(expression.as_bytes()).await;
        }
        let mut output =
            child.stdout.take().ok_or_else(|| io::Error::other("the process has no standard output"))?.take(MAX_LENGTH);
        let end = async {
            let mut answer = Vec::new();
            output.read_to_end(&mut answer).await?;
            // The process may be blocked on its output; dropping it ends it.
            if output.limit() == 0 {
                return Err(Error::Rejected(CompileError("the compiled program is far too long".to_owned())));
            }
            Ok((child.wait().await?, answer))
        };
        let (status, answer) = timeout(TIMEOUT, end).await.map_err(io::Error::from)??;
        if !status.success() {
            return Err(ended(status));
        }
        match serde_json::from_slice(&answer).map_err(io::Error::from)? {
            Answer::Program(program) => Ok(program.into_iter().map(Into::into).collect()),
            Answer::Error(error) => Err(Error::Rejected(CompileError(error))),
        }
    }
}

/// Why the process ended without an answer.
fn ended(status: ExitStatus) -> Error {
    use std::os::unix::process::ExitStatusExt as _;

    const ABORT: i32 = 6;
    const BUS: i32 = 7;
    const FLOATING_POINT: i32 = 8;
    const SEGMENT: i32 = 11;
    const CPU_TIME: i32 = 24;
    match status.signal() {
        Some(ABORT | BUS | FLOATING_POINT | SEGMENT) => {
            Error::Rejected(CompileError(format!("libpcap crashes on it ({status})")))
        }
        Some(CPU_TIME) => Error::Rejected(CompileError(format!("libpcap takes too long for it ({status})"))),
        // SIGKILL is not about the text: the memory of the controller's container is exhausted.
        _ => Error::Process(io::Error::other(status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(script: &str) -> Result<Vec<Instruction>, Error> {
        Compiler::shell(script).compile("tcp port 443").await
    }

    #[tokio::test]
    async fn answers() {
        let program =
            ask(r#"read -r text; [ "$text" = "tcp port 443" ] || exit 9; echo '{"program": [[6, 0, 0, 1]]}'"#);
        assert_eq!(program.await.expect("a program"), [Instruction { code: 6, jt: 0, jf: 0, k: 1 }]);
        let error = ask(r#"echo '{"error": "syntax error"}'"#).await.expect_err("an error");
        assert!(matches!(&error, Error::Rejected(CompileError(message)) if message == "syntax error"), "{error}");
    }

    #[tokio::test]
    async fn ends_without_an_answer() {
        for (script, words) in [("kill -SEGV $$", "crashes"), ("kill -XCPU $$", "too long")] {
            let error = ask(script).await.expect_err("an error");
            assert!(
                matches!(&error, Error::Rejected(CompileError(message)) if message.contains(words)),
                "{script}: {error}"
            );
        }
        for script in ["exit 1", "echo nonsense", "kill -TERM $$", "kill -KILL $$"] {
            let error = ask(script).await.expect_err("an error");
            assert!(matches!(error, Error::Process(_)), "{script}: {error}");
        }
        let missing = Compiler { program: "/nowhere".into(), arguments: vec![] };
        assert!(matches!(missing.compile("tcp").await, Err(Error::Process(_))));
    }

    #[tokio::test]
    async fn too_much_output() {
        let error = ask("exec cat /dev/zero").await.expect_err("an error");
        assert!(matches!(&error, Error::Rejected(CompileError(message)) if message.contains("too long")), "{error}");
    }

    #[test]
    fn a_process_that_cannot_be_traced_can_start_itself() {
        disable_tracing().expect("no privilege is needed");
        let listed = std::process::Command::new(Compiler::default().program).arg("--list").output();
        assert!(listed.expect("it starts").status.success());
    }

    #[tokio::test(start_paused = true)]
    async fn never_ends() {
        assert!(matches!(ask("exec sleep 1000").await, Err(Error::Process(_))));
    }
}
