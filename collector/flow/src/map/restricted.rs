//! The part of the map that a reader of some namespaces may know.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use super::{Counted, Edge, Map, Party, Traffic};

impl Party {
    /// The namespace of a workload or service.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Workload { namespace, .. } | Self::Service { namespace, .. } => Some(namespace),
            Self::Node { .. } | Self::External { .. } | Self::AnotherNamespace | Self::Other => None,
        }
    }
}

impl Map {
    /// The edges with an end in a readable namespace. The other end, if it is in a namespace that is not readable, becomes
    /// [`Party::AnotherNamespace`], with the sum of what was seen of all such edges. Services of these namespaces are left out.
    #[must_use]
    pub fn restricted(&self, is_readable: impl Fn(&str) -> bool) -> Self {
        let mut restricted = Self::new(self.bounds);
        for (edge, traffic) in &self.edges {
            let is_shown = |party: &Party| party.namespace().is_none_or(&is_readable);
            let ends = [&edge.client, &edge.server];
            if !ends.into_iter().any(|party| party.namespace().is_some_and(&is_readable)) {
                continue;
            }
            let edge = if ends.into_iter().all(is_shown) {
                Arc::clone(edge)
            } else {
                let [client, server] =
                    ends.map(|party| if is_shown(party) { party.clone() } else { Party::AnotherNamespace });
                Arc::new(Edge { client, server })
            };
            match restricted.edges.entry(edge) {
                Entry::Vacant(free) => {
                    free.insert(traffic.restricted(&is_readable));
                }
                Entry::Occupied(mut sum) => Arc::make_mut(sum.get_mut()).add(&traffic.restricted(&is_readable)),
            }
        }
        restricted.details = restricted.edges.values().map(|traffic| traffic.details()).sum();
        restricted
    }
}

impl Traffic {
    /// Without services whose namespace is not readable. Shared, if there are none.
    fn restricted(self: &Arc<Self>, is_readable: impl Fn(&str) -> bool) -> Arc<Self> {
        let mut restricted = Arc::clone(self);
        if !self.services.keys().all(|(namespace, _)| is_readable(namespace)) {
            Arc::make_mut(&mut restricted).services.retain(|(namespace, _)| is_readable(namespace));
        }
        restricted
    }

    /// Adds what was seen of another edge.
    fn add(&mut self, other: &Self) {
        // All fields are named: a new one has to be added, too.
        let Self {
            first,
            last,
            connections,
            preexisting,
            failed,
            sent,
            received,
            ports,
            services,
            pod_ports,
            handshakes,
            responses,
            known,
        } = other;
        self.first = self.first.min(*first);
        self.last = self.last.max(*last);
        self.connections += connections;
        self.preexisting += preexisting;
        add_all(&mut self.failed, failed);
        self.sent += sent;
        self.received += received;
        merge(&mut self.ports, ports);
        merge(&mut self.services, services);
        merge(&mut self.pod_ports, pod_ports);
        self.handshakes.merge(handshakes);
        merge(&mut self.responses, responses);
        add_all(&mut self.known, known);
    }
}

fn add_all<Key: Copy + Ord>(counts: &mut BTreeMap<Key, u64>, others: &BTreeMap<Key, u64>) {
    for (key, count) in others {
        *counts.entry(*key).or_default() += count;
    }
}

fn merge<Key: Clone + Ord>(counts: &mut Counted<Key>, others: &Counted<Key>) {
    for (key, count) in others.iter() {
        counts.add(key.clone(), *count, true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Failure, Timestamp, map::Bounds, named::Evidence, names::Workload};

    fn workload(namespace: &str, name: &str) -> Party {
        let workload = Workload { kind: "Deployment".into(), name: name.into(), api_version: String::new() };
        Party::Workload { namespace: namespace.into(), workload }
    }

    /// Of `flows` connections, through a service of the server's namespace and one of another.
    fn traffic(flows: u64, port: u16) -> Traffic {
        let mut traffic = Traffic {
            first: Timestamp(flows),
            last: Timestamp(10 * flows),
            connections: flows,
            failed: [(Failure::Refused, flows)].into(),
            sent: flows,
            known: [(Evidence::Syn, flows)].into(),
            ..Traffic::default()
        };
        traffic.ports.add((6, port), flows, true);
        traffic.services.add(("shop".into(), "cart".into()), flows, true);
        traffic.services.add(("bank".into(), "vault".into()), flows, true);
        traffic.handshakes.add(Duration::from_micros(flows));
        traffic
    }

    fn map(edges: impl IntoIterator<Item = (Party, Party, Traffic)>) -> Map {
        let mut map = Map::new(Bounds::default());
        for (client, server, traffic) in edges {
            map.restore(Edge { client, server }, traffic);
        }
        map
    }

    #[test]
    fn edges_of_other_namespaces_are_missing_and_their_ends_become_one() {
        let (web, node) = (workload("shop", "web"), Party::Node { name: "n1".into() });
        let map = map([
            (web.clone(), workload("shop", "cart"), traffic(1, 80)),
            (web.clone(), workload("bank", "vault"), traffic(2, 443)),
            (web.clone(), Party::Service { namespace: "bank".into(), name: "ledger".into() }, traffic(3, 80)),
            (workload("bank", "teller"), web.clone(), traffic(4, 80)),
            (node.clone(), web.clone(), traffic(5, 80)),
            (workload("bank", "teller"), workload("bank", "vault"), traffic(6, 80)),
            (workload("bank", "teller"), node.clone(), traffic(7, 80)),
            (node.clone(), Party::External { name: None }, traffic(8, 80)),
        ]);
        let restricted = map.restricted(|namespace| namespace == "shop");
        let edges: Vec<_> = restricted.edges().collect();
        let edge = |client, server| Edge { client, server };
        assert_eq!(
            edges.iter().map(|(edge, _)| (*edge).clone()).collect::<Vec<_>>(),
            [
                edge(web.clone(), workload("shop", "cart")),
                edge(web.clone(), Party::AnotherNamespace),
                edge(node, web.clone()),
                edge(Party::AnotherNamespace, web),
            ]
        );
        let sum = edges[1].1;
        assert_eq!((sum.first, sum.last, sum.connections, sum.sent), (Timestamp(2), Timestamp(30), 5, 5));
        assert_eq!((sum.failed[&Failure::Refused], sum.known[&Evidence::Syn], sum.handshakes.count()), (5, 5, 2));
        assert_eq!(sum.ports.iter().collect::<Vec<_>>(), [(&(6, 80), &3), (&(6, 443), &2)]);
        for (_, traffic) in &edges {
            assert!(traffic.services.keys().eq([&("shop".to_owned(), "cart".to_owned())]), "{traffic:?}");
        }
        assert_eq!(restricted.details, 3 + 2 + 2 + 2);
        assert!(map.restricted(|_| false).is_empty());
        assert!(
            map.restricted(|_| true)
                .edges()
                .eq(map.edges().filter(|(edge, _)| { edge.client.namespace().or(edge.server.namespace()).is_some() }))
        );
    }
}
