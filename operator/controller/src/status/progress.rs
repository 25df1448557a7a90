//! How far the senders and receivers of a tap are, by what their nodes report.

use std::{collections::HashMap, sync::Arc};

use podtap_model::{Reason, ReceiverStatus, SenderStatus, State, Uid};

use crate::{
    apply::objects::Applied,
    failure::Failure,
    plan::{
        destinations::not_ready,
        tap_plan::{PlannedDestination, TapPlan},
    },
    store::{
        generations::{Change, Generations, Part},
        node_tap::CachedNodeTap,
        pod::CachedPod,
        snapshot::Snapshot,
    },
};

/// What a status is derived from, beside the plan.
#[derive(Clone, Copy)]
pub struct StatusInputs<'a> {
    pub snapshot: &'a Snapshot,
    pub applied: &'a Applied,
    pub reports: &'a Reports<'a>,
    pub generations: &'a Generations,
}

/// What all nodes report, by node, tap and pod or VNI. Searching the lists of each node for each pod of each tap would take a time that
/// grows with the square of the number of pods.
#[derive(Debug, Default)]
pub struct Reports<'a> {
    senders: HashMap<(&'a str, &'a str, &'a str), &'a SenderStatus>,
    receivers: HashMap<(&'a str, &'a str, u32), &'a ReceiverStatus>,
}

impl<'a> Reports<'a> {
    pub fn new(applied: &'a Applied) -> Self {
        let mut reports = Self::default();
        for (node, node_tap) in &applied.node_taps {
            let CachedNodeTap { status, .. } = Arc::as_ref(node_tap);
            let senders = status.senders.iter();
            reports.senders.extend(senders.map(|s| ((node.as_str(), s.tap_uid.as_str(), s.pod_uid.as_str()), s)));
            let receivers = status.receivers.iter();
            reports.receivers.extend(receivers.map(|r| ((node.as_str(), r.tap_uid.as_str(), r.vni), r)));
        }
        reports
    }

    /// What the pod's node reports of its sender for the tap.
    pub fn sender(&self, tap: &Uid, pod: &CachedPod) -> Option<&'a SenderStatus> {
        self.senders.get(&(pod.node.as_deref()?, tap, &pod.uid)).copied()
    }

    /// What a node reports of a tap's receiver, if that is in place.
    pub fn active_receiver(&self, node: &str, tap: &Uid, vni: u32) -> Option<&'a ReceiverStatus> {
        self.receiver(node, tap, vni).filter(|receiver| receiver.state == State::Active)
    }

    fn receiver(&self, node: &str, tap: &Uid, vni: u32) -> Option<&'a ReceiverStatus> {
        self.receivers.get(&(node, tap, vni)).copied()
    }
}

/// How far one sender or receiver is. The texts are clauses, such as "node n1: there is no process of the pod yet".
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    Active,
    /// In place, but its node has not applied the latest change yet.
    Updating(String),
    /// Not in place yet.
    Pending(String),
    Failed(Failure),
}

/// Each pod to tap, and its sender. A pod that is being deleted counts for as long as its sender is in place: what it still sends is
/// mirrored, and its end is not a failure.
pub fn senders<'a>(plan: &'a TapPlan<'_>, inputs: StatusInputs<'_>) -> Vec<(&'a CachedPod, Progress)> {
    let senders = plan.targets.tapped().map(|pod| (pod.as_ref(), sender(plan, pod, inputs)));
    senders.filter(|(pod, progress)| !pod.terminating || *progress == Progress::Active).collect()
}

fn sender(plan: &TapPlan<'_>, pod: &CachedPod, inputs: StatusInputs<'_>) -> Progress {
    let Some(node) = pod.node.as_deref().filter(|_| plan.is_executed()) else {
        return Progress::Pending(String::new());
    };
    let tap = &plan.tap.reference.uid;
    let part = Part::Sender { tap: tap.clone(), pod: pod.uid.clone() };
    let report = inputs.reports.sender(tap, pod).map(|s| (s.state, s.reason, s.message.as_str()));
    match on_node(plan, node, &part, report, inputs) {
        // Pods of a DaemonSet are bound to nodes that are not ready yet.
        Progress::Failed(Failure { reason: Reason::NodeNotReady, message }) if !pod.has_started() => {
            Progress::Pending(message)
        }
        progress => progress,
    }
}

/// The receiver of a destination. An external endpoint needs none.
pub fn receiver(plan: &TapPlan<'_>, destination: &PlannedDestination, inputs: StatusInputs<'_>) -> Progress {
    if let Some(failure) = &destination.failure {
        return Progress::Failed(failure.clone());
    }
    let Some(resolved) = destination.resolved.as_ref().filter(|_| plan.is_executed() && destination.endpoint.is_some())
    else {
        return Progress::Pending(String::new());
    };
    let (Some(node), Some(vni)) = (resolved.node(), destination.vni) else { return Progress::Active };
    let tap = &plan.tap.reference.uid;
    let part = Part::Receiver { tap: tap.clone(), vni: vni.get() };
    let report = inputs.reports.receiver(node, tap, vni.get()).map(|r| (r.state, r.reason, r.message.as_str()));
    match (on_node(plan, node, &part, report, inputs), resolved.pod()) {
        (Progress::Failed(failure), Some(pod)) => {
            Progress::Failed(Failure::new(failure.reason, format!("pod {}: {}", plan.tap.shown(pod), failure.message)))
        }
        (progress, _) => progress,
    }
}

/// How far a sender or receiver is on its node, by the node's `report`.
fn on_node(
    plan: &TapPlan<'_>,
    name: &str,
    part: &Part,
    report: Option<(State, Reason, &str)>,
    inputs: StatusInputs<'_>,
) -> Progress {
    if let Some(node) = inputs.snapshot.nodes.get(name).filter(|node| !node.ready) {
        return Progress::Failed(not_ready(node));
    }
    let waiting = |progress: fn(String) -> Progress, message: String| match inputs.applied.helper_failures.get(name) {
        Some(failure) => Progress::Failed(failure.clone()),
        None => progress(message),
    };
    let Some(node_tap) = inputs.applied.node_taps.get(name) else {
        return waiting(Progress::Pending, format!("node {name} is about to learn of it"));
    };
    let change = inputs.generations.change(node_tap, part);
    let is_observed = node_tap.has_observed(change.generation());
    match report {
        Some((State::Active, _, _)) if is_observed => Progress::Active,
        Some((State::Active, _, _)) => match change {
            // A new leader does not know which part has changed. A new spec would have to be established.
            Change::Before(_) if plan.tap.is_established() => Progress::Active,
            Change::Modified(_) => {
                waiting(Progress::Updating, format!("node {name} has not applied the latest change yet"))
            }
            Change::Before(_) | Change::Added(_) => waiting(Progress::Pending, awaited(name, inputs.snapshot)),
        },
        Some((state, reason, message)) if is_observed => match state {
            State::Refused | State::Failed => Progress::Failed(Failure::new(reason, format!("node {name}: {message}"))),
            State::Pending if !message.is_empty() => waiting(Progress::Pending, format!("node {name}: {message}")),
            _ => waiting(Progress::Pending, format!("node {name} is configuring it")),
        },
        _ => waiting(Progress::Pending, awaited(name, inputs.snapshot)),
    }
}

/// What a node has to do before it can report.
fn awaited(name: &str, snapshot: &Snapshot) -> String {
    let pods = snapshot.helpers_of(name).iter().filter(|pod| !pod.terminating);
    match pods.map(|pod| pod.ready).max() {
        Some(true) => format!("node {name} has not reported on it yet"),
        Some(false) => format!("the helper pod of node {name} is starting"),
        None => format!("the helper pod of node {name} is being created"),
    }
}
