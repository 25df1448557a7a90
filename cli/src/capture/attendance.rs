//! A capture that exists, from its first frame to its end, or until it is left.

use std::{future, ops::ControlFlow, pin::Pin, process::ExitStatus, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    Arguments, Opened, Sink,
    blocks::{Blocks, Counts, Format},
    objects::{ABANDONED_AFTER, Limits},
    session::Session,
    status::Status,
    stream::{End, Stream},
};
use crate::{
    connection::Cluster,
    console::{Console, counted, warn},
    exit::{Exit, Failure, Outcome},
    tap::Tap,
    wait::{Progress, Waiting, interrupted, progress, until},
};

/// The pause before the tap is watched again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the rest of the stream may take after a signal.
const REST: Duration = Duration::from_secs(5);
/// How long the stream may take to end after its tap was deleted.
const GRACE: Duration = Duration::from_secs(3);
/// How long to wait until nothing is left.
const REMOVAL: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Clone, Copy)]
pub struct Attendance<'a> {
    pub arguments: &'a Arguments,
    pub cluster: &'a Cluster,
    pub session: &'a Session,
    /// The pod that receives the frames.
    pub pod: &'a str,
    pub tap: &'a Tap,
    pub limits: &'a Limits,
    pub console: Console,
}

/// How a capture was followed to its end.
struct Followed {
    /// Whether it has ended as it was to.
    read: Outcome<()>,
    /// Whether what was read is written.
    written: Outcome<()>,
}

impl Attendance<'_> {
    /// Reads until the end, or until a signal.
    pub async fn run(self, sink: Sink, signal: Pin<&mut impl Future<Output = ()>>) -> Outcome {
        let Self { session, console, .. } = self;
        let mut status = Status::new(console);
        let outcome = {
            let follow = self.follow(sink, &mut status);
            tokio::pin!(follow);
            tokio::select! {
                followed = &mut follow => followed.read.and(followed.written),
                () = signal => {
                    let end = async {
                        if session.stays() {
                            session.leave();
                        } else {
                            session.end().await;
                        }
                    };
                    // The pod sends what is left when it is asked to end. A second signal does not wait for that.
                    tokio::select! {
                        ((), rest) = async { tokio::join!(end, timeout(REST, &mut follow)) } => match rest {
                            Ok(followed) => followed.written,
                            Err(_) => Ok(()),
                        },
                        () = interrupted()? => Ok(()),
                    }
                }
            }
        };
        status.end();
        let end = self.end().await?;
        let has_begun = status.has_begun();
        console.progress(&format!("{}; {end}", summary(&status.counts, self.arguments.output.format)));
        outcome?;
        Ok(if has_begun { Exit::Done } else { Exit::Interrupted })
    }

    /// Removes what is not to stay. Returns what is left.
    async fn end(self) -> Outcome<String> {
        let name = self.session.name();
        if self.session.stays() {
            return Ok(format!("{name} {}", self.tap.how_to_continue().unwrap_or_default()));
        }
        let removed = tokio::select! {
            removed = self.remove() => removed,
            () = interrupted()? => false,
        };
        Ok(if removed {
            "nothing is left in the cluster".to_owned()
        } else {
            format!("{name} is not known to be removed yet")
        })
    }

    /// Deletes the objects. Returns whether nothing is left.
    async fn remove(self) -> bool {
        if !self.session.end().await {
            return false;
        }
        let gone = until(self.cluster, self.tap, REMOVAL, |current| match current {
            None => ControlFlow::Break(()),
            Some(_) => ControlFlow::Continue(()),
        });
        let (gone, has_no_pod) = tokio::join!(gone, self.session.has_no_pod(REMOVAL));
        matches!(gone, Ok(Some(()))) && has_no_pod
    }

    /// Follows it to its end.
    async fn follow(self, sink: Sink, status: &mut Status) -> Followed {
        let mut opened = None;
        let outcome = {
            let read = self.read(sink, &mut opened, status);
            tokio::pin!(read);
            tokio::select! {
                outcome = &mut read => outcome,
                failure = self.watch_tap() => {
                    // It may have been deleted because the pod has ended.
                    timeout(GRACE, &mut read).await.unwrap_or(Err(failure))
                }
            }
        };
        let Some(Opened { mut writing, ended }) = opened else { return Followed { read: outcome, written: Ok(()) } };
        let written = writing.finish().await;
        if let (true, Some(ended)) = (self.arguments.output.print, ended) {
            let _ = ended.await;
        }
        let written = written.map_err(|error| Failure::error(format!("frames cannot be written: {error}")));
        Followed { read: outcome, written }
    }

    /// Reads the stream to its end. Leaves what is open to the caller.
    async fn read(self, sink: Sink, opened: &mut Option<Opened>, status: &mut Status) -> Outcome<()> {
        let Self { session, pod, limits, .. } = self;
        let output = &self.arguments.output;
        session.runs(pod, limits.wait, &mut Waiting::new(self.console)).await?;
        let began = Instant::now();
        // Not earlier: a window without frames would only puzzle.
        let Opened { writing, ended } = opened.insert(sink.open(output.format).await?);
        // A pod that stays waits for as long as it exists.
        let patience = if limits.keep { limits.deadline() } else { ABANDONED_AFTER };
        let mut stream = Stream::new(session, pod, Blocks::new(output.format), writing, patience);
        let mut update = |counts: &Counts| status.update(counts);
        let end = tokio::select! {
            end = stream.read(&mut update) => end?,
            failure = window_closed(ended.as_mut().filter(|_| !output.print)) => failure?,
        };
        let counts = &status.counts;
        let is_due = began.elapsed() >= limits.time
            || !limits.keep && counts.bytes >= limits.bytes
            || limits.packets.is_some_and(|packets| counts.packets >= packets);
        if end != End::NotRead {
            session.set_over();
        }
        match end {
            End::NotRead => Ok(()),
            End::Complete if is_due => Ok(()),
            End::Complete => {
                Err(Failure::error(format!("the capture has ended early: the pod {pod} was asked to end")))
            }
            End::Cut(why) if is_due => Err(Failure::error(format!("the last frames are missing: {why}"))),
            End::Cut(why) => Err(Failure::error(format!("the capture has ended early: {why}"))),
        }
    }

    /// Reports how far the tap is. Returns why it cannot be captured from; of a capture that is kept, only that it was deleted.
    async fn watch_tap(self) -> Failure {
        let Self { session, limits, console, .. } = self;
        let mut waiting = Waiting::new(console);
        let (mut was_seen, mut was_ready, mut refusal) = (false, false, None);
        loop {
            let watched = until(self.cluster, self.tap, limits.deadline(), |current| {
                let Some(current) = current else {
                    session.set_over();
                    return ControlFlow::Break(Failure::new(Exit::Refused, "the tap of this capture was deleted"));
                };
                was_seen = true;
                let refused = match progress(current) {
                    Progress::Ready if !was_ready => {
                        let tapped = current.status().map(|status| status.tapped_pods).unwrap_or_default();
                        let pods = counted(usize::try_from(tapped).unwrap_or_default(), "pod");
                        let ended = if limits.keep { "this program" } else { "it" };
                        console.progress(&format!("capturing from {pods}. Ctrl-C ends {ended}"));
                        was_ready = true;
                        None
                    }
                    Progress::Partly(why) | Progress::Waiting(why) if !was_ready => {
                        waiting.reports(why.to_string());
                        None
                    }
                    Progress::Ready | Progress::Partly(_) | Progress::Waiting(_) => None,
                    Progress::Suspended(why) => {
                        Some(format!("the tap of this capture is suspended: {}", why.with_page()))
                    }
                    Progress::Refused(why) => Some(format!("the tap of this capture is refused: {}", why.with_page())),
                };
                match &refused {
                    Some(message) if !limits.keep => {
                        return ControlFlow::Break(Failure::new(Exit::Refused, message.clone()));
                    }
                    // The pod may have frames that were not read yet.
                    Some(message) if refused != refusal => warn(message),
                    _ => {}
                }
                refusal = refused;
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
}

fn summary(counts: &Counts, format: Format) -> String {
    let packets = counted(usize::try_from(counts.packets).unwrap_or(usize::MAX), "packet");
    // pcap has no statistics.
    match format {
        Format::Pcapng => format!("{packets}, {} dropped", counts.dropped()),
        Format::Pcap => packets,
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
