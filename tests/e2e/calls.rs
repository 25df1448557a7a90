//! The collector on a real mirror of a real service: which pod answered each connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, Service};
use podtap_tests::{
    cluster::{Sandbox, namespace_of_node},
    collector::Collector,
    namespace::within,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::scene::{address, allow_external, outside};

const CONNECTIONS: usize = 200;
const SERVERS: [(&str, &str); 3] = [("server-a", "n1"), ("server-b", "n2"), ("server-c", "n2")];

fn connect(client: &Path, service: Ipv4Addr) -> Result<TcpStream, String> {
    within(client, move || TcpStream::connect((service, 80))).map_err(|error| error.to_string())
}

/// Asks the service for the name of the pod that answers. Returns the port of the connection, too.
fn ask(client: &Path, service: Ipv4Addr) -> Result<(u16, String), String> {
    let mut stream = connect(client, service)?;
    let failed = |error: std::io::Error| error.to_string();
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(failed)?;
    let mut response = String::new();
    stream.read_to_string(&mut response).map_err(failed)?;
    let body = response.split("\r\n\r\n").nth(1).ok_or("no answer")?;
    Ok((stream.local_addr().map_err(failed)?.port(), body.trim().to_owned()))
}

/// The collector's file of names: the pods as they are, all servers of one Deployment.
fn names(sandbox: &Sandbox, pods: &[Pod], service: Ipv4Addr) -> Value {
    let pod = |pod: &Pod| {
        let name = pod.metadata.name.clone().expect("a stored pod has a name");
        let workload = if name.starts_with("server") { "server" } else { "client" };
        json!({"namespace": sandbox.namespace(), "name": name, "uid": pod.metadata.uid, "addresses": [address(pod)],
            "workload": {"kind": "Deployment", "name": workload}})
    };
    let backends: Vec<Value> = pods[1..].iter().map(|pod| json!({"address": address(pod)})).collect();
    json!({"pods": pods.iter().map(pod).collect::<Vec<_>>(), "services": [{"namespace": sandbox.namespace(), "name": "server",
        "addresses": [service], "ports": [{"port": 80, "targetPort": 8080}], "backends": backends}]})
}

/// The flows of these ports to the service, when all of them are reported.
fn requests(collector: &Collector, service: Ipv4Addr, truth: &BTreeMap<u16, String>) -> BTreeMap<u16, Value> {
    until("all connections are reported", PATIENCE, || {
        let flows = collector.flows().into_iter().filter(|flow| flow["DstAddr"] == service.to_string());
        let by_port = flows.filter_map(|flow| Some((u16::try_from(flow["SrcPort"].as_u64()?).ok()?, flow)));
        let found: BTreeMap<u16, Value> = by_port.filter(|(port, _)| truth.contains_key(port)).collect();
        if found.len() == truth.len() { Ok(found) } else { Err(format!("{} of {}", found.len(), truth.len())) }
    })
}

/// A client, three servers, and the address of their service.
fn shop(test: &str) -> (Sandbox, Vec<Pod>, Ipv4Addr) {
    let sandbox = Sandbox::new(test);
    for (name, node) in SERVERS {
        sandbox.start(name, node, "server", "mkdir /w; hostname > /w/index.html; httpd -f -h /w -p 8080");
    }
    sandbox.start("client", "n1", "client", "sleep 3600");
    sandbox.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: server}\n\
         spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n",
    );
    let pods = ["client"].into_iter().chain(SERVERS.map(|(name, _)| name)).map(|name| sandbox.running(name)).collect();
    let stored: Service = sandbox.lab().get(sandbox.namespace(), "server").expect("it was created");
    let service =
        stored.spec.and_then(|spec| spec.cluster_ip).and_then(|ip| ip.parse().ok()).expect("it has an address");
    (sandbox, pods, service)
}

fn until_all_answer(client: &Path, service: Ipv4Addr) {
    let mut answered = BTreeSet::new();
    until("kube-proxy knows all servers", PATIENCE, || {
        answered.insert(ask(client, service)?.1);
        if answered.len() == SERVERS.len() { Ok(()) } else { Err(format!("{answered:?}")) }
    });
}

/// The port of each connection, and the pod that answered.
fn ask_often(client: &Path, service: Ipv4Addr) -> BTreeMap<u16, String> {
    let truth: BTreeMap<u16, String> =
        (0..CONNECTIONS).map(|_| ask(client, service).expect("the service answers")).collect();
    assert_eq!(truth.len(), CONNECTIONS, "no port is used twice");
    truth
}

/// Outside of the cluster, a collector knows neither pods nor services, but what the tap of the client tells.
#[test]
fn outside_of_the_cluster_the_pod_that_answered_is_known_by_its_nodes_conntrack() {
    let (sandbox, pods, service) = shop("calls-outside");
    let client = sandbox.network(&pods[0]);
    until_all_answer(&client, service);
    allow_external(&outside());
    let collector = Collector::start(&namespace_of_node(sandbox.lab(), "cp"), &["--vxlan-port", "4791"]);
    let early = connect(&client, service).expect("the service answers");
    let port_of_early = early.local_addr().expect("it is bound").port();
    let addresses: BTreeMap<&str, String> =
        pods[1..].iter().map(|pod| (pod.metadata.name.as_deref().expect("a name"), address(pod))).collect();
    let shown = sandbox
        .lab()
        .on_node("n1", &format!("conntrack -L -p tcp --orig-port-src {port_of_early}"))
        .expect("conntrack");
    let answers = |(_, address): &(&&str, &String)| shown.contains(&format!("src={address} "));
    let (server_of_early, _) = addresses.iter().find(answers).expect("a server has it");
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: client}}\nspec:\n  \
         targets: {{podNames: [client]}}\n  truncate: {{headersOnly: true, exemptBytes: 4096}}\n  \
         destinations: [{{external: {{address: {}, port: 4791, metadata: true}}}}]\n",
        outside()
    ));
    sandbox.ready("client");
    let mut truth = ask_often(&client, service);
    requests(&collector, service, &truth);
    drop(early);
    truth.insert(port_of_early, (*server_of_early).to_owned());
    for (port, flow) in requests(&collector, service, &truth) {
        assert_eq!(
            (&flow["XlatBy"], &flow["XlatDstAddr"], &flow["XlatDstPort"]),
            (&"conntrack".into(), &addresses[truth[&port].as_str()].as_str().into(), &8080.into()),
            "{flow}"
        );
        assert_eq!(
            (&flow["SrcK8S_Name"], &flow["SrcK8S_Namespace"], &flow["SrcK8S_HostName"], &flow["ZoneId"]),
            (&"client".into(), &sandbox.namespace().into(), &"n1".into(), &0.into()),
            "{flow}"
        );
        assert_eq!(flow["SrcTaps"], json!([format!("PodTap {}/client", sandbox.namespace())]), "{flow}");
        assert_eq!(flow.get("Preexisting").is_some(), port == port_of_early, "{flow}");
    }
    collector.end();
}

#[test]
fn the_pod_that_answered_is_known_for_each_connection_to_a_service() {
    let (sandbox, pods, service) = shop("calls");
    let client = sandbox.network(&pods[0]);
    // With headers only, and each flow once: what a map needs.
    for (tap, apps) in [("both-ends", "client, server"), ("one-end", "client")] {
        sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {tap}}}\nspec:\n  \
             targets: {{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{apps}]}}]}}}}\n  \
             deduplicate: {{handshakes: Both}}\n  truncate: {{headersOnly: true, exemptBytes: 4096}}\n  \
             destinations: [{{node: {{name: n2, interfaceName: {tap}}}}}]\n"
        ));
    }
    for tap in ["both-ends", "one-end"] {
        sandbox.ready(tap);
    }
    until_all_answer(&client, service);

    let file = env::temp_dir().join(format!("calls-{}.json", process::id()));
    fs::write(&file, names(&sandbox, &pods, service).to_string()).expect("it can be written");
    let node = namespace_of_node(sandbox.lab(), "n2");
    let start = |interface: &str| {
        Collector::start(&node, &["--interface", interface, "--names", file.to_str().expect("a path of letters")])
    };
    let (both_ends, one_end) = (start("both-ends"), start("one-end"));
    let truth = ask_often(&client, service);

    for (port, flow) in requests(&both_ends, service, &truth) {
        assert_eq!(
            (&flow["XlatBy"], &flow["XlatDstK8S_Name"]),
            (&"join".into(), &truth[&port].as_str().into()),
            "{flow}"
        );
        assert_eq!((&flow["SrcK8S_Name"], &flow["PayloadBytes"]), (&"client".into(), &18.into()), "{flow}");
    }
    // From one end, the workload is known, and no pod is guessed.
    for flow in requests(&one_end, service, &truth).values() {
        assert_eq!((&flow["XlatBy"], &flow["XlatDstK8S_OwnerName"]), (&"endpoints".into(), &"server".into()), "{flow}");
        assert!(flow.get("XlatDstK8S_Name").is_none(), "{flow}");
    }
    for collector in [both_ends, one_end] {
        let (_, errors) = collector.end();
        assert!(errors.contains(" 0 dropped by the kernel"), "{errors}");
    }
    fs::remove_file(file).expect("it exists");
}
