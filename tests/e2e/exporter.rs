//! Flows of a real tap, sent to systems outside of the cluster.

use std::{net::UdpSocket, time::Duration};

use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node},
    exporter::condition,
    namespace::within,
    wait::{PATIENCE, uninterrupted, until},
};
use serde_json::{Value, json};

use crate::{
    map::{Forward, tap_all},
    scene::{CollectorValues, NoPolicy, address, allow_external, outside},
};

const PORT: u16 = 4740;

#[test]
fn flows_leave_the_cluster_where_the_policy_allows_it() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("exporter");
    let lab = sandbox.lab();
    let _policy = NoPolicy::new();
    let socket =
        within(&namespace_of_node(lab, "cp"), || UdpSocket::bind(("0.0.0.0", PORT))).expect("the port is free");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("it is not zero");
    let sinks = json!([
        {"name": "logs", "stdout": {}},
        {"name": "outside", "ipfix": {"host": outside(), "port": PORT}},
    ]);
    let values = json!({"enabled": true, "export": {"sinks": sinks}});
    let _exporting = CollectorValues::set(lab, &values, json!({"export": {"sinks": []}}));
    tap_all(&sandbox);
    sandbox.start("server", "n1", "server", "mkdir /w; echo > /w/index.html; httpd -f -h /w -p 8080");
    let server = address(&sandbox.running("server"));
    let calls = format!("while :; do wget -q -O /dev/null http://{server}:8080/; sleep 1; done");
    sandbox.start("client", "n2", "client", &calls);
    let client = address(&sandbox.running("client"));

    until("the exporter's container prints flows", PATIENCE, || {
        let logs = ["-n", PODTAP_NAMESPACE, "logs", "deployment/podtap-collector", "-c", "export"];
        let lines = lab.kubectl(&logs, "")?;
        let is_call =
            |flow: &Value| flow["SrcAddr"] == client && flow["DstK8S_Name"] == "server" && flow["DstPort"] == 8080;
        let flows = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if flows.into_iter().any(|flow| is_call(&flow)) { Ok(()) } else { Err(lines.clone()) }
    });
    let forward = Forward::to(lab, "deployment/podtap-collector", 8082).expect("it runs");
    until("the condition of the sink tells what to do", PATIENCE, || {
        match condition(&forward.get("/status")?, "outside")? {
            (Some(false), message) if message.contains(&outside()) && message.contains("allowedExternalCIDRs") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
    let got = uninterrupted(|| socket.recv(&mut [0; 2048])).map_err(|error| error.kind());
    assert_eq!(got, Err(std::io::ErrorKind::WouldBlock), "nothing was sent");

    allow_external(&outside());
    until("IPFIX messages arrive, with the call", PATIENCE, || {
        let mut buffer = [0; 2048];
        let length = uninterrupted(|| socket.recv(&mut buffer)).map_err(|error| error.to_string())?;
        let message = &buffer[..length];
        let ends = [&client, &server].map(|end| end.parse::<std::net::Ipv4Addr>().expect("the lab is IPv4").octets());
        let has = |end: &[u8]| message.windows(4).any(|bytes| bytes == end);
        if message.starts_with(&[0, 10]) && ends.iter().all(|end| has(end)) {
            Ok(())
        } else {
            Err(format!("{length} bytes"))
        }
    });
    until("the condition of the sink is told", PATIENCE, || match condition(&forward.get("/status")?, "outside")? {
        (Some(true), _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
