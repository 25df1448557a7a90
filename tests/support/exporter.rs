//! Runs `podtap-exporter`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::sys::signal::Signal;

use crate::{
    child::{self, Killed},
    collector::built,
};

/// What an exporter did with a file.
#[derive(Debug)]
pub struct Exported {
    /// Whether all sinks got all records.
    pub success: bool,
    /// Its standard output.
    pub output: String,
    /// What it says of it.
    pub errors: String,
}

/// A file of sinks, removed when dropped.
struct Config(PathBuf);

impl Config {
    fn new(sinks: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-sinks-{}-{number}.yaml", std::process::id()));
        fs::write(&path, sinks).expect("a file");
        Self(path)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Exports lines of flows.
///
/// # Panics
/// If it cannot be run.
pub fn export(lines: &str, sinks: &str) -> Exported {
    let config = Config::new(sinks);
    let mut command = Command::new(built("podtap-exporter"));
    command.args(["--read", "-", "--config"]).arg(&config.0);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed(piped.spawn().expect("it runs"));
    let mut input = child.0.stdin.take().expect("it is piped");
    let [output, errors] = thread::scope(|scope| {
        // It may end before it has read all.
        scope.spawn(move || drop(input.write_all(lines.as_bytes())));
        let mut errors = child.0.stderr.take().expect("it is piped");
        let errors = scope.spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).map(|_| text)
        });
        let mut output = String::new();
        child.0.stdout.take().expect("it is piped").read_to_string(&mut output).expect("text");
        [output, errors.join().expect("it does not panic").expect("text")]
    });
    Exported { success: child.0.wait().expect("it ends").success(), output, errors }
}

/// An exporter that listens for a collector. Killed when dropped.
pub struct Exporter {
    child: Killed,
    /// Where it serves health, metrics and `/status`.
    pub address: SocketAddr,
    output: Arc<Mutex<String>>,
    readers: [JoinHandle<String>; 2],
    _config: Config,
}

impl Exporter {
    /// Starts it in a network namespace, and returns when it listens on the socket.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn start(network: &Path, socket: &Path, sinks: &str) -> Self {
        let config = Config::new(sinks);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.display())).arg(built("podtap-exporter"));
        command.arg("--socket").arg(socket).arg("--config").arg(&config.0).args(["--probes", "127.0.0.1:0"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut child = Killed(child);
        let mut errors = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let mut text = String::new();
        while !text.ends_with("listening\n") {
            assert!(errors.read_line(&mut text).expect("it can be read") > 0, "it ended: {text}");
        }
        let address = text.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let rest = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let output = Arc::<Mutex<String>>::default();
        let lines = BufReader::new(child.0.stdout.take().expect("it is piped"));
        let lines = thread::spawn({
            let output = Arc::clone(&output);
            move || {
                for line in lines.lines().map_while(Result::ok) {
                    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    output.push_str(&line);
                    output.push('\n');
                }
                String::new()
            }
        });
        Self { child, address: address.expect("an address"), output, readers: [lines, rest], _config: config }
    }

    /// What it has written to standard output so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        child::signal(&self.child.0, Signal::SIGKILL);
        let _ = self.child.0.wait();
    }

    /// Ends it, as a kubelet does. Returns what it says then.
    ///
    /// # Panics
    /// If a sink did not get all.
    #[track_caller]
    pub fn end(mut self) -> String {
        child::signal(&self.child.0, Signal::SIGTERM);
        let [_, errors] = self.readers.map(|reader| reader.join().expect("it does not panic"));
        assert!(self.child.0.wait().expect("it ends").success(), "{errors}");
        errors
    }
}
