//! What a data record is made of.

use std::{borrow::Cow, net::IpAddr};

use crate::flow::{End, Flow};

/// Bytes of an Ethernet header, which are no octets of IP packets.
const ETHERNET: u64 = 14;

/// A flow in one direction, or in both.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The direction whose source is the source of the record.
    pub flow: &'a Flow,
    pub reverse: Option<&'a Flow>,
}

/// Octets of IP packets.
pub const fn octets(flow: &Flow) -> u64 {
    flow.bytes.saturating_sub(ETHERNET * flow.packets)
}

/// An end that is a pod.
pub fn pod(end: &End) -> Option<&End> {
    (end.kind.as_deref() == Some("Pod")).then_some(end)
}

/// `namespace/name` of a pod, and the name of a node.
pub fn station(end: &End) -> Cow<'_, str> {
    match (end.kind.as_deref(), &end.namespace, &end.name) {
        (Some("Pod"), Some(namespace), Some(name)) => format!("{namespace}/{name}").into(),
        (Some("Node"), _, Some(name)) => name.into(),
        _ => "".into(),
    }
}

/// `namespace/name` of the service by which an end was called.
pub fn service(end: &End) -> Option<String> {
    Some(format!("{}/{}", end.service_namespace.as_deref()?, end.service.as_deref()?))
}

impl<'a> Report<'a> {
    /// Both ends after address translation, if their addresses are known.
    pub fn translated(&self) -> Option<[&'a End; 2]> {
        let ends = [self.flow.translated_source.as_ref()?, self.flow.translated_destination.as_ref()?];
        ends.iter().all(|end| end.address.is_some()).then_some(ends)
    }

    /// The end to which packets come: after translation, if that is known.
    pub fn final_destination(&self) -> (Option<IpAddr>, u16) {
        let end = self.translated().map_or(&self.flow.destination, |[_, destination]| destination);
        (end.address, end.port.unwrap_or_default())
    }

    /// The end that has the names of what answers: the client may have called the address of a service.
    pub fn server(&self) -> &'a End {
        let translated = self.flow.translated_destination.as_ref();
        translated.filter(|end| end.name.is_some()).unwrap_or(&self.flow.destination)
    }

    /// Whether the client has called the address of a service.
    pub fn is_to_service(&self) -> bool {
        let Flow { destination, .. } = self.flow;
        destination.kind.as_deref() == Some("Service") || self.final_destination().0 != destination.address
    }

    /// Octets of payload from the client, or from the server.
    pub fn payload(&self, from_server: bool) -> u64 {
        let flow = [Some(self.flow), self.reverse].into_iter().flatten().find(|flow| flow.reply == from_server);
        flow.and_then(|flow| flow.payload).unwrap_or_default()
    }
}

/// How the client calls the server: its service, or its name outside of the cluster.
pub fn application<'a>(report: &Report<'a>) -> Cow<'a, str> {
    let Flow { source, destination, sni, reply, .. } = report.flow;
    let server = if *reply { source } else { destination };
    match (service(server), sni.as_deref().or(server.dns_name.as_deref())) {
        (Some(service), _) => service.into(),
        (None, name) => name.unwrap_or_default().into(),
    }
}

/// The value of biflowDirection: the source is the client (1), or the server (2).
pub fn direction(report: &Report<'_>) -> u8 {
    1 + u8::from(report.flow.reply)
}

/// The value of flowEndReason; 0 is none of them.
pub fn end_reason(report: &Report<'_>) -> u8 {
    let reasons = ["idleTimeout", "activeTimeout", "endOfFlow", "forcedEnd", "lackOfResources"];
    let reason = report.flow.end_reason.as_deref();
    (1..).zip(reasons).find(|(_, name)| reason == Some(*name)).map_or(0, |(number, _)| number)
}

/// The same connection has the same ID in each report, also of other exporters. 0: unknown.
pub fn flow_id(report: &Report<'_>) -> u64 {
    let connection = report.flow.connection.as_deref();
    connection.and_then(|id| u64::from_str_radix(id, 16).ok()).unwrap_or_default()
}

/// Antrea's flowType: between pods of one node (1) or two (2), from a pod to the outside (3), or from there (4). 0: none of these, or
/// unknown.
pub fn antrea_type(report: &Report<'_>) -> u8 {
    let ends @ [source, destination] = [&report.flow.source, report.server()];
    match ends.map(pod) {
        [Some(source), Some(destination)] => match (&source.node, &destination.node) {
            (Some(source), Some(destination)) => 1 + u8::from(source != destination),
            _ => 0,
        },
        [Some(_), None] if destination.kind.is_none() => 3,
        [None, Some(_)] if source.kind.is_none() => 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(kind: &str, node: &str) -> End {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        End {
            kind: text(kind),
            node: text(node),
            name: text("cart-1").filter(|_| !kind.is_empty()),
            namespace: text("shop"),
            ..End::default()
        }
    }

    #[test]
    fn antrea_tells_pods_of_one_node_from_others() {
        let kind = |source: End, destination: End, translated_destination: Option<End>| {
            let flow = Flow { source, destination, translated_destination, ..Flow::default() };
            antrea_type(&Report { flow: &flow, reverse: None })
        };
        let (pod, outside) = (|node| end("Pod", node), end("", ""));
        assert_eq!(kind(pod("n1"), pod("n1"), None), 1);
        assert_eq!(kind(pod("n1"), pod("n2"), None), 2);
        assert_eq!(kind(pod("n1"), end("Service", ""), Some(pod("n2"))), 2);
        assert_eq!(kind(pod("n1"), outside.clone(), None), 3);
        assert_eq!(kind(outside.clone(), pod("n1"), None), 4);
        assert_eq!(kind(pod(""), pod("n1"), None), 0);
        assert_eq!(kind(pod("n1"), end("Service", ""), None), 0);
        assert_eq!(kind(end("Node", "n1"), pod("n1"), None), 0);
        assert_eq!(kind(outside.clone(), outside, None), 0);
    }

    #[test]
    fn a_server_is_called_by_its_service_or_by_its_name() {
        let mut flow = Flow { sni: Some("tls.example".to_owned()), ..Flow::default() };
        flow.destination.dns_name = Some("dns.example".to_owned());
        let name = |flow: &Flow| application(&Report { flow, reverse: None }).into_owned();
        assert_eq!(name(&flow), "tls.example");
        flow.sni = None;
        assert_eq!(name(&flow), "dns.example");
        flow.destination.service = Some("cart".to_owned());
        flow.destination.service_namespace = Some("shop".to_owned());
        assert_eq!(name(&flow), "shop/cart");
        // The server's own direction.
        let reply = Flow { source: flow.destination, reply: true, ..Flow::default() };
        assert_eq!(name(&reply), "shop/cart");
        assert_eq!(name(&Flow::default()), "");
    }

    #[test]
    fn octets_have_no_ethernet_headers() {
        assert_eq!(octets(&Flow { bytes: 154, packets: 2, ..Flow::default() }), 126);
        assert_eq!(octets(&Flow { bytes: 10, packets: 2, ..Flow::default() }), 0);
    }
}
