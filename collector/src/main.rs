//! `podtap-collector`: flows and who calls whom, from mirrored frames.
//!
//! [`read`] gets frames from files and [`mod@capture`] from the network, [`analysis`] counts them by [`podtap_flow`] and names their
//! ends, [`output`] writes what people and programs read, and [`serve`] serves it over HTTP.
//!
//! In a cluster, it runs twice in each pod. `podtap-collector names` ([`cluster`]) has a token of the API server and no capability; the
//! other one parses frames that anyone may have sent, and has the capability `NET_RAW` and no token. By a Unix socket, it gets the names
//! of pods and services ([`names`]), and sends nothing. What it serves on the loopback of the pod, `podtap-collector names` passes on to
//! clients that the API server authorizes ([`access`]).
//!
//! `podtap-collector stream` ([`mod@stream`]) analyses nothing: it streams the frames of a tap to one client, and needs no capability.
//! `podtap-collector sensor` ([`mod@sensor`]) sends the frames of taps to sensors and rpcap clients.
#![deny(unsafe_code)]

mod access;
mod analysis;
mod capture;
mod clock;
mod cluster;
mod diff;
#[cfg(test)]
mod fixtures;
mod names;
mod namespaces;
mod newest;
mod output;
mod read;
mod sensor;
mod serve;
mod shared;
mod state;
mod stream;

use std::{
    fs, io,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use podtap_flow::{
    EtherType, Timestamp,
    map::Bounds,
    names::{Countries, Names, Objects, Update},
};
use podtap_runtime::{memory::disable_tracing, telemetry::LogArgs};

use crate::{
    analysis::Analysis,
    output::{
        Print,
        exporter::Exporter,
        flows::FlowLines,
        pcapng::{Rotation, Writer},
        queue::Queue,
    },
    serve::{Service, edges::Level},
    shared::{Shared, Status, View},
};

/// Tells who calls whom, from mirrored frames.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    arguments: Arguments,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a cluster's pods, services and nodes, and pass their names on, until SIGTERM or SIGINT
    Names(cluster::Arguments),
    /// Print what has changed between two maps that were saved as JSON; the exit code is 2 if there are new calls
    Diff(diff::Arguments),
    /// Stream the frames that the taps of this pod mirror to one client, for `kubectl podtap capture`, until it is gone or SIGTERM
    Stream(stream::Arguments),
    /// Send the frames of taps to sensors and rpcap clients, until SIGTERM or SIGINT
    Sensor(sensor::Arguments),
}

#[derive(Args)]
struct Arguments {
    #[command(flatten)]
    input: Input,
    /// EtherType of the probes of the taps, as in the PodTapPolicy (probeEtherType): that of the frames in which they tell which pods they
    /// mirror and how nodes translate addresses
    #[arg(long, value_name = "NUMBER", default_value = "0x88b5", value_parser = ether_type)]
    ether_type: EtherType,
    /// JSON file with the pods, services and nodes whose addresses are in the frames
    #[arg(long, value_name = "FILE", conflicts_with = "names_socket")]
    names: Option<PathBuf>,
    /// Unix socket of `podtap-collector names`
    #[arg(long, value_name = "PATH", conflicts_with = "read")]
    names_socket: Option<PathBuf>,
    /// Name of a network outside of the cluster, for example office=192.0.2.0/24. Can be repeated
    #[arg(long, value_name = "NAME=CIDR", value_parser = named_network)]
    network: Vec<(IpNet, String)>,
    /// Database of the countries of networks, in the format of MaxMind (GeoLite2-Country.mmdb), for addresses without another name. It
    /// is kept in memory
    #[arg(long, value_name = "FILE")]
    #[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
    countries: Option<PathBuf>,
    /// Address on which the map, flows and a page that shows them are served, until SIGINT or SIGTERM. Anyone who reaches it can read
    /// the map: `podtap-collector names --listen` asks for tokens
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// File in which the map is kept: saved every minute and at the end, and read at the beginning
    #[arg(long, value_name = "FILE", conflicts_with = "read")]
    state: Option<PathBuf>,
    /// Serve the metrics about the map with --probes, too. Anyone who reaches that address learns who calls whom
    #[arg(long, requires = "probes")]
    open_metrics: bool,
    /// Most series of each metric about the map. What finds no room is counted in one with the labels "other"
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    series: usize,
    /// What the series of metrics about the map are about
    #[arg(long, value_enum, default_value_t = Level::Workload)]
    metrics_level: Level,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS", conflicts_with = "read")]
    probes: Option<SocketAddr>,
    #[command(flatten)]
    writing: Writing,
    /// Unix socket of `podtap-exporter`, which gets all flows as --print flows prints them. While nothing listens there, or it is slow,
    /// more than 8192 lines that wait are dropped, and counted
    #[arg(long, value_name = "PATH", conflicts_with = "read")]
    export_socket: Option<PathBuf>,
    /// Days after which an edge of which nothing was seen is forgotten. 0: never
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    forget_after: u32,
    /// What to print
    #[arg(long, value_enum, default_value_t = Print::List)]
    print: Print,
}

/// Where frames are written.
#[derive(Args)]
struct Writing {
    /// Write all frames to a file, as pcapng: with the names of pods, and the direction of each frame
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Begin another file when one has so many MiB. FILE.pcapng becomes FILE-000001.pcapng, and so on
    #[arg(long, value_name = "MIB", requires = "write", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    write_size: Option<u64>,
    /// Begin another file after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "write", value_parser = clap::value_parser!(u64).range(1..))]
    write_every: Option<u64>,
    /// With --write-size or --write-every: files that are kept, with the one that is written
    #[arg(long, value_name = "COUNT", requires = "write", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    write_files: u32,
}

impl Writing {
    fn rotation(&self) -> Rotation {
        Rotation {
            size: self.write_size.map(|size| size << 20),
            every: self.write_every.map(Duration::from_secs),
            files: self.write_files as usize,
        }
    }
}

/// Where frames come from.
#[derive(Args)]
#[group(required = true, arg = "read", args = capture::Arguments::IDS)]
struct Input {
    /// Capture files (pcap or pcapng, Ethernet), in the order of their frames
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with_all = capture::Arguments::IDS)]
    read: Vec<PathBuf>,
    #[command(flatten)]
    capture: capture::Arguments,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    let result = match cli.command {
        Some(Command::Names(arguments)) => watch_names(arguments).map(|()| ExitCode::SUCCESS),
        Some(Command::Diff(arguments)) => diff::run(&arguments),
        Some(Command::Stream(arguments)) => stream::run(&arguments).map(|()| ExitCode::SUCCESS),
        Some(Command::Sensor(arguments)) => sensor::run(&arguments).map(|()| ExitCode::SUCCESS),
        None => analyse(&cli.arguments).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn watch_names(arguments: cluster::Arguments) -> Result<()> {
    disable_tracing()?;
    // One thread, to save memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster::run(arguments))
}

fn analyse(arguments: &Arguments) -> Result<()> {
    let mut objects = match &arguments.names {
        Some(path) => names::read(path)?,
        None => Objects::default(),
    };
    objects.networks.extend(arguments.network.iter().cloned());
    let mut names = Names::new(objects);
    if let Some(path) = &arguments.countries {
        let database = fs::read(path).map_err(anyhow::Error::from).and_then(|bytes| Ok(Countries::new(bytes)?));
        names.set_countries(database.with_context(|| format!("{} is no database of countries", path.display()))?);
    }
    if arguments.names_socket.is_some() {
        // Until they have come.
        names.apply(Update::Listing, Timestamp(0));
    }
    let days = Duration::from_secs(24 * 60 * 60).checked_mul(arguments.forget_after).filter(|age| !age.is_zero());
    let shared = Shared::new(names, Bounds { forget_after: days, ..Bounds::default() });
    if arguments.metrics_level == Level::Pod {
        shared.lock().pods = Some(serve::pods::counted(arguments.series));
    }
    if arguments.input.read.is_empty() {
        capture(arguments, &shared)?;
    } else {
        read_files(arguments, &shared)?;
    }
    print(arguments.print, &shared)?;
    if arguments.listen.is_some() && !arguments.input.read.is_empty() {
        let signals = capture::signals()?;
        let _service = Service::start(arguments, &shared)?;
        capture::wait(&signals)?;
    }
    Ok(())
}

fn print(print: Print, shared: &Shared) -> Result<()> {
    let view = View::new(&shared.lock());
    if print == Print::List && view.map.is_empty() {
        eprintln!("No connections found.");
    }
    // The lock may be held by a thread that prints flows and whose reader has stopped.
    if print.is_of_map() {
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        print.write(&mut stdout, &view)?;
        stdout.flush()?;
    }
    Ok(())
}

/// Files are read as fast as their flows are taken.
fn read_files(arguments: &Arguments, shared: &Shared) -> Result<()> {
    let out = (arguments.print == Print::Flows).then(|| io::BufWriter::new(io::stdout().lock()));
    let mut analysis = Analysis::new(shared.clone(), arguments.ether_type, Duration::ZERO, FlowLines::new(out));
    let Writing { write, .. } = &arguments.writing;
    if let Some(path) = write {
        analysis.write_to(Writer::here(path, arguments.writing.rotation()).with_context(|| cannot_write(path))?);
    }
    for path in &arguments.input.read {
        let file = fs::File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
        read::frames(file, |frame| analysis.observe(&frame)).with_context(|| path.display().to_string())?;
    }
    let (lines, writer, counters) = analysis.finish();
    if let (Some(mut writer), Some(path)) = (writer, write) {
        writer.finish().with_context(|| cannot_write(path))?;
    }
    lines.result?;
    for mut out in lines.outs {
        out.flush()?;
    }
    if counters.packets == 0 {
        eprintln!("podtap-collector: the files have no IP packets");
    }
    let captured = capture::Captured { frames: counters.packets, ..capture::Captured::default() };
    shared.lock().status = Status { captured, counters, ..Status::default() };
    Ok(())
}

fn cannot_write(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}

/// How long a slow reader may take for the flows that are open at the end.
const LAST_LINES: Duration = Duration::from_secs(5);
/// How long flows wait for the name of an end. The API server has the address of a new pod a second or two after its first frames.
const PATIENCE: Duration = Duration::from_secs(10);

/// Capturing never waits for a slow reader of its flows.
fn capture(arguments: &Arguments, shared: &Shared) -> Result<()> {
    let signals = capture::signals()?;
    if let Some(path) = &arguments.state {
        let restored = state::restore(path, &mut shared.lock().map);
        restored.with_context(|| format!("{} cannot be read", path.display()))?;
    }
    let mut service = Service::start(arguments, shared)?;
    let mut inputs = arguments.input.capture.open()?;
    let stdout = (arguments.print == Print::Flows).then(|| Queue::new(io::stdout()));
    let exporter = arguments.export_socket.clone().map(|path| Queue::new(Exporter::new(path)));
    let patience = if arguments.names_socket.is_some() { PATIENCE } else { Duration::ZERO };
    let mut analysis = Analysis::new(
        shared.clone(),
        arguments.ether_type,
        patience,
        FlowLines::new(stdout.into_iter().chain(exporter)),
    );
    if let Some(path) = &arguments.writing.write {
        let sources = inputs.iter().map(capture::Input::name).collect();
        let writer = Writer::beside(path, arguments.writing.rotation(), sources);
        analysis.write_to(writer.with_context(|| cannot_write(path))?);
    }
    eprintln!("podtap-collector: capturing");
    let captured = capture::run(&signals, &mut inputs, &mut analysis, |analysis, captured, now| {
        let dropped = analysis.output().outs.iter().map(|out| out.dropped).sum();
        service.tick(analysis, captured, dropped, now);
        Ok(std::mem::replace(&mut analysis.output().result, Ok(()))?)
    })?;
    for out in &mut analysis.output().outs {
        out.wait(LAST_LINES);
    }
    let (mut lines, writer, counters) = analysis.finish();
    // It may be saving the map, too, and ends when that is done.
    drop(service);
    // Before anything waits for those who take lines and frames: the kubelet kills what takes too long.
    if let Some(path) = &arguments.state {
        let saved = state::save(path, &shared.lock().map);
        saved.with_context(|| format!("the map cannot be saved to {}", path.display()))?;
    }
    lines.result?;
    let mut lost = 0;
    for out in &mut lines.outs {
        lost += out.dropped;
        match out.close() {
            // Frames may still be written.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => eprintln!("podtap-collector: {error}"),
            result => result?,
        }
    }
    if let Some(mut writer) = writer {
        writer.finish()?;
        let (written, dropped) = writer.counts();
        eprintln!("podtap-collector: {written} frames written, {dropped} not written");
    }
    eprintln!(
        "podtap-collector: {} frames captured, {} dropped by the kernel, {} left out, {} flows, {} of them forgotten early, {} without room in \
         the map, {lost} lines dropped because they were not read",
        captured.frames,
        captured.dropped,
        captured.left_out,
        counters.flows,
        counters.evicted,
        shared.lock().map.folded,
    );
    Ok(())
}

/// A number as in policies, or with `0x`.
fn ether_type(text: &str) -> Result<EtherType, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|_| "it must be a number from 1536 to 65535, or from 0x600 to 0xffff".to_owned())?;
    EtherType::try_from(number).map_err(|error| error.to_string())
}

/// A network and its name.
fn named_network(text: &str) -> Result<(IpNet, String), String> {
    let (name, network) = text.split_once('=').ok_or("it must be NAME=CIDR, for example office=192.0.2.0/24")?;
    if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
        return Err("the name must have 1 to 63 characters, and no control characters".to_owned());
    }
    let network =
        network.parse().map_err(|_| format!("{network} is no network such as 192.0.2.0/24 or 2001:db8::/32"))?;
    Ok((network, name.to_owned()))
}

/// `head` closes its end when it has enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_network_has_a_name_and_a_prefix() {
        let office = named_network("office=192.0.2.0/24").expect("it is valid");
        assert_eq!((office.0.to_string(), &*office.1), ("192.0.2.0/24".to_owned(), "office"));
        for text in ["office", "=192.0.2.0/24", "office=192.0.2", "a\nb=192.0.2.0/24"] {
            assert!(named_network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn frames_come_from_files_or_are_captured() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};

        let all = "--interface a b --receivers --vxlan-port 4789";
        for (arguments, expected) in [
            ("--read a b", None),
            (all, None),
            ("--listen 127.0.0.1:9090", Some(MissingRequiredArgument)),
            (&format!("--read a {all}"), Some(ArgumentConflict)),
            ("--read a --receivers", Some(ArgumentConflict)),
            ("sensor --listen 127.0.0.1:2002 --receivers", None),
            (&format!("sensor --listen 127.0.0.1:2002 {all}"), None),
            ("sensor --listen 127.0.0.1:2002", Some(MissingRequiredArgument)),
        ] {
            let parsed = Cli::try_parse_from(format!("podtap-collector {arguments}").split(' '));
            assert_eq!(parsed.err().map(|error| error.kind()), expected, "{arguments}");
        }
    }

    #[test]
    fn an_ether_type_is_a_number_as_in_policies() {
        for (text, expected) in [("34997", 0x88b5), ("0x88b5", 0x88b5), ("0xFFFF", 0xffff), ("1536", 0x600)] {
            assert_eq!(ether_type(text).map(EtherType::get).as_ref(), Ok(&expected));
        }
        for text in ["", "0x", "88b5", "-1", "65536", "2048", "0x86dd", "1535"] {
            let error = ether_type(text).expect_err(text);
            assert!(error.contains("must be a number from") || error.contains("use 0x0600 or more"), "{error}");
        }
    }
}
