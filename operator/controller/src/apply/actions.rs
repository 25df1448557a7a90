//! Which requests a plan needs. Pure.

use std::sync::Arc;

use podtap_model::NodeState;

use crate::{
    plan::{
        helper_pods::{is_outdated, serving},
        nodes::NodePlan,
    },
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
            Self::CreateHelper { node, .. } => RetryKey::Helper(node.clone()),
            // That of a pod that has ended does not wait as its successor does.
            Self::DeleteHelper { name, .. } => RetryKey::HelperDeletion(name.clone()),
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
        // Its helper pods are deleted first.
        NodePlan::Retire if snapshot.helpers.contains_key(node) => None,
        NodePlan::Retire | NodePlan::Forget => {
            current.map(|object| Action::DeleteNodeTap { node: node.to_owned(), uid: object.uid.clone() })
        }
    }
}

/// What a node's helper pods need. `owner` is the UID of the `NodeTap`, `template` the hash of the current template; `replace` says
/// whether a pod of another template is replaced now.
///
/// The next pod does not wait until the previous one is gone: its image is pulled meanwhile, and its tap-helper waits for the node's lock.
pub fn helper_actions(
    pods: &[Arc<CachedPod>],
    node: &str,
    plan: &NodePlan,
    owner: Option<&str>,
    template: &str,
    replace: bool,
) -> Vec<Action> {
    let delete = |pod: &Arc<CachedPod>, immediately| Action::DeleteHelper {
        node: node.to_owned(),
        name: pod.name.clone(),
        uid: pod.uid.to_string(),
        immediately,
    };
    let kept = match plan {
        // No kubelet would confirm that they have stopped.
        NodePlan::Forget => return pods.iter().map(|pod| delete(pod, true)).collect(),
        NodePlan::Retire => None,
        NodePlan::Serve(_) => serving(pods, template).filter(|pod| !(replace && is_outdated(pod, template))),
    };
    let is_kept = |pod: &Arc<CachedPod>| kept.is_some_and(|kept| kept.uid == pod.uid);
    let superfluous = pods.iter().filter(|pod| !pod.terminating && !is_kept(pod)).map(|pod| delete(pod, false));
    let is_missing = matches!(plan, NodePlan::Serve(_)) && kept.is_none();
    let missing = owner
        .filter(|_| is_missing)
        .map(|owner| Action::CreateHelper { node: node.to_owned(), owner: owner.to_owned() });
    superfluous.chain(missing).collect()
}

#[cfg(test)]
mod tests;
