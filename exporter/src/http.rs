//! A client for sinks that take requests over HTTP.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::Collected;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use podtap_runtime::{
    http::{BodyExt as _, Bytes, Full, Limited, Request, StatusCode, header},
    telemetry::with_causes,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::Deserialize;

use crate::sinks::Failure;

/// A server, and how it knows the client. Passwords and tokens are in files: mount a Secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpConfig {
    /// With `http://` or `https://`.
    pub url: String,
    #[serde(default)]
    pub tls: TlsConfig,
    /// Basic authentication.
    pub basic: Option<Basic>,
    /// File with a bearer token.
    pub bearer_token_file: Option<PathBuf>,
    /// Further headers, such as that of a tenant.
    #[serde(default)]
    pub headers: Vec<HeaderConfig>,
}

/// How a server is known, and the client to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "settings that name a file say so, here as elsewhere")]
pub struct TlsConfig {
    /// PEM file of the authorities that are trusted, instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the client's certificate and its key.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Basic {
    pub username: String,
    pub password_file: PathBuf,
}

/// A header: its value, or a file that has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderConfig {
    pub name: String,
    pub value: Option<String>,
    pub value_file: Option<PathBuf>,
}

/// Longest part of an answer that an error has, in characters.
const LONGEST_MESSAGE: usize = 300;
/// As much of an answer is read, in bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// For servers that log who calls them.
const USER_AGENT: &str = concat!("podtap-exporter/", env!("CARGO_PKG_VERSION"));

/// Sends requests to one server, over connections that are kept.
#[derive(Debug)]
pub struct Client {
    config: HttpConfig,
    is_passing: fn(StatusCode) -> bool,
    server: (String, u16),
    connector: HttpsConnector<HttpConnector>,
    hyper: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// Reads the files of certificates. `is_passing`: whether a status other than 200 to 299 means that the server may take it later.
    pub fn new(config: HttpConfig, is_passing: fn(StatusCode) -> bool) -> Result<Self> {
        let url: http::Uri = config.url.parse().with_context(|| format!("{} is no URL", config.url))?;
        ensure!(
            matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some(),
            "{} must begin with http:// or https:// and a host",
            config.url
        );
        let is_encrypted = url.scheme_str() == Some("https");
        let has_file = config.headers.iter().any(|header| header.value_file.is_some());
        let is_secret = config.basic.is_some() || config.bearer_token_file.is_some() || has_file;
        ensure!(
            !is_secret || is_encrypted || is_loopback(&url),
            "{} would get a password in clear text: use https://",
            config.url
        );
        ensure!(
            config.basic.is_none() || config.bearer_token_file.is_none(),
            "basic and bearerTokenFile exclude each other"
        );
        ensure!(is_encrypted || config.tls == TlsConfig::default(), "tls is for https://, not for {}", config.url);
        for header in &config.headers {
            ensure!(
                header.value.is_some() != header.value_file.is_some(),
                "the header {} must have either value or valueFile",
                header.name
            );
        }
        let tls = if is_encrypted {
            config.tls.client()?
        } else {
            builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let hyper = HyperClient::builder(TokioExecutor::new()).build(connector.clone());
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let server = (host, url.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 }));
        let client = Self { config, is_passing, server, connector, hyper };
        // What is missing is told at the start.
        client.request(Bytes::new(), &[]).map_err(|failure| anyhow::anyhow!(failure.message))?;
        Ok(client)
    }

    /// Closes the connections that are kept.
    pub fn disconnect(&mut self) {
        self.hyper = HyperClient::builder(TokioExecutor::new()).build(self.connector.clone());
    }

    /// Host and port.
    pub fn server(&self) -> (String, u16) {
        self.server.clone()
    }

    /// Posts a body. Returns the beginning of the answer.
    pub async fn post(&self, body: Bytes, headers: &[(&'static str, &'static str)]) -> Result<Bytes, Failure> {
        let response = self.hyper.request(self.request(body, headers)?).await;
        let response = response.map_err(|error| Failure::unavailable(with_causes(&error).to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        let text: String =
            String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect();
        let message = format!("{status}: {text}");
        Err(if (self.is_passing)(status) { Failure::unavailable(message) } else { Failure::refused(message) })
    }

    fn request(&self, body: Bytes, headers: &[(&'static str, &'static str)]) -> Result<Request<Full<Bytes>>, Failure> {
        let config = &self.config;
        let mut request = Request::post(&config.url).header(header::USER_AGENT, USER_AGENT);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        for HeaderConfig { name, value, value_file } in &config.headers {
            let value = match (value, value_file) {
                (Some(value), _) => value.clone(),
                (None, Some(path)) => secret(path)?,
                (None, None) => continue,
            };
            request = request.header(name, value);
        }
        if let Some(Basic { username, password_file }) = &config.basic {
            let credentials = STANDARD.encode(format!("{username}:{}", secret(password_file)?));
            request = request.header(header::AUTHORIZATION, format!("Basic {credentials}"));
        }
        if let Some(path) = &config.bearer_token_file {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", secret(path)?));
        }
        request.body(Full::new(body)).map_err(|error| Failure::unavailable(error.to_string()))
    }
}

fn is_loopback(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The first line of a file. It is read again for each request, since Secrets are replaced.
pub fn secret(path: &Path) -> Result<String, Failure> {
    let text =
        fs::read_to_string(path).map_err(|error| Failure::unavailable(format!("{}: {error}", path.display())))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

impl TlsConfig {
    /// Verifies the server by the authorities of the file, or of the system.
    pub fn client(&self) -> Result<ClientConfig> {
        let builder = builder()?;
        let builder = match &self.ca_file {
            None => {
                builder.with_native_roots().context("the system has no certificates of authorities: set tls.caFile")?
            }
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).with_context(|| format!("{} has no authority", path.display()))?;
                }
                builder.with_root_certificates(roots)
            }
        };
        Ok(match (&self.certificate_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let pair = format!("{} and {}", certificate.display(), key.display());
                let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("{} has no key", key.display()))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, key)
                    .with_context(|| format!("{pair} are no certificate and its key"))?
            }
            _ => bail!("tls.certificateFile and tls.keyFile need each other"),
        })
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.with_context(|| format!("{} cannot be read as PEM", path.display()))?;
    ensure!(!certificates.is_empty(), "{} has no certificate", path.display());
    Ok(certificates)
}

#[cfg(test)]
pub mod fixtures {
    use std::{
        collections::VecDeque,
        net::{IpAddr, Ipv4Addr, SocketAddr},
        sync::Mutex,
    };

    use podtap_runtime::http::{Handler, Incoming, Response};

    use super::*;

    /// A free port of this machine.
    pub const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A server that answers with these statuses, and then with 200, and tells what it got.
    #[derive(Clone)]
    pub struct Answering {
        statuses: Arc<Mutex<VecDeque<StatusCode>>>,
        body: Bytes,
        pub got: Arc<Mutex<Vec<Request<Bytes>>>>,
    }

    impl Answering {
        pub fn new(statuses: impl IntoIterator<Item = StatusCode>) -> Self {
            let statuses = Arc::new(Mutex::new(statuses.into_iter().collect()));
            Self { statuses, body: Bytes::from_static(b"so it is\n"), got: Arc::default() }
        }

        /// With this body of answers.
        pub fn with(self, body: Bytes) -> Self {
            Self { body, ..self }
        }
    }

    impl Handler for Answering {
        type Body = Full<Bytes>;

        async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("it is whole").to_bytes();
            self.got.lock().expect("no panic").push(Request::from_parts(parts, body));
            let mut response = Response::new(self.body.clone().into());
            *response.status_mut() = self.statuses.lock().expect("no panic").pop_front().unwrap_or(StatusCode::OK);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use podtap_runtime::http::{Certificate, Server};

    use super::{
        fixtures::{ANY, Answering},
        *,
    };
    use crate::sinks::FailureKind;

    fn client(text: &str) -> Result<Client> {
        Client::new(serde_json::from_str(text).expect("a configuration"), |status| status.is_server_error())
    }

    /// A directory of its own, removed when dropped.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podtap-exporter-http-{name}-{}", process::id()));
            fs::create_dir_all(&path).expect("it can be made");
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> String {
            let path = self.0.join(name);
            fs::write(&path, text).expect("it can be written");
            path.display().to_string()
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_status_tells_what_is_sent_again() {
        for (status, expected) in [
            (200, None),
            (204, None),
            (301, Some(FailureKind::Refused)),
            (400, Some(FailureKind::Refused)),
            (401, Some(FailureKind::Refused)),
            (429, Some(FailureKind::Refused)),
            (503, Some(FailureKind::Unavailable)),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let server = Server::spawn(ANY, Answering::new([status])).await.expect("it listens");
            let client = client(&format!(r#"{{"url":"http://{}/x"}}"#, server.address())).expect("it is valid");
            let answer = client.post(Bytes::from_static(b"body"), &[]).await;
            assert_eq!(answer.as_ref().err().map(|failure| failure.kind), expected, "{status}");
            let message = answer.err().map(|failure| failure.message);
            assert_eq!(message, expected.map(|_| format!("{status}: so it is")));
        }
    }

    #[tokio::test]
    async fn passwords_and_tokens_are_read_for_each_request() {
        let files = Files::new("secrets");
        let [password, token, tenant] =
            ["password", "token", "tenant"].map(|name| files.write(name, &format!("{name}-1\n")));
        let answering = Answering::new([]);
        let listening = Server::spawn(ANY, answering.clone()).await.expect("it listens");
        let url = format!("http://{}/write", listening.address());
        let basic = client(&format!(
            r#"{{"url":"{url}","basic":{{"username":"shop","passwordFile":"{password}"}},
                "headers":[{{"name":"X-Scope-OrgID","valueFile":"{tenant}"}},{{"name":"X-A","value":"b"}}]}}"#
        ));
        let basic = basic.expect("it is valid");
        basic.post(Bytes::from_static(b"1"), &[("content-type", "text/plain")]).await.expect("it is taken");
        files.write("password", "password-2");
        basic.post(Bytes::from_static(b"2"), &[]).await.expect("it is taken");
        let bearer = client(&format!(r#"{{"url":"{url}","bearerTokenFile":"{token}"}}"#)).expect("it is valid");
        bearer.post(Bytes::from_static(b"3"), &[]).await.expect("it is taken");
        fs::remove_file(&token).expect("it exists");
        let failure = bearer.post(Bytes::new(), &[]).await.expect_err("it has no token");
        assert_eq!(failure.kind, FailureKind::Unavailable);
        let got = answering.got.lock().expect("no panic");
        let header = |request: usize, name: &str| {
            got[request].headers().get(name).map(|value| value.to_str().expect("text").to_owned())
        };
        let encoded = |text: &str| Some(format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(header(0, "authorization"), encoded("shop:password-1"));
        assert_eq!(header(1, "authorization"), encoded("shop:password-2"));
        assert_eq!(header(2, "authorization").as_deref(), Some("Bearer token-1"));
        assert_eq!(header(0, "x-scope-orgid").as_deref(), Some("tenant-1"));
        assert_eq!(header(0, "x-a").as_deref(), Some("b"));
        assert_eq!(header(0, "content-type").as_deref(), Some("text/plain"));
        assert_eq!(got.iter().map(|request| &request.body()[..]).collect::<Vec<_>>(), [b"1", b"2", b"3"]);
        assert_eq!(got[0].uri().path(), "/write");
    }

    #[tokio::test]
    async fn a_server_is_verified() {
        let files = Files::new("tls");
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = files.write("tls.crt", &pair.cert.pem());
        let key = files.write("tls.key", &pair.signing_key.serialize_pem());
        let other = files.write("other.crt", &other.cert.pem());
        let own = Certificate::load(Path::new(&certificate), Path::new(&key)).expect("a certificate");
        let server = Server::spawn_tls(ANY, own, Answering::new([])).await.expect("it listens");
        let port = server.address().port();
        let of =
            |host: &str, ca: &str| client(&format!(r#"{{"url":"https://{host}:{port}/","tls":{{"caFile":"{ca}"}}}}"#));
        of("localhost", &certificate).expect("valid").post(Bytes::new(), &[]).await.expect("it is known");
        for (host, ca) in [("localhost", &other), ("127.0.0.1", &certificate)] {
            let failure = of(host, ca).expect("valid").post(Bytes::new(), &[]).await.expect_err("it is not known");
            assert_eq!(failure.kind, FailureKind::Unavailable);
            assert!(failure.message.contains("certificate"), "{}", failure.message);
        }
        let error = of("localhost", &key).expect_err("it is a key");
        assert!(format!("{error:#}").contains("has no certificate"), "{error:#}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, message) in [
            (r#"{"url":"localhost:9090"}"#, "must begin with http:// or https://"),
            (r#"{"url":"ftp://x/"}"#, "must begin with http:// or https://"),
            (r#"{"url":"http://prometheus/","bearerTokenFile":"/x"}"#, "in clear text: use https://"),
            (r#"{"url":"http://prometheus/","headers":[{"name":"a","valueFile":"/x"}]}"#, "in clear text"),
            (r#"{"url":"http://localhost/","bearerTokenFile":"/nowhere/token"}"#, "/nowhere/token: No such file"),
            (r#"{"url":"http://x/","tls":{"caFile":"/x"}}"#, "tls is for https://"),
            (r#"{"url":"https://x/","tls":{"caFile":"/nowhere/ca.crt"}}"#, "/nowhere/ca.crt"),
            (r#"{"url":"https://x/","tls":{"caFile":"/dev/null","keyFile":"/x"}}"#, "has no certificate"),
            (r#"{"url":"http://x/","headers":[{"name":"a"}]}"#, "must have either value or valueFile"),
            (r#"{"url":"http://x/","headers":[{"name":"a b","value":"c"}]}"#, "invalid HTTP header name"),
        ] {
            let error = format!("{:#}", client(text).expect_err(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
