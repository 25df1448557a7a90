//! The size of each node's `NodeTap`, and how many senders a node has.
//!
//! One object carries the taps of all namespaces on a node. etcd refuses a request of more than 1.5 MiB (`--max-request-bytes`), and from
//! then on every write of that object would fail, for all of them. One tap-helper runs their senders: with more than its memory limit
//! allows for, the kernel would end it. So each node has a budget, and what exceeds it is refused here.
//!
//! # Guarantees
//! - A namespace that uses no more than its share of a node's budget (the budget divided by the namespaces on the node) loses nothing. The
//!   taps of the cluster count as those of a namespace of their own; what they lose are the youngest pods of the youngest of them.
//! - The result depends only on the taps, so that a deleted tap always makes room.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use podtap_model::{ProgramId, Reason, Uid, bounds::MAX_PEERS};
use serde::Serialize;

use crate::{
    failure::Failure,
    plan::{
        node_size::{flow_table_senders, max_senders},
        node_specs,
        tap_plan::TapPlan,
    },
    store::snapshot::Snapshot,
    validate::{policy::Policy, state::TapState},
};

/// Bytes for the spec and status of one node: enough for eight taps of each of 110 pods, the kubelet's default maximum. The other 704 KiB
/// of etcd's limit are for what is not planned: senders that are no longer requested and still being removed (two thirds of the budget
/// at most, since that is the most an entry of the status is of both entries), the texts of the status
/// ([`MAX_STATUS_TEXT`](podtap_model::bounds::MAX_STATUS_TEXT)), and what no tenant chooses: the metadata, and the addresses of the nodes
/// that may send here.
const NODE_BUDGET: usize = 832 << 10;

/// An entry of the status without its texts, with the longest values: two UIDs of 36 bytes, a state, a reason, an interface.
const STATUS_ENTRY: usize = 208;

/// The VNIs of a tap in the status, at most four.
const STATUS_VNIS: usize = 104;

/// `metadata.managedFields` about an entry of a list that is merged by key, as taps, receivers and programs are: the key, and the name of
/// every field that a tap can have.
const MANAGED_FIELDS: usize = 640;

/// What one tap uses of one node.
#[derive(Clone, Debug, Default)]
struct Usage<'a> {
    /// Without the program and `pods`.
    bytes: usize,
    /// What each pod of a tap of the cluster uses, oldest first.
    pods: Vec<(&'a Uid, usize)>,
    /// The program and its bytes. The taps of a node share it.
    program: Option<(&'a ProgramId, usize)>,
}

/// What can be refused on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    /// The tap of this index.
    Tap(usize),
    /// A pod of it.
    Pod(usize, &'a Uid),
}

/// What a node is used for: by namespace and, oldest first, by the index of the tap.
type NodeUsage<'a> = BTreeMap<&'a str, BTreeMap<usize, Usage<'a>>>;

/// Refuses taps until every node's part fits: the youngest of the namespace that uses most of the node, again and again. The plans are
/// to be given oldest tap first.
pub fn refuse(taps: &mut [TapPlan<'_>], snapshot: &Snapshot, policy: &Policy) {
    let cached = |node: &str| snapshot.nodes.get(node).map(AsRef::as_ref);
    let max_senders = |node: &str| max_senders(cached(node));
    let flow_table = |node: &str| flow_table_senders(cached(node)) * min_sender(max_senders(node));
    let mut refused: BTreeMap<usize, String> = BTreeMap::new();
    let mut without: BTreeMap<usize, BTreeMap<Uid, String>> = BTreeMap::new();
    for (node, mut usage) in usage(taps, policy, max_senders, flow_table) {
        for taps in usage.values_mut() {
            taps.retain(|index, _| !refused.contains_key(index));
        }
        for part in excess(usage) {
            match part {
                Part::Tap(index) => drop(refused.insert(index, node.clone())),
                Part::Pod(index, pod) => drop(without.entry(index).or_default().insert(pod.clone(), node.clone())),
            }
        }
    }
    let room = |node: &str| {
        format!(
            "by its memory, it has room for at most {} tapped pods, each counted once per tap, and for fewer if filters are long or limit.bytesPerFlow or truncate.exemptBytes are set",
            max_senders(node)
        )
    };
    for (index, pods) in without {
        for target in &mut taps[index].targets.pods {
            let Some(node) = pods.get(&target.pod.uid) else { continue };
            let message = format!(
                "the node {node} has no room for it: {}, ClusterPodTaps use the most, and this is one of the youngest pods of the youngest of them there: select fewer pods, or delete another tap",
                room(node)
            );
            target.failure = Some(Failure::new(Reason::NodeFull, message));
        }
    }
    for (index, node) in refused {
        let reference = &taps[index].tap.reference;
        let owner = if reference.is_cluster_scoped() {
            "ClusterPodTaps use the most, and this is the youngest of them there: delete another one".to_owned()
        } else {
            let namespace = &reference.namespace;
            format!(
                "{namespace} uses the most of all namespaces, and this is its youngest tap there: delete another tap of the namespace"
            )
        };
        let message = format!(
            "the node {node} has no room for this tap: {}, {owner}, or select fewer pods on that node",
            room(&node)
        );
        taps[index].state = TapState::Refused(Failure::new(Reason::NodeFull, message));
    }
}

/// What is planned for each node. A flow table there counts as so many bytes.
fn usage<'a>(
    taps: &'a [TapPlan<'_>],
    policy: &Policy,
    max_senders: impl Fn(&str) -> usize,
    flow_table: impl Fn(&str) -> usize,
) -> BTreeMap<String, NodeUsage<'a>> {
    let mut nodes: BTreeMap<String, NodeUsage<'a>> = BTreeMap::new();
    for (index, plan) in taps.iter().enumerate().filter(|(_, plan)| plan.is_executed()) {
        let Ok(spec) = &plan.tap.spec else { continue };
        let mut by_node: BTreeMap<String, Usage<'a>> = BTreeMap::new();
        for (node, receiver) in plan.destinations.iter().filter_map(|d| node_specs::receiver(plan, d)) {
            by_node.entry(node).or_default().bytes += size(&receiver) + STATUS_ENTRY + MANAGED_FIELDS;
        }
        let mut senders: BTreeMap<&str, Vec<(&Uid, usize)>> = BTreeMap::new();
        for pod in plan.targets.tapped() {
            let Some(node) = &pod.node else { continue };
            // The status repeats the addresses.
            let status = STATUS_ENTRY + size(&pod.addresses);
            let sender = size(&node_specs::sender(plan, pod, &policy.metadata_labels));
            // The senders of a tap share program sets, but a set does not get other pods for those that went.
            let flow_table = if plan.options.track_flows() { flow_table(node) } else { 0 };
            let bytes = (sender + status).max(min_sender(max_senders(node))) + flow_table;
            senders.entry(node).or_default().push((&pod.uid, bytes));
        }
        let tap = size(&node_specs::tap(plan, spec, possible_peers(plan))) + STATUS_VNIS + MANAGED_FIELDS;
        let program = plan.program.as_ref().map(|program| (&program.id, size(program) + MANAGED_FIELDS));
        for (node, pods) in senders {
            let usage = by_node.entry(node.to_owned()).or_default();
            usage.bytes += tap;
            usage.program = program;
            if plan.tap.reference.is_cluster_scoped() {
                usage.pods = pods;
            } else {
                usage.bytes += pods.into_iter().map(|(_, bytes)| bytes).sum::<usize>();
            }
        }
        for (node, usage) in by_node {
            let namespaces = nodes.entry(node).or_default();
            namespaces.entry(&plan.tap.reference.namespace).or_default().insert(index, usage);
        }
    }
    nodes
}

/// What a sender takes of the budget at least, so that as many as the node may have use it up.
fn min_sender(max_senders: usize) -> usize {
    NODE_BUDGET.div_ceil(max_senders)
}

/// The peers that the tap has once all its pods are mirrored.
fn possible_peers(plan: &TapPlan<'_>) -> Vec<IpAddr> {
    if plan.options.deduplicate.is_none() {
        return Vec::new();
    }
    plan.targets.tapped().flat_map(|pod| &pod.addresses).copied().take(MAX_PEERS).collect()
}

/// What has to go from a node, so that the rest fits.
fn excess(usage: NodeUsage<'_>) -> Vec<Part<'_>> {
    let mut shares = BTreeSet::new();
    let mut total = 0;
    let mut charged: Vec<Vec<(Part<'_>, usize)>> = Vec::new();
    for taps in usage.into_values() {
        // A namespace pays once for a program, with the oldest tap that has it: the one that goes last.
        let mut programs = BTreeSet::new();
        let parts: Vec<(Part<'_>, usize)> = taps
            .into_iter()
            .flat_map(|(index, Usage { bytes, pods, program })| {
                let program = program.filter(|(id, _)| programs.insert(*id)).map_or(0, |(_, bytes)| bytes);
                // A tap of the cluster stays, whatever goes from this node: what its pods share goes with the last of them.
                let mut parts: Vec<_> = pods.into_iter().map(|(pod, bytes)| (Part::Pod(index, pod), bytes)).collect();
                match parts.first_mut() {
                    Some((_, of_oldest)) => *of_oldest += bytes + program,
                    None => parts.push((Part::Tap(index), bytes + program)),
                }
                parts
            })
            .collect();
        let share: usize = parts.iter().map(|(_, bytes)| bytes).sum();
        total += share;
        shares.insert((share, charged.len()));
        charged.push(parts);
    }
    let mut excess = Vec::new();
    while total > NODE_BUDGET {
        let Some((share, namespace)) = shares.pop_last() else { break };
        let Some((part, bytes)) = charged[namespace].pop() else { continue };
        excess.push(part);
        total -= bytes;
        shares.insert((share - bytes, namespace));
    }
    excess
}

/// Bytes of the object as JSON.
fn size(object: &impl Serialize) -> usize {
    // Types of the model always can be encoded. One that could not be would not fit.
    serde_json::to_vec(object).map_or(NODE_BUDGET, |json| json.len())
}

#[cfg(test)]
mod tests;
