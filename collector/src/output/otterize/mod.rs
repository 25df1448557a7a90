//! Who calls whom in the forms of the Otterize CLI: its users can compare both programs' files.
//!
//! Frames do not tell Kafka topics and HTTP paths, so these are always missing. Nodes and what is outside of the cluster are in none of
//! these forms.

pub mod client_intents;
pub mod list;

use std::collections::BTreeSet;

use podtap_flow::map::{Map, Party};

/// What calls, or is called. In the order in which the CLI sorts: by name, and then by namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub name: String,
    pub namespace: String,
    /// Kind of the workload; `None`: a service.
    pub kind: Option<String>,
}

impl Peer {
    pub fn of(party: &Party) -> Option<Self> {
        let (name, namespace, kind) = match party {
            Party::Workload { namespace, workload } => (&workload.name, namespace, Some(workload.kind.clone())),
            Party::Service { namespace, name } => (name, namespace, None),
            Party::Node { .. } | Party::External { .. } | Party::AnotherNamespace | Party::Other => return None,
        };
        // The CLI takes what follows a dot for the namespace.
        Some(Self { name: name.replace('.', "_"), namespace: namespace.clone(), kind })
    }

    /// Its name, with the namespace if that is not the other end's.
    fn name_seen_from(&self, other: &Self) -> String {
        if self.namespace == other.namespace { self.name.clone() } else { format!("{}.{}", self.name, self.namespace) }
    }
}

/// A client and what it calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub client: Peer,
    pub servers: BTreeSet<Peer>,
}

/// The clients of a map, in order.
pub fn clients(map: &Map) -> Vec<Client> {
    let calls: BTreeSet<(Peer, Peer)> =
        map.edges().filter_map(|(edge, _)| Some((Peer::of(&edge.client)?, Peer::of(&edge.server)?))).collect();
    let mut clients: Vec<Client> = Vec::new();
    for (client, server) in calls {
        match clients.last_mut() {
            Some(last) if last.client == client => {
                last.servers.insert(server);
            }
            _ => clients.push(Client { client, servers: BTreeSet::from([server]) }),
        }
    }
    clients
}

#[cfg(test)]
pub mod fixtures {
    use super::*;

    pub fn peer(name: &str, namespace: &str, kind: &str) -> Peer {
        let kind = (kind != "Service").then(|| kind.to_owned());
        Peer { name: name.into(), namespace: namespace.into(), kind }
    }

    pub fn client(client: Peer, servers: impl IntoIterator<Item = Peer>) -> Client {
        Client { client, servers: servers.into_iter().collect() }
    }
}
