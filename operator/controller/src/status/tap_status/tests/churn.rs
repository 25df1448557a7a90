//! Pods that come and go under a tap.

use k8s_openapi::jiff::Timestamp;

use super::*;

/// A tap over time.
pub(super) struct Watch {
    pub(super) world: World,
    pub(super) claims: Vnis,
    pub(super) waits: Waits,
}

impl Watch {
    /// A tap that was Ready with the pods of `world`, of which every one has started.
    pub(super) fn established(mut world: World) -> Self {
        world.pods = world.pods.into_iter().map(started).collect();
        let (world, claims) = world.settled(&Vnis::default());
        let mut watch = Self { world, claims, waits: Waits::default() };
        let status = watch.status(0);
        assert_eq!(summary(&status)[CONDITION_READY].0, "True", "{status:?}");
        assert_eq!(status.established_generation, Some(1));
        watch
    }

    /// The status at this time, which is stored.
    pub(super) fn status(&mut self, seconds: i64) -> PodTapStatus {
        self.world.seconds = seconds;
        let (status, waits) = status_and_waits(&self.world, &self.claims, &[], &self.waits);
        assert_conventions(&status);
        (self.world.taps[0].status, self.waits) = (Some(status.clone()), waits);
        status
    }

    /// The next leader, which has only the stored status.
    pub(super) fn restart(&mut self) {
        self.waits = Waits::default();
    }

    /// Every node carries out what is planned.
    pub(super) fn settle(&mut self) {
        self.world = self.world.settled(&self.claims).0;
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.waits.next(at(self.world.seconds))
    }
}

fn ready(status: &PodTapStatus) -> (&str, Reason) {
    summary(status)[CONDITION_READY]
}

fn numbers(status: &PodTapStatus) -> (i32, i32, i32) {
    (status.matched_pods, status.tapped_pods, status.pending_pods)
}

#[test]
fn a_new_pod_has_a_grace_time() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.pods.push(pod("shop", "new", "n2"));
    let status = watch.status(100);
    assert_eq!((ready(&status), numbers(&status)), (("True", Reason::AsExpected), (2, 1, 1)));
    assert_eq!(message(&status, CONDITION_TAPPED), "1 of 2 pods tapped, 1 pending");
    let words = format!("1 pod is mirrored to node/n2:ptap{}", derived("tap-t", ""));
    assert_eq!(message(&status, CONDITION_READY), words);
    // A pod that never starts sends nothing, however long it takes.
    assert_eq!(ready(&watch.status(1000)).0, "True");

    watch.world.pods[1] = started(watch.world.pods[1].clone());
    assert_eq!(ready(&watch.status(1001)).0, "True");
    assert_eq!(watch.next(), Some(at(1031)), "the leader must not sleep through it");
    assert_eq!(ready(&watch.status(1030)).0, "True");
    let status = watch.status(1031);
    assert_eq!((ready(&status), numbers(&status)), (("False", Reason::PodNotTapped), (2, 1, 0)));
    assert!(message(&status, CONDITION_READY).contains("pod new: not tapped for 30 s; "), "{status:?}");
    assert_eq!((status.failures[0].pod.as_str(), status.failures[0].reason), ("new", Reason::PodNotTapped));
    assert_eq!(watch.next(), None);
    watch.settle();
    let status = watch.status(1032);
    assert_eq!((ready(&status), numbers(&status)), (("True", Reason::AsExpected), (2, 2, 0)));
}

#[test]
fn a_node_may_fail_on_a_new_pod_for_the_grace_time() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.pods.push(started(pod("shop", "new", "n2")));
    watch.settle();
    for sender in watch.world.node_taps.iter_mut().flat_map(|n| &mut n.status).flat_map(|status| &mut status.senders) {
        if sender.pod_uid == "shop-new" {
            (sender.state, sender.reason, sender.message) =
                (State::Refused, Reason::InterfaceNotFound, "no address yet".into());
        }
    }
    let status = watch.status(5);
    assert_eq!((ready(&status).0, status.failures.len(), numbers(&status)), ("True", 0, (2, 1, 1)));
    let status = watch.status(35);
    assert_eq!((ready(&status), status.failures.len()), (("False", Reason::InterfaceNotFound), 1));
}

#[test]
fn pods_that_end_are_gone() {
    let mut watch = Watch::established(World::with(web()));
    // Its process has ended; the object is still there.
    watch
        .world
        .node_taps
        .iter_mut()
        .flat_map(|node_tap| &mut node_tap.status)
        .for_each(|status| status.senders.clear());
    assert_eq!(ready(&watch.status(1)).0, "True");
    watch.world.pods[0].metadata.deletion_timestamp = time(2);
    let status = watch.status(100);
    assert_eq!((ready(&status).0, numbers(&status)), ("True", (1, 0, 0)));
    watch.world.pods.clear();
    let status = watch.status(200);
    assert_eq!((ready(&status), numbers(&status)), (("True", Reason::NoPodsMatch), (0, 0, 0)));
    assert_eq!(summary(&status)[CONDITION_TARGETS_RESOLVED], ("True", Reason::NoPodsMatch));
    assert_eq!(ready(&watch.status(100_000)).0, "True", "the next run of a CronJob may be tomorrow");
}

#[test]
fn a_new_leader_reports_the_same() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.pods.push(started(pod("shop", "new", "n2")));
    watch.restart();
    assert_eq!(ready(&watch.status(100)).0, "True");
    watch.restart();
    assert_eq!(ready(&watch.status(110)).0, "True", "it does not know since when");
    assert_eq!(ready(&watch.status(140)), ("False", Reason::PodNotTapped));
    watch.restart();
    assert_eq!(ready(&watch.status(141)), ("False", Reason::PodNotTapped), "not True for another 30 s");
}

#[test]
fn what_was_established_is_remembered_while_something_else_fails() {
    let mut watch = Watch::established(World::with(web()));
    let node = watch.world.nodes[1].clone();
    watch.world.nodes[1] = lost(node.clone());
    assert_eq!(ready(&watch.status(10)), ("False", Reason::NodeNotReady), "a destination has no grace time");
    watch.world.pods.push(started(pod("shop", "new", "n1")));
    watch.world.nodes[1] = node;
    assert_eq!(ready(&watch.status(11)).0, "True");
}

#[test]
fn a_changed_spec_is_established_again() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.taps[0].metadata.generation = Some(2);
    watch.world.pods.push(pod("shop", "new", "n2"));
    let status = watch.status(10);
    assert_eq!((ready(&status), status.established_generation), (("False", Reason::Pending), Some(1)));
    // A pod that does not start does not hold it up for ever.
    assert_eq!(ready(&watch.status(39)).0, "False");
    let status = watch.status(40);
    assert_eq!((ready(&status).0, status.established_generation), ("True", Some(2)));
}

#[test]
fn a_tap_that_was_suspended_is_established_again() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.policy = Some(policy(json!({"suspendAll": true})));
    let status = watch.status(10);
    assert_eq!((ready(&status), status.established_generation), (("False", Reason::Suspended), None));
    watch.settle();
    watch.world.policy = None;
    assert_eq!(ready(&watch.status(20)), ("False", Reason::Pending), "nothing is mirrored yet");
    watch.settle();
    assert_eq!(ready(&watch.status(21)).0, "True");
}

#[test]
fn a_named_pod_may_be_recreated() {
    let mut named = web();
    named.spec.targets = object(json!({"podNames": ["web"]}));
    let mut watch = Watch::established(World::with(named));
    let web = watch.world.pods.remove(0);
    let status = watch.status(10);
    assert_eq!((ready(&status).0, summary(&status)[CONDITION_TARGETS_RESOLVED].0), ("True", "True"));
    assert_eq!(watch.next(), Some(at(40)));
    assert_eq!(ready(&watch.status(40)), ("False", Reason::NoPodsMatch), "it was named, and does not come back");
    watch.restart();
    assert_eq!(ready(&watch.status(41)), ("False", Reason::NoPodsMatch));
    watch.world.pods.push(web);
    assert_eq!(ready(&watch.status(42)).0, "True");
}

#[test]
fn pods_of_a_node_that_joins_have_a_grace_time() {
    let mut watch = Watch::established(World::with(web()));
    watch.world.nodes.push(lost(crate::fixtures::node("n3", &["10.0.0.3"])));
    watch.world.pods.push(pod("shop", "daemon", "n3"));
    assert_eq!(ready(&watch.status(10)).0, "True");
    watch.world.pods[1] = started(watch.world.pods[1].clone());
    assert_eq!(ready(&watch.status(11)), ("False", Reason::NodeNotReady));
}
