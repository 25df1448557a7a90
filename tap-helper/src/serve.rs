//! `tap-helper serve`: waits for the agent and the kernel, and reconciles the node with what they report.

use std::{
    future, io,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podtap_model::{Report, Response};
use tokio::{
    select,
    time::{sleep, sleep_until},
};
use tracing::info;

use crate::{
    listener::{Incoming, Listener},
    lock::Lock,
    node::{Change, Node, NodeError},
    shutdown::Shutdown,
};

/// How often a helper that found another one at work checks whether that has ended.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// How long a report waits at most until nothing is left to do.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The node's state cannot be read.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The socket cannot be opened.
    #[error("cannot listen at {path}: {error}")]
    Listen {
        /// Where.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The lock or signals failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Serves until SIGTERM or SIGINT. Leaves the kernel's state as it is then: the next helper takes it over. Reports show `restarts`, how
/// often the helper was restarted in this container.
pub async fn serve(path: &Path, agent: u32, restarts: u32) -> Result<(), ServeError> {
    let mut shutdown = Shutdown::new().map_err(|error| ServeError::System("receive signals", error))?;
    raise_descriptor_limit();
    let mut node = Node::open()?.restarted(restarts);
    let Some(_lock) = wait_for_lock(&mut shutdown).await? else { return Ok(()) };
    let listen = |error| ServeError::Listen { path: path.display().to_string(), error };
    let mut listener = Listener::open(path, agent).map_err(listen)?;
    info!(socket = %path.display(), agent, "serving");
    let result = serve_until(&mut shutdown, &mut node, &mut listener).await;
    info!("ending");
    node.segment_all().await;
    // So that the agent notices at once. If it cannot be removed, the next helper replaces it.
    let _ = std::fs::remove_file(path);
    result
}

async fn serve_until(shutdown: &mut Shutdown, node: &mut Node, listener: &mut Listener) -> Result<(), ServeError> {
    let mut reports = Reports::default();
    loop {
        // Each of these futures only waits: dropped for another one, it loses nothing.
        let deadline = node.deadline();
        let event = select! {
            () = shutdown.requested() => return Ok(()),
            incoming = listener.next() => Event::Incoming(incoming),
            changes = node.changed() => Event::Changes(changes),
            () = until(deadline) => Event::Deadline,
        };
        process(event, node, listener, &mut reports).await?;
    }
}

/// What ended a wait.
enum Event {
    /// A process connected, or the agent sent something.
    Incoming(Incoming),
    /// Something changed on the node.
    Changes(Vec<Change>),
    /// Something is due.
    Deadline,
}

/// Processes one event to its end before the next: one owner of the node's state, and one order of operations.
async fn process(
    event: Event,
    node: &mut Node,
    listener: &mut Listener,
    reports: &mut Reports,
) -> Result<(), ServeError> {
    let now = Instant::now();
    match event {
        // A new agent gets a report at once.
        Event::Incoming(Incoming::Connection(true)) => reports.sent = None,
        Event::Incoming(Incoming::Connection(false)) | Event::Deadline => {}
        Event::Incoming(Incoming::Requests(requests)) => {
            if let Some(desired) = requests.desired {
                node.set_desired(desired, now).await?;
                reports.sent = None;
            }
            if let Some(renewal) = requests.renewal {
                node.renew(&renewal);
            }
            if let Some(request) = requests.counters {
                node.request_counters(request);
            }
        }
        Event::Changes(changes) => {
            for change in changes {
                node.handle(change, now).await?;
            }
        }
    }
    node.reconcile(now).await?;
    if reports.are_due(node, now) {
        reports.send(node, listener);
        // Last, so that they cover what a desired state in the same message creates or finds.
        if let Some(counters) = node.read_counters(now).await {
            listener.send(&Response::Counters(counters));
        }
    }
    node.preload(now);
    Ok(())
}

/// The reports to the agent: one when nothing is left to do, instead of one for each turn on the way.
#[derive(Default)]
struct Reports {
    sent: Option<Report>,
    /// Since when something is left to do.
    busy_since: Option<Instant>,
}

impl Reports {
    /// Whether nothing is left to do, or the next report has waited for that for too long.
    fn are_due(&mut self, node: &Node, now: Instant) -> bool {
        let since = *self.busy_since.get_or_insert(now);
        let due = node.is_settled(now) || now.duration_since(since) >= LONGEST_DELAY;
        if due {
            self.busy_since = None;
        }
        due
    }

    /// Sends a report, if it differs from the last one.
    fn send(&mut self, node: &Node, listener: &mut Listener) {
        if let Some(report) = node.report().filter(|report| self.sent.as_ref() != Some(report)) {
            listener.send(&Response::Report(report.clone()));
            self.sent = Some(report);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}

/// Each tapped pod takes five descriptors; with 200 pods the usual limit of 1024 is near. Without the right to raise it, or
/// above the hard limit, further pods fail with a message of their own.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// During an upgrade the old helper may still be ending. None if a signal came first.
async fn wait_for_lock(shutdown: &mut Shutdown) -> Result<Option<Lock>, ServeError> {
    let mut logged = false;
    loop {
        if let Some(lock) = Lock::take().map_err(|error| ServeError::System("take the node's lock", error))? {
            return Ok(Some(lock));
        }
        if !logged {
            info!("waiting for another tap-helper of this node to end");
            logged = true;
        }
        select! {
            () = shutdown.requested() => return Ok(None),
            () = sleep(LOCK_PAUSE) => {}
        }
    }
}
