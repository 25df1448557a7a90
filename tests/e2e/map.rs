//! The map of a shop of 12 services, by a tap with a collector destination, as users read it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::{
    child::Killed,
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox},
    http,
    shop::CALLS,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::{
    cli,
    processes::pids,
    scene::{address, enable_collector, enable_dns},
};

/// The operation that the Otterize CLI sends first.
const INTENTS: &str = "query Intents ($namespaces: [String!], $includeLabels: [String!], $excludeServiceWithLabels: [String!], \
    $includeAllLabels: Boolean, $server: ServerFilter) { intents(namespaces: $namespaces, includeLabels: $includeLabels, \
    excludeServiceWithLabels: $excludeServiceWithLabels, includeAllLabels: $includeAllLabels, server: $server) { \
    client { ... identity } server { ... identity } type httpResources { ... http } kafkaTopics { ... kafka } } } \
    fragment identity on OtterizeServiceIdentity { name namespace podOwnerKind { group version kind } kubernetesService \
    labels { ... label } } fragment label on PodLabel { key value } fragment http on HttpResource { path methods } \
    fragment kafka on KafkaConfig { name operations }";

/// `kubectl port-forward` to a Service of the collector.
pub struct Forward {
    _child: Killed,
    /// It ends when it cannot print.
    _output: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

impl Forward {
    pub fn start(lab: &Cluster) -> Self {
        Self::try_start(lab).unwrap_or_else(|message| panic!("{message}"))
    }

    /// To the Service that the Otterize CLI uses.
    pub fn try_start(lab: &Cluster) -> Result<Self, String> {
        Self::to(lab, "service/otterize-network-mapper", 9090)
    }

    pub fn to(lab: &Cluster, object: &str, port: u16) -> Result<Self, String> {
        let mut command = Command::new(lab.top().join("target/lab/bin/kubectl"));
        command.arg("--kubeconfig").arg(lab.top().join("target/lab/kubeconfig"));
        command.args(["-n", PODTAP_NAMESPACE, "port-forward", object, &format!(":{port}")]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = Killed(child.expect("kubectl runs"));
        let mut line = String::new();
        let mut output = BufReader::new(child.0.stdout.take().expect("it is piped"));
        output.read_line(&mut line).expect("it can be read");
        // As "Forwarding from 127.0.0.1:40123 -> 9090".
        let address = line.split(' ').nth(2).and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| format!("no port is forwarded: {line:?}"))?;
        Ok(Self { _child: child, _output: output, address })
    }

    pub fn get(&self, path: &str) -> Result<String, String> {
        http::body(self.address, path)
    }

    fn query(&self, query: &Value) -> (u16, Value) {
        let (status, body) =
            http::post(self.address, "/query", "application/json", &query.to_string()).expect("an answer");
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status}: {body}")))
    }
}

/// The calls of the shop in the order of the map: the client, and the namespace, workload and Service that it calls. Each client looks up
/// the names of the Services that it calls.
fn calls(namespace: &str) -> BTreeSet<[&str; 4]> {
    let of_client =
        |(client, server)| [[client, namespace, server, server], [client, "kube-system", "coredns", "kube-dns"]];
    CALLS.into_iter().flat_map(of_client).collect()
}

/// As the Otterize CLI lists it.
fn listed(namespace: &str) -> String {
    let mut by_client: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for [client, of_server, server, _] in calls(namespace) {
        by_client.entry(client).or_default().insert((server, of_server));
    }
    let lines = by_client.into_iter().flat_map(|(client, servers)| {
        let servers = servers.into_iter().map(|(server, of_server)| format!("  - {server} in namespace {of_server}\n"));
        [format!("{client} in namespace {namespace} calls:\n")].into_iter().chain(servers)
    });
    lines.collect()
}

/// The part of a list about clients of a namespace.
pub fn of_namespace(list: &str, namespace: &str) -> String {
    let mut is_asked_for = false;
    let in_part = |line: &&str| {
        if !line.starts_with(' ') {
            is_asked_for = line.ends_with(&format!(" in namespace {namespace} calls:\n"));
        }
        is_asked_for
    };
    list.split_inclusive('\n').filter(in_part).collect()
}

/// Taps all pods of the namespace for the collector.
pub fn tap_all(sandbox: &Sandbox) {
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: map}\nspec:\n  \
         targets: {podSelector: {}}\n  destinations: [{collector: {}}]\n",
    );
}

/// One test at a time: `resetCapture` is about all namespaces.
pub static MAP: Mutex<()> = Mutex::new(());

/// How long it takes until a call from `client` to `server`, who have not called each other yet, is in the list.
fn time_until_listed(sandbox: &Sandbox, forward: &Forward, client: &str, server: &str) -> Duration {
    let call = format!("exec deployment/{client} -- wget -q -O /dev/null http://{server}/");
    sandbox.kubectl(&call.split(' ').collect::<Vec<_>>(), "").expect("the server answers");
    let start = Instant::now();
    let namespace = sandbox.namespace();
    until(&format!("{client} calls {server}"), PATIENCE, || {
        let list = of_namespace(&forward.get("/map?format=list")?, namespace);
        let of_client = list.split_once(&format!("{client} in namespace {namespace} calls:\n")).map(|(_, calls)| calls);
        let calls = of_client.into_iter().flat_map(|calls| calls.lines().take_while(|line| line.starts_with(' ')));
        let is_it = |line: &str| line == format!("  - {server} in namespace {namespace}");
        if calls.into_iter().any(is_it) { Ok(()) } else { Err(list) }
    });
    start.elapsed()
}

#[test]
fn a_collector_tells_who_calls_whom() {
    let _alone = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("shop");
    let (lab, namespace) = (sandbox.lab(), sandbox.namespace());
    enable_collector(lab);
    enable_dns(lab);
    let shop = std::fs::read_to_string(lab.top().join("tests/demo/boutique.yaml")).expect("it is in the repository");
    tap_all(&sandbox);
    sandbox.apply(&shop);
    let tap = until("all pods of the shop are tapped", PATIENCE, || {
        let tap = sandbox.tap("map");
        let status = tap.status.clone().unwrap_or_default();
        if status.tapped_pods == 12 && status.matched_pods == 12 { Ok(tap) } else { Err(format!("{status:?}")) }
    });
    let shown = tap.status.expect("it has one").destination;
    assert!(shown.starts_with("collector/podtap-collector-") && shown.contains(":ptap"), "{shown}");
    sandbox.ready("map");

    let forward = Forward::start(lab);
    let list = || forward.get("/map?format=list").map(|list| of_namespace(&list, namespace));
    let all_are_listed = |what: &str| {
        until(what, PATIENCE, || {
            let list = list()?;
            if list == listed(namespace) { Ok(()) } else { Err(list) }
        });
    };
    all_are_listed("the map has all calls");

    // Prometheus gets the same.
    let metrics = forward.get("/metrics").expect("metrics");
    let of_shop = format!("podtap_connections_opened_total{{k8s_src_namespace=\"{namespace}\"");
    assert_eq!(metrics.lines().filter(|line| line.starts_with(&of_shop)).count(), calls(namespace).len(), "{metrics}");

    // And so does the command line.
    assert_eq!(of_namespace(&cli::done(&sandbox, &["map", "-A"]), namespace), listed(namespace));
    let of_shop = cli::done(&sandbox, &["map", "-o", "json"]);
    let of_shop: Value = serde_json::from_str(&of_shop).expect("JSON");
    assert!(of_shop["edges"].as_array().is_some_and(|edges| edges.len() >= CALLS.len()), "{of_shop}");
    let filter = "DstK8S_OwnerName|SrcK8S_OwnerName=redis-cart";
    let flows = cli::done(&sandbox, &["flows", filter, "Proto=6", "--limit", "1"]);
    let [heading, flow] = flows.lines().collect::<Vec<_>>()[..] else { panic!("{flows}") };
    assert!(heading.starts_with("TIME  ") && flow.contains("redis-cart-") && flow.contains("  TCP  "), "{flows}");
    let json = cli::done(&sandbox, &["flows", filter, "-o", "json", "--limit", "3"]);
    let flows = json.lines().map(|line| serde_json::from_str(line).expect("an object")).collect::<Vec<Value>>();
    assert_eq!(flows.len(), 3, "{json}");

    // The API of the network mapper has the same calls.
    let (status, answer) = forward.query(&json!({"query": INTENTS, "variables": {"namespaces": [namespace]}}));
    assert_eq!(status, 200, "{answer}");
    let identity = |name: &str, namespace: &str, service: Value| {
        json!({"name": name, "namespace": namespace, "kubernetesService": service, "labels": [],
            "podOwnerKind": {"group": "apps", "version": "v1", "kind": "Deployment"}})
    };
    let expected: Vec<Value> = calls(namespace)
        .into_iter()
        .map(|[client, of_server, server, service]| {
            json!({"client": identity(client, namespace, Value::Null),
                "server": identity(server, of_server, service.into()), "type": null,
                "httpResources": null, "kafkaTopics": null})
        })
        .collect();
    assert_eq!(answer, json!({"data": {"intents": expected}}));
    let of_server = json!({"query": INTENTS, "variables": {"server": {"name": "redis-cart", "namespace": namespace}}});
    let of_cart = json!(expected.iter().filter(|call| call["client"]["name"] == "cartservice").collect::<Vec<_>>());
    assert_eq!(forward.query(&of_server).1["data"]["intents"], of_cart, "all calls of the client that calls it");
    let (status, answer) = forward.query(&json!({"query": "{ intents { colour } }"}));
    assert_eq!(status, 422, "{answer}");

    // Nothing wrong was ever in it, and what is forgotten is found again.
    assert_eq!(list(), Ok(listed(namespace)));
    assert_eq!(
        forward.query(&json!({"query": "mutation ResetCapture { resetCapture }"})).1["data"]["resetCapture"],
        true
    );
    all_are_listed("the map has all calls again");

    let servers = ["adservice", "emailservice", "paymentservice", "currencyservice", "shippingservice"];
    let mut times: Vec<Duration> =
        servers.map(|server| time_until_listed(&sandbox, &forward, "redis-cart", server)).into();
    times.sort();
    println!("from the end of a new call until it is listed: {times:?}");
}

#[test]
fn the_map_survives_restarts_of_both_containers() {
    let _alone = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("restarts");
    let (lab, namespace) = (sandbox.lab(), sandbox.namespace());
    enable_collector(lab);
    tap_all(&sandbox);
    sandbox.start("server", "n1", "server", "mkdir /w; hostname > /w/index.html; httpd -f -h /w -p 8080");
    let server = address(&sandbox.running("server"));
    let client = |name: &str| {
        let script = format!("while :; do wget -q -O /dev/null http://{server}:8080/; sleep 1; done");
        sandbox.start(name, "n2", "client", &script);
    };
    let expected = |clients: &[&str]| {
        let lines = clients
            .iter()
            .map(|client| format!("{client} in namespace {namespace} calls:\n  - server in namespace {namespace}\n"));
        lines.collect::<String>()
    };
    let is_listed = |what: &str, clients: &[&str]| {
        until(what, PATIENCE, || {
            // A port is forwarded to a pod whose container may have restarted.
            let list = of_namespace(&Forward::try_start(lab)?.get("/map?format=list")?, namespace);
            if list == expected(clients) { Ok(()) } else { Err(list) }
        });
    };
    client("before");
    is_listed("the first call", &["before"]);

    let pod = lab.list::<Pod>(PODTAP_NAMESPACE).into_iter().find(|pod| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/component"))
            == Some(&"collector".to_owned())
    });
    let node = pod.and_then(|pod| pod.spec?.node_name).expect("the collector runs");
    let end = |program: &str, signal: &str| {
        let found = pids(&node, program).join(" ");
        assert!(!found.is_empty(), "{program} runs");
        lab.on_node(&node, &format!("kill -{signal} {found}")).expect("it runs");
    };
    end("/podtap-collector names", "KILL");
    client("between");
    is_listed("a pod that was created while names were not watched", &["before", "between"]);

    sandbox.kubectl(&["delete", "podtap", "map", "--timeout=60s"], "").expect("a tap can be deleted");
    end("/podtap-collector --receivers", "TERM");
    is_listed("the map of the earlier container", &["before", "between"]);
}
