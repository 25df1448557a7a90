//! Which helper pods are replaced because their template has changed. Pure.
//!
//! # Guarantees
//! - One node is first. Others follow when its new pod is Ready, as many at a time as [`MaxUnavailable`] allows.
//! - While a new pod fails, no further pod is replaced: the other nodes keep what works. The rollout resumes when that pod becomes
//!   Ready, or with the next template, which that node gets first.
//! - A node that is not Ready is left alone, and does not stop the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    plan::{
        helper_pods::{Unready, is_outdated, served, serving},
        nodes::NodePlan,
    },
    store::{pod::CachedPod, snapshot::Snapshot},
};

/// How many nodes may be without a helper pod that is Ready because theirs is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxUnavailable {
    Nodes(usize),
    /// Of the nodes that have helper pods, rounded down, and at least one.
    Percent(usize),
}

/// The text is not a [`MaxUnavailable`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number of nodes, at least 1, nor a percentage from 1% to 100%")]
pub struct InvalidMaxUnavailable(String);

impl FromStr for MaxUnavailable {
    type Err = InvalidMaxUnavailable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_suffix('%') {
            Some(number) => number.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent),
            None => text.parse().ok().filter(|nodes| *nodes > 0).map(Self::Nodes),
        };
        parsed.ok_or_else(|| InvalidMaxUnavailable(text.to_owned()))
    }
}

impl MaxUnavailable {
    fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(number) => number,
            Self::Percent(percent) => (nodes * percent / 100).max(1),
        }
    }
}

/// The state of a rollout, and its next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Nodes whose helper pod is Ready and of the current template.
    pub current: usize,
    /// Nodes whose new helper pod is not Ready yet.
    pub starting: usize,
    /// Nodes whose new helper pod does not run, or is not Ready in time.
    pub failing: BTreeSet<String>,
    /// Nodes whose helper pod is of another template.
    pub outdated: BTreeSet<String>,
    /// Those of them whose pod is replaced now.
    pub replace: BTreeSet<String>,
}

impl Rollout {
    /// Whether nodes keep an outdated helper pod because a new one fails.
    pub fn is_stopped(&self) -> bool {
        !self.failing.is_empty() && !self.outdated.is_empty()
    }
}

/// The next step towards helper pods of `template` on all nodes to be served.
pub fn plan(
    snapshot: &Snapshot,
    plans: &BTreeMap<String, NodePlan>,
    template: &str,
    unready: &BTreeMap<String, Unready>,
    max_unavailable: MaxUnavailable,
) -> Rollout {
    let mut rollout = Rollout::default();
    let mut candidates = BTreeSet::new();
    let mut nodes = 0;
    for node in served(snapshot, plans) {
        nodes += 1;
        match serving(snapshot.helpers_of(node), template) {
            Some(pod) if is_outdated(pod, template) => {
                // What does not work comes first: there is nothing to lose, and the template may be its repair.
                candidates.insert((pod.ready, node));
                rollout.outdated.insert(node.clone());
            }
            Some(pod) if pod.ready => rollout.current += 1,
            pod if fails(pod.map(AsRef::as_ref), unready.get(node), snapshot.now) => {
                rollout.failing.insert(node.clone());
            }
            _ => rollout.starting += 1,
        }
    }
    let limit = if rollout.current == 0 { 1 } else { max_unavailable.of(nodes) };
    let budget = if rollout.failing.is_empty() { limit.saturating_sub(rollout.starting) } else { 0 };
    rollout.replace = candidates.into_iter().take(budget).map(|(_, node)| node.clone()).collect();
    rollout
}

fn fails(pod: Option<&CachedPod>, unready: Option<&Unready>, now: Timestamp) -> bool {
    let has_error = |pod: &CachedPod| pod.helper.as_ref().is_some_and(|helper| helper.container_error.is_some());
    pod.is_some_and(has_error) || unready.is_some_and(|unready| unready.deadline() <= now)
}

#[cfg(test)]
mod tests;
