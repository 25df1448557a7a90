//! When senders stop mirroring. Pure.
//!
//! A mirror runs for its tap's orphan timeout after the API server has confirmed it, but not beyond the tap's expiration time. The
//! confirmation has the API server's time, so how the clock of the node is set does not matter.

use std::time::Duration;

use podtap_model::{DesiredSender, DesiredState, Reason, SenderStatus, State, UnixTime};

use crate::{bpf::Monotonic, failure::Status, resource::SenderKey};

/// The time of day at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The moment.
    pub at: Monotonic,
    /// What a clock showed.
    pub time: UnixTime,
}

impl ClockReading {
    /// When the clock shows a time; for a time in the past, this reading's moment.
    fn moment(&self, time: UnixTime) -> Monotonic {
        self.at.after(Duration::from_secs(time.seconds().saturating_sub(self.time.seconds())))
    }

    fn expiration(&self, sender: &DesiredSender) -> Option<Monotonic> {
        sender.tap.expiration_time.map(|time| self.moment(time))
    }

    fn deadline(&self, sender: &DesiredSender) -> Monotonic {
        let orphaned = self.at.after(sender.orphan_timeout);
        self.expiration(sender).map_or(orphaned, |expiration| expiration.min(orphaned))
    }
}

/// When a sender stops mirroring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The API server has confirmed the sender.
    Confirmed(Monotonic),
    /// It has not yet done so since this helper started. A mirror that runs keeps the deadline that it has; a new one gets this.
    Provisional(Monotonic),
}

impl Deadline {
    /// The deadline of a mirror that has another one, or none.
    #[must_use]
    pub fn after(self, current: Option<Monotonic>) -> Monotonic {
        match (self, current) {
            (Self::Confirmed(moment), _) | (Self::Provisional(moment), None) => moment,
            (Self::Provisional(_), Some(current)) => current,
        }
    }
}

/// What the deadlines follow from.
#[derive(Clone, Copy, Debug)]
pub struct Renewals {
    /// The newest confirmation of the API server.
    confirmed: Option<ClockReading>,
    /// The node's clock when this helper got its first desired state.
    first: ClockReading,
}

impl Renewals {
    /// Before the first desired state.
    #[must_use]
    pub fn new(node_clock: ClockReading) -> Self {
        Self { confirmed: None, first: node_clock }
    }

    /// Records a confirmation with the API server's clock.
    pub fn confirm(&mut self, api_clock: ClockReading) {
        self.confirmed = Some(api_clock);
    }

    /// When a sender stops mirroring.
    #[must_use]
    pub fn deadline(&self, sender: &DesiredSender) -> Deadline {
        match &self.confirmed {
            Some(confirmed) => Deadline::Confirmed(confirmed.deadline(sender)),
            None => Deadline::Provisional(self.first.deadline(sender)),
        }
    }

    /// When a sender's tap expires, if it does, by the API server's clock. Unknown before the first confirmation.
    #[must_use]
    pub fn expiration(&self, sender: &DesiredSender) -> Option<Monotonic> {
        self.confirmed.as_ref()?.expiration(sender)
    }

    /// The desired state without the senders whose taps have expired, which become refused ones; none if there are no such senders.
    #[must_use]
    pub fn without_expired(&self, desired: &DesiredState, now: Monotonic) -> Option<DesiredState> {
        let is_expired = |sender: &DesiredSender| self.expiration(sender).is_some_and(|moment| moment <= now);
        if !desired.senders.iter().any(is_expired) {
            return None;
        }
        let mut desired = desired.clone();
        let expired = desired.senders.extract_if(.., |sender| is_expired(sender));
        desired.refused_senders.extend(expired.map(|sender| expired_status(&sender)));
        Some(desired)
    }
}

fn expired_status(sender: &DesiredSender) -> SenderStatus {
    let SenderKey { tap, pod } = SenderKey::of(sender);
    let time = sender.tap.expiration_time.unwrap_or_default();
    SenderStatus {
        tap_uid: tap,
        pod_uid: pod,
        interface: None,
        addresses: Vec::new(),
        state: State::Refused,
        reason: Reason::Expired,
        message: format!("The tap expired at {time}."),
        degraded: Vec::new(),
    }
}

/// The status of a sender whose mirror has stopped at its deadline.
#[must_use]
pub fn not_renewed(sender: &DesiredSender) -> Status {
    let seconds = sender.orphan_timeout.as_secs();
    Status {
        state: State::Pending,
        reason: Reason::NotRenewed,
        message: format!(
            "The mirror has stopped: the API server has not confirmed it for {seconds} seconds. It continues as soon as the node's agent reaches the API server."
        ),
    }
}

#[cfg(test)]
mod tests;
