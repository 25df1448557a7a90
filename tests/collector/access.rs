//! The collector's API over HTTPS: `podtap-collector names` with a token's rights, before a collector that has read a capture file.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{self, Command, Stdio},
    thread,
};

use podtap_tests::{
    child::Killed,
    collector::{Served, binary},
    https::Certificate,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::invented::{Cluster, Connection};

/// An API server that knows the token `reader`, whose user may read the map of `shop`, and `admin`, whose user may read all. It has nothing
/// else, so that the watches of names retry.
fn api_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it listens");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A connection that ends early is no concern of others.
            let _ = answer(&stream);
        }
    });
    address
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut request = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while request.read_line(&mut head)? > 2 {
        let line = head.lines().last().unwrap_or_default().to_lowercase();
        length = line.strip_prefix("content-length: ").and_then(|length| length.parse().ok()).unwrap_or(length);
    }
    let mut body = vec![0; length];
    request.read_exact(&mut body)?;
    let mut review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let spec = &review["spec"];
    let status = if head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews") {
        json!({"authenticated": spec["token"] == "reader" || spec["token"] == "admin", "user": {"username": spec["token"]}})
    } else if head.starts_with("POST /apis/authorization.k8s.io/v1/subjectaccessreviews") {
        json!({"allowed": spec["user"] == "admin" || spec["resourceAttributes"]["namespace"] == "shop"})
    } else {
        return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    review["status"] = status;
    let body = review.to_string();
    let head = format!("HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(format!("{head}Content-Type: application/json\r\n\r\n{body}").as_bytes())
}

/// `podtap-collector names`, and where it serves authorized clients. Killed when dropped, and its files are removed.
struct Names {
    _child: Killed,
    directory: PathBuf,
    address: SocketAddr,
}

impl Names {
    fn start(collector: SocketAddr, certificate: &Certificate) -> Self {
        let directory = env::temp_dir().join(format!("podtap-names-{}", process::id()));
        fs::create_dir_all(&directory).expect("it can be created");
        let kubeconfig = directory.join("kubeconfig");
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", api_server())}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]});
        fs::write(&kubeconfig, config.to_string()).expect("it can be written");
        let mut command = Command::new(binary());
        command.env("KUBECONFIG", kubeconfig).env("PODTAP_LOG_JSON", "true");
        command.args(["names", "--listen", "127.0.0.1:0", "--collector", &collector.to_string()]);
        command.arg("--socket").arg(directory.join("names.sock"));
        command.arg("--tls-certificate").arg(certificate.certificate()).arg("--tls-key").arg(certificate.key());
        let mut child = Killed(command.stderr(Stdio::piped()).spawn().expect("it runs"));
        let logs = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let mut lines = logs.lines().map_while(Result::ok);
        let is_served = |line: String| {
            let line: Value = serde_json::from_str(&line).ok()?;
            line["address"].as_str().filter(|_| line["message"] == "serving authorized clients")?.parse().ok()
        };
        let address = lines.by_ref().find_map(is_served).expect("it serves");
        // It must not fail because what it logs is not read.
        thread::spawn(move || lines.for_each(drop));
        Self { _child: child, directory, address }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_token_gets_what_its_user_may_read_and_nothing_else() {
    let mut cluster = Cluster::new();
    let connection = Connection { sent: 1000, received: 2000, handshake: 100 };
    let [web, cart, vault] = [("shop", "web"), ("shop", "cart"), ("bank", "vault")]
        .map(|(namespace, name)| cluster.workload(namespace, name));
    let teller = cluster.workload("bank", "teller");
    cluster.call(&web, &cart, connection);
    cluster.call(&web, &vault, connection);
    cluster.call(&teller, &vault, connection);
    let files = cluster.write();
    let collector = Served::start(&files.frames(), &files.names());
    let certificate = Certificate::new();
    let names = Names::start(collector.address, &certificate);
    let get = |path: &str, token| certificate.get(names.address, path, token).expect("an answer");

    assert_eq!(get("/map", None).0, 401);
    assert_eq!(get("/map", Some("mallory")).0, 401);
    assert_eq!(get("/map", Some("reader")).0, 403);
    assert_eq!(get("/namespaces/bank/map", Some("reader")).0, 403);
    assert_eq!(get("/metrics", Some("reader")).0, 403);
    let page = get("/namespaces/shop/", Some("reader"));
    assert!(page.0 == 200 && page.1.contains("src=\"page/app.js\""), "{page:?}");

    let list = "web in namespace shop calls:\n  - cart in namespace shop\n";
    assert_eq!(get("/namespaces/shop/map?format=list", Some("reader")), (200, list.to_owned()));
    let all = "teller in namespace bank calls:\n  - vault in namespace bank\n\
        web in namespace shop calls:\n  - cart in namespace shop\n  - vault in namespace bank\n";
    for path in ["/map?format=list", "/namespaces/bank,shop/map?format=list"] {
        assert_eq!(get(path, Some("admin")), (200, all.to_owned()));
    }
    let (status, metrics) = get("/metrics", Some("admin"));
    for (namespace, workload, role) in
        [("shop", "web", "client"), ("shop", "cart", "server"), ("bank", "vault", "server")]
    {
        let of_pod = |line: &&str| {
            let labels = [("k8s_namespace_name", namespace), ("k8s_owner_name", workload), ("role", role)];
            line.starts_with("podtap_pod_connections_opened_total{")
                && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        };
        assert_eq!((status, metrics.lines().filter(of_pod).count()), (200, 1), "{workload}: {metrics}");
    }
    let (status, map) = get("/namespaces/shop/map", Some("reader"));
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let elsewhere = &map["edges"][1];
    assert_eq!((status, &elsewhere["server"]), (200, &json!({"kind": "AnotherNamespace"})), "{map}");
    assert_eq!((&elsewhere["bytesSent"], &elsewhere["bytesReceived"]), (&json!(1000), &json!(2000)), "{map}");
    let (status, flows) = get("/namespaces/shop/flows", Some("reader"));
    assert_eq!((status, flows.lines().count()), (200, 4), "two connections, in both directions: {flows}");
    for secret in ["vault", "teller", "bank", &vault.address.to_string()] {
        assert!(!flows.contains(secret) && !map.to_string().contains(secret), "{secret}: {flows} {map}");
    }

    // No restart is needed.
    let replaced = Certificate::new();
    for (new, old) in [(replaced.certificate(), certificate.certificate()), (replaced.key(), certificate.key())] {
        fs::rename(new, old).expect("it is replaced");
    }
    until("the new certificate is used", PATIENCE, || certificate.get(names.address, "/status", Some("reader")));
    drop(names);
    collector.end();
}
