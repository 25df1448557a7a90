//! What a pod belongs to: the root of its owners.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use podtap_flow::{
    Timestamp,
    names::{TOMBSTONE, Workload, syntax::is_workload},
};

/// Longest chain of owners. A `CronJob` is two steps away from its pods, and what an operator manages seldom more than four.
const LONGEST: usize = 8;

/// The kinds whose owners are watched.
const WATCHED: [&str; 6] = ["ReplicaSet", "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"];

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: String,
    pub workload: Workload,
}

/// The first owner, as Otterize chooses it; the one that manages the object comes first in practice. `None` also if it has no valid name:
/// who creates an object can write there anything.
pub fn first_owner(references: Vec<OwnerReference>) -> Option<Owner> {
    let OwnerReference { uid, kind, name, api_version, .. } = references.into_iter().next()?;
    let workload = Workload { kind, name, api_version };
    is_workload(&workload).then_some(Owner { uid, workload })
}

/// The owners of the objects that own pods, by UID.
#[derive(Debug, Default)]
pub struct Owners {
    /// `None`: the object has no owner.
    owners: HashMap<String, Option<Owner>>,
    deleted: VecDeque<(Timestamp, String)>,
}

impl Owners {
    /// Whether this is known already.
    pub fn is_known(&self, uid: &str, owner: Option<&Owner>) -> bool {
        self.owners.get(uid).is_some_and(|known| known.as_ref() == owner)
    }

    /// Records the owner of an object.
    pub fn set(&mut self, uid: String, owner: Option<Owner>) {
        self.owners.insert(uid, owner);
    }

    /// Records that an object was deleted. It is remembered for as long as its pods are: they are deleted after it.
    pub fn deleted(&mut self, uid: String, now: Timestamp) {
        while self.deleted.front().is_some_and(|(then, _)| now.since(*then) > 2 * TOMBSTONE) {
            if let Some((_, uid)) = self.deleted.pop_front() {
                self.owners.remove(&uid);
            }
        }
        if self.owners.contains_key(&uid) {
            self.deleted.push_back((now, uid));
        }
    }

    /// The root above an owner.
    pub fn root<'a>(&'a self, owner: &'a Owner) -> &'a Workload {
        self.chain(owner).last().map_or(&owner.workload, |root| &root.workload)
    }

    /// Whether an object is an owner, or above it.
    pub fn is_above(&self, uid: &str, owner: &Owner) -> bool {
        self.chain(owner).any(|above| above.uid == uid)
    }

    /// Whether the chain ends at an object of a kind that is watched, and that is not known yet.
    pub fn is_incomplete(&self, owner: &Owner) -> bool {
        let last = self.chain(owner).last();
        last.is_some_and(|last| WATCHED.contains(&last.workload.kind.as_str()) && !self.owners.contains_key(&last.uid))
    }

    fn chain<'a>(&'a self, owner: &'a Owner) -> impl Iterator<Item = &'a Owner> {
        std::iter::successors(Some(owner), |owner| self.owners.get(&owner.uid)?.as_ref()).take(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, kind: &str) -> Owner {
        let workload = Workload { kind: kind.into(), name: uid.into(), api_version: "apps/v1".into() };
        Owner { uid: uid.into(), workload }
    }

    #[test]
    fn the_root_is_found_and_circles_end() {
        let mut owners = Owners::default();
        let replica_set = owner("set", "ReplicaSet");
        assert_eq!(owners.root(&replica_set).kind, "ReplicaSet");
        owners.set("set".into(), Some(owner("deployment", "Deployment")));
        assert_eq!(owners.root(&replica_set).kind, "Deployment");
        assert!(owners.is_above("deployment", &replica_set) && owners.is_above("set", &replica_set));
        assert!(!owners.is_above("other", &replica_set));
        assert!(owners.is_incomplete(&replica_set), "it may have an owner");
        owners.set("deployment".into(), None);
        assert!(!owners.is_incomplete(&replica_set) && !owners.is_incomplete(&owner("x", "Rollout")));
        owners.set("deployment".into(), Some(owner("set", "ReplicaSet")));
        owners.root(&replica_set);
    }

    #[test]
    fn an_owner_has_a_valid_kind_and_name() {
        let reference = |kind: &str, name: &str| {
            let reference = serde_json::json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u"}]);
            first_owner(serde_json::from_value(reference).expect("a reference"))
        };
        assert!(reference("ReplicaSet", "web").is_some());
        assert!(reference("Replica\nSet", "web").is_none() && reference("ReplicaSet", "we\nb").is_none());
    }

    #[test]
    fn an_owner_is_remembered_for_as_long_as_its_pods() {
        let mut owners = Owners::default();
        owners.set("set".into(), Some(owner("deployment", "Deployment")));
        owners.deleted("set".into(), Timestamp::from_seconds(1));
        assert_eq!(owners.root(&owner("set", "ReplicaSet")).kind, "Deployment");
        owners.deleted("other".into(), Timestamp::from_seconds(5000));
        assert_eq!(owners.root(&owner("set", "ReplicaSet")).kind, "ReplicaSet");
    }
}
