//! `capture`: the traffic of pods in Wireshark or in a file, for as long as this program runs.
//!
//! A [`session`] is a job ([`objects`]) whose pod receives the frames, and a tap that the job owns. [`stream`] reads what the pod sends, through a
//! port that the API server forwards; [`blocks`] puts it together, and [`output`] writes it. However this program ends, the pod is not told
//! any more that it runs, and ends too; Kubernetes then deletes the job, and the tap with it.

mod blocks;
mod objects;
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
    process::ExitStatus,
    thread,
    time::Duration,
};

use clap::Args;
use clap_complete::ArgValueCompleter;
use podtap_api::{MirrorSpec, Targets};
use podtap_model::Quantity;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use self::{
    blocks::{Blocks, Counts, Format},
    objects::{Limits, SPARE},
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
    installation::InstallationFlags,
    mirror::FrameFlags,
    tap::Tap,
    target::{NO_TARGET, PodFlags, Target},
    wait::{Progress, Waiting, interrupted, progress, until},
};

/// What each pod may send, unless the user says otherwise: the frames pass the API server.
const RATE: u64 = 200_000_000;
/// The pause before the tap is watched again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the rest of the stream may take after a signal.
const REST: Duration = Duration::from_secs(5);
/// How long the stream may take to end after its tap was deleted.
const GRACE: Duration = Duration::from_secs(3);
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
    // Before anything is changed.
    let sink = arguments.output.sink(&title)?;
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
    let limits = Limits {
        time: arguments.time,
        wait: arguments.wait,
        bytes: arguments.max_bytes.get(),
        packets: arguments.packets,
    };
    let user = own_name(cluster).await;
    let mut status = Status::new(console);
    // From here on, signals end the capture, and not the program.
    let signal = interrupted()?;
    tokio::pin!(signal);
    let session = Session::new(cluster);
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
    console.progress(&format!("{} created", session.name()));
    let outcome = {
        let follow = follow(arguments, cluster, &session, (&pod, &tap), sink, &mut status, console);
        tokio::pin!(follow);
        tokio::select! {
            followed = &mut follow => followed.read.and(followed.written),
            () = &mut signal => {
                // The pod sends what is left when it is asked to end. A second signal does not wait for that.
                tokio::select! {
                    (_, rest) = async { tokio::join!(session.end(), timeout(REST, &mut follow)) } => match rest {
                        Ok(followed) => followed.written,
                        Err(_) => Ok(()),
                    },
                    () = interrupted()? => Ok(()),
                }
            }
        }
    };
    status.end();
    let removed = tokio::select! {
        removed = remove(cluster, &session, &tap) => removed,
        () = interrupted()? => false,
    };
    let has_begun = status.has_begun();
    console.progress(&summary(&status.counts, arguments.output.format, removed, session.name()));
    outcome?;
    Ok(if has_begun { Exit::Done } else { Exit::Interrupted })
}

fn summary(counts: &Counts, format: Format, removed: bool, name: &str) -> String {
    let packets = counted(usize::try_from(counts.packets).unwrap_or(usize::MAX), "packet");
    // pcap has no statistics.
    let dropped = match format {
        Format::Pcapng => format!(", {} dropped", counts.dropped()),
        Format::Pcap => String::new(),
    };
    let end = if removed {
        "nothing is left in the cluster".to_owned()
    } else {
        format!("{name} is not known to be removed yet")
    };
    format!("{packets}{dropped}; {end}")
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

/// How a capture was followed to its end.
struct Followed {
    /// Whether it has ended as it was to.
    read: Outcome<()>,
    /// Whether what was read is written.
    written: Outcome<()>,
}

/// Follows a capture to its end.
async fn follow(
    arguments: &Arguments,
    cluster: &Cluster,
    session: &Session,
    (pod, tap): (&str, &Tap),
    sink: Sink,
    status: &mut Status,
    console: Console,
) -> Followed {
    let mut opened = None;
    let read = read(arguments, session, pod, sink, (&mut opened, status), console);
    let outcome = {
        tokio::pin!(read);
        tokio::select! {
            outcome = &mut read => outcome,
            failure = watch_tap(cluster, tap, arguments, console) => {
                // It may have been deleted because the pod has ended.
                timeout(GRACE, &mut read).await.unwrap_or(Err(failure))
            }
        }
    };
    let Some(Opened { mut writing, ended }) = opened else { return Followed { read: outcome, written: Ok(()) } };
    let written = writing.finish().await;
    if let (true, Some(ended)) = (arguments.output.print, ended) {
        let _ = ended.await;
    }
    let written = written.map_err(|error| Failure::error(format!("frames cannot be written: {error}")));
    Followed { read: outcome, written }
}

/// Reads the stream to its end. Leaves what is open to the caller.
async fn read(
    arguments: &Arguments,
    session: &Session,
    pod: &str,
    sink: Sink,
    (opened, status): (&mut Option<Opened>, &mut Status),
    console: Console,
) -> Outcome<()> {
    session.runs(pod, arguments.wait, &mut Waiting::new(console)).await?;
    let began = Instant::now();
    // Not earlier: a window without frames would only puzzle.
    let Opened { writing, ended } = opened.insert(sink.open(arguments.output.format).await?);
    let mut stream = Stream::new(session, pod, Blocks::new(arguments.output.format), writing);
    let mut update = |counts: &Counts| status.update(counts);
    let end = tokio::select! {
        end = stream.read(&mut update) => end?,
        failure = window_closed(ended.as_mut().filter(|_| !arguments.output.print)) => failure?,
    };
    let counts = &status.counts;
    let is_due = began.elapsed() >= arguments.time
        || counts.bytes >= arguments.max_bytes.get()
        || arguments.packets.is_some_and(|packets| counts.packets >= packets);
    match end {
        End::NotRead => Ok(()),
        _ if is_due => Ok(()),
        End::Complete => Err(Failure::error(format!("the capture has ended early: the pod {pod} was asked to end"))),
        End::Cut(why) => Err(Failure::error(format!("the capture has ended early: {why}"))),
    }
}

/// Waits until the program that shows the frames has ended.
async fn window_closed(ended: Option<&mut oneshot::Receiver<Option<ExitStatus>>>) -> Outcome<End> {
    let Some(ended) = ended else { return future::pending().await };
    match ended.await {
        Ok(Some(status)) if !status.success() => {
            Err(Failure::error(format!("the program that shows the frames has failed: {status}")))
        }
        _ => Ok(End::NotRead),
    }
}

/// Reports how far the tap is. Returns why it cannot be captured from.
async fn watch_tap(cluster: &Cluster, tap: &Tap, arguments: &Arguments, console: Console) -> Failure {
    let limit = arguments.time + arguments.wait + SPARE;
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
