//! Projection of a node's `NodeTap`.

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

    /// Whether spec or status mention the tap.
    pub fn mentions(&self, tap: &str) -> bool {
        self.spec.as_ref().is_some_and(|spec| {
            spec.senders.iter().any(|s| *s.tap == *tap) || spec.receivers.iter().any(|r| *r.tap.uid == *tap)
        }) || self.status.senders.iter().any(|s| s.tap_uid == tap)
            || self.status.receivers.iter().any(|r| r.tap_uid == tap)
    }
}
