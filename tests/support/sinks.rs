//! Runs `podtap-exporter`, and watches its sinks.

use std::{
    env, fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
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
};

/// Where it serves its conditions and metrics: tests give each a network namespace of its own.
const PROBES: &str = "127.0.0.1:8080";

/// An exporter in a network namespace, with a directory of its own. Killed and removed when dropped.
pub struct Sinks<'a> {
    network: &'a Network,
    directory: PathBuf,
    child: Killed,
}

impl<'a> Sinks<'a> {
    /// Starts one that reads lines from [`Self::input`] to their end.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn reading(network: &'a Network, config: &str) -> Self {
        Self::start(network, config, |_| ["--read".to_owned(), "-".to_owned()])
    }

    /// Starts one that listens on [`Self::socket`], as in a cluster.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn listening(network: &'a Network, config: &str) -> Self {
        Self::start(network, config, |directory| ["--socket".to_owned(), text(&directory.join("socket"))])
    }

    fn start(network: &'a Network, config: &str, source: impl FnOnce(&Path) -> [String; 2]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("podtap-exporter-{}-{number}", process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("sinks.yaml"), config).expect("it can be written");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.path().display())).arg(built("podtap-exporter"));
        command.args(["--probes", PROBES, "--config"]).arg(directory.join("sinks.yaml")).args(source(&directory));
        let errors = fs::File::create(directory.join("stderr")).expect("it can be written");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn();
        Self { network, directory, child: Killed(child.expect("it runs")) }
    }

    /// Where the collector connects.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Its standard input, once.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn input(&mut self) -> ChildStdin {
        self.child.0.stdin.take().expect("it is taken once")
    }

    /// Its process ID. What nsenter runs, it has become.
    pub fn process(&self) -> u32 {
        self.child.0.id()
    }

    /// The condition of a sink: whether it takes records, and why not.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn condition(&self, sink: &str) -> Result<(Option<bool>, String), String> {
        let told: Vec<Value> = serde_json::from_str(&self.get("/status")?).map_err(|error| error.to_string())?;
        let told = told.into_iter().find(|told| told["sink"] == sink).ok_or("there is no such sink")?;
        Ok((told["exporting"].as_bool(), told["message"].as_str().unwrap_or_default().to_owned()))
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

    fn get(&self, path: &str) -> Result<String, String> {
        let server: SocketAddr = PROBES.parse().expect("an address");
        match self.network.within(|| http::get(server, path)) {
            Ok((200, body)) => Ok(body),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Asks it to end.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn terminate(&self) {
        child::signal(&self.child.0, Signal::SIGTERM);
    }

    /// Waits until it ends. Returns what it logged, too.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.0.wait().expect("it ends");
        let mut errors = String::new();
        let file = fs::File::open(self.directory.join("stderr"));
        file.and_then(|mut file| file.read_to_string(&mut errors)).expect("text");
        (status, errors)
    }
}

impl Drop for Sinks<'_> {
    fn drop(&mut self) {
        let _ = self.child.0.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
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
