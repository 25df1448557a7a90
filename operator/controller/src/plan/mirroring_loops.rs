//! Taps whose mirrored frames would be mirrored again, without end.
//!
//! A tap leads from each of its targets to each pod that is one of its destinations. A tap that would close a loop of older taps is
//! refused; `targets` handles a tap whose own destination is one of its targets. Nodes and external endpoints end every path: what
//! arrives there is not mirrored again.

use std::collections::{BTreeMap, BTreeSet};

use podtap_model::Reason;

use crate::{failure::Failure, plan::tap_plan::TapPlan, validate::state::TapState};

/// Refuses the youngest tap of each loop. The plans are to be given oldest tap first.
pub fn refuse(taps: &mut [TapPlan<'_>]) {
    let owned: Vec<_> = taps.iter().map(ends).collect();
    let edges: Vec<Edge<'_>> = owned
        .iter()
        .map(|(targets, consumers)| Edge {
            targets: targets.iter().map(String::as_str).collect(),
            consumers: consumers.iter().map(String::as_str).collect(),
        })
        .collect();
    for index in closing(&edges) {
        taps[index].state = TapState::Refused(Failure::new(
            Reason::MirroringLoop,
            "older taps mirror the traffic of a destination of this tap to one of its targets, so that mirrored frames would be mirrored again without end: choose another destination, or other targets",
        ));
    }
}

/// The UIDs of the tapped pods, and of the pods that receive mirrored frames.
fn ends(tap: &TapPlan<'_>) -> (Vec<String>, Vec<String>) {
    if !tap.is_executed() {
        return (Vec::new(), Vec::new());
    }
    let used = tap.destinations.iter().filter(|destination| destination.endpoint.is_some());
    let consumers: Vec<String> =
        used.filter_map(|d| d.resolved.as_ref()?.pod()).map(|pod| pod.uid.to_string()).collect();
    // Without a consumer it is no edge, and its targets do not matter.
    let targets =
        if consumers.is_empty() { Vec::new() } else { tap.targets.tapped().map(|pod| pod.uid.to_string()).collect() };
    (targets, consumers)
}

/// A tap: the UIDs of its targets and of the pods that are its destinations.
#[derive(Debug, Default)]
struct Edge<'a> {
    targets: BTreeSet<&'a str>,
    consumers: BTreeSet<&'a str>,
}

/// The indices of the edges that close a loop with earlier edges that do not.
fn closing(edges: &[Edge<'_>]) -> BTreeSet<usize> {
    let mut leads_to: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut closing = BTreeSet::new();
    for (index, edge) in edges.iter().enumerate() {
        if edge.consumers.is_empty() {
            continue;
        }
        if reaches(&leads_to, edge) {
            closing.insert(index);
            continue;
        }
        for target in &edge.targets {
            leads_to.entry(target).or_default().extend(&edge.consumers);
        }
    }
    closing
}

/// Whether any target can be reached from any consumer.
fn reaches(leads_to: &BTreeMap<&str, BTreeSet<&str>>, edge: &Edge<'_>) -> bool {
    let mut visited: BTreeSet<&str> = edge.consumers.clone();
    let mut open: Vec<&str> = visited.iter().copied().collect();
    while let Some(pod) = open.pop() {
        if edge.targets.contains(pod) {
            return true;
        }
        for next in leads_to.get(pod).into_iter().flatten() {
            if visited.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge<'a>(targets: &[&'a str], consumers: &[&'a str]) -> Edge<'a> {
        Edge { targets: targets.iter().copied().collect(), consumers: consumers.iter().copied().collect() }
    }

    #[test]
    fn the_youngest_of_a_loop_is_refused() {
        assert_eq!(closing(&[edge(&["a"], &["b"]), edge(&["b"], &["a"])]), [1].into());
        assert_eq!(closing(&[edge(&["a"], &["b"]), edge(&["b"], &["c"]), edge(&["c", "d"], &["a"])]), [2].into());
        assert_eq!(closing(&[edge(&["a"], &["b"]), edge(&["b"], &["a"]), edge(&["b"], &["c"])]), [1].into());
    }

    #[test]
    fn chains_stars_and_nodes_are_fine() {
        assert_eq!(closing(&[edge(&["a"], &["b"]), edge(&["b"], &["c"]), edge(&["a"], &["c"])]), [].into());
        assert_eq!(closing(&[edge(&["a", "b"], &["c"]), edge(&["a", "b"], &["d"])]), [].into());
        assert_eq!(closing(&[edge(&["a"], &["b"]), edge(&["b"], &[])]), [].into());
    }
}
