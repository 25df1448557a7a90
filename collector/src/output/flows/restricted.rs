//! What a reader of some namespaces gets of flows.

use serde_json::Value;

use super::{ENDS, Object};
use crate::namespaces::Namespaces;

/// The objects of a record, if one of its ends is in a namespace that may be read. Of an end in another namespace, only the port is left:
/// neither names nor addresses, nor how the other end was asked for by name.
pub fn restrict(mut objects: Vec<Object>, namespaces: &Namespaces) -> Vec<Object> {
    if *namespaces == Namespaces::All {
        return objects;
    }
    let is_readable =
        |object: &Object| ENDS.iter().any(|end| namespace(object, end).is_some_and(|n| namespaces.has(n)));
    if !objects.iter().any(is_readable) {
        return Vec::new();
    }
    for object in &mut objects {
        // What is behind a service may have no namespace, such as a node.
        let namespace = |end: &str| namespace(object, end).or_else(|| namespace(object, end.strip_prefix("Xlat")?));
        let is_hidden = |end: &&str| namespace(end).is_some_and(|namespace| !namespaces.has(namespace));
        let hidden: Vec<&str> = ENDS.into_iter().filter(is_hidden).collect();
        object.retain(|field, _| !hidden.iter().any(|end| tells_of(field, end)));
    }
    objects
}

fn namespace<'a>(object: &'a Object, end: &str) -> Option<&'a str> {
    object.get(&format!("{end}K8S_Namespace")).and_then(Value::as_str)
}

/// Whether a field tells who an end is.
fn tells_of(field: &str, end: &str) -> bool {
    match field {
        // How the client calls the server.
        "DstDnsName" | "SrcDnsName" | "TlsSni" => end == "Src" || end == "Dst",
        // What a client asks a DNS server.
        "DnsId" | "DnsName" => end == "Src",
        // Whether or not its address was translated.
        _ if end == "Src" && field.starts_with("XlatSrc") => field != "XlatSrcPort",
        _ => field.strip_prefix(end).is_some_and(|field| field != "Port"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::{super::fields, *};

    fn seen(objects: Value, namespaces: &[&str]) -> Value {
        let objects = serde_json::from_value(objects).expect("objects");
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        serde_json::to_value(restrict(objects, &Namespaces::Only(namespaces))).expect("JSON")
    }

    /// A connection from `shop` to a service of `bank` that a pod of `vault` answers.
    fn flow() -> Value {
        json!([
            {"Proto": 6, "SrcAddr": "10.0.0.1", "SrcPort": 40000, "SrcK8S_Name": "web-1", "SrcK8S_Namespace": "shop",
             "DstAddr": "10.96.0.5", "DstPort": 443, "DstK8S_Name": "teller", "DstK8S_Namespace": "bank",
             "DstServiceName": "teller", "DstServiceNamespace": "bank", "DstDnsName": "teller.bank.svc",
             "TlsSni": "teller.bank", "XlatBy": "join", "XlatSrcAddr": "10.0.0.1", "XlatSrcPort": 40000,
             "XlatDstAddr": "10.0.1.7", "XlatDstPort": 8443, "XlatDstK8S_Namespace": "vault",
             "DnsName": "example.com", "DnsId": 7},
            {"Proto": 6, "SrcAddr": "10.96.0.5", "SrcPort": 443, "SrcK8S_Namespace": "bank",
             "DstAddr": "10.0.0.1", "DstPort": 40000, "DstK8S_Namespace": "shop"},
        ])
    }

    #[test]
    fn what_is_behind_a_service_of_another_namespace_is_not_told() {
        let flow = json!([{"SrcK8S_Namespace": "shop", "SrcAddr": "10.0.0.1", "DstK8S_Namespace": "default", "DstPort": 443,
            "XlatSrcAddr": "10.0.0.1", "XlatDstAddr": "192.168.0.1", "XlatDstPort": 6443}]);
        assert_eq!(
            seen(flow, &["shop"]),
            json!([{"SrcK8S_Namespace": "shop", "SrcAddr": "10.0.0.1", "DstPort": 443, "XlatSrcAddr": "10.0.0.1", "XlatDstPort": 6443}])
        );
    }

    #[test]
    fn of_an_end_in_another_namespace_the_port_is_told() {
        assert_eq!(
            seen(flow(), &["shop"]),
            json!([
                {"Proto": 6, "SrcAddr": "10.0.0.1", "SrcPort": 40000, "SrcK8S_Name": "web-1", "SrcK8S_Namespace": "shop",
                 "DstPort": 443, "XlatBy": "join", "XlatSrcAddr": "10.0.0.1", "XlatSrcPort": 40000, "XlatDstPort": 8443,
                 "DnsName": "example.com", "DnsId": 7},
                {"Proto": 6, "SrcPort": 443, "DstAddr": "10.0.0.1", "DstPort": 40000, "DstK8S_Namespace": "shop"},
            ])
        );
        assert_eq!(
            seen(flow(), &["vault"]),
            json!([
                {"Proto": 6, "SrcPort": 40000, "DstPort": 443, "XlatBy": "join", "XlatSrcPort": 40000,
                 "XlatDstAddr": "10.0.1.7", "XlatDstPort": 8443, "XlatDstK8S_Namespace": "vault"},
                {"Proto": 6, "SrcPort": 443, "DstPort": 40000},
            ])
        );
    }

    /// A new field is not shown before this list has it.
    #[test]
    fn what_is_told_of_a_call_to_another_namespace_is_on_a_list() {
        const OF_THE_CALL: [&str; 29] = [
            "TimeFlowStartMs",
            "TimeFlowEndMs",
            "Etype",
            "Proto",
            "Bytes",
            "Packets",
            "Flags",
            "IcmpType",
            "IcmpCode",
            "TimeFlowRttNs",
            "DnsId",
            "DnsName",
            "DnsFlagsResponseCode",
            "DnsLatencyMs",
            "PayloadBytes",
            "MirrorMissingBytes",
            "CollectorMissingBytes",
            "RetransBytes",
            "FlowEndReason",
            "Opener",
            "Preexisting",
            "Degraded",
            "Reply",
            "Failure",
            "ConnId",
            "XlatBy",
            "ZoneId",
            "DstPort",
            "XlatDstPort",
        ];
        let mut object: Object = fields().map(|field| (field, json!(1))).collect();
        for (end, namespace) in [("Src", "shop"), ("Dst", "bank"), ("XlatSrc", "shop"), ("XlatDst", "vault")] {
            object.insert(format!("{end}K8S_Namespace"), json!(namespace));
        }
        let seen = seen(json!([object]), &["shop"]);
        let of_server = |field: &&String| !field.starts_with("Src") && !field.starts_with("XlatSrc");
        let told: BTreeSet<&str> =
            seen[0].as_object().expect("an object").keys().filter(of_server).map(String::as_str).collect();
        assert_eq!(told, OF_THE_CALL.into());
    }

    #[test]
    fn who_may_read_both_ends_reads_everything() {
        assert_eq!(seen(flow(), &["bank", "shop", "vault"]), flow());
        let objects: Vec<Object> = serde_json::from_value(flow()).expect("objects");
        assert_eq!(restrict(objects.clone(), &Namespaces::All), objects);
    }

    #[test]
    fn flows_of_other_namespaces_and_of_none_are_left_out() {
        assert_eq!(seen(flow(), &["other"]), json!([]));
        assert_eq!(
            seen(json!([{"SrcAddr": "192.0.2.1", "DstAddr": "192.0.2.2", "DstK8S_Name": "n1"}]), &["shop"]),
            json!([])
        );
    }
}
