//! Which requests a plan needs. Pure.

use podtap_model::NodeState;

use crate::{
    plan::nodes::NodePlan,
    retries::RetryKey,
    store::{pod::CachedPod, snapshot::Snapshot},
};

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `version` is the resource version of the object that the plan is based on; none: there is none yet.
    WriteNodeTap {
        node: String,
        version: Option<String>,
        spec: NodeState,
    },
    DeleteNodeTap {
        node: String,
        uid: String,
    },
    CreateHelper {
        node: String,
        owner: String,
    },
    DeleteHelper {
        node: String,
        name: String,
        uid: String,
        immediately: bool,
    },
}

impl Action {
    pub fn retry_key(&self) -> RetryKey {
        match self {
            Self::WriteNodeTap { node, .. } | Self::DeleteNodeTap { node, .. } => RetryKey::NodeTap(node.clone()),
            Self::CreateHelper { node, .. } | Self::DeleteHelper { node, .. } => RetryKey::Helper(node.clone()),
        }
    }
}

/// What a node's `NodeTap` needs.
pub fn node_tap_action(snapshot: &Snapshot, node: &str, plan: &NodePlan) -> Option<Action> {
    let current = snapshot.node_taps.get(node);
    match plan {
        NodePlan::Serve(spec) => {
            (current.and_then(|object| object.spec.as_ref()) != Some(spec)).then(|| Action::WriteNodeTap {
                node: node.to_owned(),
                version: current.map(|object| object.version.clone()),
                spec: spec.clone(),
            })
        }
        // Its helper pod is deleted first.
        NodePlan::Retire if snapshot.helpers.contains_key(node) => None,
        NodePlan::Retire | NodePlan::Forget => {
            current.map(|object| Action::DeleteNodeTap { node: node.to_owned(), uid: object.uid.clone() })
        }
    }
}

/// What a node's helper pod needs. `owner` is the UID of the `NodeTap`, `template` the hash of the current template.
pub fn helper_action(
    helper: Option<&CachedPod>,
    node: &str,
    plan: &NodePlan,
    owner: Option<&str>,
    template: &str,
) -> Option<Action> {
    let delete = |pod: &CachedPod, immediately| Action::DeleteHelper {
        node: node.to_owned(),
        name: pod.name.clone(),
        uid: pod.uid.to_string(),
        immediately,
    };
    match (plan, helper) {
        // No kubelet would confirm that it has stopped.
        (NodePlan::Forget, Some(pod)) => Some(delete(pod, true)),
        // Its name is free only when it is gone.
        (_, Some(pod)) if pod.terminating => None,
        (NodePlan::Retire, Some(pod)) => Some(delete(pod, false)),
        (NodePlan::Serve(_), Some(pod)) => {
            let is_current = pod.helper.as_ref().is_some_and(|h| h.template == template && h.ended.is_none());
            (!is_current).then(|| delete(pod, false))
        }
        (NodePlan::Serve(_), None) => {
            owner.map(|owner| Action::CreateHelper { node: node.to_owned(), owner: owner.to_owned() })
        }
        (NodePlan::Retire | NodePlan::Forget, None) => None,
    }
}

#[cfg(test)]
mod tests;
