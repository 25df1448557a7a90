//! Frames as they come: from interfaces, or as VXLAN from a tap's external destination.

mod receivers;
mod ring;
mod vxlan;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use podtap_flow::{Source, Timestamp};

use self::{
    receivers::Receivers,
    ring::{Ring, RingFrame, Statistics},
    vxlan::Listener,
};
use crate::{
    analysis::{Analysis, Frame, Output},
    clock::now,
};

/// How long to wait for frames before flows that are over are reported, in milliseconds.
const TICK_MS: u16 = 100;
/// The kernel passes on every block within this time.
const LAST_BLOCK: Duration = Duration::from_millis(150);
/// Blocks, or datagrams, of one source before the others have their turn.
const TURN: usize = 64;

/// A source of frames.
pub enum Input {
    Interface(String, Ring),
    Receivers(Receivers),
    Vxlan(Listener),
}

/// What was captured, and what was lost on the way to this program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    pub frames: u64,
    pub dropped: u64,
}

impl Captured {
    fn add(&mut self, statistics: Statistics) {
        self.frames += statistics.frames - statistics.dropped.min(statistics.frames);
        self.dropped += statistics.dropped;
    }
}

fn observe<Out: Output>(analysis: &mut Analysis<Out>, source: Source, frame: RingFrame<'_>) {
    let at = Timestamp::from_seconds(frame.seconds.into()).0 + u64::from(frame.nanoseconds);
    analysis.observe(&Frame { source, at: Timestamp(at), length: frame.length, bytes: frame.bytes });
}

impl Input {
    /// Captures from an interface.
    pub fn interface(name: &str) -> Result<Self> {
        let ring = Ring::open(name).with_context(|| {
            format!("{name} cannot be captured from: it must be an interface of this network namespace, and the program needs the capability NET_RAW")
        })?;
        Ok(Self::Interface(name.to_owned(), ring))
    }

    /// Captures from the receivers of all taps that have this pod as their destination.
    pub fn receivers() -> Result<Self> {
        let receivers =
            Receivers::open().context("frames cannot be captured: the program needs the capability NET_RAW")?;
        Ok(Self::Receivers(receivers))
    }

    /// Receives what a tap sends to its external destination.
    pub fn vxlan(port: u16) -> Result<Self> {
        let listener = Listener::bind(port).with_context(|| format!("UDP port {port} cannot be listened on"))?;
        Ok(Self::Vxlan(listener))
    }

    /// What it is called in files of frames.
    pub fn name(&self) -> String {
        match self {
            Self::Interface(name, _) => name.clone(),
            Self::Receivers(_) => "receivers".to_owned(),
            Self::Vxlan(_) => "VXLAN".to_owned(),
        }
    }

    /// Whether frames still come. Without its device, a packet socket only reports an error.
    fn check(&self) -> Result<()> {
        match self {
            Self::Interface(name, ring) => ring.check().with_context(|| format!("{name} went down, or was removed")),
            Self::Receivers(_) | Self::Vxlan(_) => Ok(()),
        }
    }

    fn read<Out: Output>(&mut self, source: Source, analysis: &mut Analysis<Out>) -> Result<()> {
        match self {
            Self::Interface(_, ring) => {
                for _ in 0..TURN {
                    if !ring.read(|frame| observe(analysis, source, frame)) {
                        break;
                    }
                }
                Ok(())
            }
            // One source: a flow between two tapped pods is one flow, also if each has a tap of its own.
            Self::Receivers(receivers) => {
                for _ in 0..TURN {
                    if !receivers.read(|frame| observe(analysis, source, frame)) {
                        break;
                    }
                }
                Ok(())
            }
            Self::Vxlan(listener) => {
                for _ in 0..TURN * 16 {
                    let at = now();
                    let Some(bytes) = listener.receive()? else { break };
                    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    analysis.observe(&Frame { source, at, length, bytes });
                }
                Ok(())
            }
        }
    }

    /// Adds what was captured since the last call.
    fn count(&mut self, captured: &mut Captured) -> io::Result<()> {
        match self {
            Self::Interface(_, ring) => captured.add(ring.statistics()?),
            Self::Receivers(receivers) => captured.add(receivers.statistics()?),
            Self::Vxlan(listener) => captured.frames += std::mem::take(&mut listener.frames),
        }
        Ok(())
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Interface(_, ring) => ring.as_fd(),
            Self::Receivers(receivers) => receivers.ring.as_fd(),
            Self::Vxlan(listener) => listener.as_fd(),
        }
    }
}

/// SIGINT and SIGTERM, which end the capture. To be called before other threads start: they inherit that these do not interrupt them.
pub fn signals() -> Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signals")
}

/// Returns when there is a signal.
pub fn wait(signals: &SignalFd) -> Result<()> {
    while signals.read_signal()?.is_none() {
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for a signal"),
        }
    }
    Ok(())
}

/// Analyses frames until a signal. `tick` is called at least every 100 milliseconds; its error ends the capture, too.
pub fn run<Out: Output>(
    signals: &SignalFd,
    inputs: &mut [Input],
    analysis: &mut Analysis<Out>,
    mut tick: impl FnMut(&mut Analysis<Out>, Captured, Timestamp) -> Result<()>,
) -> Result<Captured> {
    let mut captured = Captured::default();
    let mut end = None;
    loop {
        let mut waiting: Vec<PollFd<'_>> =
            inputs.iter().map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)).collect();
        waiting.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        match poll(&mut waiting, PollTimeout::from(TICK_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
        if end.is_none() && signals.read_signal()?.is_some() {
            // Blocks that the kernel has not passed on yet have frames from before.
            end = Some(Instant::now() + LAST_BLOCK);
        }
        for (number, input) in inputs.iter_mut().enumerate() {
            input.read(Source::try_from(number).unwrap_or(Source::MAX), analysis)?;
            input.count(&mut captured)?;
            input.check()?;
        }
        let now = now();
        analysis.expire(now);
        if let Some(writer) = analysis.writer() {
            writer.tick(now, captured.dropped);
        }
        tick(analysis, captured, now)?;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(captured);
        }
    }
}
