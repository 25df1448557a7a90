//! The calls of the shop in tests/demo/boutique.yaml, in all forms of the map.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::Service,
    networking::v1::{NetworkPolicy, NetworkPolicyIngressRule},
};
use podtap_tests::{pcap::File, shop::CALLS};
use serde_json::{Value, json};

use podtap_tests::frames::connection;

use crate::read;

/// The port of all Services.
const PORT: u16 = 80;

/// The objects of the manifest.
fn objects() -> (BTreeMap<String, Deployment>, BTreeMap<String, Service>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/boutique.yaml");
    let text = fs::read_to_string(path).expect("it is in the repository");
    let (mut deployments, mut services) = (BTreeMap::new(), BTreeMap::new());
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).expect("YAML");
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match object["kind"].as_str() {
            Some("Deployment") => {
                deployments.insert(name, serde_json::from_value(object).expect("a Deployment"));
            }
            Some("Service") => {
                services.insert(name, serde_json::from_value(object).expect("a Service"));
            }
            _ => {}
        }
    }
    (deployments, services)
}

fn pod(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, u8::try_from(number + 1).expect("few pods"))
}

fn virtual_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, u8::try_from(number + 1).expect("few Services"))
}

/// The file of names, and the capture of each call once, at the client.
fn shop() -> (Value, File) {
    let (deployments, services) = objects();
    let pods: BTreeMap<&str, Ipv4Addr> =
        deployments.keys().enumerate().map(|(number, name)| (name.as_str(), pod(number))).collect();
    let addresses: BTreeMap<&str, Ipv4Addr> =
        services.keys().enumerate().map(|(number, name)| (name.as_str(), virtual_address(number))).collect();
    let of_pods = deployments.iter().map(|(name, deployment)| {
        let template = deployment.spec.as_ref().expect("it has a spec").template.metadata.as_ref().expect("metadata");
        json!({"namespace": "boutique", "name": format!("{name}-1"), "uid": name, "addresses": [pods[name.as_str()]],
            "labels": template.labels, "workload": {"kind": "Deployment", "name": name, "apiVersion": "apps/v1"}})
    });
    let of_services = services.iter().map(|(name, service)| {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
        let ports = ports.iter().map(|port| match port.target_port.as_ref() {
            Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) => {
                json!({"port": port.port, "targetPort": target})
            }
            _ => json!({"port": port.port, "targetPort": port.port}),
        });
        json!({"namespace": "boutique", "name": name, "addresses": [addresses[name.as_str()]],
            "ports": ports.collect::<Vec<_>>(), "backends": [{"address": pods[name.as_str()]}]})
    });
    let names = json!({"pods": of_pods.collect::<Vec<_>>(), "services": of_services.collect::<Vec<_>>()});
    let mut frames = Vec::new();
    let mut port = 40_000;
    for (client, server) in CALLS {
        port += 1;
        frames.extend(connection((pods[client], port), (addresses[server], PORT)));
    }
    (names, File::of(&frames))
}

/// A committed file; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, text: &str) {
    let path = format!("{}/collector/shop/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("it can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "UPDATE_GOLDEN=1 writes {path}");
}

#[test]
fn the_network_policies_of_the_shop_allow_its_calls_and_nothing_else() {
    let (names, file) = shop();
    let text = read::print(file.path(), Some(&names), "network-policy");
    golden("network-policy.yaml", &text);
    let (deployments, _) = objects();
    let by_label: BTreeMap<String, &str> = deployments
        .iter()
        .map(|(name, deployment)| {
            let spec = deployment.spec.as_ref().expect("it has a spec");
            (format!("{:?}", spec.selector.match_labels.as_ref().expect("labels")), name.as_str())
        })
        .collect();
    // As the API server decodes them; unknown fields are an error there.
    let documents = text.split("\n---\n").skip(1);
    let mut allowed = BTreeSet::new();
    for document in documents {
        let policy: NetworkPolicy =
            serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        let value: Value = serde_saphyr::from_str(document).expect("YAML");
        assert_eq!(serde_json::to_value(&policy).expect("JSON"), value, "nothing is unknown");
        let spec = policy.spec.expect("it has a spec");
        assert_eq!(spec.policy_types, Some(vec!["Ingress".to_owned()]));
        let selected = spec.pod_selector.and_then(|selector| selector.match_labels).expect("labels");
        let server = by_label[&format!("{selected:?}")];
        for NetworkPolicyIngressRule { from, ports } in spec.ingress.expect("rules") {
            assert!(
                ports.is_some_and(|ports| ports.iter().all(|port| port.port.is_some())),
                "no rule is for all ports"
            );
            for peer in from.expect("no rule is for everyone") {
                let namespace = peer.namespace_selector.and_then(|selector| selector.match_labels).expect("labels");
                assert_eq!(namespace, [("kubernetes.io/metadata.name".to_owned(), "boutique".to_owned())].into());
                let labels = peer.pod_selector.and_then(|selector| selector.match_labels).expect("labels");
                allowed.insert((by_label[&format!("{labels:?}")], server));
            }
        }
    }
    assert_eq!(allowed, BTreeSet::from(CALLS));
}

#[test]
fn the_picture_of_the_shop_is_the_same_each_time() {
    let (names, file) = shop();
    let text = read::print(file.path(), Some(&names), "svg");
    golden("map.svg", &text);
}
