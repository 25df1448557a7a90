//! Services, with the addresses behind them from their `EndpointSlices`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::{Node as NodeObject, Service as ServiceObject},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podtap_flow::{
    Timestamp,
    names::{Backend, Node, Port, Service, TOMBSTONE},
};

/// Label of a slice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Backends that a service is remembered to have had.
const FORMER: usize = 1000;
/// A slice may be known a moment after kube-proxy has used it, or before it stops using it.
const DELAY: Duration = Duration::from_secs(30);

/// Namespace and name.
pub type Key = (String, String);

/// The contents of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    addresses: Vec<IpAddr>,
    /// Port numbers by name.
    ports: BTreeMap<String, u16>,
}

/// Services and their slices.
#[derive(Debug, Default)]
pub struct Services {
    declared: HashMap<Key, Service>,
    /// By service, and by the name of the slice.
    slices: HashMap<Key, BTreeMap<String, Slice>>,
    /// The backends that each service has or had.
    backends: HashMap<Key, Vec<Backend>>,
    /// Whether all slices have been listed once.
    is_listed: bool,
}

impl Services {
    /// Adds a service, or replaces it. Returns its key if that changed anything.
    pub fn set(&mut self, service: Service) -> Option<Key> {
        let key = (service.namespace.clone(), service.name.clone());
        let before = self.declared.insert(key.clone(), service);
        (before.as_ref() != self.declared.get(&key)).then_some(key)
    }

    /// Forgets a service. Its slices are deleted by themselves.
    pub fn remove(&mut self, key: &Key) {
        self.declared.remove(key);
        self.backends.remove(key);
    }

    /// Adds a slice or replaces it; removes it if it is `None`. Returns whether it changed anything.
    pub fn set_slice(&mut self, key: &Key, name: &str, slice: Option<Slice>, now: Timestamp) -> bool {
        if self.slices.get(key).and_then(|slices| slices.get(name)) == slice.as_ref() {
            return false;
        }
        let slices = self.slices.entry(key.clone()).or_default();
        match slice {
            Some(slice) => drop(slices.insert(name.to_owned(), slice)),
            None => drop(slices.remove(name)),
        }
        let current: Vec<IpAddr> = slices.values().flat_map(|slice| slice.addresses.iter().copied()).collect();
        if slices.is_empty() {
            self.slices.remove(key);
        }
        let backends = self.backends.entry(key.clone()).or_default();
        backends.retain(|backend| backend.until.is_none_or(|until| now.since(until) <= TOMBSTONE));
        for backend in backends.iter_mut().filter(|backend| backend.until.is_none()) {
            if !current.contains(&backend.address) {
                backend.until = Some(now.plus(DELAY));
            }
        }
        for address in current {
            if !backends.iter().any(|backend| backend.address == address && backend.until.is_none()) {
                // Of what is listed at first, nothing tells since when.
                let from = if self.is_listed { now.minus(DELAY) } else { Timestamp(0) };
                backends.push(Backend { address, from, until: None });
            }
        }
        let surplus = backends.iter().filter(|backend| backend.until.is_some()).count().saturating_sub(FORMER);
        for _ in 0..surplus {
            if let Some(oldest) = backends.iter().position(|backend| backend.until.is_some()) {
                backends.remove(oldest);
            }
        }
        if backends.is_empty() {
            self.backends.remove(key);
        }
        true
    }

    /// Removes the slices that are not among these, by service and name.
    pub fn retain_slices(&mut self, listed: &HashSet<(Key, String)>, now: Timestamp) -> Vec<Key> {
        self.is_listed = true;
        let all = self.slices.iter().flat_map(|(key, slices)| slices.keys().map(|name| (key.clone(), name.clone())));
        let gone: Vec<_> = all.filter(|slice| !listed.contains(slice)).collect();
        for (key, name) in &gone {
            self.set_slice(key, name, None, now);
        }
        gone.into_iter().map(|(key, _)| key).collect()
    }

    /// A service with its backends.
    pub fn get(&self, key: &Key) -> Option<Service> {
        let mut service = self.declared.get(key)?.clone();
        service.backends = self.backends.get(key).cloned().unwrap_or_default();
        let target = |name: &Option<String>| {
            let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
            let name = name.as_deref().unwrap_or_default();
            slices.filter(|slice| !slice.addresses.is_empty()).find_map(|slice| slice.ports.get(name).copied())
        };
        for port in &mut service.ports {
            port.target_port = target(&port.name);
        }
        Some(service)
    }

    /// The addresses of its slices.
    pub fn endpoints(&self, key: &Key) -> impl Iterator<Item = &IpAddr> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values).flat_map(|slice| &slice.addresses)
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.declared.keys()
    }
}

pub fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Of a service, without its backends; and its addresses that the cluster has chosen.
pub fn service(object: ServiceObject) -> (Service, Vec<IpAddr>) {
    let (namespace, name) = key(&object.metadata);
    let spec = object.spec.unwrap_or_default();
    let balancers = object.status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
    let cluster_addresses: Vec<String> = spec.cluster_ips.into_iter().flatten().chain(spec.cluster_ip).collect();
    let parsed = |address: &String| address.parse().ok();
    let own = cluster_addresses.iter().filter_map(parsed).collect();
    let addresses = cluster_addresses
        .into_iter()
        .chain(spec.external_ips.into_iter().flatten())
        .chain(balancers.into_iter().flatten().filter_map(|ingress| ingress.ip));
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let number = |port: i32| u16::try_from(port).ok();
    let ports = spec.ports.into_iter().flatten().filter_map(|port| {
        Some(Port {
            name: port.name,
            port: number(port.port)?,
            protocol: port.protocol,
            target_port: None,
            node_port: port.node_port.and_then(number),
        })
    });
    (Service { namespace, name, addresses, ports: ports.collect(), backends: Vec::new() }, own)
}

/// The service that a slice belongs to, its own name, and its contents.
pub fn slice(object: EndpointSlice) -> Option<(Key, String, Slice)> {
    let (namespace, own_name) = key(&object.metadata);
    let service = object.metadata.labels?.remove(SERVICE_NAME)?;
    // One that is not ready may be shutting down, and still serve.
    let serves = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_none_or(|conditions| conditions.ready.unwrap_or(true) || conditions.serving.unwrap_or(false))
    };
    let endpoints = object.endpoints.into_iter().filter(serves);
    let addresses =
        endpoints.flat_map(|endpoint| endpoint.addresses).filter_map(|address| address.parse().ok()).collect();
    let ports = object.ports.into_iter().flatten();
    let ports =
        ports.filter_map(|port| Some((port.name.unwrap_or_default(), u16::try_from(port.port?).ok()?))).collect();
    Some(((namespace, service), own_name, Slice { addresses, ports }))
}

pub fn node(object: NodeObject) -> Node {
    let addresses = object.status.into_iter().flat_map(|status| status.addresses.into_iter().flatten());
    let addresses = addresses.filter_map(|address| address.address.parse().ok()).collect();
    let zone = object.metadata.labels.and_then(|mut labels| labels.remove(ZONE));
    Node { name: object.metadata.name.unwrap_or_default(), addresses, zone }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(name: &str, addresses: &[&str]) -> (Key, String, Slice) {
        let endpoints: Vec<_> =
            addresses.iter().map(|address| json!({"addresses": [address], "conditions": {}})).collect();
        let object = json!({"metadata": {"namespace": "shop", "name": name, "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]});
        slice(serde_json::from_value(object).expect("a slice")).expect("it has a service")
    }

    fn web() -> Service {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "other", "port": 81}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        service(serde_json::from_value(object).expect("a service")).0
    }

    #[test]
    fn backends_are_remembered_for_a_while() {
        let mut services = Services::default();
        let key = services.set(web()).expect("it is new");
        assert_eq!(services.set(web()), None, "nothing has changed");
        services.retain_slices(&HashSet::new(), Timestamp::from_seconds(999));
        let mut set = |name: &str, addresses: &[&str], second: u64| {
            let (key, name, slice) = endpoints(name, addresses);
            let slice = (!addresses.is_empty()).then_some(slice);
            services.set_slice(&key, &name, slice, Timestamp::from_seconds(second));
            services.get(&key).expect("it is declared")
        };
        let both = set("a", &["10.0.0.1", "10.0.0.2"], 1000);
        assert_eq!(both.addresses.len(), 2, "of the cluster, and of the load balancer");
        assert_eq!((both.ports[0].target_port, both.ports[1].target_port), (Some(8080), None));
        assert_eq!((both.ports[0].node_port, both.ports[1].node_port), (Some(30080), None));
        assert_eq!(both.backends.len(), 2);
        assert_eq!(both.backends[0].from, Timestamp::from_seconds(970), "kube-proxy may have known it before");
        let changed = set("b", &["10.0.0.3"], 1100);
        assert_eq!(changed.backends.len(), 3);
        let without = set("a", &[], 1200);
        let until: Vec<Option<Timestamp>> = without.backends.iter().map(|backend| backend.until).collect();
        assert_eq!(until, [Some(Timestamp::from_seconds(1230)), Some(Timestamp::from_seconds(1230)), None]);
        let later = set("b", &["10.0.0.3", "10.0.0.1"], 1230 + 1801);
        assert_eq!(later.backends.len(), 2, "the former ones are forgotten, and one is back");
        let gone = services.retain_slices(&HashSet::new(), Timestamp::from_seconds(4000));
        assert_eq!(gone, std::slice::from_ref(&key));
        assert!(services.get(&key).expect("it is declared").backends.iter().all(|backend| backend.until.is_some()));
    }
}
