//! The lab's etcd, which listens in the control plane only.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use podtap_tests::{
    cluster::{Cluster, namespace_of_node},
    namespace::within,
};
use serde_json::{Value, json};

/// Removes all history: nothing can continue a watch from an earlier revision.
pub fn compact() {
    let now = request("kv/range", &json!({"key": "AA=="}));
    request("kv/compaction", &json!({"revision": now["header"]["revision"], "physical": true}));
}

/// Sends a request through etcd's JSON gateway (`/v3`), and returns the answer.
fn request(path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let message = format!(
        "POST /v3/{path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let network = namespace_of_node(Cluster::lab(), "cp");
    let answer = within(&network, move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 2379))?;
        stream.write_all(message.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    })
    .expect("etcd answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}
