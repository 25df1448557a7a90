//! Who leads, as a state machine without I/O.

use std::time::{Duration, Instant};

/// How long candidates wait for a renewal before they take over.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader that cannot renew goes on. Less than [`LEASE_DURATION`], so that it has stopped before another starts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals, and between looks at somebody else's lease.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What a lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// Changes with each renewal. Never compared with a clock: only whether it changed counts.
    pub renewed: String,
    /// How long the holder promised to be gone after its last renewal at the latest.
    pub duration: Duration,
    /// How often the holder changed.
    pub transitions: i32,
}

/// What a candidate is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the lease.
    Create,
    /// Write itself into the lease that was observed, under optimistic lock.
    Take {
        /// `leaseTransitions` to write.
        transitions: i32,
    },
    /// Look again after [`RETRY_PERIOD`].
    Wait,
}

/// What a candidate knows about the lease.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    /// What was seen last, and since when it has not changed.
    seen: Option<(Record, Instant)>,
}

impl Candidate {
    pub fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), seen: None }
    }

    /// Takes in what the lease says at `now`; `None` if there is none.
    ///
    /// Nobody's clock is compared with another's: a lease has run out when it was *seen* unchanged for its duration here.
    pub fn observe(&mut self, record: Option<&Record>, now: Instant) -> Action {
        let Some(record) = record else {
            self.seen = None;
            return Action::Create;
        };
        let since = match &self.seen {
            Some((seen, since)) if seen == record => *since,
            _ => {
                self.seen = Some((record.clone(), now));
                now
            }
        };
        if record.holder == self.identity {
            // An earlier process of this pod: it is dead, since the containers of a pod restart one after the other.
            Action::Take { transitions: record.transitions }
        } else if record.holder.is_empty() || now.saturating_duration_since(since) >= record.duration {
            Action::Take { transitions: record.transitions.saturating_add(1) }
        } else {
            Action::Wait
        }
    }
}

/// Until when a leader may go on: [`RENEW_DEADLINE`] after it *began* its last successful renewal, which is before anybody
/// else can have seen that one.
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
    fn takes_its_own_lease_at_once_without_a_transition() {
        assert_eq!(
            Candidate::new("a").observe(Some(&record("a", "1")), Instant::now()),
            Action::Take { transitions: 4 }
        );
    }

    #[test]
    fn waits_until_a_lease_was_seen_unchanged_for_its_duration() {
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
        // The first look says nothing about age, whatever the holder's clock wrote.
        let first = Candidate::new("a").observe(Some(&record("b", "1970-01-01T00:00:00.000000Z")), Instant::now());
        assert_eq!(first, Action::Wait);
    }

    #[test]
    fn another_holder_starts_the_wait_over() {
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
    fn honours_the_duration_that_the_holder_promised() {
        let mut candidate = Candidate::new("a");
        let long = Record { duration: Duration::from_secs(60), ..record("b", "1") };
        let start = Instant::now();
        candidate.observe(Some(&long), start);
        assert_eq!(candidate.observe(Some(&long), start + Duration::from_secs(59)), Action::Wait);
        assert_eq!(candidate.observe(Some(&long), start + Duration::from_secs(60)), Action::Take { transitions: 5 });
    }

    #[test]
    fn a_leader_stops_before_another_can_start() {
        // Worst case: the other one sees the renewal in the moment in which it was begun.
        let began = Instant::now();
        let mut other = Candidate::new("other");
        other.observe(Some(&record("leader", "1")), began);
        assert_eq!(other.observe(Some(&record("leader", "1")), deadline(began)), Action::Wait);
    }
}
