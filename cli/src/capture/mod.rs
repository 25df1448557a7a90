//! `capture`: the traffic of pods in Wireshark or in a file, for as long as this program runs.
//!
//! A [`session`] is a job ([`objects`]) whose pod receives the frames, and a tap that the job owns. [`stream`] reads what the pod sends, through a
//! port that the API server forwards; [`blocks`] puts it together, and [`output`] writes it. However this program ends, the pod is not told
//! any more that it runs, and ends too; Kubernetes then deletes the job, and the tap with it. With `--keep`, the pod runs for its time, and
//! `--resume` reads what it has kept.

mod attendance;
mod blocks;
mod objects;
mod output;
mod rights;
mod session;
mod status;
mod stream;
mod wireshark;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::Duration,
};

use clap::Args;
use clap_complete::{ArgValueCandidates, ArgValueCompleter};
use k8s_openapi::jiff::Timestamp;
use podtap_api::{MirrorSpec, Targets};
use podtap_model::Quantity;
use tokio::sync::oneshot;

use self::{
    attendance::Attendance,
    blocks::Format,
    objects::{LEAST, Limits},
    output::{Files, Output, Rotation, Writing, ended, replaced},
    session::Session,
    wireshark::Program,
};
use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::{Console, ask},
    create::own_name,
    exit::{Exit, Failure, Outcome},
    installation::InstallationFlags,
    mirror::FrameFlags,
    tap::{Kind, TapName, get},
    target::{NO_TARGET, PodFlags, Target},
    wait::interrupted,
};

/// What each pod may send, unless the user says otherwise: the frames pass the API server.
const RATE: u64 = 200_000_000;

/// Arguments of `capture`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME or svc/NAME. A name alone is that of a pod
    #[arg(value_name = "TARGET", add = ArgValueCompleter::new(complete::targets), required_unless_present_any = ["selector", "all", "resume"], conflicts_with_all = ["selector", "all"])]
    target: Option<Target>,
    #[command(flatten)]
    pods: PodFlags,
    #[command(flatten)]
    frames: FrameFlags,
    #[command(flatten)]
    output: OutputFlags,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", default_value = "15m", value_parser = duration)]
    time: Duration,
    /// End after this time, and capture without this program, too: it may be ended and continued with --resume
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["time", "packets"])]
    keep: Option<Duration>,
    /// Continue the capture of this name, which was begun with --keep
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::captures), conflicts_with_all = ["target", "PodFlags", "FrameFlags", "keep", "time", "max_bytes", "packets", "podtap_namespace"])]
    resume: Option<String>,
    /// End after so many bytes. With --keep: keep so many for a client that comes later, the newest ones
    #[arg(long, value_name = "BYTES", default_value = "1Gi")]
    max_bytes: Quantity,
    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
    /// How long to wait until the pod that receives the frames runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    wait: Duration,
    #[command(flatten)]
    installation: InstallationFlags,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

/// Where the frames go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Where the frames go")]
struct OutputFlags {
    /// Write them to a file, or to standard output with -, instead of opening Wireshark
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Form of what is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Pcapng)]
    format: Format,
    /// With -w: begin another file when one has so many bytes. web.pcapng becomes web-000001.pcapng, and so on
    #[arg(long, value_name = "BYTES", requires = "write")]
    rotate: Option<Quantity>,
    /// With --rotate: files that are kept
    #[arg(long, value_name = "N", requires = "rotate", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    files: u16,
    /// Path of Wireshark. Default: $PODTAP_WIRESHARK, or where it is usually installed
    #[arg(long, value_name = "PATH", conflicts_with_all = ["write", "print"])]
    #[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
    wireshark: Option<PathBuf>,
    /// Print a line for each frame, with tshark or tcpdump, instead of opening Wireshark
    #[arg(long, conflicts_with = "write")]
    print: bool,
}

/// What shows the frames, or has them.
enum Sink {
    Path(PathBuf, Option<Rotation>),
    Stdout,
    Program(Program),
}

impl OutputFlags {
    fn sink(&self, title: &str) -> Outcome<Sink> {
        let rotation = self.rotate.map(|bytes| Rotation { bytes: bytes.get(), files: self.files.into() });
        match &self.write {
            Some(path) if path == Path::new("-") => {
                if rotation.is_some() {
                    return Err(Failure::usage("--rotate is about files: name one with -w FILE"));
                }
                if io::stdout().is_terminal() {
                    return Err(Failure::usage(
                        "standard output is a terminal, which cannot show frames: use --print, or a pipe",
                    ));
                }
                Ok(Sink::Stdout)
            }
            Some(path) => Ok(Sink::Path(path.clone(), rotation)),
            None if self.print => Program::printer().map(Sink::Program),
            None => {
                let given = self.wireshark.clone().or_else(|| std::env::var_os("PODTAP_WIRESHARK").map(PathBuf::from));
                Program::wireshark(given.as_deref(), title).map(Sink::Program)
            }
        }
    }
}

/// A sink that is open.
struct Opened {
    writing: Writing,
    /// Told when the program that shows the frames has ended.
    ended: Option<oneshot::Receiver<Option<ExitStatus>>>,
}

impl Sink {
    /// What an earlier part of a capture was written to is not to be lost.
    fn replaces_nothing(&self) -> Outcome<()> {
        let Self::Path(path, rotation) = self else { return Ok(()) };
        let Some(path) = replaced(path, *rotation) else { return Ok(()) };
        let message =
            format!("{} exists, and would be replaced: name another file with -w, or remove it", path.display());
        Err(Failure::new(Exit::Refused, message))
    }

    /// Waits for a FIFO until it has a reader: on a thread of its own, so that signals are heeded meanwhile.
    async fn open(self, format: Format) -> Outcome<Opened> {
        let (sender, opened) = oneshot::channel();
        thread::spawn(move || sender.send(self.open_now(format)));
        opened.await.unwrap_or_else(|_| Err(Failure::error("the thread that opens the output has panicked")))
    }

    fn open_now(self, format: Format) -> Outcome<Opened> {
        let (output, ended) = match self {
            Self::Path(path, rotation) => {
                let files = Files::create(&path, format, rotation);
                let files =
                    files.map_err(|error| Failure::error(format!("{} cannot be written: {error}", path.display())))?;
                (Output::Files(files), None)
            }
            Self::Stdout => (Output::Stdout, None),
            Self::Program(program) => {
                let mut child = program.start()?;
                let input = child.stdin.take().ok_or_else(|| Failure::error("the program has no standard input"))?;
                (Output::Program(input), Some(ended(child)))
            }
        };
        Ok(Opened { writing: output.start(), ended })
    }
}

/// Captures until the end of the time, of the window, or a signal.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let options = {
        let mut frames = arguments.frames.clone();
        frames.rate.get_or_insert(RATE.into());
        frames.options()?
    };
    let cluster = connection.open().await?;
    let title = format!("{} of {}", described(&arguments), cluster.namespace);
    let limits = limits(&arguments)?;
    // Before anything is changed.
    let sink = arguments.output.sink(&title)?;
    if let Some(name) = &arguments.resume {
        sink.replaces_nothing()?;
        return resume(&arguments, &cluster, sink, name, limits, console).await;
    }
    let target = arguments.target.clone().or_else(|| arguments.pods.selection().map(Target::Selected));
    let target = target.ok_or_else(|| Failure::usage(NO_TARGET))?;
    let selection = target.selection(&cluster).await?;
    for consequence in arguments.pods.consequences(&cluster) {
        ask(&consequence, arguments.yes).await?;
    }
    rights::check(&cluster).await?;
    let mirror = MirrorSpec {
        direction: arguments.frames.direction.into(),
        options,
        destinations: Vec::new(),
        vxlan: None,
        duration: None,
        suspend: false,
    };
    capture(&arguments, &cluster, sink, (arguments.pods.targets(selection), mirror), limits, console).await
}

fn described(arguments: &Arguments) -> String {
    match (&arguments.target, &arguments.resume) {
        (Some(target), _) => target.tap_name(),
        (None, Some(name)) => name.clone(),
        (None, None) => "pods".to_owned(),
    }
}

fn limits(arguments: &Arguments) -> Outcome<Limits> {
    let keep = arguments.keep.is_some() || arguments.resume.is_some();
    if keep && arguments.output.format == Format::Pcap {
        return Err(Failure::usage("--keep and --resume take pcapng: of a pcap file, no part can be read alone"));
    }
    let bytes = arguments.max_bytes.get();
    if keep && bytes < LEAST {
        return Err(Failure::usage("with --keep, --max-bytes is at least 4Mi"));
    }
    let time = arguments.keep.unwrap_or(arguments.time);
    Ok(Limits { time, wait: arguments.wait, bytes, packets: arguments.packets, keep })
}

async fn capture(
    arguments: &Arguments,
    cluster: &Cluster,
    sink: Sink,
    (targets, mirror): (Targets, MirrorSpec),
    limits: Limits,
    console: Console,
) -> Outcome {
    let user = own_name(cluster).await;
    // From here on, signals end the capture, and not the program.
    let signal = interrupted()?;
    tokio::pin!(signal);
    let session = Session::new(cluster, limits.keep);
    let format = (arguments.output.format, &limits);
    let created = tokio::select! {
        created = session.create(cluster, &arguments.installation.podtap_namespace, (targets, mirror), format, user.as_deref()) => created,
        () = &mut signal => Err(Failure::new(Exit::Interrupted, "interrupted")),
    };
    let (pod, tap) = match created {
        Ok(created) => created,
        Err(failure) => {
            // What exists of it.
            session.end().await;
            return Err(failure);
        }
    };
    let how = tap.how_to_continue().map(|how| format!(". It {how}")).unwrap_or_default();
    console.progress(&format!("{} created{how}", session.name()));
    Attendance { arguments, cluster, session: &session, pod: &pod, tap: &tap, limits: &limits, console }
        .run(sink, signal)
        .await
}

/// Continues a capture that runs without a client.
async fn resume(
    arguments: &Arguments,
    cluster: &Cluster,
    sink: Sink,
    name: &str,
    limits: Limits,
    console: Console,
) -> Outcome {
    let tap = get(cluster, &TapName { kind: Kind::PodTap, name: name.to_owned() }).await?;
    let until = tap.kept_until().ok_or_else(|| {
        Failure::new(Exit::Refused, format!("{tap} is no capture that was begun with --keep, and cannot be continued"))
    })?;
    let signal = interrupted()?;
    tokio::pin!(signal);
    let time = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    let (session, pod) = tokio::select! {
        running = Session::running(cluster, &tap, arguments.wait) => running?,
        () = &mut signal => return Ok(Exit::Interrupted),
    };
    let limits = Limits { time, ..limits };
    Attendance { arguments, cluster, session: &session, pod: &pod, tap: &tap, limits: &limits, console }
        .run(sink, signal)
        .await
}
