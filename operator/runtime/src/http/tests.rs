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

mod over_tls {
    use std::{env, fs, path::PathBuf, process, sync::atomic::AtomicU32};

    use hyper::header::HeaderValue;
    use tokio_rustls::{
        TlsConnector,
        rustls::{
            ClientConfig, RootCertStore,
            crypto::ring::default_provider,
            pki_types::{CertificateDer, ServerName, pem::PemObject as _},
        },
    };

    use super::*;

    /// Files of a certificate for 127.0.0.1. Removed when dropped.
    struct Files(PathBuf);

    impl Files {
        /// Returns what trusts only this certificate, too.
        fn new() -> (Self, TlsConnector) {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let files = Self(env::temp_dir().join(format!("runtime-tls-{}-{number}", process::id())));
            fs::create_dir_all(&files.0).expect("it can be created");
            let trusting = files.replace();
            (files, trusting)
        }

        fn replace(&self) -> TlsConnector {
            let rcgen::CertifiedKey { cert, signing_key } =
                rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
            fs::write(self.certificate(), cert.pem()).expect("it can be written");
            fs::write(self.key(), signing_key.serialize_pem()).expect("it can be written");
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(self.certificate()).expect("PEM")).expect("a certificate");
            let config =
                ClientConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
            let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
            TlsConnector::from(Arc::new(config))
        }

        fn certificate(&self) -> PathBuf {
            self.0.join("tls.crt")
        }

        fn key(&self) -> PathBuf {
            self.0.join("tls.key")
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn get(server: &Server, trusting: &TlsConnector) -> io::Result<String> {
        let stream = TcpStream::connect(server.address()).await?;
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let mut stream = trusting.connect(name, stream).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn probes() -> Probes<Metrics> {
        Probes { health: Health::new(Duration::MAX), metrics: Metrics::new() }
    }

    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn a_certificate_that_is_replaced_is_used_without_a_restart() {
        let (files, old) = Files::new();
        let certificate = Certificate::load_with(&files.certificate(), &files.key(), Duration::ZERO).expect("PEM");
        let server = Server::spawn_tls(ANYWHERE, certificate, probes()).await.expect("a free port");
        assert!(get(&server, &old).await.expect("an answer").starts_with("HTTP/1.1 200 "));
        let new = files.replace();
        assert!(get(&server, &new).await.expect("an answer").starts_with("HTTP/1.1 200 "));
        assert_eq!(get(&server, &old).await.expect_err("it is no longer used").kind(), io::ErrorKind::InvalidData);
        // While it is being replaced.
        fs::write(files.key(), "").expect("it can be written");
        assert!(get(&server, &new).await.expect("an answer").starts_with("HTTP/1.1 200 "));
        assert!(!request(&server, "GET /livez").await.contains("200"), "without TLS");
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_used_is_an_error_that_names_it() {
        let ((one, _), (two, _)) = (Files::new(), Files::new());
        let error = Certificate::load(&one.certificate(), &two.key()).expect_err("the key of another one");
        assert!(error.to_string().contains("tls.crt with the key"), "{error}");
        fs::remove_file(one.key()).expect("it exists");
        let error = Certificate::load(&one.certificate(), &one.key()).expect_err("no key");
        assert!(error.to_string().contains(&one.key().display().to_string()), "{error}");
        fs::write(one.certificate(), "").expect("it can be written");
        assert!(Certificate::load(&one.certificate(), &two.key()).is_err(), "a file without a certificate");
    }

    /// Passes requests on to another server.
    #[derive(Clone)]
    struct Relay(SocketAddr);

    impl Handler for Relay {
        type Body = Either<Full<Bytes>, Incoming>;

        async fn respond(&self, mut request: Request<Incoming>) -> Response<Self::Body> {
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("relay"));
            match send(self.0, request).await {
                Ok(response) => response.map(Either::Right),
                Err(error) => plain(StatusCode::BAD_GATEWAY, with_causes(&error).to_string()).map(Either::Left),
            }
        }
    }

    #[tokio::test]
    async fn requests_are_passed_on() {
        let server = serve(&Health::new(Duration::MAX), &Metrics::new()).await;
        let relay = Server::spawn(ANYWHERE, Relay(server.address())).await.expect("a free port");
        assert!(request(&relay, "GET /livez").await.ends_with("\r\n\r\nok\n"));
        assert!(request(&relay, "POST /livez").await.starts_with("HTTP/1.1 405 "));
        let closed = std::net::TcpListener::bind(ANYWHERE).and_then(|listener| listener.local_addr()).expect("a port");
        let relay = Server::spawn(ANYWHERE, Relay(closed)).await.expect("a free port");
        let answer = request(&relay, "GET /livez").await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains(&format!("no response from {closed}")),
            "{answer}"
        );
    }
}
