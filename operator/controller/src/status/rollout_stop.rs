//! Reports that a rollout of helper pods has stopped.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use podtap_api::NodeTap;
use podtap_model::Reason;
use tracing::warn;

use crate::{
    apply::objects::Applied,
    events::{Occurrence, Publisher},
    failure::count,
};

/// Warns once per stop. `reported` is the hash of the template whose rollout has stopped, if that is so; `template` the current one.
///
/// The event is about the `NodeTap` of a node whose new pod fails: the pod may not even exist.
pub fn report(publisher: &Publisher, applied: &Applied, template: &str, reported: &mut Option<String>) {
    let Applied { rollout, node_taps, .. } = applied;
    if !rollout.is_stopped() {
        // A pod that crashes is starting again in between: that is no other stop.
        reported.take_if(|stopped| stopped != template || rollout.starting == 0);
        return;
    }
    if reported.replace(template.to_owned()).as_deref() == Some(template) {
        return;
    }
    warn!(nodes = ?rollout.failing, waiting = rollout.outdated.len(), "new helper pods fail; the other nodes keep theirs");
    if let Some((node, node_tap)) = rollout.failing.iter().find_map(|node| Some((node, node_taps.get(node)?))) {
        let regarding = ObjectReference {
            api_version: Some(NodeTap::api_version(&()).into_owned()),
            kind: Some(NodeTap::kind(&()).into_owned()),
            name: Some(node.clone()),
            uid: Some(node_tap.uid.clone()),
            ..ObjectReference::default()
        };
        let note = note(node, rollout.failing.len() - 1, rollout.outdated.len());
        publisher
            .publish_about(&regarding, [Occurrence { is_warning: true, reason: Reason::HelperRolloutStopped, note }]);
    }
}

fn note(node: &str, others: usize, waiting: usize) -> String {
    let others = match others {
        0 => String::new(),
        others => format!(", as do those of {}", count(others, "other node", "other nodes")),
    };
    format!(
        "the new helper pod of the node {node} fails{others}; {} until the new one is Ready here: look at its events and logs, or upgrade to another image or back to the previous one",
        count(waiting, "node keeps its previous helper pod", "nodes keep their previous helper pods")
    )
}
