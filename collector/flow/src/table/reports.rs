//! When flows are reported, and when they are forgotten.

use std::time::Duration;

use super::Table;
use crate::{
    Limits,
    arena::Index,
    flow::{Effect, Flow},
    record::{End, Event},
    time::Timestamp,
};

/// A new flow is announced after this time: until then, another view of it may have come.
const ANNOUNCED_AFTER: Duration = Duration::from_secs(1);
/// A client tries this long to open a connection (`tcp_syn_retries`, `Documentation/networking/ip-sysctl.rst`).
const TRIED: Duration = Duration::from_secs(130);
/// Frames of a connection may come after its end.
const LATE: Duration = Duration::from_secs(1);
/// Frames wait for less than this in a ring. Those that are older than what was lost are of a clock that was set back.
const SET_BACK: Duration = Duration::from_secs(60);
/// Frames within this time move a flow in its queue once, in nanoseconds. The neighbours of a flow in the queue are rarely in a cache, and
/// being found idle later by this time does no harm.
const SAME_MOMENT: u64 = 1_000_000_000;

/// Flows by their state. Each queue begins with the one that is in it for longest.
pub(super) mod queue {
    /// Not announced.
    pub const YOUNG: usize = 0;
    /// Moved to the end by frames: see [`super::SAME_MOMENT`].
    pub const ACTIVE: usize = 1;
    /// Open connections without anything new.
    pub const QUIET: usize = 2;
    /// At their end.
    pub const ENDED: usize = 3;
    /// Connections that were not answered. The client may try again.
    pub const FAILED: usize = 4;
    /// Of protocols without connections, of which frames may have been lost by this program.
    pub const HELD: usize = 5;
    pub const COUNT: usize = 6;
}

impl Table {
    /// Frames that came until this time were lost on their way to the table, in the ring of a program that does not keep up for example.
    /// [`Timestamp::MAX`]: they are, until another time is given.
    ///
    /// Bytes of which no frame is seen are [`Missing::by_collector`](crate::Missing) then, records are
    /// [`degraded`](crate::Record::degraded), and flows are not taken for idle.
    pub const fn lost_until(&mut self, until: Timestamp) {
        self.lost = until;
    }

    /// Frames that came before this time were lost, as [`Self::lost_until`], and perhaps later ones as well.
    pub fn lost_before(&mut self, at: Timestamp) {
        self.lost = self.lost.max(at);
    }

    /// Moves a flow to the queue where it belongs after a frame. `times`: of the frame before, and of this one.
    pub(super) fn advance(
        &mut self,
        index: Index,
        effect: Effect,
        times: (Timestamp, Timestamp),
        report: &mut impl FnMut(Event),
    ) {
        let (last, at) = times;
        let queue = self.flows.queue(index);
        // If it was joined, it may be gone.
        let Some(flow) = self.flows.get_mut(index) else { return };
        if effect == Effect::Ended {
            self.flows.move_to(index, queue::ENDED);
        } else if effect == Effect::Late || queue == Some(queue::YOUNG) {
            // It stays in the order of its end, or of its beginning.
        } else {
            announce(flow, self.lost, report);
            if flow.is_due(at, self.limits.active) {
                emit(flow, End::ActiveTimeout, self.lost, report);
            }
            if queue != Some(queue::ACTIVE) || last.0 / SAME_MOMENT != at.0 / SAME_MOMENT {
                self.flows.move_to(index, queue::ACTIVE);
            }
        }
    }

    /// Reports and forgets what is over at this time. To be called at least every second of the frames' time.
    pub fn expire(&mut self, now: Timestamp, report: &mut impl FnMut(Event)) {
        if self.lost != Timestamp::MAX && self.lost.since(now) > SET_BACK {
            self.lost = now;
        }
        let lost = self.lost;
        while let Some((index, flow)) =
            self.first(queue::YOUNG).filter(|(_, flow)| now.since(flow.start) >= ANNOUNCED_AFTER)
        {
            announce(flow, lost, report);
            self.flows.move_to(index, queue::ACTIVE);
        }
        while let Some((index, flow)) = self.first(queue::ENDED).filter(|(_, flow)| now.since(flow.last) >= LATE) {
            let end = flow.end.unwrap_or(End::Finished);
            emit(flow, end, lost, report);
            self.remove(index);
        }
        let Limits { idle, open, .. } = self.limits;
        while let Some((index, flow)) = self.first(queue::ACTIVE).filter(|(_, flow)| now.since(flow.last) >= idle) {
            flow.give_up();
            let is_held = flow.may_be_active(now, lost, idle);
            emit(flow, if is_held { End::ActiveTimeout } else { End::IdleTimeout }, lost, report);
            if flow.is_opening() {
                self.flows.move_to(index, queue::FAILED);
            } else if flow.is_open() {
                self.flows.move_to(index, queue::QUIET);
            } else if is_held {
                self.flows.move_to(index, queue::HELD);
            } else {
                self.remove(index);
            }
        }
        while let Some((index, _)) = self.first(queue::HELD).filter(|(_, flow)| !flow.may_be_active(now, lost, idle)) {
            self.remove(index);
        }
        for (queue, after) in [(queue::QUIET, open), (queue::FAILED, TRIED)] {
            while let Some((index, _)) = self.first(queue).filter(|(_, flow)| now.since(flow.last) >= after) {
                self.remove(index);
            }
        }
    }

    /// Reports all flows, and forgets them.
    pub fn flush(&mut self, report: &mut impl FnMut(Event)) {
        let lost = self.lost;
        for queue in 0..queue::COUNT {
            while let Some((index, flow)) = self.first(queue) {
                let end = flow.end.unwrap_or(End::Forced);
                emit(flow, end, lost, report);
                self.remove(index);
            }
        }
    }

    fn first(&mut self, queue: usize) -> Option<(Index, &mut Flow)> {
        let index = self.flows.first(queue)?;
        self.flows.get_mut(index).map(|flow| (index, flow))
    }

    /// Makes room: for what has failed or is at its end, for a young flow of which nothing else is known, and then for what is quiet or
    /// idle for longest. So a flood of new flows does not replace connections.
    pub(super) fn evict(&mut self, report: &mut impl FnMut(Event)) {
        let lost = self.lost;
        let young = self.first(queue::YOUNG).filter(|(_, flow)| flow.is_one_way()).map(|_| queue::YOUNG);
        let order = [queue::FAILED, queue::ENDED].into_iter().chain(young);
        for queue in order.chain([queue::HELD, queue::QUIET, queue::ACTIVE, queue::YOUNG]) {
            if let Some((index, flow)) = self.first(queue) {
                let end = flow.end.unwrap_or(End::LackOfResources);
                emit(flow, end, lost, report);
                self.remove(index);
                self.counters.evicted += 1;
                return;
            }
        }
    }
}

/// Says that a flow has begun, unless that was said, or it may fail. `lost`: see [`Table::lost_until`].
fn announce(flow: &mut Flow, lost: Timestamp, report: &mut impl FnMut(Event)) {
    if !flow.announced && !flow.is_opening() {
        let opened = flow.summary(lost);
        flow.announced = true;
        report(Event::Opened(opened));
    }
}

/// Reports what is new about a flow. `lost`: see [`Table::lost_until`].
pub(super) fn emit(flow: &mut Flow, end: End, lost: Timestamp, report: &mut impl FnMut(Event)) {
    if flow.has_news() || !flow.announced {
        report(Event::Record(flow.report(end, lost)));
    }
}
