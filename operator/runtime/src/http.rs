//! An HTTP server, with or without TLS: [`Probes`] answers `/livez`, `/readyz` and `/metrics`, and a program may have a [`Handler`] of its
//! own.
//!
//! # Guarantees
//! Slow or idle clients are disconnected after 20 seconds, and at most 32 are served at the same time, so that no client can
//! exhaust memory or file descriptors.

mod send;
mod tls;

use std::{
    convert::Infallible,
    fmt,
    future::ready,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use http_body_util::{BodyExt, Either, Full, Limited};
pub use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header,
};
use hyper::{header::CONTENT_TYPE, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
pub use send::{SendError, send};
pub use tls::{Certificate, CertificateError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{socket, telemetry::with_causes};

/// How long a client may take for its TLS handshake, and then to send the header of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take from accept to close.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections at the same time. More wait in the backlog of the socket.
const CONNECTIONS: usize = 32;

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

/// The state that the probes report. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    ready: AtomicBool,
    deadline: Duration,
    last_alive: Mutex<Option<Instant>>,
}

impl Health {
    /// Not ready, and live. Once [`Health::alive`] has been called, it stays live only if the next call follows within `deadline`.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self(Arc::new(HealthState { ready: AtomicBool::new(false), deadline, last_alive: Mutex::new(None) }))
    }

    /// Sets what `/readyz` reports.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// Heartbeat of the loop that must not hang.
    pub fn alive(&self) {
        *self.0.last_alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What `/readyz` reports.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    fn is_live(&self) -> bool {
        let last = *self.0.last_alive.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() <= self.0.deadline)
    }
}

/// Provides the metrics that `/metrics` serves. Clones provide the same.
pub trait MetricsSource: Clone + Send + Sync + 'static {
    /// Why there are no metrics.
    type Error: std::error::Error + Send;

    /// All metrics in the `OpenMetrics` text format, read when this is called. An error becomes status 503 with its message.
    fn text(&self) -> impl Future<Output = Result<String, Self::Error>> + Send;
}

/// A metric cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode the metrics")]
pub struct EncodeError(#[from] fmt::Error);

/// A registry of metrics with the prefix `podtap_`. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("podtap"))))
    }
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `register` add metrics to the registry. The registry gets clones: the caller counts on the originals.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MetricsSource for Metrics {
    type Error = EncodeError;

    async fn text(&self) -> Result<String, EncodeError> {
        text(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The metrics of `registry` in the `OpenMetrics` text format.
pub fn text(registry: &Registry) -> Result<String, EncodeError> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// Answers requests. Clones answer them alike.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// The response to a request.
    fn respond(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Answers `/livez`, `/readyz` and `/metrics`.
#[derive(Clone, Debug)]
pub struct Probes<Source> {
    /// What the probes report.
    pub health: Health,
    /// What `/metrics` serves.
    pub metrics: Source,
}

impl<Source: MetricsSource> Handler for Probes<Source> {
    type Body = Full<Bytes>;

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        respond(&request, &self.health, &self.metrics).await
    }
}

/// A running server. It stops listening when this is dropped; connections that are open may still be answered.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server. It is listening when this returns: a port in use is an error here.
    ///
    /// If the kernel has no IPv6, `[::]` means all IPv4 addresses.
    pub async fn spawn(address: SocketAddr, handler: impl Handler) -> Result<Self, Error> {
        Self::serve(address, handler, |stream| ready(Ok(stream))).await
    }

    /// Likewise, with TLS only.
    pub async fn spawn_tls(
        address: SocketAddr,
        certificate: Certificate,
        handler: impl Handler,
    ) -> Result<Self, Error> {
        let accept = move |stream| TlsAcceptor::from(certificate.current()).accept(stream);
        Self::serve(address, handler, accept).await
    }

    async fn serve<Stream, Accepted>(
        address: SocketAddr,
        handler: impl Handler,
        accept: impl Fn(TcpStream) -> Accepted + Send + 'static,
    ) -> Result<Self, Error>
    where
        Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        Accepted: Future<Output = io::Result<Stream>> + Send + 'static,
    {
        let listen = async { bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener))) };
        let (address, listener) = listen.await.map_err(|source| Error { address, source })?;
        let task = tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                // The semaphore is never closed.
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                let stream = socket::accept(|| listener.accept()).await;
                let connection = answer(accept(stream), handler.clone());
                tokio::spawn(async {
                    // Elapsed: the client is too slow.
                    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
                    drop(permit);
                });
            }
        });
        Ok(Self { address, task })
    }

    /// The address it listens on. If port 0 was requested, it has the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers the request of a client. Errors concern this client only, such as one that disconnects early.
async fn answer<Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: impl Future<Output = io::Result<Stream>>,
    handler: impl Handler,
) {
    let Ok(Ok(stream)) = timeout(HEADER_TIMEOUT, accepted).await else { return };
    let serve = service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(handler.respond(request).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), serve);
    drop(connection.await);
}

/// Binds to the address; to all IPv4 addresses instead of `[::]` if the kernel has no IPv6.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

async fn respond(request: &Request<Incoming>, health: &Health, metrics: &impl MetricsSource) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
    }
    match request.uri().path() {
        "/livez" if health.is_live() => plain(StatusCode::OK, "ok\n"),
        "/livez" => plain(StatusCode::INTERNAL_SERVER_ERROR, "no heartbeat within the deadline\n"),
        "/readyz" if health.is_ready() => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => respond_metrics(metrics).await,
        _ => plain(StatusCode::NOT_FOUND, "not found; there are /livez, /readyz and /metrics\n"),
    }
}

/// All metrics, or status 503 and why there are none.
pub async fn respond_metrics(metrics: &impl MetricsSource) -> Response<Full<Bytes>> {
    match metrics.text().await {
        Ok(text) => {
            let mut response = plain(StatusCode::OK, text);
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(open_metrics));
            response
        }
        Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", with_causes(&error))),
    }
}

/// A response with this body, and no more headers.
pub fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
