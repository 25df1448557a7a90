//! Runs `podtap-exporter`.

use std::{
    env, fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{self, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    child::{self, Killed},
    collector::built,
    http,
    net::Network,
    wait::{PATIENCE, until},
};

/// Where it serves health, metrics and `/status`: each exporter has a network namespace of its own.
pub const PROBES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8082);

/// What an exporter has left that ended.
#[derive(Debug)]
pub struct Ended {
    /// Success: all sinks got all records.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its log.
    pub errors: String,
}

/// Exports lines of flows.
///
/// # Panics
/// If it cannot be run.
pub fn export(network: &Network, lines: &str, sinks: &str) -> Ended {
    let mut exporter = Exporter::new(network, sinks);
    // It may end before it has read all.
    let _ = exporter.read().write_all(lines.as_bytes());
    exporter.wait()
}

/// The condition of a sink, as `/status` tells it: whether it takes records, and why not.
///
/// # Errors
/// If there is no such sink.
pub fn condition(status: &str, sink: &str) -> Result<(Option<bool>, String), String> {
    let told: Vec<Value> = serde_json::from_str(status).map_err(|error| error.to_string())?;
    let told = told.into_iter().find(|told| told["sink"] == sink).ok_or(status)?;
    Ok((told["exporting"].as_bool(), told["message"].as_str().unwrap_or_default().to_owned()))
}

/// An exporter in a network namespace, with a directory of its own. Killed and removed when dropped.
pub struct Exporter<'a> {
    network: &'a Network,
    directory: PathBuf,
    child: Option<Killed>,
}

impl<'a> Exporter<'a> {
    /// One with these sinks, which is not started yet.
    ///
    /// # Panics
    /// If its files cannot be written.
    pub fn new(network: &'a Network, sinks: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("podtap-exporter-{}-{number}", process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let exporter = Self { network, directory, child: None };
        fs::write(exporter.file("sinks.yaml"), sinks).expect("it can be written");
        exporter
    }

    /// Starts it, and returns its standard input, from which it reads lines to their end.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn read(&mut self) -> ChildStdin {
        let output = self.create("output");
        let child = self.start(["--read", "-"], output);
        child.stdin.take().expect("it is piped")
    }

    /// Starts it, and returns when it listens on [`Self::socket`].
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn listen(&mut self) {
        let output = self.create("output");
        self.listen_with(output);
    }

    /// Likewise, with a standard output that is not read, and takes no more than fits into a pipe.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn listen_unread(&mut self) {
        self.listen_with(Stdio::piped());
    }

    #[track_caller]
    fn listen_with(&mut self, output: impl Into<Stdio>) {
        self.start(["--socket", &self.socket()], output);
        until("it listens", PATIENCE, || match self.text("errors") {
            errors if errors.contains("podtap-exporter: listening\n") => Ok(()),
            errors => Err(errors),
        });
    }

    fn start(&mut self, source: [&str; 2], output: impl Into<Stdio>) -> &mut process::Child {
        let mut command = Command::new(built("podtap-exporter"));
        command.args(source).args(["--probes", &PROBES.to_string(), "--config"]).arg(self.file("sinks.yaml"));
        command.stdin(Stdio::piped()).stdout(output).stderr(self.create("errors"));
        let child = self.network.within(|| command.spawn()).expect("it runs");
        &mut self.child.insert(Killed(child)).0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn create(&self, name: &str) -> fs::File {
        fs::File::create(self.file(name)).expect("it can be written")
    }

    /// What a file has, if it exists.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// The path to which the collector connects.
    ///
    /// # Panics
    /// If the temporary directory's is no text.
    pub fn socket(&self) -> String {
        self.file("socket").to_str().expect("text").to_owned()
    }

    /// The whole lines that it has written to standard output so far.
    pub fn output(&self) -> String {
        let mut output = self.text("output");
        output.truncate(output.rfind('\n').map_or(0, |end| end + 1));
        output
    }

    fn child(&self) -> &process::Child {
        &self.child.as_ref().expect("it was started").0
    }

    /// Its process ID.
    ///
    /// # Panics
    /// If it was not started.
    pub fn process(&self) -> u32 {
        self.child().id()
    }

    /// [The condition](condition) of a sink.
    ///
    /// # Errors
    /// If it does not answer, or has no such sink.
    pub fn condition(&self, sink: &str) -> Result<(Option<bool>, String), String> {
        condition(&self.get("/status")?, sink)
    }

    /// The value of a metric, by its name and labels as they are written.
    ///
    /// # Errors
    /// If it does not answer, or has no such metric.
    pub fn metric(&self, name: &str) -> Result<u64, String> {
        let metrics = self.get("/metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or_else(|| format!("{name} is missing: {metrics}"))
    }

    /// What it serves.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn get(&self, path: &str) -> Result<String, String> {
        self.network.within(|| http::body(PROBES, path))
    }

    /// Kills it. It can be started again.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Ends it, as a kubelet does.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn end(self) -> Ended {
        child::signal(self.child(), Signal::SIGTERM);
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it was not started.
    pub fn wait(mut self) -> Ended {
        let status = self.child.as_mut().expect("it was started").0.wait().expect("it ends");
        Ended { status, output: self.text("output"), errors: self.text("errors") }
    }
}

impl Drop for Exporter<'_> {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Both lines of a report, as the collector writes them, of one of 1000 connections. No other number has the same ones.
pub fn report(number: u32) -> String {
    let (client, connection) = (10_000 + number % 1000, number % 1000);
    let line = |from: &str, to: &str, reply: &str| {
        format!(
            "{{\"TimeFlowStartMs\":1767261600000,\"TimeFlowEndMs\":{},\"Etype\":2048,\"Proto\":6,\"{from}Addr\":\"10.0.0.1\",\"{from}Port\":{client},\
             \"{to}Addr\":\"10.0.0.2\",\"{to}Port\":80,\"Bytes\":{number},\"Packets\":7,\"Flags\":27,\"PayloadBytes\":{number},\
             \"{from}K8S_Name\":\"web-7c9f8d6b5-x2x4z\",\"{from}K8S_Namespace\":\"shop\",\"{from}K8S_Type\":\"Pod\",\"{from}K8S_OwnerName\":\"web\",\
             \"{to}K8S_Name\":\"cart-5d4f6b7c8-9q8w7\",\"{to}K8S_Namespace\":\"shop\",\"{to}K8S_Type\":\"Pod\",\"{to}K8S_OwnerName\":\"cart\",\
             \"FlowEndReason\":\"activeTimeout\",\"Opener\":\"syn\",\"ConnId\":\"{connection:016x}\"{reply}}}\n",
            1_767_261_600_000 + u64::from(number)
        )
    };
    line("Src", "Dst", "") + &line("Dst", "Src", ",\"Reply\":true")
}
