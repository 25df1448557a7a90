//! The election as a state machine without I/O.

use std::time::{Duration, Instant};

/// How long candidates wait for a renewal before they take the lease.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader that cannot renew stays leader. Less than [`LEASE_DURATION`], so that it stops before another starts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals, and between reads of another process's lease.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// The content of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Identity of the holder; empty if there is none.
    pub holder: String,
    /// Time of the last renewal. It is only compared with earlier values, never with a clock.
    pub renewed: String,
    /// How long after its last renewal the holder may still lead.
    pub duration: Duration,
    /// How many times the holder has changed.
    pub transitions: i32,
}

/// What a candidate has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the lease.
    Create,
    /// Write its identity into the observed lease, under an optimistic lock.
    Take {
        /// `leaseTransitions` to write.
        transitions: i32,
    },
    /// Read again after [`RETRY_PERIOD`].
    Wait,
}

/// What a candidate knows about the lease.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    /// The last observation, and since when it has not changed.
    observed: Option<(Record, Instant)>,
}

impl Candidate {
    pub fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), observed: None }
    }

    /// Observes the lease at `now`; `None` if it does not exist.
    ///
    /// Clocks of different machines are never compared: a lease has expired when *this* process has seen it unchanged for its
    /// duration.
    pub fn observe(&mut self, record: Option<&Record>, now: Instant) -> Action {
        let Some(record) = record else {
            self.observed = None;
            return Action::Create;
        };
        let since = match &self.observed {
            Some((observed, since)) if observed == record => *since,
            _ => {
                self.observed = Some((record.clone(), now));
                now
            }
        };
        if record.holder == self.identity {
            // Held by a previous process of this pod, which has ended: a container restarts only after it has stopped.
            Action::Take { transitions: record.transitions }
        } else if record.holder.is_empty() || now.saturating_duration_since(since) >= record.duration {
            Action::Take { transitions: record.transitions.saturating_add(1) }
        } else {
            Action::Wait
        }
    }
}

/// When a leader that does not renew has to stop: [`RENEW_DEADLINE`] after it *began* its last successful renewal, which is before
/// any other process can have seen it.
pub fn deadline(renewal_began: Instant) -> Instant {
    renewal_began + RENEW_DEADLINE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, renewed: &str) -> Record {
        Record { holder: holder.to_owned(), renewed: renewed.to_owned(), duration: LEASE_DURATION, transitions: 4 }
    }

    #[test]
    fn creates_a_missing_lease() {
        assert_eq!(Candidate::new("a").observe(None, Instant::now()), Action::Create);
    }

    #[test]
    fn takes_a_released_lease_at_once() {
        assert_eq!(
            Candidate::new("a").observe(Some(&record("", "1")), Instant::now()),
            Action::Take { transitions: 5 }
        );
    }

    #[test]
    fn retakes_its_own_lease_at_once_without_a_transition() {
        assert_eq!(
            Candidate::new("a").observe(Some(&record("a", "1")), Instant::now()),
            Action::Take { transitions: 4 }
        );
    }

    #[test]
    fn waits_until_the_lease_has_not_changed_for_its_duration() {
        let mut candidate = Candidate::new("a");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(candidate.observe(Some(&record("b", "1")), at(0)), Action::Wait);
        assert_eq!(candidate.observe(Some(&record("b", "1")), at(14)), Action::Wait);
        assert_eq!(candidate.observe(Some(&record("b", "2")), at(15)), Action::Wait, "renewed: starts over");
        assert_eq!(candidate.observe(Some(&record("b", "2")), at(29)), Action::Wait);
        assert_eq!(candidate.observe(Some(&record("b", "2")), at(30)), Action::Take { transitions: 5 });
    }

    #[test]
    fn a_time_far_in_the_past_does_not_make_a_lease_old() {
        // The first observation says nothing about the age, whatever the holder's clock was.
        let first = Candidate::new("a").observe(Some(&record("b", "1970-01-01T00:00:00.000000Z")), Instant::now());
        assert_eq!(first, Action::Wait);
    }

    #[test]
    fn a_new_holder_restarts_the_wait() {
        let mut candidate = Candidate::new("a");
        let start = Instant::now();
        candidate.observe(Some(&record("b", "1")), start);
        assert_eq!(candidate.observe(Some(&record("c", "1")), start + LEASE_DURATION), Action::Wait);
    }

    #[test]
    fn a_deleted_lease_is_forgotten() {
        let mut candidate = Candidate::new("a");
        let start = Instant::now();
        candidate.observe(Some(&record("b", "1")), start);
        candidate.observe(None, start + Duration::from_secs(1));
        assert_eq!(candidate.observe(Some(&record("b", "1")), start + LEASE_DURATION), Action::Wait);
    }

    #[test]
    fn honours_the_duration_in_the_lease() {
        let mut candidate = Candidate::new("a");
        let long = Record { duration: Duration::from_secs(60), ..record("b", "1") };
        let start = Instant::now();
        candidate.observe(Some(&long), start);
        assert_eq!(candidate.observe(Some(&long), start + Duration::from_secs(59)), Action::Wait);
        assert_eq!(candidate.observe(Some(&long), start + Duration::from_secs(60)), Action::Take { transitions: 5 });
    }

    #[test]
    fn a_leader_stops_before_another_can_start() {
        // Worst case: the other process sees the renewal at the moment it begins.
        let began = Instant::now();
        let mut other = Candidate::new("other");
        other.observe(Some(&record("leader", "1")), began);
        assert_eq!(other.observe(Some(&record("leader", "1")), deadline(began)), Action::Wait);
    }
}
