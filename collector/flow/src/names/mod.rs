//! Who has an address: pods, services, nodes and what is outside, at the time of a frame.

mod identity;
mod network;
mod object;
pub mod syntax;
mod update;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

pub use identity::IdentityCounters;
use ipnet::IpNet;
pub use network::{Countries, Country, Network};
pub use object::{Backend, Node, Objects, Pod, Port, Service, Workload};
pub use update::Update;

use crate::{Timestamp, packet};

/// Objects that were deleted are remembered this long: records are about the past, and a client may send to a pod that is gone for as long
/// as its kernel tries (`tcp_retries2`: 15 minutes and more).
pub const TOMBSTONE: Duration = Duration::from_secs(30 * 60);

/// Networks in use that are remembered: a cluster has a few.
const MOST_NETWORKS: usize = 4096;

/// By how much the clocks of two nodes may differ: that of a pod's kubelet, and that of the frames.
const CLOCK_ERROR: Duration = Duration::from_secs(2);
/// A pod that was deleted without a word about its containers may keep its address for so long: it was deleted by force, or its grace
/// period was zero.
const ADDRESS_GRACE: Duration = Duration::from_secs(10);

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Owner<'a> {
    /// A pod with an address of its own.
    Pod(&'a Pod),
    /// A virtual address, which no pod has.
    Service(&'a Service),
    /// The node itself, or one of its pods with hostNetwork: frames do not tell which.
    Node(&'a Node),
    /// Something outside the cluster. What is known of the network that the address is in.
    External(Option<Network<'a>>),
}

/// The objects of a cluster by address.
#[derive(Debug, Default)]
pub struct Names {
    pods: HashMap<String, Pod>,
    /// UIDs.
    by_address: HashMap<IpAddr, Vec<String>>,
    services: BTreeMap<(String, String), Service>,
    /// When services were deleted that are still remembered.
    deleted_services: BTreeMap<(String, String), Timestamp>,
    by_virtual_address: HashMap<IpAddr, Vec<(String, String)>>,
    /// Ports and protocols at every node.
    by_node_port: HashMap<(u16, u8), Vec<(String, String)>>,
    /// Addresses, ports and protocols of backends, and how many services have them.
    served: HashMap<(IpAddr, u16, u8), u32>,
    nodes: BTreeMap<String, Node>,
    /// Likewise.
    deleted_nodes: BTreeMap<String, Timestamp>,
    by_node_address: HashMap<IpAddr, String>,
    networks: network::Networks,
    /// While all objects are listed again.
    mentioned: Option<update::Mentioned>,
    /// Networks in which pods and services have addresses.
    networks_in_use: HashSet<IpAddr>,
    identities: identity::Identities,
}

impl Names {
    /// With names of networks outside of the cluster.
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        let mut names = Self { networks: network::Networks::new(objects.networks), ..Self::default() };
        objects.pods.into_iter().for_each(|pod| names.set_pod(pod));
        objects.services.into_iter().for_each(|service| names.set_service(service));
        objects.nodes.into_iter().for_each(|node| names.set_node(node));
        names
    }

    /// Has the countries of addresses that have no other name.
    pub fn set_countries(&mut self, countries: Countries) {
        self.networks.set_countries(countries);
    }

    /// Adds a pod, or replaces the one with its UID.
    pub fn set_pod(&mut self, pod: Pod) {
        self.remove_pod(&pod.uid);
        // Its address is the node's, and tells nothing about it.
        if !pod.host_network {
            for address in &pod.addresses {
                self.use_network(*address);
                self.by_address.entry(*address).or_default().push(pod.uid.clone());
            }
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Remembers that a pod had other addresses, which it lost by now: its node was restarted.
    fn keep_former(&mut self, pod: &Pod, now: Timestamp) {
        let Some(known) = self.pods.get(&pod.uid) else { return };
        if known.addresses.is_empty() || known.addresses == pod.addresses || known.ended.is_some() {
            return;
        }
        let uid = format!("{} until {}", pod.uid, now.0);
        self.set_pod(Pod { uid, ended: Some(now), end_is_estimate: true, ..known.clone() });
    }

    fn remove_pod(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        for address in &pod.addresses {
            forget(&mut self.by_address, address, |other| other == uid);
        }
    }

    /// Adds a service, or replaces the one of its name.
    pub fn set_service(&mut self, service: Service) {
        let key = (service.namespace.clone(), service.name.clone());
        self.forget_service(&key);
        self.deleted_services.remove(&key);
        for address in &service.addresses {
            self.use_network(*address);
            self.by_virtual_address.entry(*address).or_default().push(key.clone());
        }
        for node_port in node_ports(&service) {
            self.by_node_port.entry(node_port).or_default().push(key.clone());
        }
        for served in served(&service) {
            *self.served.entry(served).or_default() += 1;
        }
        self.services.insert(key, service);
    }

    /// Records that a service was deleted by now.
    pub fn remove_service(&mut self, key: (String, String), now: Timestamp) {
        if self.services.contains_key(&key) {
            self.deleted_services.entry(key).or_insert(now);
        }
    }

    fn forget_service(&mut self, key: &(String, String)) {
        let Some(service) = self.services.remove(key) else { return };
        for address in &service.addresses {
            forget(&mut self.by_virtual_address, address, |other| other == key);
        }
        for node_port in node_ports(&service) {
            forget(&mut self.by_node_port, &node_port, |other| other == key);
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
        self.forget_node(&node.name);
        for address in &node.addresses {
            self.by_node_address.insert(*address, node.name.clone());
        }
        self.nodes.insert(node.name.clone(), node);
    }

    /// Records that a node was deleted by now.
    pub fn remove_node(&mut self, name: String, now: Timestamp) {
        if self.nodes.contains_key(&name) {
            self.deleted_nodes.entry(name).or_insert(now);
        }
    }

    fn forget_node(&mut self, name: &str) {
        self.by_node_address.retain(|_, other| other != name);
        self.nodes.remove(name);
        self.deleted_nodes.remove(name);
    }

    /// Forgets what ended or was deleted long ago.
    pub fn expire(&mut self, now: Timestamp) {
        self.identities.expire(now);
        let is_over = |ended: Timestamp| now.since(ended) > TOMBSTONE;
        let over = self.pods.values().filter(|pod| pod.ended.is_some_and(is_over));
        let over: Vec<String> = over.map(|pod| pod.uid.clone()).collect();
        for uid in over {
            self.remove_pod(&uid);
        }
        let over = self.deleted_services.iter().filter(|(_, deleted)| is_over(**deleted));
        let over: Vec<(String, String)> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.deleted_services.remove(&key);
            self.forget_service(&key);
        }
        let over = self.deleted_nodes.iter().filter(|(_, deleted)| is_over(**deleted));
        let over: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        for name in over {
            self.forget_node(&name);
        }
    }

    /// Who had an address at a time.
    #[must_use]
    pub fn owner(&self, address: IpAddr, at: Timestamp) -> Owner<'_> {
        match self.listed_owner(address, at) {
            Owner::External(network) => self.identified(address, at).map_or(Owner::External(network), Owner::Pod),
            owner => owner,
        }
    }

    /// Who had an address at a time, by the API server or a file.
    fn listed_owner(&self, address: IpAddr, at: Timestamp) -> Owner<'_> {
        if let Some(pod) = self.listed_pod(address, at) {
            return Owner::Pod(pod);
        }
        // A node's address may be one of a service, too, for certain ports: see `service`.
        if let Some(node) = self.by_node_address.get(&address).and_then(|name| self.nodes.get(name)) {
            return Owner::Node(node);
        }
        let keys = self.by_virtual_address.get(&address).into_iter().flatten();
        // The address of one that was deleted may be that of another one since.
        let existing = keys.clone().find(|key| !self.deleted_services.contains_key(*key));
        if let Some(service) = existing.or(keys.clone().next()).and_then(|key| self.services.get(key)) {
            return Owner::Service(service);
        }
        Owner::External(self.networks.of(address))
    }

    /// The pod that had an address at a time. Addresses are used again: only a pod that existed then can have sent a frame.
    #[must_use]
    pub fn pod(&self, address: IpAddr, at: Timestamp) -> Option<&Pod> {
        self.listed_pod(address, at).or_else(|| self.identified(address, at))
    }

    /// Likewise, by the API server or a file.
    fn listed_pod(&self, address: IpAddr, at: Timestamp) -> Option<&Pod> {
        let uids = self.by_address.get(&address)?;
        let pods = || uids.iter().filter_map(|uid| self.pods.get(uid));
        let existed = || pods().filter(|pod| pod.has_started(at) && !pod.has_ended(at));
        // A pod exists before it gets its address, so of two, the older one had it, until it ended. Where it is not known when that was,
        // the younger one, which has the address since it started at the earliest.
        let certain = existed().filter(|pod| pod.has_certain_end()).min_by_key(|pod| pod.started);
        let existed = certain.or_else(|| existed().max_by_key(|pod| pod.started));
        // Otherwise, the last one before, as long as it may still have had the address, or the next one, if it was about to start.
        let before = || pods().filter(|pod| pod.has_started(at)).max_by_key(|pod| pod.started);
        let next = || pods().filter(|pod| !pod.has_started(at)).min_by_key(|pod| pod.started);
        let is_about_to_start = |pod: &&Pod| pod.has_started(at.plus(CLOCK_ERROR));
        existed
            .or_else(|| before().filter(|pod| !pod.has_released_address(at)))
            .or_else(|| next().filter(is_about_to_start))
    }

    /// All pods, also those that have ended.
    #[must_use]
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Pod> {
        self.pods.values()
    }

    /// Whether no object is missing: all that existed were listed, and changes are made known.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.mentioned.is_none()
    }

    /// Whether an address could be one of the cluster: it is private, or near one of a pod or a service.
    #[must_use]
    pub fn may_be_of_cluster(&self, address: IpAddr) -> bool {
        let is_private = match address {
            IpAddr::V4(address) => {
                address.is_private() || address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64
            }
            IpAddr::V6(address) => address.is_unique_local(),
        };
        is_private || self.networks_in_use.contains(&network_of(address))
    }

    fn use_network(&mut self, address: IpAddr) {
        if self.networks_in_use.len() < MOST_NETWORKS {
            self.networks_in_use.insert(network_of(address));
        }
    }

    /// All nodes, also those that were deleted.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Networks outside of the cluster, and their names.
    pub fn networks(&self) -> impl Iterator<Item = (&IpNet, &str)> {
        self.networks.named()
    }

    /// The node of a name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The service that has a virtual address and a port, or a port at every node.
    #[must_use]
    pub fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<(&Service, &Port)> {
        let of_address = self.by_virtual_address.get(&address);
        let virtual_port = of_address.and_then(|keys| self.port_of(keys, |known| known.port == port, protocol));
        virtual_port.or_else(|| {
            let keys = self.by_node_port.get(&(port, protocol)).filter(|_| self.by_node_address.contains_key(&address));
            self.port_of(keys?, |known| known.node_port == Some(port), protocol)
        })
    }

    /// The port of one of these services. Those that exist come before those that were deleted.
    fn port_of(
        &self,
        keys: &[(String, String)],
        is_it: impl Fn(&Port) -> bool,
        protocol: u8,
    ) -> Option<(&Service, &Port)> {
        let is_deleted = |key: &&(String, String)| self.deleted_services.contains_key(*key);
        let (deleted, existing): (Vec<_>, Vec<_>) = keys.iter().partition(is_deleted);
        existing.into_iter().chain(deleted).filter_map(|key| self.services.get(key)).find_map(|service| {
            let port = service.ports.iter().find(|known| is_it(known) && known.protocol() == protocol)?;
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

    /// Whether a service had backends, and it is certain of each whose it is.
    #[must_use]
    pub fn has_known_backends(&self, service: &Service, at: Timestamp) -> bool {
        let mut backends = service.backends.iter().filter(|backend| backend.existed(at)).peekable();
        backends.peek().is_some()
            && backends.all(|backend| match self.owner(backend.address, at) {
                Owner::Pod(pod) => self.is_certain(pod, at),
                Owner::External(None | Some(Network::Country(_))) => false,
                _ => true,
            })
    }

    /// Whether the API server or a file names the pod that had an address then, and not only its tap, and no other pod may have had it:
    /// this one had not ended.
    #[must_use]
    pub fn is_certain(&self, pod: &Pod, at: Timestamp) -> bool {
        self.pods.contains_key(&pod.uid) && !pod.has_ended(at)
    }
}

/// The network of 16 bits, or of 48, that an address is in.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & 0xffff_0000).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 80 << 80).into(),
    }
}

/// Removes an owner of an address or a node port, and that with its last owner.
fn forget<Key: Copy + Eq + Hash, Owner>(
    index: &mut HashMap<Key, Vec<Owner>>,
    key: &Key,
    is_it: impl Fn(&Owner) -> bool,
) {
    if let Entry::Occupied(mut owners) = index.entry(*key) {
        owners.get_mut().retain(|owner| !is_it(owner));
        if owners.get().is_empty() {
            owners.remove();
        }
    }
}

/// Node ports of a service, with their protocols.
fn node_ports(service: &Service) -> impl Iterator<Item = (u16, u8)> {
    service.ports.iter().filter_map(|port| Some((port.node_port?, port.protocol())))
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
