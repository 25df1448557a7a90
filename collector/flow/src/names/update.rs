//! Changes of the objects, as the program that watches the cluster tells them to the one that reads frames.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Names, Node, Pod, Service};
use crate::Timestamp;

/// A change. On the wire, each is a JSON object in a line of its own; a connection begins with [`Update::Listing`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Update {
    /// All objects that exist follow, up to [`Update::Listed`].
    Listing,
    /// What exists and did not follow [`Update::Listing`] was deleted meanwhile.
    Listed,
    /// A pod was created, has changed, or has ended: see [`Pod::ended`].
    Pod(Pod),
    /// A service was created, or has changed.
    Service(Service),
    /// A service was deleted.
    ServiceDeleted {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A node was created, or has changed.
    Node(Node),
    /// A node was deleted.
    NodeDeleted {
        /// Its name.
        name: String,
    },
}

/// The objects that were mentioned since [`Update::Listing`].
#[derive(Debug, Default)]
pub(super) struct Mentioned {
    pods: HashSet<String>,
    services: HashSet<(String, String)>,
    nodes: HashSet<String>,
}

impl Names {
    /// Applies a change that was made known at this time.
    pub fn apply(&mut self, update: Update, now: Timestamp) {
        match update {
            Update::Listing => self.mentioned = Some(Mentioned::default()),
            Update::Listed => self.end_what_was_not_mentioned(now),
            Update::Pod(pod) => {
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.pods.insert(pod.uid.clone());
                }
                self.keep_former(&pod, now);
                self.set_pod(pod);
            }
            Update::Service(mut service) => {
                let key = (service.namespace.clone(), service.name.clone());
                if let Some(known) = self.services.get(&key) {
                    service.remember(&known.backends, now);
                }
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.services.insert(key);
                }
                self.set_service(service);
            }
            Update::ServiceDeleted { namespace, name } => self.remove_service((namespace, name), now),
            Update::Node(node) => {
                if let Some(mentioned) = &mut self.mentioned {
                    mentioned.nodes.insert(node.name.clone());
                }
                self.set_node(node);
            }
            Update::NodeDeleted { name } => self.remove_node(name, now),
        }
    }

    fn end_what_was_not_mentioned(&mut self, now: Timestamp) {
        let Some(mentioned) = self.mentioned.take() else { return };
        for pod in self.pods.values_mut().filter(|pod| !mentioned.pods.contains(&pod.uid)) {
            if pod.ended.is_none() {
                (pod.ended, pod.end_is_estimate) = (Some(now), true);
            }
        }
        let gone: Vec<_> = self.services.keys().filter(|key| !mentioned.services.contains(*key)).cloned().collect();
        for key in gone {
            self.remove_service(key, now);
        }
        let gone: Vec<_> = self.nodes.keys().filter(|name| !mentioned.nodes.contains(*name)).cloned().collect();
        for name in gone {
            self.remove_node(name, now);
        }
    }
}
