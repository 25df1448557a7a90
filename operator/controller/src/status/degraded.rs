//! Part of stage 6: what of a tap is not done although it is in place. Pure.
//!
//! A tap that copies is useful even where a kernel cannot do all that was asked for. It stays Ready, and this says what is
//! missing and where, so that nobody takes what arrives for what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use crate::{apply::objects::Applied, failure::{count, Failure}, plan::build::TapPlan, reason, store::objects::CachedPod};

/// How many different sentences of nodes are told; and how many nodes are named for each.
const MAX_SENTENCES: usize = 4;
const MAX_NODES: usize = 5;

/// What is missing, as far as the `active` senders of the tap go; nothing if nothing is.
pub fn shortfall<'a>(
    tap: &TapPlan<'_>,
    active: impl Iterator<Item = &'a CachedPod>,
    applied: &Applied,
) -> Option<Failure> {
    let tap = &tap.tap.reference.uid;
    let mut nodes_by_sentence: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pod in active {
        let Some((name, node_tap)) = pod.node.as_deref().and_then(|name| Some((name, applied.node_taps.get(name)?)))
        else {
            continue;
        };
        let reported = node_tap.status.senders.iter().find(|s| s.tap_uid == *tap && s.pod_uid == pod.uid);
        for sentence in reported.into_iter().flat_map(|sender| &sender.degraded) {
            nodes_by_sentence.entry(sentence).or_default().insert(name);
        }
    }
    let everywhere = tap.shortfall.as_ref();
    if nodes_by_sentence.is_empty() {
        return everywhere.cloned();
    }
    let more = nodes_by_sentence.len().saturating_sub(MAX_SENTENCES);
    let sentences = nodes_by_sentence
        .iter()
        .take(MAX_SENTENCES)
        .map(|(sentence, nodes)| format!("{}: {}", places(nodes), sentence.trim_end_matches('.')));
    let mut parts: Vec<String> =
        everywhere.map(|failure| failure.message.clone()).into_iter().chain(sentences).collect();
    if more > 0 {
        parts.push(format!("and {}, see the NodeTaps", count(more, "more limit", "more limits")));
    }
    Some(Failure::new(reason::KERNEL_LIMITED, parts.join("; ")))
}

fn places(nodes: &BTreeSet<&str>) -> String {
    let named: Vec<&str> = nodes.iter().take(MAX_NODES).copied().collect();
    let more = nodes.len().saturating_sub(MAX_NODES);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{rest}", if nodes.len() == 1 { "node" } else { "nodes" }, named.join(", "))
}
