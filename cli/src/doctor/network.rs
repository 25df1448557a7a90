//! Whether mirrored frames reach other nodes, as the probes of taps prove it.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use podtap_api::{CONDITION_DELIVERING, NodeTap};
use podtap_model::{Reason, State};

use super::{
    firewall, named,
    report::{Finding, Group, Level},
    snapshot::Snapshot,
};
use crate::{
    console::counted,
    exit::{page, page_of},
};

/// Reasons of [`CONDITION_DELIVERING`] that are about the network.
pub const REASONS: [Reason; 3] = [Reason::NoProbeFromNode, Reason::PortBlocked, Reason::PathMtu];

/// How many paths a message names.
const MAX_PATHS: usize = 8;

/// The findings about it. `is_tried`: whether the paths are tried as well.
pub fn check(snapshot: &Snapshot, is_tried: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    // By reason and message: taps with the same destination report the same.
    let mut failures: BTreeMap<(Reason, &str), Vec<String>> = BTreeMap::new();
    for tap in snapshot.taps.iter().flatten() {
        let Some(condition) = tap.condition(CONDITION_DELIVERING).filter(|found| found.status == "False") else {
            continue;
        };
        let reason = REASONS.into_iter().find(|reason| reason.as_str() == condition.reason);
        if let Some(reason) = reason {
            failures.entry((reason, &condition.message)).or_default().push(tap.to_string());
        }
    }
    let mut has_rules = false;
    for ((reason, message), taps) in &failures {
        let finding = Finding::error(Group::Network, format!("{message} ({})", named("", taps)));
        let finding = match reason {
            Reason::PathMtu => finding.hint(underlay_mtu("SIZE")).page(page("cni.md", "mtu")),
            // Once is enough.
            _ if has_rules => finding.page(page_of(reason.as_str())),
            _ => {
                has_rules = true;
                finding.hint(firewall::rules(snapshot)).page(page("firewalls.md", ""))
            }
        };
        findings.push(finding);
    }
    // The findings about nodes tell if the user may not read them.
    findings.extend(snapshot.node_taps.as_ref().map(|node_taps| proven(node_taps)).unwrap_or_default());
    if findings.is_empty() && !is_tried {
        let text = "no tap sends frames from one node to another, so nothing is known of the network between them";
        findings.push(
            Finding::new(Group::Network, Level::Unknown, text)
                .hint("kubectl podtap doctor --network starts a pod on each node, which try it."),
        );
    }
    findings
}

/// What to do where packets of the size that interfaces promise are lost. `size` may be a word.
pub fn underlay_mtu(size: &str) -> String {
    format!(
        "Set underlayMTU to the largest IP packet that the network carries:\n\
         kubectl patch podtappolicy default --type=merge -p '{{\"spec\":{{\"underlayMTU\":{size}}}}}'"
    )
}

/// Which nodes' probes arrive at which other nodes: of full size, or only small ones.
fn proven(node_taps: &[NodeTap]) -> Vec<Finding> {
    let mut full: BTreeSet<(String, String)> = BTreeSet::new();
    for to in node_taps {
        let active = to.status.iter().flat_map(|status| &status.receivers).filter(|found| found.state == State::Active);
        for receiver in active {
            let arrives = |uid: &str| {
                let is_in = |pods: &[String]| pods.iter().any(|pod| pod == uid);
                is_in(&receiver.pods_with_probes) && !is_in(&receiver.pods_without_full_size_probes)
            };
            for from in node_taps.iter().filter(|from| from.name_any() != to.name_any()) {
                let senders = from.status.iter().flat_map(|status| &status.senders);
                let mut of_tap = senders.filter(|sender| sender.tap_uid == receiver.tap_uid);
                if of_tap.any(|sender| arrives(&sender.pod_uid)) {
                    full.insert((from.name_any(), to.name_any()));
                }
            }
        }
    }
    if full.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = full.iter().take(MAX_PATHS).map(|(from, to)| format!("{from} to {to}")).collect();
    let more = if full.len() > MAX_PATHS { format!(" and {} more", full.len() - MAX_PATHS) } else { String::new() };
    let text = format!(
        "probes of taps arrive, small and of full size, on {}: {}{more}",
        counted(full.len(), "path"),
        names.join(", ")
    );
    vec![Finding::ok(Group::Network, text)]
}
