//! `podtap-collector`: flows and who calls whom, from mirrored frames.
//!
//! [`read`] gets frames from files, [`analysis`] counts them by [`podtap_flow`] and names their ends, [`output`] writes what people and
//! programs read.
#![forbid(unsafe_code)]

mod analysis;
mod output;
mod read;

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use podtap_flow::{
    named::NamedRecord,
    names::{Names, Objects},
};

use crate::analysis::{Analysis, Output};

/// Tells who calls whom, from the frames of capture files.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Capture files (pcap or pcapng, Ethernet), in the order of their frames
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    read: Vec<PathBuf>,
    /// JSON file with the pods, services and nodes whose addresses are in the frames
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Print::List)]
    print: Print,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
enum Print {
    /// Who calls whom, as the Otterize CLI prints it
    List,
    /// Edges with their counts, as JSON
    Map,
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
    let stdout = io::BufWriter::new(io::stdout().lock());
    let flows = (arguments.print == Print::Flows).then_some(stdout);
    let mut analysis = Analysis::new(names, FlowLines { out: flows, result: Ok(()) });
    for path in &arguments.read {
        let file = fs::File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
        read::frames(file, |frame| analysis.observe(&frame)).with_context(|| path.display().to_string())?;
    }
    let (map, mut lines, counters) = analysis.finish();
    lines.result?;
    if let Some(out) = &mut lines.out {
        out.flush()?;
    }
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    match arguments.print {
        Print::List => output::list::write(&mut stdout, &map)?,
        Print::Map => output::map::write(&mut stdout, &map)?,
        Print::Flows => {}
    }
    stdout.flush()?;
    if counters.packets == 0 {
        eprintln!("podtap-collector: the files have no IP packets");
    }
    Ok(())
}

/// A line per flow and direction, if they are asked for; and the first error, after which none is written.
struct FlowLines<Out> {
    out: Option<Out>,
    result: io::Result<()>,
}

impl<Out: io::Write> Output for FlowLines<Out> {
    fn record(&mut self, flow: &NamedRecord<'_>, names: &Names) {
        if let (Some(out), Ok(())) = (&mut self.out, &self.result) {
            self.result = output::flows::write(out, flow, names);
        }
    }
}

fn objects(path: &Path) -> Result<Objects> {
    let text = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} has no names of pods and services", path.display()))
}

/// `head` closes its end when it has enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
