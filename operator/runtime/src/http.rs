//! `/livez`, `/readyz` and `/metrics`.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::warn;

/// A client that sends its request slower than this is cut off: connections must not pile up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Likewise one that reads its answer slower than this.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections at the same time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 32;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for /livez, /readyz and /metrics")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the probes are told. Clones share one state.
#[derive(Clone, Debug)]
pub struct Health(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    ready: AtomicBool,
    deadline: Duration,
    last_beat: Mutex<Option<Instant>>,
}

impl Health {
    /// Not ready, and live. After the first [`Health::alive`], live only as long as the next one comes within `deadline`.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        Self(Arc::new(HealthState { ready: AtomicBool::new(false), deadline, last_beat: Mutex::new(None) }))
    }

    /// What `/readyz` says from now on.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// A sign of life of whatever must not stand still.
    pub fn alive(&self) {
        *self.0.last_beat.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What `/readyz` says now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    fn is_live(&self) -> bool {
        let last = *self.0.last_beat.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| last.elapsed() <= self.0.deadline)
    }
}

/// What `/metrics` shows. Clones show the same.
pub trait Page: Clone + Send + Sync + 'static {
    /// All metrics in the format of `OpenMetrics`; a sentence if there is none to be had, which makes the status 503.
    fn text(&self) -> impl Future<Output = Result<String, String>> + Send;
}

/// Metrics under the prefix `podtap_`. Clones share one registry.
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

    /// Lets `register` add metrics; it keeps clones of them, and counts on those.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Page for Metrics {
    async fn text(&self) -> Result<String, String> {
        text(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A registry in the format of `OpenMetrics`.
///
/// # Errors
/// A sentence, when a metric cannot be written.
pub fn text(registry: &Registry) -> Result<String, String> {
    let mut text = String::new();
    encode(&mut text, registry).map_err(|error| format!("The metrics cannot be written: {error}."))?;
    Ok(text)
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens before it returns: a port that is taken is an error of the start.
    pub async fn spawn(address: SocketAddr, health: Health, page: impl Page) -> Result<Self, Error> {
        let listen = async { bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener))) };
        let (address, listener) = listen.await.map_err(|source| Error { address, source })?;
        let task = tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                // Nobody closes it.
                let Ok(place) = places.clone().acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (health, page) = (health.clone(), page.clone());
                        let serve = service_fn(move |request: Request<Incoming>| {
                            let (health, page) = (health.clone(), page.clone());
                            async move { Ok::<_, Infallible>(respond(&request, &health, &page).await) }
                        });
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_TIMEOUT)
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), serve);
                        // A client that goes away in the middle is its own business.
                        tokio::spawn(async {
                            drop(timeout(CONNECTION_TIMEOUT, connection).await);
                            drop(place);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        // Out of file descriptors, most likely: trying again at once would only burn CPU.
                        sleep(Duration::from_millis(500)).await;
                    }
                }
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens: with port 0 asked for, the port that was given.
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

/// Listens. All addresses are those of IPv4 where the kernel has no IPv6 at all.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
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

async fn respond(request: &Request<Incoming>, health: &Health, page: &impl Page) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/livez" if health.is_live() => plain(StatusCode::OK, "ok\n"),
        "/livez" => plain(StatusCode::INTERNAL_SERVER_ERROR, "no sign of life within the deadline\n"),
        "/readyz" if health.is_ready() => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => match page.text().await {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, text);
                let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(open_metrics));
                response
            }
            Err(sentence) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{sentence}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "/livez, /readyz and /metrics are here\n"),
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
