//! The process in which an expression is compiled: `podtap-controller compile-expression`, text in, JSON out.

use std::{
    io::{self, Read as _},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::{Deserialize, Serialize};
use tap_wire::Instruction;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

/// Processor time after which the kernel ends it. Expressions of the longest length take a few milliseconds.
const SECONDS: u64 = 1;
/// ControllerState that it may have: several at once fit into the controller's own limit.
const BYTES: u64 = 64 << 20;
/// When nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest text that it reads, and longest answer that is read. The longest program that nodes take is a quarter of it.
const LONGEST: u64 = 64 << 10;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libpcap's own words, or what it did with the text. The same text will have the same result.
    #[error("{0}")]
    Refused(String),
    /// It may go better some other time.
    #[error("the process for it failed: {0}")]
    Process(#[from] io::Error),
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Answer {
    Program(Vec<Instruction>),
    Error(String),
}

/// Keeps the memory of this process from others of the same user ID, which could otherwise read and write it
/// (`ptrace`, `process_vm_writev`): the process that parses text of users is such a one, and the controller has a token for
/// the API server. The attribute does not outlive an exec, so that each process needs its own.
pub fn hide() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// What the process does.
pub fn serve() -> io::Result<()> {
    // From the one beside it, which may have somebody else's text.
    hide()?;
    let limit = |resource, amount| setrlimit(resource, Rlimit { current: Some(amount), maximum: Some(amount) });
    limit(Resource::Cpu, SECONDS)?;
    limit(Resource::As, BYTES)?;
    limit(Resource::Core, 0)?;
    // No further file, and no socket: no name is looked up, and nothing is where a wrong step could lead.
    limit(Resource::Nofile, 0)?;
    let mut text = String::new();
    io::stdin().take(LONGEST).read_to_string(&mut text)?;
    let answer = match super::compile(&text) {
        Ok(program) => Answer::Program(program),
        Err(error) => Answer::Error(error),
    };
    serde_json::to_writer(io::stdout(), &answer)?;
    Ok(())
}

/// Starts such processes.
#[derive(Clone, Debug)]
pub struct Compiler {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Default for Compiler {
    /// This binary, also after somebody has put another one in its place.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec!["compile-expression".into()] }
    }
}

impl Compiler {
    /// Another process that reads and answers in the same way.
    #[cfg(test)]
    pub fn shell(script: &str) -> Self {
        Self { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

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
            // One that does not read has a reason, which its end tells.
            let _ = input.write_all(expression.as_bytes()).await;
        }
        let mut output = child.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?.take(LONGEST);
        let end = async {
            let mut answer = Vec::new();
            output.read_to_end(&mut answer).await?;
            // It may be blocked: whoever leaves here ends it.
            if output.limit() == 0 {
                return Err(Error::Refused("its program is far too long".to_owned()));
            }
            Ok((child.wait().await?, answer))
        };
        let (status, answer) = timeout(PATIENCE, end).await.map_err(io::Error::from)??;
        if !status.success() {
            return Err(ended(status));
        }
        match serde_json::from_slice(&answer).map_err(io::Error::from)? {
            Answer::Program(program) => Ok(program),
            Answer::Error(error) => Err(Error::Refused(error)),
        }
    }
}

/// What it means that the process ended without an answer.
fn ended(status: ExitStatus) -> Error {
    use std::os::unix::process::ExitStatusExt as _;

    const ABORT: i32 = 6;
    const BUS: i32 = 7;
    const FLOATING_POINT: i32 = 8;
    const KILL: i32 = 9;
    const SEGMENT: i32 = 11;
    const PROCESSOR_TIME: i32 = 24;
    match status.signal() {
        Some(ABORT | BUS | FLOATING_POINT | SEGMENT) => {
            Error::Refused(format!("libpcap cannot cope with it ({status})"))
        }
        // The kernel's second signal for too much processor time is a kill; that of a lack of memory, too.
        Some(PROCESSOR_TIME | KILL) => Error::Refused(format!("libpcap needs too long for it ({status})")),
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
        assert!(matches!(&error, Error::Refused(words) if words == "syntax error"), "{error}");
    }

    #[tokio::test]
    async fn ends_without_an_answer() {
        for (script, words) in
            [("kill -SEGV $$", "cannot cope"), ("kill -XCPU $$", "too long"), ("kill -KILL $$", "too long")]
        {
            let error = ask(script).await.expect_err("an error");
            assert!(matches!(&error, Error::Refused(message) if message.contains(words)), "{script}: {error}");
        }
        for script in ["exit 1", "echo nonsense", "kill -TERM $$"] {
            let error = ask(script).await.expect_err("an error");
            assert!(matches!(error, Error::Process(_)), "{script}: {error}");
        }
        let missing = Compiler { program: "/nowhere".into(), arguments: vec![] };
        assert!(matches!(missing.compile("tcp").await, Err(Error::Process(_))));
    }

    #[tokio::test]
    async fn says_too_much() {
        let error = ask("exec cat /dev/zero").await.expect_err("an error");
        assert!(matches!(&error, Error::Refused(words) if words.contains("too long")), "{error}");
    }

    #[test]
    fn who_hides_can_still_start_itself() {
        hide().expect("anybody may");
        let listed = std::process::Command::new(Compiler::default().program).arg("--list").output();
        assert!(listed.expect("it starts").status.success());
    }

    #[tokio::test(start_paused = true)]
    async fn never_ends() {
        assert!(matches!(ask("exec sleep 1000").await, Err(Error::Process(_))));
    }
}
