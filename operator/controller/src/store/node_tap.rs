//! Projection of a node's `NodeTap`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::core::DeserializeGuard;
use podtap_api::NodeTap;
use podtap_model::{Instruction, NodeState, NodeStatus, Tap};

/// The desired and the reported state of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CachedNodeTap {
    pub name: String,
    pub uid: String,
    /// `metadata.resourceVersion`: a leader that was replaced without noticing cannot overwrite a newer object.
    pub version: String,
    pub generation: i64,
    /// `None` if it cannot be decoded; the next reconcile then writes it again.
    pub spec: Option<NodeState>,
    pub status: NodeStatus,
}

impl From<DeserializeGuard<NodeTap>> for CachedNodeTap {
    fn from(guard: DeserializeGuard<NodeTap>) -> Self {
        let (meta, spec, status) = match guard.0 {
            Ok(object) => (object.metadata, Some(object.spec.0), object.status.unwrap_or_default()),
            Err(invalid) => (invalid.metadata, None, NodeStatus::default()),
        };
        Self {
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            version: meta.resource_version.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            spec,
            status,
        }
    }
}

impl CachedNodeTap {
    /// Whether the node has applied the spec of `generation`.
    pub fn has_observed(&self, generation: i64) -> bool {
        self.status.observed_generation.is_some_and(|observed| observed >= generation)
    }

    /// Whether nothing is requested, and nothing of what was is left.
    pub fn is_empty(&self) -> bool {
        let NodeStatus { senders, receivers, leftovers, .. } = &self.status;
        let spec_is_empty = self.spec.as_ref().is_some_and(|spec| spec.senders.is_empty() && spec.receivers.is_empty());
        spec_is_empty && senders.is_empty() && receivers.is_empty() && leftovers.is_empty()
    }

    /// The filter expressions of the spec, with their programs.
    pub fn compiled(&self) -> Vec<(String, Vec<Instruction>)> {
        let Some(spec) = &self.spec else { return Vec::new() };
        let compiled = |tap: &Tap| {
            let program = spec.programs.iter().find(|program| Some(&program.id) == tap.program.as_ref())?;
            Some((tap.options.expression()?.to_owned(), program.instructions.clone()))
        };
        spec.taps.iter().filter_map(compiled).collect()
    }

    /// The UIDs of the taps in spec and status, with repetitions.
    pub fn mentioned(&self) -> impl Iterator<Item = &str> {
        let senders = self.spec.iter().flat_map(|spec| &spec.senders).map(|sender| &*sender.tap);
        let receivers = self.spec.iter().flat_map(|spec| &spec.receivers).map(|receiver| &*receiver.tap.uid);
        let reports = self.status.senders.iter().map(|sender| sender.tap_uid.as_str());
        let receiver_reports = self.status.receivers.iter().map(|receiver| receiver.tap_uid.as_str());
        senders.chain(receivers).chain(reports).chain(receiver_reports)
    }
}

/// The UIDs of all taps that a `NodeTap` mentions, with the names of its nodes.
pub fn mentions(node_taps: &BTreeMap<String, Arc<CachedNodeTap>>) -> BTreeSet<(&str, &str)> {
    node_taps.values().flat_map(|node_tap| node_tap.mentioned().map(|tap| (tap, node_tap.name.as_str()))).collect()
}
