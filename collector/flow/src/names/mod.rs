//! Who has an address: pods, services, nodes and what is outside, at the time of a frame.

mod object;
mod update;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
pub use object::{Backend, Node, Objects, Pod, Port, Service, Workload};
pub use update::Update;

use crate::{Timestamp, packet};

/// Objects that were deleted are remembered this long: records are about the past.
pub const TOMBSTONE: Duration = Duration::from_secs(600);

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// A pod with an address of its own.
    Pod(&'a Pod),
    /// A virtual address, which no pod has.
    Service(&'a Service),
    /// The node itself, or one of its pods with hostNetwork: frames do not tell which.
    Node(&'a Node),
    /// Something outside the cluster. The label of the configured network that the address is in.
    External(Option<&'a str>),
}

/// The objects of a cluster by address.
#[derive(Debug, Default)]
pub struct Names {
    pods: HashMap<String, Pod>,
    /// UIDs.
    by_address: HashMap<IpAddr, Vec<String>>,
    services: BTreeMap<(String, String), Service>,
    by_virtual_address: HashMap<IpAddr, Vec<(String, String)>>,
    /// Addresses, ports and protocols of backends, and how many services have them.
    served: HashMap<(IpAddr, u16, u8), u32>,
    nodes: BTreeMap<String, Node>,
    by_node_address: HashMap<IpAddr, String>,
    networks: Vec<(IpNet, String)>,
    /// While all objects are listed again.
    mentioned: Option<update::Mentioned>,
}

impl Names {
    /// With labels of networks outside of the cluster.
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        let mut names = Self { networks: objects.networks, ..Self::default() };
        // The longest prefix first.
        names.networks.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        objects.pods.into_iter().for_each(|pod| names.set_pod(pod));
        objects.services.into_iter().for_each(|service| names.set_service(service));
        objects.nodes.into_iter().for_each(|node| names.set_node(node));
        names
    }

    /// Adds a pod, or replaces the one with its UID.
    pub fn set_pod(&mut self, pod: Pod) {
        self.remove_pod(&pod.uid);
        // Its address is the node's, and tells nothing about it.
        if !pod.host_network {
            for address in &pod.addresses {
                self.by_address.entry(*address).or_default().push(pod.uid.clone());
            }
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn remove_pod(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        for address in &pod.addresses {
            forget(&mut self.by_address, *address, |other| other == uid);
        }
    }

    /// Adds a service, or replaces the one of its name.
    pub fn set_service(&mut self, service: Service) {
        let key = (service.namespace.clone(), service.name.clone());
        self.remove_service(&key);
        for address in &service.addresses {
            self.by_virtual_address.entry(*address).or_default().push(key.clone());
        }
        for served in served(&service) {
            *self.served.entry(served).or_default() += 1;
        }
        self.services.insert(key, service);
    }

    /// Forgets a service.
    pub fn remove_service(&mut self, key: &(String, String)) {
        let Some(service) = self.services.remove(key) else { return };
        for address in &service.addresses {
            forget(&mut self.by_virtual_address, *address, |other| other == key);
        }
        for served in served(&service) {
            if let Some(count) = self.served.get_mut(&served) {
                *count -= 1;
                if *count == 0 {
                    self.served.remove(&served);
                }
            }
        }
    }

    /// Adds a node, or replaces the one of its name.
    pub fn set_node(&mut self, node: Node) {
        self.remove_node(&node.name);
        for address in &node.addresses {
            self.by_node_address.insert(*address, node.name.clone());
        }
        self.nodes.insert(node.name.clone(), node);
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, name: &str) {
        self.by_node_address.retain(|_, other| other != name);
        self.nodes.remove(name);
    }

    /// Forgets pods that ended long ago.
    pub fn expire(&mut self, now: Timestamp) {
        let over = |pod: &Pod| pod.ended.is_some_and(|ended| now.since(ended) > TOMBSTONE);
        let over: Vec<String> = self.pods.values().filter(|pod| over(pod)).map(|pod| pod.uid.clone()).collect();
        for uid in over {
            self.remove_pod(&uid);
        }
    }

    /// Who had an address at a time.
    #[must_use]
    pub fn owner(&self, address: IpAddr, at: Timestamp) -> Owner<'_> {
        if let Some(pod) = self.pod(address, at) {
            return Owner::Pod(pod);
        }
        // A node's address may be one of a service, too, for certain ports: see `service`.
        if let Some(node) = self.by_node_address.get(&address).and_then(|name| self.nodes.get(name)) {
            return Owner::Node(node);
        }
        if let Some(service) = self.by_virtual_address.get(&address).and_then(|keys| self.services.get(keys.first()?)) {
            return Owner::Service(service);
        }
        Owner::External(
            self.networks.iter().find(|(network, _)| network.contains(&address)).map(|(_, label)| label.as_str()),
        )
    }

    /// The pod that had an address at a time. Addresses are used again: only a pod that existed then can have sent a frame. Of two, it
    /// was the older one: the next pod exists before it gets an address, and gets this one after the older pod has ended.
    #[must_use]
    pub fn pod(&self, address: IpAddr, at: Timestamp) -> Option<&Pod> {
        let pods = self.by_address.get(&address)?.iter().filter_map(|uid| self.pods.get(uid));
        pods.filter(|pod| pod.existed(at)).min_by_key(|pod| pod.started)
    }

    /// All pods, also those that have ended.
    #[must_use]
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Pod> {
        self.pods.values()
    }

    /// The node of a name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The service that has a virtual address and a port.
    #[must_use]
    pub fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<(&Service, &Port)> {
        let keys = self.by_virtual_address.get(&address)?;
        keys.iter().filter_map(|key| self.services.get(key)).find_map(|service| {
            let port = service.ports.iter().find(|known| known.port == port && known.protocol() == protocol)?;
            Some((service, port))
        })
    }

    /// Whether clients connect to this port, by what services declare.
    #[must_use]
    pub fn serves(&self, address: IpAddr, port: u16, protocol: u8) -> bool {
        self.service(address, port, protocol).is_some() || self.served.contains_key(&(address, port, protocol))
    }

    /// The pod of each address that was behind a service at a time. `None`: no pod is known to have it.
    pub fn backends<'a>(&'a self, service: &'a Service, at: Timestamp) -> impl Iterator<Item = Option<&'a Pod>> {
        let existed = move |backend: &&Backend| backend.existed(at);
        service.backends.iter().filter(existed).map(move |backend| self.pod(backend.address, at))
    }

    /// Whether a service had backends, and it is known of each whose it is.
    #[must_use]
    pub fn has_known_backends(&self, service: &Service, at: Timestamp) -> bool {
        let mut backends = service.backends.iter().filter(|backend| backend.existed(at)).peekable();
        backends.peek().is_some()
            && backends.all(|backend| !matches!(self.owner(backend.address, at), Owner::External(None)))
    }
}

/// Removes an owner of an address, and the address with its last one.
fn forget<Key>(index: &mut HashMap<IpAddr, Vec<Key>>, address: IpAddr, is_it: impl Fn(&Key) -> bool) {
    if let Entry::Occupied(mut owners) = index.entry(address) {
        owners.get_mut().retain(|owner| !is_it(owner));
        if owners.get().is_empty() {
            owners.remove();
        }
    }
}

/// What a service's backends serve.
fn served(service: &Service) -> impl Iterator<Item = (IpAddr, u16, u8)> {
    service.ports.iter().flat_map(|port| {
        let backends =
            port.target_port.map(|target| service.backends.iter().map(move |backend| (backend.address, target)));
        backends.into_iter().flatten().map(|(address, target)| (address, target, port.protocol()))
    })
}

impl Port {
    /// IP protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.protocol.as_deref() {
            Some("UDP") => packet::UDP,
            Some("SCTP") => packet::SCTP,
            _ => packet::TCP,
        }
    }
}

#[cfg(test)]
mod tests;
