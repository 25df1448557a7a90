//! `capture`: the traffic of pods in Wireshark or in a file, for as long as this program runs.
//!
//! A [`session`] is a [`job`] whose pod receives the frames, and a tap that the job owns. [`stream`] reads what the pod sends, through a
//! port that the API server forwards; [`blocks`] puts it together, and [`output`] writes it. However this program ends, the pod is not told
//! any more that it runs, and ends too; Kubernetes then deletes the job, and the tap with it.

mod blocks;
mod job;
mod output;
mod rights;
mod session;
mod status;
mod stream;
mod wireshark;

use std::{
    future,
    io::{self, IsTerminal as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use clap_complete::ArgValueCompleter;
use podtap_api::{MirrorSpec, Targets};
use podtap_model::Quantity;
use tokio::{sync::oneshot, time::sleep};

use self::{
    blocks::{Blocks, Counts, Format},
    job::{Limits, SPARE},
    output::{Files, Output, Rotation, Writing, ended},
    session::Session,
    status::Status,
    stream::{End, Stream},
    wireshark::Program,
};
use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::{Console, ask, counted},
    create::own_name,
    exit::{Exit, Failure, Outcome},
    mirror::FrameFlags,
    tap::Tap,
    target::{PodFlags, Target},
    wait::{Progress, Waiting, interrupted, progress, until},
};

/// What each pod may send, unless the user says otherwise: the frames pass the API server.
const RATE: u64 = 200_000_000;
/// The pause before the tap is watched again.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait until nothing is left.
const REMOVAL: Duration = Duration::from_secs(20);

/// Arguments of `capture`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME or svc/NAME. A name alone is that of a pod
    #[arg(value_name = "TARGET", add = ArgValueCompleter::new(complete::targets), required_unless_present_any = ["selector", "all"], conflicts_with_all = ["selector", "all"])]
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
    /// End after so many bytes
    #[arg(long, value_name = "BYTES", default_value = "1Gi")]
    max_bytes: Quantity,
    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
    /// How long to wait until the pod that receives the frames runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    wait: Duration,
    /// Namespace of PodTap
    #[arg(long, value_name = "NAME", default_value = "podtap-system")]
    podtap_namespace: String,
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
    ended: Option<oneshot::Receiver<()>>,
    /// A program that is waited for at the end.
    is_printer: bool,
}

impl Sink {
    fn open(self, format: Format, is_printer: bool) -> Outcome<Opened> {
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
        Ok(Opened { writing: output.start(), ended, is_printer })
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
    // Before anything is changed.
    let sink = arguments.output.sink(&title)?;
    let selection = match (&arguments.target, arguments.pods.selection()) {
        (Some(Target::Of(workload, name)), _) => workload.selection(name, &cluster).await?,
        (Some(Target::Selected(selection)), _) => selection.clone(),
        (None, Some(selection)) => selection,
        (None, None) => {
            return Err(Failure::usage("name the pods: a TARGET such as deploy/web, or -l SELECTOR, or --all"));
        }
    };
    for consequence in arguments.pods.consequences(&cluster) {
        ask(&consequence, arguments.yes).await?;
    }
    let mirror = MirrorSpec {
        direction: arguments.frames.direction.into(),
        options,
        destinations: Vec::new(),
        vxlan: None,
        duration: None,
        suspend: false,
    };
    capture(&arguments, &cluster, sink, (arguments.pods.targets(selection), mirror), console).await
}

fn described(arguments: &Arguments) -> String {
    match &arguments.target {
        Some(target) => target.tap_name(),
        None => "pods".to_owned(),
    }
}

async fn capture(
    arguments: &Arguments,
    cluster: &Cluster,
    sink: Sink,
    (targets, mirror): (Targets, MirrorSpec),
    console: Console,
) -> Outcome {
    rights::check(cluster).await?;
    let limits = Limits { time: arguments.time, bytes: arguments.max_bytes.get(), packets: arguments.packets };
    let user = own_name(cluster).await;
    let format = arguments.output.format;
    let mut status = Status::new(console);
    // From here on, signals end the capture, and not the program.
    let signal = interrupted()?;
    tokio::pin!(signal);
    let (session, tap) =
        Session::create(cluster, &arguments.podtap_namespace, (targets, mirror), (format, &limits), user.as_deref())
            .await?;
    console.progress(&format!("{} created", session.name()));
    let outcome = {
        let follow = follow(arguments, cluster, &session, &tap, sink, &mut status, console);
        tokio::select! {
            outcome = follow => outcome,
            () = &mut signal => Ok(()),
        }
    };
    status.end();
    // A second signal does not wait.
    let removed = tokio::select! {
        removed = remove(cluster, &session, &tap) => removed,
        () = interrupted()? => false,
    };
    let has_begun = status.has_begun();
    console.progress(&summary(&status.counts, removed, session.name()));
    outcome?;
    Ok(if has_begun { Exit::Done } else { Exit::Interrupted })
}

fn summary(counts: &Counts, removed: bool, name: &str) -> String {
    let packets = counted(usize::try_from(counts.packets).unwrap_or(usize::MAX), "packet");
    let end = if removed {
        "nothing is left in the cluster".to_owned()
    } else {
        format!("{name} is not known to be removed yet")
    };
    format!("{packets}, {} dropped; {end}", counts.dropped())
}

/// Deletes the objects. Returns whether nothing is left.
async fn remove(cluster: &Cluster, session: &Session, tap: &Tap) -> bool {
    if !session.end().await {
        return false;
    }
    let gone = until(cluster, tap, REMOVAL, |current| match current {
        None => ControlFlow::Break(()),
        Some(_) => ControlFlow::Continue(()),
    });
    let (gone, has_no_pod) = tokio::join!(gone, session.has_no_pod(REMOVAL));
    matches!(gone, Ok(Some(()))) && has_no_pod
}

/// Follows a capture to its end.
async fn follow(
    arguments: &Arguments,
    cluster: &Cluster,
    session: &Session,
    tap: &Tap,
    sink: Sink,
    status: &mut Status,
    console: Console,
) -> Outcome<()> {
    let mut waiting = Waiting::new(console);
    let read = async {
        let pod = session.pod(arguments.wait, &mut waiting).await?;
        // Not earlier: a window without frames would only puzzle.
        let Opened { writing, ended, is_printer } = sink.open(arguments.output.format, arguments.output.print)?;
        let Writing { blocks, result } = writing;
        let mut stream = Stream::new(session, &pod, Blocks::new(arguments.output.format), blocks);
        let (ended, mut program) = match ended {
            Some(ended) if is_printer => (None, Some(ended)),
            other => (other, None),
        };
        let mut update = |blocks: &Blocks| status.update(&blocks.counts);
        let end = tokio::select! {
            end = stream.read(&mut update) => end,
            () = window_closed(ended) => Ok(End::NotRead),
        };
        drop(stream);
        let written = result.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes has panicked")));
        written.map_err(|error| Failure::error(format!("frames cannot be written: {error}")))?;
        if let Some(printer) = program.take() {
            let _ = printer.await;
        }
        end
    };
    tokio::select! {
        end = read => end.map(drop),
        failure = watch_tap(cluster, tap, arguments.time + arguments.wait + SPARE, console) => Err(failure),
    }
}

async fn window_closed(ended: Option<oneshot::Receiver<()>>) {
    match ended {
        Some(ended) => {
            let _ = ended.await;
        }
        None => future::pending().await,
    }
}

/// Reports how far the tap is. Returns why it cannot be captured from.
async fn watch_tap(cluster: &Cluster, tap: &Tap, limit: Duration, console: Console) -> Failure {
    let mut waiting = Waiting::new(console);
    let (mut was_seen, mut was_ready) = (false, false);
    loop {
        let watched = until(cluster, tap, limit, |current| {
            let Some(current) = current else {
                return ControlFlow::Break(Failure::new(Exit::Refused, "the tap of this capture was deleted"));
            };
            was_seen = true;
            match progress(current) {
                Progress::Ready if !was_ready => {
                    let tapped = current.status().map(|status| status.tapped_pods).unwrap_or_default();
                    let pods = counted(usize::try_from(tapped).unwrap_or_default(), "pod");
                    console.progress(&format!("capturing from {pods}. Ctrl-C ends it"));
                    was_ready = true;
                }
                Progress::Partly(why) | Progress::Waiting(why) if !was_ready => waiting.reports(why.to_string()),
                Progress::Ready | Progress::Partly(_) | Progress::Waiting(_) => {}
                Progress::Suspended(why) | Progress::Refused(why) => {
                    let message = format!("the tap of this capture is refused: {}", why.with_page());
                    return ControlFlow::Break(Failure::new(Exit::Refused, message));
                }
            }
            ControlFlow::Continue(())
        });
        match watched.await {
            // An API server that has just started may know no rights yet.
            Err(_) if was_seen => sleep(RETRY).await,
            Ok(Some(failure)) | Err(failure) => return failure,
            // The pod ends earlier than the tap.
            Ok(None) => future::pending().await,
        }
    }
}
