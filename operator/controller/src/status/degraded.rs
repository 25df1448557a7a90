//! What may be missing although a tap's frames are mirrored. Pure.
//!
//! A mirror is useful even if programs of others hide some frames from it. The tap stays Ready, and this says what may be missing and
//! where, so that what arrives is not mistaken for all there is.

use std::collections::{BTreeMap, BTreeSet};

use podtap_model::Reason;

use crate::{
    failure::{Failure, count},
    plan::tap_plan::TapPlan,
    status::progress::Reports,
    store::pod::CachedPod,
};

/// How many different messages of nodes are listed; and how many nodes for each.
const MAX_MESSAGES: usize = 4;
const MAX_NODES: usize = 5;

/// Which programs may hide frames of the `active` senders of the tap, if any.
pub fn hidden_frames<'a>(
    plan: &TapPlan<'_>,
    active: impl Iterator<Item = &'a CachedPod>,
    reports: &Reports<'_>,
) -> Option<Failure> {
    let mut nodes_by_message: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pod in active {
        let sender = reports.sender(&plan.tap.reference.uid, pod);
        for message in sender.into_iter().flat_map(|sender| &sender.degraded) {
            nodes_by_message.entry(message).or_default().extend(pod.node.as_deref());
        }
    }
    if nodes_by_message.is_empty() {
        return None;
    }
    let more = nodes_by_message.len().saturating_sub(MAX_MESSAGES);
    let messages = nodes_by_message
        .iter()
        .take(MAX_MESSAGES)
        .map(|(message, nodes)| format!("{}: {}", node_list(nodes), message.trim_end_matches('.')));
    let mut parts: Vec<String> = messages.collect();
    if more > 0 {
        parts.push(format!("and {}", count(more, "more message", "more messages")));
    }
    Some(Failure::new(Reason::FramesHidden, parts.join("; ")))
}

fn node_list(nodes: &BTreeSet<&str>) -> String {
    let named: Vec<&str> = nodes.iter().take(MAX_NODES).copied().collect();
    let more = nodes.len().saturating_sub(MAX_NODES);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{rest}", if nodes.len() == 1 { "node" } else { "nodes" }, named.join(", "))
}
