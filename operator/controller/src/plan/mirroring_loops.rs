//! Part of stage 4: taps whose copies would go around in a circle. Pure.
//!
//! A tap leads from each of its targets to each pod that is one of its destinations. A tap that would close a circle of
//! older ones is refused; its own destinations among its targets are not looked at here. Nodes and external endpoints
//! are ends: what arrives there is not tapped again.

use std::collections::{BTreeMap, BTreeSet};

/// A tap: the UIDs of its targets and of the pods that are its destinations.
#[derive(Debug, Default)]
pub struct Edge<'a> {
    pub targets: BTreeSet<&'a str>,
    pub consumers: BTreeSet<&'a str>,
}

/// The indices of those that close a circle with earlier ones that do not. `edges` are to be given oldest first.
pub fn closing(edges: &[Edge<'_>]) -> BTreeSet<usize> {
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
    let mut seen: BTreeSet<&str> = edge.consumers.clone();
    let mut open: Vec<&str> = seen.iter().copied().collect();
    while let Some(pod) = open.pop() {
        if edge.targets.contains(pod) {
            return true;
        }
        for next in leads_to.get(pod).into_iter().flatten() {
            if seen.insert(next) {
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
    fn the_youngest_of_a_circle_is_refused() {
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
