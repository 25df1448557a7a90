//! The first process of the container, which runs `tap-helper serve` as its child and starts it again when it dies.
//!
//! The kubelet would do that, too, but after several deaths only with pauses of minutes, in which nothing is repaired and no pod is tapped
//! from its first frame. This process does nothing else, so that it has no reason to die itself. A child that ends by itself ends
//! this process with the same code: what it cannot do is for the kubelet to report.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, Instant},
};

use podtap_backoff::Backoff;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::{
    process::{Child, Command},
    select,
    time::sleep,
};
use tracing::{info, warn};

use crate::shutdown::Shutdown;

/// Pauses before a restart: less than a second, also with jitter, for a tap-helper that dies again and again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// If a child lived for this long, its death counts as the first one.
const HEALTHY: Duration = Duration::from_secs(10);

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
    /// The program cannot be started, or not be waited for.
    #[error("cannot run the tap-helper: {0}")]
    Child(#[source] io::Error),
}

/// Runs this program with further arguments until it ends by itself, and returns its exit code. `arguments` gets the number of restarts.
///
/// SIGTERM and SIGINT are passed on.
pub async fn supervise(arguments: impl Fn(u32) -> Vec<OsString>) -> Result<u8, SuperviseError> {
    let mut shutdown = Shutdown::new().map_err(SuperviseError::Signals)?;
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for restarts in 0.. {
        let start = Instant::now();
        let mut child = spawn(arguments(restarts)).map_err(SuperviseError::Child)?;
        let (status, is_requested) = wait(&mut child, &mut shutdown).await.map_err(SuperviseError::Child)?;
        let Some(signal) = status.signal() else { return Ok(code(status)) };
        if is_requested {
            // The signal ended it before it could handle it.
            break;
        }
        if start.elapsed() > HEALTHY {
            backoff.reset();
        }
        let pause = backoff.pause();
        warn!(signal, restarts, ?pause, "the tap-helper was killed, and is restarted");
        select! {
            () = shutdown.requested() => break,
            () = sleep(pause) => {}
        }
    }
    Ok(0)
}

/// Descriptors that have to outlive a tap-helper would be held here, and passed to each child.
fn spawn(arguments: Vec<OsString>) -> io::Result<Child> {
    // This program, even if its file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments);
    if let Some(name) = env::args_os().next() {
        command.arg0(name);
    }
    command.spawn()
}

/// Waits until the child ends. Passes signals on. Returns its status, and whether there were any.
async fn wait(child: &mut Child, shutdown: &mut Shutdown) -> io::Result<(ExitStatus, bool)> {
    let mut is_requested = false;
    loop {
        select! {
            // A signal before the child's end counts, even if both are noticed at once.
            biased;
            () = shutdown.requested() => {}
            status = child.wait() => return Ok((status?, is_requested)),
        }
        info!("ending");
        is_requested = true;
        // Until it has been waited for, the PID is that of the child.
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Makes this process, a child of [`supervise`], end with its parent: a mirror must not be changed by two helpers at once.
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = getppid().map(|pid| pid.as_raw_pid().cast_unsigned());
    if now == Some(parent) { Ok(()) } else { Err(io::Error::other("the process that started this one has ended")) }
}
