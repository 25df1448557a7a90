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
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains(&format!("no response from {closed}")), "{answer}");
}
