//! Runs `podtap-collector`.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::child::{self, Killed};

/// The binary that was built with the tests.
///
/// # Panics
/// If it was not built.
pub fn binary() -> PathBuf {
    built("podtap-collector")
}

/// The binary of a package that was built with the tests.
pub(crate) fn built(package: &str) -> PathBuf {
    let test = env::current_exe().expect("a process knows its executable");
    let path = test.ancestors().nth(2).expect("tests are in target/debug/deps").join(package);
    assert!(path.exists(), "{} does not exist: `cargo build -p {package}` builds it", path.display());
    path
}

/// A pod of a Deployment, for a file of names: in the namespace `shop`, on the node `n1`.
pub fn pod(name: &str, workload: &str, address: Ipv4Addr) -> Value {
    json!({"namespace": "shop", "name": name, "uid": name, "addresses": [address], "node": "n1",
        "workload": {"kind": "Deployment", "name": workload}})
}

/// A collector that captures in a network namespace, and prints flows. Killed when dropped.
pub struct Collector {
    child: Killed,
    flows: Arc<Mutex<String>>,
    readers: Option<[JoinHandle<String>; 2]>,
}

impl Collector {
    /// Starts it with these arguments, and returns when it captures.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn start(network: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.display())).arg(binary()).args(arguments);
        let child = command.args(["--print", "flows"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("it runs");
        let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut text = String::new();
        while !text.ends_with("capturing\n") {
            assert!(errors.read_line(&mut text).expect("it can be read") > 0, "it ended: {text}");
        }
        let flows = Arc::<Mutex<String>>::default();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let lines = thread::spawn({
            let flows = Arc::clone(&flows);
            move || {
                for line in output.lines().map_while(Result::ok) {
                    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
                    flows.push_str(&line);
                    flows.push('\n');
                }
                String::new()
            }
        });
        let rest = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Self { child: Killed(child), flows, readers: Some([lines, rest]) }
    }

    /// The flows that it has printed so far, as lines.
    pub fn lines(&self) -> String {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The flows that it has printed so far.
    ///
    /// # Panics
    /// If a line is no object.
    pub fn flows(&self) -> Vec<Value> {
        self.lines().lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        child::signal(&self.child.0, signal);
    }

    /// Ends it, as a service manager does. Returns its flows as lines, and what it says of them.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn end(mut self) -> (String, String) {
        self.signal(Signal::SIGTERM);
        let (status, errors) = self.wait();
        assert!(status.success(), "{errors}");
        (self.lines(), errors)
    }

    /// Waits until it ends by itself. Returns what it says of that.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let [lines, rest] = self.readers.take().expect("it is waited for once");
        let errors = rest.join().expect("it does not panic");
        lines.join().expect("it does not panic");
        (self.child.0.wait().expect("it ends"), errors)
    }
}

/// A collector that serves what it finds. Killed when dropped.
pub struct Served {
    child: Killed,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Served {
    /// Starts it with a capture file and a file of names, and returns when it listens.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn start(file: &Path, names: &Path) -> Self {
        Self::spawn(Command::new(binary()).arg("--read").arg(file), names)
    }

    /// Starts one that captures what comes by VXLAN to a port.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn live(port: u16, names: &Path) -> Self {
        Self::spawn(Command::new(binary()).arg("--vxlan-port").arg(port.to_string()), names)
    }

    #[track_caller]
    fn spawn(command: &mut Command, names: &Path) -> Self {
        command.arg("--names").arg(names).args([
            "--listen",
            "127.0.0.1:0",
            "--print",
            "nothing",
            "--metrics-level",
            "pod",
        ]);
        let mut child = Killed(command.stderr(Stdio::piped()).spawn().expect("it runs"));
        let mut errors = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let mut text = String::new();
        let address = loop {
            assert!(errors.read_line(&mut text).expect("it can be read") > 0, "it ended: {text}");
            let line = text.lines().last().unwrap_or_default();
            if let Some((_, address)) = line.split_once("is served on http://") {
                break address.trim_end_matches('/').parse().expect("an address");
            }
        };
        // It must not fail because what it prints is not read.
        thread::spawn(move || io::copy(&mut errors, &mut io::sink()));
        Self { child, address }
    }

    /// Ends it, as a user does.
    ///
    /// # Panics
    /// If it fails.
    pub fn end(mut self) {
        child::signal(&self.child.0, Signal::SIGINT);
        assert!(self.child.0.wait().expect("it ends").success());
    }
}

/// `podtap-collector sensor`. Killed when dropped.
pub struct Sensor {
    child: Killed,
    /// Where it listens, if it was told to.
    pub address: Option<SocketAddr>,
}

impl Sensor {
    /// Starts it in a network namespace with these arguments, and returns when it captures.
    ///
    /// # Panics
    /// If it ends instead.
    #[must_use]
    #[track_caller]
    pub fn start(network: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.display())).arg(binary()).arg("sensor").args(arguments);
        let mut child = Killed(command.stderr(Stdio::piped()).spawn().expect("it runs"));
        let mut errors = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let (mut text, mut address) = (String::new(), None);
        while !text.ends_with("capturing\n") {
            assert!(errors.read_line(&mut text).expect("it can be read") > 0, "it ended: {text}");
            let line = text.lines().last().unwrap_or_default();
            if let Some((_, listening)) = line.split_once("are served on ") {
                address = Some(listening.parse().expect("an address"));
            }
        }
        thread::spawn(move || io::copy(&mut errors, &mut io::sink()));
        Self { child, address }
    }

    /// Ends it, as a service manager does.
    ///
    /// # Panics
    /// If it fails.
    pub fn end(mut self) {
        child::signal(&self.child.0, Signal::SIGTERM);
        assert!(self.child.0.wait().expect("it ends").success());
    }
}
