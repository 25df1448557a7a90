//! What logs call resources and namespaces: UIDs and inode numbers mean nothing to those who read them.

use std::collections::BTreeMap;

use podtap_model::DesiredState;

use super::Node;
use crate::{namespace::NamespaceId, resource::Resource, step::Action};

impl Node {
    /// The node, or the pods of a namespace.
    pub(super) fn netns_name(&self, id: NamespaceId) -> String {
        if id == self.namespace.id() {
            return "the node".to_owned();
        }
        let pods: Vec<String> = self.pods.in_netns(id).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        if pods.is_empty() { "a pod that is no longer requested".to_owned() } else { pods.join(" and ") }
    }
}

/// What each action is for. Looks at each requested resource once.
pub(super) fn owners<'a>(desired: Option<&DesiredState>, actions: &'a [Action]) -> BTreeMap<&'a Resource, String> {
    let unnamed = |resource: &Resource| match resource {
        Resource::Sender(key) => format!("pod {} under tap {}, no longer requested", key.pod, key.tap),
        Resource::Receiver(tap, vni) => format!("receiver of tap {tap} with VNI {vni}, no longer requested"),
        Resource::Leftover => "leftover".to_owned(),
    };
    let mut owners: BTreeMap<&Resource, String> =
        actions.iter().map(|action| (&action.resource, unnamed(&action.resource))).collect();
    for sender in desired.iter().flat_map(|desired| &desired.senders) {
        if let Some(owner) = owners.get_mut(&Resource::sender(sender)) {
            let (pod, tap) = (&sender.pod, &sender.tap);
            *owner = format!("pod {}/{} under {}", pod.namespace, pod.name, tap.reference());
        }
    }
    for receiver in desired.iter().flat_map(|desired| &desired.receivers) {
        if let Some(owner) = owners.get_mut(&Resource::receiver(receiver)) {
            *owner = format!("receiver {} of {}", receiver.interface_name, receiver.tap);
        }
    }
    owners
}
