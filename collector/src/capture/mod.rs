//! Frames as they come: from interfaces, or as VXLAN from a tap's external destination.

mod degradation;
mod filter;
mod input;
mod options;
mod receivers;
mod ring;
mod vxlan;

use std::{
    os::fd::{AsFd as _, BorrowedFd},
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
use tracing::{info, warn};

use self::degradation::{Degradation, Load};
pub use self::{
    degradation::Step,
    input::{Arguments, Input, cannot_capture},
    ring::{BLOCKS, CapturedFrame, Ring},
};
use crate::{
    analysis::{Analysis, Frame, Output},
    clock::now,
};

/// How long to wait for frames before flows that are over are reported, in milliseconds.
const TICK_MS: u16 = 100;
/// The kernel passes on every block within this time.
pub const LAST_BLOCK: Duration = Duration::from_millis(150);

/// What was captured, and what was lost on the way to this program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    pub frames: u64,
    /// Frames that found no room.
    pub dropped: u64,
    /// About how many frames the filter of [`Step::Filtered`] left out.
    pub left_out: u64,
    /// What is captured now.
    pub step: Step,
}

/// SIGINT and SIGTERM, which end the capture. To be called before other threads start: they inherit that these do not interrupt them.
pub fn signals() -> Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signals")
}

/// Waits until one of them is readable, or [`TICK_MS`].
pub fn poll_all<'a>(waiting: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<()> {
    let mut waiting: Vec<PollFd<'a>> = waiting.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut waiting, PollTimeout::from(TICK_MS)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for frames"),
    }
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
    let mut degradation = Degradation::new(analysis.writer().is_some(), Instant::now());
    let mut end = None;
    loop {
        poll_all(inputs.iter().map(|input| input.as_fd()).chain([signals.as_fd()]))?;
        if end.is_none() && signals.read_signal()?.is_some() {
            // Blocks that the kernel has not passed on yet have frames from before.
            end = Some(Instant::now() + LAST_BLOCK);
        }
        let load = read(inputs, analysis, &mut captured)?;
        let step = degradation.update(Instant::now(), load);
        if step != captured.step {
            change(step, inputs, analysis, &mut captured)?;
        }
        let now = now();
        analysis.expire(now);
        if let Some(writer) = analysis.writer() {
            writer.tick(now, captured.dropped + captured.left_out);
        }
        tick(analysis, captured, now)?;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(captured);
        }
    }
}

/// Takes what waits. Returns how full the inputs were.
fn read<Out: Output>(inputs: &mut [Input], analysis: &mut Analysis<Out>, captured: &mut Captured) -> Result<Load> {
    let mut all = Load::default();
    for (number, input) in inputs.iter_mut().enumerate() {
        let load = input.load(captured)?;
        if load.has_dropped && captured.step != Step::Filtered {
            analysis.lost_until(now());
        }
        all = all.max(load);
        let source = Source::try_from(number).unwrap_or(Source::MAX);
        input.read(|frames| observe_all(analysis, captured, source, frames))?;
        input.check()?;
    }
    Ok(all)
}

fn observe_all<Out: Output>(
    analysis: &mut Analysis<Out>,
    captured: &mut Captured,
    source: Source,
    frames: &[CapturedFrame<'_>],
) {
    analysis.prepare(source, frames.iter().map(|frame| (frame.bytes, frame.length)));
    for frame in frames {
        observe(analysis, captured, source, *frame);
    }
}

fn observe<Out: Output>(
    analysis: &mut Analysis<Out>,
    captured: &mut Captured,
    source: Source,
    frame: CapturedFrame<'_>,
) {
    if frame.bytes.len() == filter::SAMPLE_LENGTH as usize {
        captured.left_out += u64::from(filter::SAMPLED);
        return;
    }
    captured.frames += 1;
    if frame.follows_drops && captured.step != Step::Filtered {
        analysis.lost_before(frame.at);
    }
    analysis.observe(&Frame { source, at: frame.at, length: frame.length, bytes: frame.bytes });
}

/// Captures and writes less, or more again.
fn change<Out: Output>(
    step: Step,
    inputs: &mut [Input],
    analysis: &mut Analysis<Out>,
    captured: &mut Captured,
) -> Result<()> {
    let is_filtered = step == Step::Filtered;
    if is_filtered != (captured.step == Step::Filtered) {
        let ether_type = is_filtered.then(|| analysis.ether_type());
        for input in inputs {
            input.filter(ether_type, captured).context("what a socket captures cannot be changed")?;
        }
        analysis.lost_until(if is_filtered { Timestamp::MAX } else { now() });
    }
    if let Some(writer) = analysis.writer() {
        writer.pause(step != Step::Whole);
    }
    if step > captured.step {
        warn!(dropped = captured.dropped, "the collector does not keep up: {}", step.meaning());
    } else {
        info!(left_out = captured.left_out, "the collector keeps up: {}", step.meaning());
    }
    captured.step = step;
    Ok(())
}
