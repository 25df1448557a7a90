//! The pods, services and nodes of the cluster, and who is told of changes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use podtap_flow::{
    Timestamp,
    names::{Node, Pod, Service, TOMBSTONE, Update},
};
use podtap_runtime::http::Metrics;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    owners::{Owner, Owners},
    pod::Projection,
    service::{Key, Services, Slice},
};
use crate::clock::now;

/// Changes that a subscriber may be behind. One that is slower is cut off, and begins again.
const BEHIND: usize = 8192;

/// The watches of pods and of their owners are independent: the owner of a pod may become known after the pod. One that is still unknown
/// when the pod is older than this was deleted before the watch began.
const NEW: Duration = Duration::from_secs(60);

/// A line of the listener's protocol.
pub type Line = Rc<str>;

/// What is known of the cluster. Clones share it.
#[derive(Clone)]
pub struct Inventory(Rc<RefCell<State>>);

struct State {
    pods: HashMap<String, Projection>,
    /// UIDs of pods that were deleted, and when.
    deleted: VecDeque<(Timestamp, String)>,
    owners: Owners,
    services: Services,
    /// Addresses of services that the cluster has chosen.
    cluster_addresses: HashMap<Key, Vec<IpAddr>>,
    nodes: BTreeMap<String, Node>,
    subscribers: Vec<Sender<Line>>,
    count: Gauge,
}

impl Inventory {
    pub fn new(metrics: &Metrics) -> Self {
        let count = Gauge::default();
        metrics.register(|registry| registry.register("names_pods", "Pods whose names are passed on", count.clone()));
        Self(Rc::new(RefCell::new(State {
            pods: HashMap::new(),
            deleted: VecDeque::new(),
            owners: Owners::default(),
            services: Services::default(),
            cluster_addresses: HashMap::new(),
            nodes: BTreeMap::new(),
            subscribers: Vec::new(),
            count,
        })))
    }

    pub fn set_pod(&self, mut new: Projection) {
        let mut state = self.0.borrow_mut();
        new.notice(state.pods.get(&new.pod.uid), now());
        if new.is_over && new.pod.ended.is_none() {
            // Nothing tells when it has ended, as after a failure of its node: it is noticed now.
            let known = state.pods.get(&new.pod.uid).and_then(|known| known.pod.ended);
            (new.pod.ended, new.pod.end_is_estimate) = (known.or_else(|| Some(now())), true);
        }
        if state.pods.get(&new.pod.uid) == Some(&new) {
            return;
        }
        let uid = new.pod.uid.clone();
        state.pods.insert(uid.clone(), new);
        state.publish_pod(&uid);
    }

    /// A pod that is deleted has ended by now, if it has not before.
    pub fn pod_deleted(&self, uid: &str) {
        let mut state = self.0.borrow_mut();
        let now = now();
        let Some(projection) = state.pods.get_mut(uid) else { return };
        let has_ended = projection.pod.ended.is_some();
        if !has_ended {
            (projection.pod.ended, projection.pod.end_is_estimate) = (Some(now), true);
        }
        state.deleted.push_back((now, uid.to_owned()));
        if !has_ended {
            state.publish_pod(uid);
        }
        state.forget(now);
    }

    /// Pods that are not among these were deleted meanwhile.
    pub fn retain_pods(&self, listed: &HashSet<String>) {
        let gone: Vec<String> = {
            let state = self.0.borrow();
            let deleted: HashSet<&String> = state.deleted.iter().map(|(_, uid)| uid).collect();
            let is_gone = |uid: &&String| !listed.contains(*uid) && !deleted.contains(uid);
            state.pods.keys().filter(is_gone).cloned().collect()
        };
        for uid in gone {
            self.pod_deleted(&uid);
        }
    }

    pub fn set_owner(&self, uid: String, owner: Option<Owner>) {
        let mut state = self.0.borrow_mut();
        if state.owners.is_known(&uid, owner.as_ref()) {
            return;
        }
        if state.subscribers.is_empty() {
            state.owners.set(uid, owner);
            return;
        }
        let is_below = |projection: &&Projection| {
            projection.owner.as_ref().is_some_and(|owner| state.owners.is_above(&uid, owner))
        };
        let below: Vec<String> = state.pods.values().filter(is_below).map(|p| p.pod.uid.clone()).collect();
        state.owners.set(uid, owner);
        for pod in below {
            state.publish_pod(&pod);
        }
    }

    pub fn owner_deleted(&self, uid: String) {
        self.0.borrow_mut().owners.deleted(uid, now());
    }

    /// `cluster_addresses`: those of its addresses that the cluster has chosen.
    pub fn set_service(&self, (service, cluster_addresses): (Service, Vec<IpAddr>)) {
        let mut state = self.0.borrow_mut();
        state.cluster_addresses.insert((service.namespace.clone(), service.name.clone()), cluster_addresses);
        if let Some(key) = state.services.set(service) {
            state.publish_service(&key);
        }
    }

    pub fn service_deleted(&self, key: &Key) {
        let mut state = self.0.borrow_mut();
        state.services.remove(key);
        state.cluster_addresses.remove(key);
        state.publish(&Update::ServiceDeleted { namespace: key.0.clone(), name: key.1.clone() });
    }

    pub fn retain_services(&self, listed: &HashSet<Key>) {
        let gone: Vec<Key> = self.0.borrow().services.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.service_deleted(&key);
        }
    }

    /// Whether a pod that runs has this address, and not as that of its node; or whether the cluster has chosen it for a service, all endpoints
    /// of which are pods: who writes a service without a selector may choose any.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let state = self.0.borrow();
        let running = || state.pods.values().map(|projection| &projection.pod).filter(|pod| pod.ended.is_none());
        if running().any(|pod| !pod.host_network && pod.addresses.contains(&address)) {
            return true;
        }
        let service = state.cluster_addresses.iter().find(|(_, addresses)| addresses.contains(&address));
        service.is_some_and(|(key, _)| {
            state.services.endpoints(key).all(|endpoint| running().any(|pod| pod.addresses.contains(endpoint)))
        })
    }

    /// `None`: the slice was deleted.
    pub fn set_slice(&self, key: &Key, name: &str, slice: Option<Slice>) {
        let mut state = self.0.borrow_mut();
        if state.services.set_slice(key, name, slice, now()) {
            state.publish_service(key);
        }
    }

    pub fn retain_slices(&self, listed: &HashSet<(Key, String)>) {
        let mut state = self.0.borrow_mut();
        for key in state.services.retain_slices(listed, now()) {
            state.publish_service(&key);
        }
    }

    pub fn set_node(&self, node: Node) {
        let mut state = self.0.borrow_mut();
        if state.nodes.get(&node.name) != Some(&node) {
            state.nodes.insert(node.name.clone(), node.clone());
            state.publish(&Update::Node(node));
        }
    }

    pub fn node_deleted(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        state.nodes.remove(name);
        state.publish(&Update::NodeDeleted { name: name.to_owned() });
    }

    pub fn retain_nodes(&self, listed: &HashSet<String>) {
        let gone: Vec<String> = self.0.borrow().nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            self.node_deleted(&name);
        }
    }

    /// All objects, and the changes from now on.
    pub fn subscribe(&self) -> (Vec<Line>, Receiver<Line>) {
        let mut state = self.0.borrow_mut();
        let pods = state.pods.values().filter_map(|projection| state.named(projection)).map(Update::Pod);
        let services = state.services.keys().filter_map(|key| state.services.get(key)).map(Update::Service);
        let nodes = state.nodes.values().cloned().map(Update::Node);
        let all = [Update::Listing].into_iter().chain(pods).chain(services).chain(nodes).chain([Update::Listed]);
        let lines = all.map(|update| line(&update)).collect();
        let (sender, receiver) = channel(BEHIND);
        state.subscribers.push(sender);
        (lines, receiver)
    }
}

impl State {
    /// A pod with the workload that it belongs to. `None`: that is about to become known.
    fn named(&self, projection: &Projection) -> Option<Pod> {
        let mut pod = projection.pod.clone();
        if let Some(owner) = &projection.owner {
            let is_new = now().since(pod.started) < NEW;
            if is_new && projection.workload_name.is_none() && self.owners.is_incomplete(owner) {
                return None;
            }
            pod.workload = self.owners.root(owner).clone();
        }
        if let Some(name) = &projection.workload_name {
            pod.workload.name.clone_from(name);
        }
        Some(pod)
    }

    fn publish_pod(&mut self, uid: &str) {
        self.count.set(i64::try_from(self.pods.len()).unwrap_or(i64::MAX));
        if let Some(pod) = self.pods.get(uid).and_then(|projection| self.named(projection)) {
            self.publish(&Update::Pod(pod));
        }
    }

    fn publish_service(&mut self, key: &Key) {
        if let Some(service) = self.services.get(key) {
            self.publish(&Update::Service(service));
        }
    }

    fn publish(&mut self, update: &Update) {
        if self.subscribers.is_empty() {
            return;
        }
        let line = line(update);
        // One that is too far behind, or gone, is dropped: its connection ends, and the next one begins with all objects.
        self.subscribers.retain(|subscriber| subscriber.try_send(Rc::clone(&line)).is_ok());
    }

    /// Forgets pods that were deleted long ago.
    fn forget(&mut self, now: Timestamp) {
        while self.deleted.front().is_some_and(|(then, _)| now.since(*then) > TOMBSTONE) {
            if let Some((_, uid)) = self.deleted.pop_front() {
                self.pods.remove(&uid);
            }
        }
    }
}

fn line(update: &Update) -> Line {
    let mut text = serde_json::to_string(update).unwrap_or_default();
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::owners::first_owner;

    fn inventory() -> Inventory {
        Inventory::new(&Metrics::new())
    }

    fn pod(uid: &str) -> Projection {
        let started = k8s_openapi::jiff::Timestamp::now();
        let object = json!({"metadata": {"namespace": "shop", "name": uid, "uid": uid,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9f", "uid": "set"}]},
            "status": {"startTime": started.to_string()}});
        Projection::new(serde_json::from_value(object).expect("a pod"), "workload").expect("it has a UID")
    }

    fn deployment() -> Option<Owner> {
        let references = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "deployment"}]);
        first_owner(serde_json::from_value(references).expect("references"))
    }

    fn told(receiver: &mut Receiver<Line>) -> Vec<Value> {
        std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|line| serde_json::from_str(&line).expect("each line is an object"))
            .collect()
    }

    #[test]
    fn a_subscriber_gets_everything_and_then_changes() {
        let inventory = inventory();
        inventory.set_owner("set".into(), deployment());
        inventory.set_owner("deployment".into(), None);
        let a = pod("a");
        inventory.set_pod(a.clone());
        let (all, mut changes) = inventory.subscribe();
        let all: Vec<Value> = all.iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!((&all[0], &all[2]), (&json!("listing"), &json!("listed")));
        assert_eq!(all[1]["pod"]["workload"]["name"], "web");
        inventory.set_pod(a);
        assert_eq!(told(&mut changes), [Value::Null; 0], "nothing has changed");
        inventory.pod_deleted("a");
        assert!(told(&mut changes)[0]["pod"]["ended"].as_u64().is_some_and(|ended| ended > 0));
        // A list after an interrupted watch: it was deleted once.
        inventory.retain_pods(&HashSet::new());
        assert_eq!(told(&mut changes), [Value::Null; 0]);
    }

    #[test]
    fn pods_are_published_when_their_owner_becomes_known() {
        let inventory = inventory();
        let (_, mut changes) = inventory.subscribe();
        inventory.set_pod(pod("a"));
        assert_eq!(told(&mut changes), [Value::Null; 0], "its owner is about to become known");
        inventory.set_owner("set".into(), deployment());
        inventory.set_owner("deployment".into(), None);
        assert_eq!(told(&mut changes)[0]["pod"]["workload"]["kind"], "Deployment");
        // The owner is deleted before its pods, which keep their names.
        inventory.owner_deleted("set".into());
        assert_eq!(told(&mut changes), [Value::Null; 0]);
    }

    #[test]
    fn what_a_list_does_not_mention_was_deleted() {
        let inventory = inventory();
        inventory.set_owner("set".into(), deployment());
        inventory.set_owner("deployment".into(), None);
        inventory.set_pod(pod("a"));
        inventory.set_pod(pod("b"));
        let (_, mut changes) = inventory.subscribe();
        inventory.retain_pods(&["a".to_owned()].into());
        let told = told(&mut changes);
        assert_eq!((told.len(), &told[0]["pod"]["name"]), (1, &json!("b")));
    }
}
