//! The life of a tap, from its creation until its nodes are retired, with a fault at each request of the controller in turn.

use super::*;
use crate::fake_api::Fault;

/// More reconciles than any part of the life needs with one fault.
const ROUNDS: usize = 12;
/// Longer than any pause after one failure.
const PAUSE: i64 = 10;

/// How far the tap is.
#[derive(Clone, Copy, Debug)]
enum Part {
    Established,
    Deleted,
    Retired,
}

impl Cluster {
    /// One reconcile of a leader that may die in it; then its successor takes over. A `stale` one does not know what happened since
    /// the last one.
    async fn survive(&mut self, is_stale: bool) {
        if !is_stale {
            self.sync();
        }
        self.reconciler.reconcile(self.now()).await;
        // The requests for helper pods are sent beside the reconcile.
        tokio::task::yield_now().await;
        if self.api.take_death() {
            self.restart();
        }
        self.assert_nothing_twice();
    }

    /// What holds at any moment.
    fn assert_nothing_twice(&self) {
        let mut helpers: BTreeMap<String, usize> = BTreeMap::new();
        for (_, pod) in self.api.list(PODS) {
            *helpers.entry(pod["spec"]["nodeName"].to_string()).or_default() += 1;
        }
        assert!(helpers.values().all(|count| *count == 1), "{helpers:?}");
    }

    fn is(&self, part: Part) -> bool {
        let (helpers, node_taps) = (self.api.list(PODS).len(), self.api.list("/nodetaps/").len());
        match part {
            Part::Established => {
                let status = self.api.get(TAP).and_then(|tap| object::<PodTap>(tap).status).unwrap_or_default();
                let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
                ready && (helpers, node_taps) == (2, 2)
            }
            Part::Deleted => self.api.get(TAP).is_none(),
            Part::Retired => (helpers, node_taps) == (0, 0),
        }
    }

    async fn until(&mut self, part: Part, stale_after_fault: bool) {
        for _ in 0..ROUNDS {
            let had_failed = self.api.has_failed();
            self.survive(false).await;
            if stale_after_fault && !had_failed && self.api.has_failed() {
                self.survive(true).await;
            }
            if self.is(part) {
                return;
            }
            self.nodes_apply();
            self.advance(PAUSE);
        }
        panic!("{part:?} is not reached: {:?}, {:?}", self.api.get(TAP), self.api.list("/nodetaps/"));
    }

    /// The whole life; the number of requests in it.
    async fn live(&mut self, stale_after_fault: bool) -> usize {
        self.until(Part::Established, stale_after_fault).await;
        let vni = self.status().vni;
        assert_eq!(self.node_tap("n1").spec.0.senders.len(), 1);
        assert_eq!(self.node_tap("n2").spec.0.receivers.len(), 1);
        self.add_pod("web-2");
        self.advance(PAUSE);
        for _ in 0..3 {
            self.survive(false).await;
            self.nodes_apply();
            self.advance(PAUSE);
        }
        self.until(Part::Established, stale_after_fault).await;
        assert_eq!(self.node_tap("n1").spec.0.senders.len(), 2);
        assert_eq!(self.status().vni, vni, "the VNI stays");
        self.delete_tap();
        self.until(Part::Deleted, stale_after_fault).await;
        self.advance(60);
        self.until(Part::Retired, stale_after_fault).await;
        self.api.requests().len()
    }
}

#[tokio::test]
async fn whatever_fails_once_the_result_is_the_same() {
    let requests = Cluster::with_one_tap().live(false).await;
    assert!(requests > 15, "{requests}");
    let refused = |code: u16, reason| Fault::Refused(StatusCode::from_u16(code).expect("a status code"), reason);
    let faults = [
        Fault::DiesBefore,
        Fault::DiesAfter,
        Fault::AnswerLost,
        refused(409, "Conflict"),
        refused(410, "Expired"),
        refused(422, "Invalid"),
        refused(429, "TooManyRequests"),
        refused(500, "InternalError"),
    ];
    for fault in faults {
        for stale_after_fault in [false, true] {
            for number in 0..requests {
                println!("{fault:?} of request {number}, stale: {stale_after_fault}");
                let mut cluster = Cluster::with_one_tap();
                cluster.api.fail(number, fault);
                cluster.live(stale_after_fault).await;
                assert!(cluster.api.has_failed());
            }
        }
    }
}
