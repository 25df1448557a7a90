use podtap_runtime::http::{BodyExt as _, MetricsSource as _, Server};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::access::fixtures::ApiServer;

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A collector that answers with the request that it gets.
#[derive(Clone)]
struct Echo;

impl Handler for Echo {
    type Body = Full<Bytes>;

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let header =
            |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), Value::from(value.to_str().expect("text")));
        let headers: serde_json::Map<String, Value> = request.headers().iter().map(header).collect();
        let (method, uri) = (request.method().to_string(), request.uri().to_string());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        let echo = json!({"method": method, "uri": uri, "headers": headers, "body": body}).to_string();
        let mut response = plain(StatusCode::ACCEPTED, echo);
        response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"7\""));
        response
    }
}

/// Servers that end when this is dropped.
struct Servers {
    collector: Server,
    gate: Server,
    metrics: Metrics,
}

async fn servers() -> Servers {
    let collector = Server::spawn(ANYWHERE, Echo).await.expect("a free port");
    let api = ApiServer::new(&[("admin", &["*"]), ("alice", &["shop"]), ("writer", &["shop"])]);
    let metrics = Metrics::new();
    let gate = Gate::new(Reviews::new(api.client()), collector.address(), &metrics);
    Servers { gate: Server::spawn(ANYWHERE, gate).await.expect("a free port"), collector, metrics }
}

/// Header and body of the answer to a request.
async fn answer(servers: &Servers, head: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(servers.gate.address()).await.expect("it listens");
    stream.write_all(format!("{head}\r\nHost: map.example\r\n\r\n{body}").as_bytes()).await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("a header");
    (head.to_lowercase(), body.to_owned())
}

async fn get(servers: &Servers, path: &str, token: &str) -> (u16, String) {
    let (head, body) = answer(servers, &format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}"), "").await;
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body)
}

#[tokio::test]
async fn requests_get_through_without_their_token() {
    let servers = servers().await;
    let head = "POST http://elsewhere/query?a=%62 HTTP/1.1\r\nAuthorization: bEARER  admin \r\nContent-Type: application/json\r\n\
        Content-Length: 4\r\nCookie: a=b\r\nX-Forwarded-For: 192.0.2.1";
    let (refused, _) = answer(&servers, head, "body").await;
    assert!(refused.starts_with("http/1.1 403 "), "reading is not enough for a query: {refused}");
    let head = "GET http://elsewhere/map?format=%6dap HTTP/1.1\r\nAuthorization: bEARER  admin \r\nContent-Type: text/plain\r\n\
        Content-Length: 4\r\nIf-None-Match: \"7\"\r\nCookie: a=b\r\nX-Forwarded-For: 192.0.2.1";
    let (head, echo) = answer(&servers, head, "body").await;
    assert!(head.starts_with("http/1.1 202 ") && head.contains("\r\netag: \"7\""), "{head}");
    assert_eq!(head.matches("connection:").count(), 1, "{head}");
    let echo: Value = serde_json::from_str(&echo).expect("JSON");
    let host = servers.collector.address().to_string();
    assert_eq!(
        echo,
        json!({"method": "GET", "uri": "/map?format=%6dap", "body": "body", "headers":
            {"host": host, "content-type": "text/plain", "if-none-match": "\"7\"", "content-length": "4"}})
    );
}

#[tokio::test]
async fn a_query_needs_the_right_to_create() {
    let servers = servers().await;
    for (path, user, body, expected) in [
        ("/namespaces/shop/query", "writer", "Content-Length: 4\r\n\r\nbody", 202),
        ("/namespaces/shop/query", "writer", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 202),
        ("/namespaces/shop/query", "alice", "Content-Length: 4\r\n\r\nbody", 403),
        ("/query", "writer", "Content-Length: 4\r\n\r\nbody", 403),
    ] {
        let (header, body) = body.split_once("\r\n\r\n").expect("a header");
        let head = format!("POST {path} HTTP/1.1\r\nAuthorization: Bearer {user}\r\n{header}");
        let (head, echo) = answer(&servers, &head, body).await;
        assert!(head.starts_with(&format!("http/1.1 {expected} ")), "{path} {user}: {head}");
        assert!(expected != 202 || echo.contains("\"body\":\"body\""), "{echo}");
        assert!(expected != 403 || echo.contains("can-i create podtaps.podtap.dev"), "{echo}");
    }
}

#[tokio::test]
async fn each_path_needs_the_right_to_its_namespaces() {
    let servers = servers().await;
    for (path, of_alice) in [
        ("/", 202),
        ("/page/app.js", 202),
        ("/status", 202),
        ("/namespaces/shop/", 202),
        ("/namespaces/shop/map?format=dot", 202),
        ("/namespaces/shop/flows", 202),
        // The page is the same for all.
        ("/namespaces/bank/", 202),
        ("/map", 403),
        ("/flows", 403),
        ("/metrics", 403),
        ("/query", 403),
        ("/else", 403),
        ("//namespaces/shop/map", 403),
        ("/namespaces", 403),
        ("/namespaces/bank/map", 403),
        ("/namespaces/shop,bank/map", 403),
    ] {
        assert_eq!(get(&servers, path, "alice").await.0, of_alice, "{path}");
        assert_eq!(get(&servers, path, "admin").await.0, 202, "{path}");
        assert_eq!(get(&servers, path, "mallory").await.0, 401, "{path}");
    }
    assert_eq!(get(&servers, "/namespaces/Shop/map", "admin").await.0, 400);
    let metrics = servers.metrics.text().await.expect("metrics");
    for line in ["{status=\"202\"} 23", "{status=\"400\"} 1", "{status=\"401\"} 16", "{status=\"403\"} 9"] {
        assert!(metrics.contains(&format!("podtap_collector_api_requests_total{line}\n")), "{metrics}");
    }
}

#[tokio::test]
async fn refusals_tell_what_to_do() {
    let servers = servers().await;
    let (status, text) = get(&servers, "/namespaces/bank/map", "alice").await;
    assert_eq!(status, 403);
    for part in ["alice", "kubectl auth can-i get podtaps.podtap.dev --subresource=map -n bank", "podtap-map-view"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_, text) = get(&servers, "/map", "alice").await;
    for part in ["--subresource=map --all-namespaces", "/namespaces/NAME[,NAME..]/map"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let long = "a".repeat(LONGEST_TOKEN + 1);
    for (authorization, challenge) in [
        ("X: y", "bearer"),
        ("Authorization: Basic YTpi", "bearer"),
        ("Authorization: Bearer", "bearer"),
        ("Authorization: Bearer ", "bearer"),
        (&format!("Authorization: Bearer {long}"), "bearer"),
        ("Authorization: Bearer mallory", "bearer error=\"invalid_token\""),
    ] {
        let (head, text) = answer(&servers, &format!("GET /status HTTP/1.1\r\n{authorization}"), "").await;
        assert!(head.starts_with("http/1.1 401 "), "{head}");
        assert!(head.lines().any(|line| line == format!("www-authenticate: {challenge}")), "{head}");
        assert!(text.contains("token"), "{text}");
    }
}

#[tokio::test]
async fn what_is_down_is_told_apart() {
    let closed = std::net::TcpListener::bind(ANYWHERE).and_then(|listener| listener.local_addr()).expect("a port");
    let api = ApiServer::new(&[("admin", &["*"])]);
    let refusing = podtap_runtime::fake_client::client(|_, _, _| async { (StatusCode::BAD_GATEWAY, Value::Null) });
    for (client, expected) in [(api.client(), 502), (refusing, 503)] {
        let gate = Server::spawn(ANYWHERE, Gate::new(Reviews::new(client), closed, &Metrics::new()))
            .await
            .expect("a free port");
        let collector = Server::spawn(ANYWHERE, Echo).await.expect("a free port");
        let servers = Servers { collector, gate, metrics: Metrics::new() };
        assert_eq!(get(&servers, "/map", "admin").await.0, expected);
    }
}
