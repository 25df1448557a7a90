use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{
        fs::FileTypeExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{AGENT_UID, Agent, Node};
use crate::wait::{PATIENCE, until};

/// Exactly the capabilities of the helper's container.
const CAPABILITIES: &str = "-all,+net_admin,+net_raw,+sys_admin,+sys_ptrace,+bpf";

/// A running `tap-helper serve`, killed when dropped.
#[derive(Debug)]
pub struct Helper {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Helper {
    /// Starts a helper on a node, and waits until it listens.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn start(node: &Node) -> Self {
        Self::serve(node, |arguments| command(&[], arguments))
    }

    /// Starts a helper that cannot use eBPF at all, as on a locked-down kernel.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn without_ebpf(node: &Node) -> Self {
        Self::serve(node, |arguments| {
            let mut command = command(&[], arguments);
            refuse_bpf(&mut command, None, libc::EPERM);
            command
        })
    }

    /// Starts a helper that can read and write the maps that exist, but create none, as if the kernel had no memory left for them.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn without_new_maps(node: &Node) -> Self {
        Self::serve(node, |arguments| {
            let mut command = command(&[], arguments);
            refuse_bpf(&mut command, Some(BPF_MAP_CREATE), libc::ENOMEM);
            command
        })
    }

    /// Starts a helper of whose threads each has its first `count` calls of bpf(2) fail, as if the kernel had no memory left.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn short_of_memory(node: &Node, count: u32) -> Self {
        let inject = format!("inject=bpf:error=ENOMEM:when=1..{count}");
        let tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", &inject];
        Self::serve(node, |arguments| command(&tracer, arguments))
    }

    /// Starts a helper of whose threads each takes at least six seconds for the first program set that it loads.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn slow_to_load(node: &Node) -> Self {
        // A set takes more calls than these.
        let inject = "inject=bpf:delay_enter=500000:when=1..12";
        let tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", inject];
        Self::serve(node, |arguments| command(&tracer, arguments))
    }

    /// Starts a helper whose log cannot be written, as on a full disk.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[must_use]
    pub fn with_a_full_log(node: &Node) -> Self {
        let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
        Self::serve_logging_to(node, full, |arguments| command(&[], arguments))
    }

    fn serve(node: &Node, command: impl Fn(&[&str]) -> Command) -> Self {
        let log = File::options().create(true).append(true).open(log_of(node)).expect("a file can be created");
        Self::serve_logging_to(node, log, command)
    }

    fn serve_logging_to(node: &Node, output: File, command: impl Fn(&[&str]) -> Command) -> Self {
        let socket = node.socket_directory().join("tap-helper.sock");
        // A helper that was killed leaves its socket, which would be mistaken for the one of this helper.
        let _ = fs::remove_file(&socket);
        let log = log_of(node);
        let uid = AGENT_UID.to_string();
        let path = socket.display().to_string();
        let mut command = command(&["serve", "--socket", &path, "--agent-uid", &uid]);
        // A group of its own: with a tracer, both are killed.
        command.process_group(0);
        let process = node.spawn(None, command.stdout(Stdio::null()).stderr(output));
        let mut helper = Self { process, socket, log };
        until("tap-helper listens", PATIENCE, || match helper.process.try_wait() {
            Ok(Some(status)) => panic!("tap-helper ended ({status}): {}", helper.log()),
            _ => fs::symlink_metadata(&helper.socket).map(|file| assert!(file.file_type().is_socket())),
        });
        helper
    }

    /// Runs another command of tap-helper on a node, with `input` as the content of `FILE`. Returns its exit status, output and errors.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn once(node: &Node, arguments: &[&str], input: &str) -> (ExitStatus, String, String) {
        Self::under(node, &[], arguments, input)
    }

    /// Likewise, with a mount of `/proc` of its own, as each container has one.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn once_in_container(node: &Node, arguments: &[&str], input: &str) -> (ExitStatus, String, String) {
        Self::under(node, &["unshare", "--mount-proc"], arguments, input)
    }

    /// Runs a command and kills it after it has sent `requests` messages to the kernel. Returns whether it sent that many.
    #[must_use]
    pub fn killed_after(node: &Node, requests: u32, arguments: &[&str], input: &str) -> bool {
        let inject = format!("inject=sendto:signal=SIGKILL:when={}", requests + 1);
        let tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", &inject];
        let (status, _, error) = Self::under(node, &tracer, arguments, input);
        assert!(status.success() || status.signal().is_some(), "{status}: {error}");
        status.signal() == Some(libc::SIGKILL)
    }

    fn under(node: &Node, tracer: &[&str], arguments: &[&str], input: &str) -> (ExitStatus, String, String) {
        let file = node.directory().join("input.json");
        fs::write(&file, input).expect("a file can be written");
        let path = file.display().to_string();
        let arguments: Vec<&str> = arguments.iter().map(|word| if *word == "FILE" { &path } else { *word }).collect();
        let mut command = command(tracer, &arguments);
        let child = node.spawn(None, command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().expect("a child can be waited for");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the output is text");
        (output.status, text(output.stdout), text(output.stderr))
    }

    /// The agent's connection to it.
    #[must_use]
    #[track_caller]
    pub fn agent(&self) -> Agent {
        // The socket exists a moment before the helper listens on it.
        until("the helper listens", PATIENCE, || self.try_agent())
    }

    /// The agent's connection to it, if it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn try_agent(&self) -> io::Result<Agent> {
        Agent::connect(&self.socket, AGENT_UID)
    }

    /// The path of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Kills it, as a crash would.
    ///
    /// # Panics
    /// When it is no longer running.
    pub fn kill(&mut self) {
        assert!(matches!(self.process.try_wait(), Ok(None)), "it is still running: {}", self.log());
        self.kill_group();
        self.process.wait().expect("a child can be waited for");
    }

    /// Stops it, so that it does not answer.
    ///
    /// # Panics
    /// When it is no longer running.
    pub fn stop(&self) {
        self.signal_group(libc::SIGSTOP);
    }

    /// Lets it run again.
    ///
    /// # Panics
    /// When it is no longer running.
    pub fn resume(&self) {
        self.signal_group(libc::SIGCONT);
    }

    fn kill_group(&self) {
        self.signal_group(libc::SIGKILL);
    }

    fn signal_group(&self, signal: libc::c_int) {
        let group = i32::try_from(self.process.id()).expect("a PID fits");
        #[expect(unsafe_code, reason = "std kills no groups")]
        // SAFETY: no pointers, and a child that was not waited for keeps its PID.
        let _ = unsafe { libc::kill(-group, signal) };
    }

    /// Kills only the process that does the work, as the kernel does when memory is short.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`].
    #[track_caller]
    pub fn kill_child(&self) {
        let pid = until("the helper has a child", PATIENCE, || self.child().ok_or("it has none"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is running");
        until("it has ended", PATIENCE, || if self.child() == Some(pid) { Err("not yet") } else { Ok(()) });
    }

    /// The process that does the work, if it is running.
    #[must_use]
    pub fn child(&self) -> Option<i32> {
        let parent = self.process.id();
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(path).expect("a child that was not waited for exists");
        children.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok())
    }

    /// Asks it to end, as the kubelet does.
    ///
    /// # Panics
    /// When it fails.
    pub fn terminate(&mut self) {
        let pid = i32::try_from(self.process.id()).expect("a PID fits");
        #[expect(unsafe_code, reason = "std has no kill")]
        // SAFETY: no pointers, and a child that was not waited for keeps its PID.
        let done = unsafe { libc::kill(pid, libc::SIGTERM) };
        assert_eq!(done, 0, "it is running");
        let status = self.process.wait().expect("a child can be waited for");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Its log, which includes those of earlier helpers on the node.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- tap-helper\n{}", self.log());
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            self.kill_group();
            let _ = self.process.wait();
        }
    }
}

fn log_of(node: &Node) -> PathBuf {
    node.directory().join("tap-helper.log")
}

fn command(tracer: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", CAPABILITIES, "--inh-caps", "-all", "--no-new-privs"]);
    command.args(tracer).arg(binary()).args(arguments);
    // With the details of each step, which tests count.
    command.env("RUST_LOG", "info,tap_helper=debug");
    command
}

/// A command of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: u32 = 0;

/// Makes bpf(2), or one command of it, fail, and no other system call, by a seccomp filter that the program inherits.
#[expect(unsafe_code, reason = "a filter can be set only between fork and exec")]
fn refuse_bpf(command: &mut Command, only: Option<u32>, errno: i32) {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `struct seccomp_data` (include/uapi/linux/seccomp.h): the number of the system call, and the low word of its first argument.
    let number = u32::try_from(libc::SYS_bpf).expect("system call numbers are positive");
    let argument = if cfg!(target_endian = "big") { 20 } else { 16 };
    let refused = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let program = [
        (LOAD_WORD, 0, 0, 0),
        (JUMP_EQUAL, 0, 3, number),
        (LOAD_WORD, 0, 0, argument),
        (JUMP_EQUAL, 0, u8::from(only.is_some()), only.unwrap_or_default()),
        (RETURN, 0, 0, refused),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let set = move || {
        let mut program = program;
        let filter = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
        // SAFETY: a system call that copies the program before it returns.
        let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: one system call, on the child's own stack.
    unsafe { command.pre_exec(set) };
}

/// The binary under test: `TAP_HELPER`, or the one that was built with the tests.
fn binary() -> PathBuf {
    let default = || {
        let test = env::current_exe().expect("a process knows its executable");
        test.ancestors().nth(2).expect("tests are in target/debug/deps").join("tap-helper")
    };
    let path = env::var_os("TAP_HELPER").map_or_else(default, PathBuf::from);
    assert!(path.exists(), "{} does not exist: `make dataplane` builds it", path.display());
    path
}
