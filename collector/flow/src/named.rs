//! A record with the names of its ends.

use std::{borrow::Cow, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Counts, Opener, Record, StreamTotals, Timestamp,
    names::{Names, Network, Owner, Pod, Port, Service, Workload},
    packet,
    record::Endpoint,
};

/// A record and who its ends were when it began.
#[derive(Clone, Debug)]
pub struct NamedRecord<'a> {
    /// The record.
    pub record: &'a Record,
    /// As the client sent it: to the address of a service, if it used one.
    pub client: Endpoint,
    /// The server, as the client knows it.
    pub server: Endpoint,
    /// Who has the client's address.
    pub client_owner: Owner<'a>,
    /// Who has the server's address.
    pub server_owner: Owner<'a>,
    /// The service whose address the client used.
    pub service: Option<(&'a Service, &'a Port)>,
    /// Client and server after the service's address, or also the client's, was translated.
    pub translated: Option<Translated<'a>>,
}

/// What a service's address was translated to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Translated<'a> {
    /// How it is known.
    pub by: TranslatedBy,
    /// Unknown, if only the workload is known.
    pub ends: Option<(Endpoint, Endpoint)>,
    /// The pod that answered.
    pub pod: Option<&'a Pod>,
    /// Its workload.
    pub workload: Option<(&'a str, &'a Workload)>,
}

/// How a translation is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslatedBy {
    /// Both views of the connection were seen, and have the same sequence numbers.
    Join,
    /// Conntrack of a node told it.
    Conntrack,
    /// From the service's endpoints.
    Endpoints,
}

/// What tells who the client is, and who the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// The client sent a SYN.
    Syn,
    /// The server sent a SYN-ACK.
    SynAck,
    /// The client sent the first frame that was seen.
    FirstFrame,
    /// The server has the lower port, or one that a service declares.
    Port,
    /// The server, a pod or a node, has the address that the client used.
    Address,
    /// Both views of the connection were seen, before and after a service's address was translated.
    Join,
    /// A node's conntrack told how it translates the connection.
    Conntrack,
    /// All endpoints of the service belong to the server.
    Endpoints,
    /// A service's address, behind which several workloads are, or none that is known.
    Service,
    /// The client looked up the server's name.
    Dns,
    /// The client asked for it in its TLS handshake.
    Sni,
    /// The network has a name in the configuration.
    Network,
    /// A database has the country of the network.
    Country,
}

impl<'a> NamedRecord<'a> {
    /// Names a record's ends.
    #[must_use]
    pub fn new(record: &'a Record, names: &'a Names) -> Self {
        let at = record.start;
        let (mut client, mut server) = (record.client, record.server);
        // What only the port numbers say, services know better.
        if matches!(record.opener, Opener::Port | Opener::FirstFrame) {
            let is_served = |end: Endpoint| names.serves(end.address, end.port, record.protocol);
            if is_served(client) && !is_served(server) {
                (client, server) = (server, client);
            }
        }
        let ends = (client, server);
        let joined = record.translated.zip(record.translated_by).map(|(before, by)| {
            (client, server) = before;
            let pod = names.pod(ends.1.address, at);
            Translated { by, ends: Some(ends), pod, workload: pod.map(workload) }
        });
        let service = names.service(server.address, server.port, record.protocol);
        let translated = joined.or_else(|| {
            let (service, port) = service?;
            by_endpoints(names, service, port, client, at)
        });
        Self {
            record,
            client,
            server,
            client_owner: names.owner(client.address, at),
            // An address may be one of several services, for certain ports.
            server_owner: service
                .map_or_else(|| names.owner(server.address, at), |(service, _)| Owner::Service(service)),
            service,
            translated,
        }
    }

    /// What the client and what the server sent: in this record, and in all.
    #[must_use]
    pub fn directions(&self) -> [(Counts, StreamTotals); 2] {
        let record = self.record;
        let mut directions = [(record.sent, record.totals[0]), (record.received, record.totals[1])];
        if self.is_reversed() {
            directions.swap(0, 1);
        }
        directions
    }

    /// Whether services know better than the ports who the client is.
    fn is_reversed(&self) -> bool {
        self.record.translated.is_none() && self.client != self.record.client
    }

    /// Whether what was translated to is none of the endpoints of the service whose address the client used. The translation is believed:
    /// endpoints are known a moment later.
    #[must_use]
    pub fn contradicts_endpoints(&self) -> bool {
        let server = self.translated.and_then(|translated| translated.ends).map(|(_, server)| server);
        self.service.zip(server).is_some_and(|((service, _), server)| {
            let is_translated = server != self.server && !service.backends.is_empty();
            is_translated && service.backends.iter().all(|backend| backend.address != server.address)
        })
    }

    /// Namespace and workload of the client, if it is one pod.
    #[must_use]
    pub fn client_workload(&self) -> Option<(&'a str, &'a Workload)> {
        if let Owner::Pod(pod) = self.client_owner { Some(workload(pod)) } else { None }
    }

    /// Namespace and workload of the server, if it is one pod, or if all that may have answered belong to one workload.
    #[must_use]
    pub fn server_workload(&self) -> Option<(&'a str, &'a Workload)> {
        match (self.translated, self.server_owner) {
            (Some(translated), _) => translated.workload,
            (None, Owner::Pod(pod)) => Some(workload(pod)),
            (None, _) => None,
        }
    }

    /// The server, if it is known to be this pod.
    #[must_use]
    pub fn server_pod(&self) -> Option<&'a Pod> {
        match (self.translated, self.server_owner) {
            (Some(translated), _) => translated.pod,
            (None, Owner::Pod(pod)) => Some(pod),
            (None, _) => None,
        }
    }

    /// The port at which the server's pod got it. Unknown, if it came through a service that does not tell.
    #[must_use]
    pub fn pod_port(&self) -> Option<u16> {
        match (self.translated, self.service) {
            (Some(Translated { ends: Some((_, server)), .. }), _) => Some(server.port),
            (_, Some((_, port))) => port.target_port,
            (_, None) => Some(self.server.port),
        }
    }

    /// The name of a server outside of the cluster: what the client looked up, what it asked for, or how its network is called.
    #[must_use]
    pub fn external_name(&self) -> Option<Cow<'_, str>> {
        let Owner::External(network) = self.server_owner else { return None };
        let of_record = self.record.dns_name.as_deref().or(self.record.sni.as_deref());
        of_record.map(Cow::Borrowed).or_else(|| network.map(Network::name))
    }

    /// How it is known who is who.
    pub fn evidence(&self) -> impl Iterator<Item = Evidence> + use<> {
        let client = match self.record.opener {
            Opener::Syn => Evidence::Syn,
            Opener::SynAck => Evidence::SynAck,
            Opener::FirstFrame if !self.is_reversed() => Evidence::FirstFrame,
            Opener::FirstFrame | Opener::Port => Evidence::Port,
            Opener::Conntrack => Evidence::Conntrack,
        };
        let server = match (self.translated, self.server_owner) {
            (Some(Translated { by: TranslatedBy::Join, workload: Some(_), .. }), _) => Some(Evidence::Join),
            (Some(Translated { by: TranslatedBy::Conntrack, workload: Some(_), .. }), _) => Some(Evidence::Conntrack),
            (Some(Translated { by: TranslatedBy::Endpoints, .. }), _) => Some(Evidence::Endpoints),
            (_, Owner::Pod(_) | Owner::Node(_)) => Some(Evidence::Address),
            (_, Owner::Service(_)) => Some(Evidence::Service),
            (_, Owner::External(_)) if self.record.dns_name.is_some() => Some(Evidence::Dns),
            (_, Owner::External(_)) if self.record.sni.is_some() => Some(Evidence::Sni),
            (_, Owner::External(Some(Network::Named(_)))) => Some(Evidence::Network),
            (_, Owner::External(Some(Network::Country(_)))) => Some(Evidence::Country),
            (_, Owner::External(None)) => None,
        };
        [Some(client), server.filter(|server| *server != client)].into_iter().flatten()
    }
}

fn workload(pod: &Pod) -> (&str, &Workload) {
    (&pod.namespace, &pod.workload)
}

/// The pod that answered, if only one can have, and else its workload, if only one can have.
fn by_endpoints<'a>(
    names: &'a Names,
    service: &'a Service,
    port: &Port,
    client: Endpoint,
    at: Timestamp,
) -> Option<Translated<'a>> {
    // An address without a known pod may be the one that answered.
    let mut pods: Vec<&Pod> = names.backends(service, at).collect::<Option<_>>()?;
    // One of two address families has two.
    pods.sort_by_key(|pod| &pod.uid);
    pods.dedup_by_key(|pod| &pod.uid);
    let first = *pods.first()?;
    if pods.iter().any(|pod| workload(pod) != workload(first)) {
        return None;
    }
    let pod = (pods.len() == 1).then_some(first);
    let of_family = |address: &&IpAddr| address.is_ipv4() == client.address.is_ipv4();
    let address = pod.and_then(|pod| pod.addresses.iter().find(of_family));
    let ends = address.zip(port.target_port).map(|(address, port)| (client, Endpoint { address: *address, port }));
    Some(Translated { by: TranslatedBy::Endpoints, ends, pod, workload: Some(workload(first)) })
}

/// The name of an IP protocol, or its number.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        packet::TCP => "TCP".to_owned(),
        packet::UDP => "UDP".to_owned(),
        packet::SCTP => "SCTP".to_owned(),
        packet::ICMP => "ICMP".to_owned(),
        packet::ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}
