//! What readers of some namespaces get, in all outputs.

use std::collections::BTreeSet;

use async_graphql::Request;
use clap::ValueEnum as _;
use podtap_flow::{
    Counts, Endpoint, Query, Record, Timestamp,
    map::Bounds,
    named::{NamedRecord, TranslatedBy},
    names::Names,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{flows, graphql};
use crate::{
    fixtures::record,
    namespaces::Namespaces,
    output::Print,
    shared::{Readable, Shared},
};

/// In every name and label of what is in a namespace that the reader may not read, and in no other.
const SECRET: &str = "secret";

/// Namespace, name, address, and those of a service whose backend it is.
const PODS: [(&str, &str, &str); 5] = [
    ("open", "web", "10.1.0.1"),
    ("open", "cart", "10.1.0.2"),
    ("team", "ledger", "10.1.0.3"),
    ("secret-bank", "secret-vault", "10.66.0.4"),
    ("secret-bank", "secret-teller", "10.66.0.5"),
];
/// Namespace, name, address, and the pod behind it: of the same namespace, and of another one.
const SERVICES: [(&str, &str, &str, usize); 4] = [
    ("open", "cart", "10.96.0.1", 1),
    ("open", "elsewhere", "10.96.0.2", 3),
    ("secret-bank", "secret-vault", "10.66.96.3", 3),
    ("secret-bank", "secret-front", "10.66.96.4", 0),
];
const NODE: &str = "192.168.0.1";
const EXTERNAL: &str = "192.0.2.1";

fn names() -> Names {
    let pod = |(namespace, name, address): (&str, &str, &str)| {
        json!({"namespace": namespace, "name": format!("{name}-1"), "uid": name, "addresses": [address], "node": "n1",
            "labels": {"app": name}, "workload": {"kind": "Deployment", "name": name}})
    };
    let service = |(namespace, name, address, backend): (&str, &str, &str, usize)| {
        json!({"namespace": namespace, "name": name, "addresses": [address],
            "ports": [{"port": 80, "targetPort": 8080}], "backends": [{"address": PODS[backend].2}]})
    };
    let objects = json!({"pods": PODS.map(pod), "services": SERVICES.map(service),
        "nodes": [{"name": "n1", "addresses": [NODE]}], "networks": [["192.0.2.0/24", "office"]]});
    Names::new(serde_json::from_value(objects).expect("names"))
}

/// Who calls whom, and whether both views of the connection were seen.
#[derive(Clone, Copy, Debug)]
struct Call {
    client: &'static str,
    server: &'static str,
    is_joined: bool,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let clients: Vec<&str> = PODS.iter().map(|pod| pod.2).chain([NODE, EXTERNAL]).collect();
    let servers: Vec<&str> = clients.iter().copied().chain(SERVICES.iter().map(|service| service.2)).collect();
    let call = (prop::sample::select(clients), prop::sample::select(servers), any::<bool>());
    let call = call.prop_map(|(client, server, is_joined)| Call { client, server, is_joined });
    prop::collection::vec(call, 1..30)
}

fn is_secret(address: &str) -> bool {
    address.starts_with("10.66.")
}

/// A client asks for the server by a name that has the secret if the server or the client has.
fn of_call(number: usize, call: Call) -> Record {
    let end = |address: &str, port| Endpoint { address: address.parse().expect("an address"), port };
    let (client, server) = (end(call.client, 40_000), end(call.server, 80));
    let service = SERVICES.iter().find(|service| service.2 == call.server);
    let backend = service.map(|service| end(PODS[service.3].2, 8080)).filter(|_| call.is_joined);
    let name = |is_secret: bool| Some(Box::from(if is_secret { "secret.example" } else { "example.com" }));
    let asks_secretly = is_secret(call.client);
    let names_secret = asks_secretly || is_secret(call.server);
    let question = name(asks_secretly).map(|name| Query { id: 1, name, asked: Timestamp(0), answer: None });
    Record {
        client,
        server: backend.unwrap_or(server),
        translated: backend.map(|_| (client, server)),
        translated_by: backend.map(|_| TranslatedBy::Join),
        received: Counts { frames: 1, ..Counts::default() },
        dns_name: name(names_secret),
        sni: name(names_secret),
        query: question.map(Box::new),
        ..record(number as u64)
    }
}

fn everything(calls: &[Call]) -> Readable {
    let shared = Shared::new(names(), Bounds::default());
    let state = &mut *shared.lock();
    for (number, call) in calls.iter().enumerate() {
        let record = of_call(number, *call);
        state.map.record(&NamedRecord::new(&record, &state.names));
        state.newest.push(record);
    }
    Readable { shared: shared.clone(), namespaces: Namespaces::All }
}

fn restricted(everything: &Readable, namespaces: &[&str]) -> Readable {
    let names = namespaces.iter().map(|name| (*name).to_owned()).collect();
    Readable { namespaces: Namespaces::Only(names), ..everything.clone() }
}

fn flows(readable: &Readable, query: &str) -> Vec<Value> {
    let query = flows::Query::parse(query).expect("a query");
    let text = String::from_utf8(flows::newest(readable, &query)).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn query(readable: &Readable, query: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let answer =
        runtime.block_on(graphql::schema().execute(graphql::for_reader(Request::new(query), readable.clone())));
    assert!(answer.errors.is_empty(), "{:?}", answer.errors);
    answer.data.to_string()
}

const IDENTITY: &str = "{ namespace name labels { key value } kubernetesService podOwnerKind { kind } }";

/// All that a reader can ask for, and its name.
fn outputs(readable: &Readable) -> Vec<(String, String)> {
    let view = readable.view();
    let of_map = Print::value_variants().iter().filter(|format| format.is_of_map()).map(|format| {
        let mut text = Vec::new();
        format.write(&mut text, &view).expect("memory");
        (format!("{format:?}"), String::from_utf8(text).expect("text"))
    });
    let intents = format!("{{ intents(includeAllLabels: true) {{ client {IDENTITY} server {IDENTITY} }} }}");
    let services = format!("{{ serviceIntents(includeAllLabels: true) {{ client {IDENTITY} intents {IDENTITY} }} }}");
    let queries = [intents, services].map(|text| (text.clone(), query(readable, &text)));
    let flows = ("flows".to_owned(), Value::from(flows(readable, "limit=10000")).to_string());
    of_map.chain(queries).chain([flows]).collect()
}

/// The edges of the map as JSON.
fn edges(readable: &Readable) -> Vec<Value> {
    let mut text = Vec::new();
    Print::Map.write(&mut text, &readable.view()).expect("memory");
    let map: Value = serde_json::from_slice(&text).expect("JSON");
    map["edges"].as_array().expect("a list").clone()
}

fn is_of_open(edge: &Value) -> bool {
    edge["client"]["namespace"] == "open" || edge["server"]["namespace"] == "open"
}

/// Who calls or is called in `open`.
fn ends(edges: &[Value]) -> BTreeSet<String> {
    let ends = edges.iter().flat_map(|edge| [&edge["client"], &edge["server"]]);
    ends.filter(|end| end["namespace"] == "open").map(|end| end["name"].to_string()).collect()
}

/// How many connections from and to `open` there were.
fn connections(edges: &[Value]) -> u64 {
    edges.iter().filter(|edge| is_of_open(edge)).map(|edge| edge["connections"].as_u64().expect("a count")).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_output_has_a_name_of_another_namespace(calls in calls()) {
        let everything = everything(&calls);
        for namespaces in [&["open"][..], &["open", "team"], &["other"]] {
            let readable = restricted(&everything, namespaces);
            for (output, text) in outputs(&readable) {
                prop_assert!(!text.contains(SECRET), "{output}: {text}");
                prop_assert!(!text.contains("10.66."), "{output}: {text}");
                prop_assert!(namespaces.contains(&"team") || !text.contains("ledger"), "{output}: {text}");
            }
            // Filters find no more than what is shown.
            for filter in ["*~=secret", "*~=10.66.", "*=secret-bank", "SrcK8S_Namespace|DstK8S_Namespace=secret-bank",
                "TlsSni|DnsName|DstDnsName~=secret", "DstAddr|SrcAddr|XlatDstAddr|XlatSrcAddr~=10.66"] {
                prop_assert_eq!(flows(&readable, filter), [Value::Null; 0], "{}", filter);
            }
        }
    }

    #[test]
    fn each_flow_and_call_of_a_readable_namespace_is_told(calls in calls()) {
        let everything = everything(&calls);
        let readable = restricted(&everything, &["open"]);
        let is_open = |text: &str| text.contains("\"open\"");
        // Both directions of a flow are next to each other.
        let all = flows(&everything, "limit=10000");
        let expected: Vec<&[Value]> = all.chunks(2).filter(|both| is_open(&json!(both).to_string())).collect();
        let told = flows(&readable, "limit=10000");
        prop_assert_eq!(told.len(), 2 * expected.len());
        for (told, expected) in told.iter().zip(expected.concat()) {
            prop_assert_eq!(&told["TimeFlowStartMs"], &expected["TimeFlowStartMs"]);
            prop_assert_eq!(&told["Bytes"], &expected["Bytes"]);
            // What is told is true.
            for (field, value) in told.as_object().expect("an object") {
                prop_assert_eq!(value, &expected[field], "{}", field);
            }
        }
        let (all, told) = (edges(&everything), edges(&readable));
        prop_assert_eq!(ends(&all), ends(&told));
        prop_assert_eq!(connections(&all), connections(&told));
        prop_assert!(told.iter().all(is_of_open));
    }
}

/// Otherwise, the first of these tests could not fail.
#[test]
fn who_may_read_everything_gets_all_names() {
    let call = |client, server| Call { client, server, is_joined: true };
    let everything = everything(&[call("10.66.0.5", "10.66.0.4"), call("10.1.0.1", "10.66.96.3")]);
    for namespaces in [Namespaces::All, Namespaces::Only(["secret-bank".to_owned()].into())] {
        for (output, text) in outputs(&Readable { namespaces, ..everything.clone() }) {
            assert!(text.contains(SECRET), "{output}: {text}");
        }
    }
    assert_eq!(flows(&everything, "*~=secret").len(), 4);
}
