mod over_tls;

use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

async fn serve(health: &Health, metrics: &Metrics) -> Server {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::spawn(anywhere, Probes { health: health.clone(), metrics: metrics.clone() }).await.expect("a free port")
}

async fn request(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.expect("a server");
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer, and the end of the connection");
    answer
}

async fn status(server: &Server, path: &str) -> String {
    let answer = request(server, &format!("GET {path}")).await;
    answer.split(' ').nth(1).expect("a status").to_owned()
}

#[tokio::test]
async fn readiness_is_what_was_set() {
    let health = Health::new(Duration::from_secs(60));
    let server = serve(&health, &Metrics::new()).await;
    assert_eq!(status(&server, "/readyz").await, "503");
    health.set_ready(true);
    assert_eq!(status(&server, "/readyz").await, "200");
    health.set_ready(false);
    assert_eq!(status(&server, "/readyz").await, "503");
}

#[tokio::test]
async fn heartbeats_are_required_after_the_first() {
    // Long enough for a request on a busy machine. The test is about its expiry, so it has to wait.
    let period = Duration::from_millis(500);
    let health = Health::new(period);
    let server = serve(&health, &Metrics::new()).await;
    tokio::time::sleep(period * 2).await;
    assert_eq!(status(&server, "/livez").await, "200", "there was no heartbeat yet");
    health.alive();
    tokio::time::sleep(period * 2).await;
    assert_eq!(status(&server, "/livez").await, "500");
    health.alive();
    assert_eq!(status(&server, "/livez").await, "200");
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let metrics = Metrics::new();
    let taps = Counter::<u64>::default();
    metrics.register(|registry| registry.register("taps", "Taps created", taps.clone()));
    taps.inc_by(7);
    let answer = request(&serve(&Health::new(Duration::MAX), &metrics).await, "GET /metrics").await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{answer}");
    assert!(answer.contains("\npodtap_taps_total 7\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

/// A source without metrics.
#[derive(Clone)]
struct Unavailable;

#[derive(Debug, thiserror::Error)]
#[error("it is too early")]
struct TooEarly;

impl MetricsSource for Unavailable {
    type Error = TooEarly;

    async fn text(&self) -> Result<String, TooEarly> {
        Err(TooEarly)
    }
}

#[tokio::test]
async fn missing_metrics_are_status_503() {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::spawn(anywhere, Probes { health: Health::new(Duration::MAX), metrics: Unavailable })
        .await
        .expect("a free port");
    let answer = request(&server, "GET /metrics").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nit is too early\n"), "{answer}");
}

#[tokio::test]
async fn permits_of_disconnected_clients_are_released() {
    let server = serve(&Health::new(Duration::MAX), &Metrics::new()).await;
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(TcpStream::connect(server.address()).await.expect("the socket has a backlog"));
    }
    drop(silent);
    assert_eq!(status(&server, "/livez").await, "200");
}

#[tokio::test]
async fn other_requests_are_rejected() {
    let server = serve(&Health::new(Duration::MAX), &Metrics::new()).await;
    assert_eq!(status(&server, "/").await, "404");
    assert!(request(&server, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let health = Health::new(Duration::MAX);
    let server = serve(&health, &Metrics::new()).await;
    let error = Server::spawn(server.address(), Probes { health, metrics: Metrics::new() })
        .await
        .expect_err("the port is in use");
    assert!(error.to_string().contains(&server.address().to_string()), "{error}");
}
