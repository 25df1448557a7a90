//! What pods look up by DNS, in the map and in metrics.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    sync::PoisonError,
    thread,
};

use podtap_tests::{
    cluster::{Sandbox, namespace_of_node},
    namespace::within,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::{
    map::{Forward, MAP, of_namespace, tap_all},
    scene::{enable_collector, enable_dns},
};

/// The name that tests/lab/dns/coredns.yaml gives to the control plane, which is outside of the cluster.
const EXTERNAL: &str = "pay.example.com";

/// Starts a pod `client`, and taps it and all others of the namespace.
fn start_client(sandbox: &Sandbox) {
    enable_collector(sandbox.lab());
    enable_dns(sandbox.lab());
    sandbox.pod("client", "n2", "client");
    tap_all(sandbox);
    sandbox.ready("map");
}

/// The only edge of the map from the client to such a server.
fn edge(forward: &Forward, sandbox: &Sandbox, is_server: impl Fn(&Value) -> bool) -> Result<Value, String> {
    let map: Value = serde_json::from_str(&forward.get("/map")?).map_err(|error| error.to_string())?;
    let client = json!({"namespace": sandbox.namespace(), "kind": "Pod", "name": "client"});
    let edges = map["edges"].as_array().into_iter().flatten();
    let found: Vec<&Value> = edges.filter(|edge| edge["client"] == client && is_server(&edge["server"])).collect();
    if let [edge] = found[..] { Ok(edge.clone()) } else { Err(format!("{found:?}")) }
}

/// How many answers with such a code the client got.
fn answers(forward: &Forward, sandbox: &Sandbox, code: &str) -> Result<u64, String> {
    let metrics = forward.get("/metrics")?;
    let namespace = format!("\"{}\"", sandbox.namespace());
    let is_it = |line: &&str| {
        line.starts_with("podtap_dns_responses_total{") && line.contains(&namespace) && line.contains(code)
    };
    let values = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(values.sum())
}

#[test]
fn an_external_server_has_the_name_that_its_client_looked_up() {
    let _alone = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("external");
    start_client(&sandbox);
    let forward = Forward::start(sandbox.lab());
    let outside = namespace_of_node(sandbox.lab(), "cp");
    let listener = within(&outside, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        let _ = stream.read(&mut [0; 1024]).expect("it asks");
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").expect("it reads");
    });
    sandbox
        .in_pod("client", &format!("timeout 20 wget -q -O /dev/null http://{EXTERNAL}:{port}/"))
        .expect("the name has an address, and a server is there");
    serving.join().expect("the server does not panic");
    let edge = until("the edge to the external server", PATIENCE, || {
        edge(&forward, &sandbox, |server| server["kind"] == "External")
    });
    assert_eq!(edge["server"]["name"], EXTERNAL, "{edge}");
    assert_eq!(edge["ports"], json!([{"protocol": "TCP", "port": port, "flows": 1}]), "{edge}");
    assert_eq!(edge["known"], json!({"syn": 1, "dns": 1}), "{edge}");

    let message =
        sandbox.in_pod("client", "wget -q -O /dev/null http://nowhere.example.com/").expect_err("no such name");
    assert!(message.contains("bad address"), "{message}");
    // Both names are looked up in the three domains of the cluster first, each time with both kinds of addresses.
    until("the answers are counted", PATIENCE, || {
        let codes = (answers(&forward, &sandbox, "NOERROR")?, answers(&forward, &sandbox, "NXDOMAIN")?);
        if codes == (2, 6 + 8) { Ok(()) } else { Err(format!("{codes:?}")) }
    });
}

#[test]
fn a_client_of_a_headless_service_calls_the_workload() {
    let _alone = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("headless");
    sandbox.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: replicas}\n\
         spec: {clusterIP: None, selector: {app: server}, ports: [{port: 8080}]}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: server}\nspec:\n  replicas: 2\n  \
         selector: {matchLabels: {app: server}}\n  template:\n    metadata: {labels: {app: server}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers:\n      - name: main\n        image: podtap.dev/busybox:1\n        \
         imagePullPolicy: Never\n        command: [sh, -c, \"mkdir /w; hostname > /w/index.html; httpd -f -h /w -p 8080\"]\n",
    );
    start_client(&sandbox);
    let forward = Forward::start(sandbox.lab());
    let namespace = sandbox.namespace();
    until("a replica answers", PATIENCE, || {
        sandbox.in_pod("client", "timeout 3 wget -q -O /dev/null http://replicas:8080/")
    });
    let expected = format!(
        "client in namespace {namespace} calls:\n  - coredns in namespace kube-system\n  - server in namespace {namespace}\n"
    );
    until("both are listed", PATIENCE, || {
        let list = of_namespace(&forward.get("/map?format=list")?, namespace);
        if list == expected { Ok(()) } else { Err(list) }
    });
    let edge = edge(&forward, &sandbox, |server| server["name"] == "server").expect("it is listed");
    assert_eq!((&edge["server"]["kind"], &edge["services"]), (&"Deployment".into(), &json!([])), "{edge}");
    assert_eq!(edge["known"], json!({"syn": 1, "address": 1}), "{edge}");
}
