//! How far the senders and receivers of a tap are, by what their nodes report.

use podtap_model::{Reason, State};

use crate::{
    apply::objects::Applied,
    failure::Failure,
    plan::{
        destinations::not_ready,
        tap_plan::{PlannedDestination, TapPlan},
    },
    store::{generations::Generations, node_tap::CachedNodeTap, pod::CachedPod, snapshot::Snapshot},
};

/// What a status is derived from, beside the plan.
#[derive(Clone, Copy)]
pub struct StatusInputs<'a> {
    pub snapshot: &'a Snapshot,
    pub applied: &'a Applied,
    pub generations: &'a Generations,
}

/// How far one sender or receiver is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    Active,
    /// Not yet, and what it waits for.
    Pending(String),
    Failed(Failure),
}

/// Each pod to tap, and its sender.
pub fn senders<'a>(plan: &'a TapPlan<'_>, inputs: StatusInputs<'_>) -> Vec<(&'a CachedPod, Progress)> {
    let tap = &*plan.tap.reference.uid;
    let sender = |pod: &CachedPod| {
        if !plan.is_executed() {
            return Progress::Pending(String::new());
        }
        on_node(pod.node.as_deref().unwrap_or_default(), tap, inputs, |node_tap| {
            let sender = node_tap.status.senders.iter().find(|s| s.tap_uid == *tap && s.pod_uid == *pod.uid);
            sender.map(|s| (s.state, s.reason, s.message.as_str()))
        })
    };
    plan.targets.tapped().map(|pod| (pod.as_ref(), sender(pod))).collect()
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
    let Some(node) = resolved.node() else { return Progress::Active };
    let tap = &*plan.tap.reference.uid;
    on_node(node, tap, inputs, |node_tap| {
        let is_it = |r: &&podtap_model::ReceiverStatus| {
            r.tap_uid == *tap && destination.vni.is_some_and(|vni| vni.get() == r.vni)
        };
        node_tap.status.receivers.iter().find(is_it).map(|r| (r.state, r.reason, r.message.as_str()))
    })
}

/// What a node reports of one sender or receiver, which `find` looks up.
fn on_node<'a>(
    name: &str,
    tap: &str,
    inputs: StatusInputs<'a>,
    find: impl Fn(&'a CachedNodeTap) -> Option<(State, Reason, &'a str)>,
) -> Progress {
    if let Some(node) = inputs.snapshot.nodes.get(name).filter(|node| !node.ready) {
        return Progress::Failed(not_ready(node));
    }
    let pending = |message: String| match inputs.applied.helper_failures.get(name) {
        Some(failure) => Progress::Failed(failure.clone()),
        None => Progress::Pending(message),
    };
    let Some(node_tap) = inputs.applied.node_taps.get(name) else {
        return pending(format!("for the NodeTap of the node {name}, which is being written"));
    };
    let reported = find(node_tap).filter(|_| node_tap.has_observed(inputs.generations.required(node_tap, tap)));
    match reported {
        Some((State::Active, _, _)) => Progress::Active,
        Some((State::Refused | State::Failed, reason, message)) => Progress::Failed(Failure::new(reason, message)),
        Some((State::Pending | State::Removing, reason, message)) => {
            let message = if message.is_empty() { reason.as_str() } else { message };
            pending(format!("on the node {name}: {message}"))
        }
        None => pending(format!("for the helper pod of the node {name}")),
    }
}
