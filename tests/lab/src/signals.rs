//! Running a command in this program's place: signals to this program are forwarded to the command.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// `si_code` of a signal from the kernel, for example for Ctrl-C.
const SI_KERNEL: i32 = 0x80;

/// Runs it with this program's standard streams, and returns its exit code as a shell would.
pub fn run(mut command: Command) -> io::Result<u8> {
    let signals: SigSet = PASSED_ON.into_iter().collect();
    // From here on, signals stay pending until the command can receive them.
    signals.thread_block()?;
    let child_signals = signals;
    // SAFETY: prctl and sigprocmask are async-signal-safe and touch no memory of this process but the captured set.
    unsafe {
        command.pre_exec(move || {
            // If this program is killed, the command must not stay behind in the node.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(child_signals.thread_unblock()?)
        });
    }
    let mut child = command.spawn()?;
    pass_on_until_end(&signals, &child)?;
    Ok(exit_code(child.wait()?))
}

/// Without a thread: after joining a PID namespace a process cannot create one (clone(2), `CLONE_THREAD`).
fn pass_on_until_end(signals: &SigSet, child: &Child) -> io::Result<()> {
    let received = SignalFd::new(signals)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let end = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let mut events =
            [PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(received.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if events[0].any() == Some(true) {
            return Ok(());
        }
        // The terminal has sent Ctrl-C to the command as well.
        if let Some(signal) = received.read_signal()?
            && signal.ssi_code != SI_KERNEL
            && let Ok(signal) = Signal::try_from(signal.ssi_signo.cast_signed())
        {
            let _ = kill(pid, signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_that_of_a_shell() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(Signal::SIGKILL as i32)), 137);
    }

    #[test]
    fn a_command_is_run_to_its_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        assert_eq!(run(command).expect("sh"), 3);
        assert_eq!(run(Command::new("/nonexistent")).expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }
}
