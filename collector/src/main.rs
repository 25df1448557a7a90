//! `podtap-collector`: flows and who calls whom, from mirrored frames.
//!
//! [`read`] gets frames from files and [`mod@capture`] from the network, [`analysis`] counts them by [`podtap_flow`] and names their
//! ends, [`output`] writes what people and programs read.
#![deny(unsafe_code)]

mod analysis;
mod capture;
mod output;
mod read;

use std::{
    fs, io,
    io::Write as _,
    mem,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, ValueEnum};
use podtap_flow::{
    map::Map,
    names::{Names, Objects},
};

use crate::{
    analysis::Analysis,
    output::{
        flows::FlowLines,
        otterize::{client_intents, clients, list},
        queue::Queue,
    },
};

/// Tells who calls whom, from mirrored frames.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    input: Input,
    /// JSON file with the pods, services and nodes whose addresses are in the frames
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Print::List)]
    print: Print,
}

/// Where frames come from.
#[derive(Args)]
#[group(required = true)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
struct Input {
    /// Capture files (pcap or pcapng, Ethernet), in the order of their frames
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with_all = ["interface", "vxlan_port"])]
    read: Vec<PathBuf>,
    /// Interfaces to capture from, until SIGINT or SIGTERM. Needs the capability NET_RAW
    #[arg(long, num_args = 1.., value_name = "NAME")]
    interface: Vec<String>,
    /// UDP port to which a tap sends VXLAN, as an external destination
    #[arg(long, value_name = "PORT")]
    vxlan_port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
enum Print {
    /// Who calls whom, as the Otterize CLI prints it
    List,
    /// ClientIntents of version v2beta1, as the Otterize CLI exports them, in YAML
    ClientIntents,
    /// The same of version v1alpha3
    ClientIntentsV1,
    /// The same of version v2beta1, in JSON
    ClientIntentsJson,
    /// Edges with their counts, as JSON
    Map,
    /// Edges for graphviz
    Dot,
    /// Edges for Markdown
    Mermaid,
    /// A JSON object per flow and direction and line, with the field names of NetObserv
    Flows,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let names = match &arguments.names {
        Some(path) => Names::new(objects(path)?),
        None => Names::default(),
    };
    let map = if arguments.input.read.is_empty() { capture(arguments, names)? } else { read_files(arguments, names)? };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    match arguments.print {
        Print::List => list::write(&mut stdout, &clients(&map))?,
        Print::ClientIntents => client_intents::yaml_v2(&mut stdout, &clients(&map))?,
        Print::ClientIntentsV1 => client_intents::yaml_v1(&mut stdout, &clients(&map))?,
        Print::ClientIntentsJson => client_intents::json(&mut stdout, &clients(&map))?,
        Print::Map => output::map::write(&mut stdout, &map)?,
        Print::Dot => output::graph::dot(&mut stdout, &map)?,
        Print::Mermaid => output::graph::mermaid(&mut stdout, &map)?,
        Print::Flows => {}
    }
    stdout.flush()?;
    Ok(())
}

/// Files are read as fast as their flows are taken.
fn read_files(arguments: &Arguments, names: Names) -> Result<Map> {
    let out = (arguments.print == Print::Flows).then(|| io::BufWriter::new(io::stdout().lock()));
    let mut analysis = Analysis::new(names, FlowLines { out, result: Ok(()) });
    for path in &arguments.input.read {
        let file = fs::File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
        read::frames(file, |frame| analysis.observe(&frame)).with_context(|| path.display().to_string())?;
    }
    let (map, lines, counters) = analysis.finish();
    lines.result?;
    if let Some(mut out) = lines.out {
        out.flush()?;
    }
    if counters.packets == 0 {
        eprintln!("podtap-collector: the files have no IP packets");
    }
    Ok(map)
}

/// How long a slow reader may take for the flows that are open at the end.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Capturing never waits for a slow reader of its flows.
fn capture(arguments: &Arguments, names: Names) -> Result<Map> {
    let signals = capture::signals()?;
    let interfaces = arguments.input.interface.iter().map(|name| capture::Input::interface(name));
    let mut inputs =
        interfaces.chain(arguments.input.vxlan_port.map(capture::Input::vxlan)).collect::<Result<Vec<_>>>()?;
    let out = (arguments.print == Print::Flows).then(|| Queue::new(io::stdout()));
    let mut analysis = Analysis::new(names, FlowLines { out, result: Ok(()) });
    eprintln!("podtap-collector: capturing");
    let captured = capture::run(&signals, &mut inputs, &mut analysis, |lines| mem::replace(&mut lines.result, Ok(())))?;
    if let Some(out) = &mut analysis.output().out {
        out.wait(LAST_LINES);
    }
    let (map, mut lines, counters) = analysis.finish();
    lines.result?;
    let mut lost = 0;
    if let Some(out) = &mut lines.out {
        lost = out.dropped;
        out.close()?;
    }
    eprintln!(
        "podtap-collector: {} frames captured, {} dropped by the kernel, {} flows, {} of them forgotten early, {} without room in \
         the map, {lost} lines dropped because they were not read",
        captured.frames, captured.dropped, counters.flows, counters.evicted, map.folded,
    );
    Ok(map)
}

fn objects(path: &Path) -> Result<Objects> {
    let text = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} has no names of pods and services", path.display()))
}

/// `head` closes its end when it has enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_in_the_documentation_are_read() {
        let page = include_str!("../../docs/collector.md");
        let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let objects: Objects = serde_json::from_str(example.expect("an example")).expect("names");
        assert_eq!((objects.pods.len(), objects.services.len(), objects.networks.len()), (1, 1, 1));
        let unknown = r#"{"pods": [], "service": []}"#;
        assert!(serde_json::from_str::<Objects>(unknown).is_err(), "what is not read is refused");
    }
}
