//! Passes on requests that their clients are allowed to make.

use std::{net::SocketAddr, sync::Arc};

use podtap_runtime::{
    http::{
        Bytes, Either, Full, Handler, Incoming, Metrics, Request, Response, StatusCode,
        header::{self, HeaderName, HeaderValue},
        plain, send,
    },
    telemetry::with_causes,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tracing::warn;

use super::reviews::{Access, GROUP, RESOURCE, Refusal, Reviews, SUBRESOURCE, Verb};
use crate::namespaces::Namespaces;

/// Bytes of a token: those of service accounts have about 1000.
const LONGEST_TOKEN: usize = 16 << 10;

/// Headers of a request that the collector reads. No other one reaches it, least of all the token.
const PASSED_ON: [HeaderName; 2] = [header::CONTENT_TYPE, header::IF_NONE_MATCH];

type Body = Either<Full<Bytes>, Incoming>;

/// Answers requests with what the collector answers, if they are allowed.
#[derive(Clone, Debug)]
pub struct Gate {
    reviews: Arc<Reviews>,
    collector: SocketAddr,
    requests: Family<Outcome, Counter>,
}

/// The label of a count of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    status: u16,
}

impl Gate {
    /// `collector`: where it listens.
    pub fn new(reviews: Reviews, collector: SocketAddr, metrics: &Metrics) -> Self {
        let requests = Family::default();
        metrics.register(|registry| {
            let help = "Requests of clients of the exposed API, by the HTTP status of the response";
            registry.register("collector_api_requests", help, requests.clone());
        });
        Self { reviews: Arc::new(reviews), collector, requests }
    }

    async fn check(&self, request: &Request<Incoming>) -> Result<(), Response<Full<Bytes>>> {
        let access =
            required_access(request).map_err(|message| plain(StatusCode::BAD_REQUEST, format!("{message}\n")))?;
        let Some(token) = token(request) else { return Err(unauthenticated("Bearer", NO_TOKEN)) };
        self.reviews.check(token, &access).await.map_err(|refusal| refused(&refusal))
    }

    async fn pass_on(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        // Also of a URL with a host, which is not the collector's.
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let Ok(path) = path.parse() else { return plain(StatusCode::BAD_REQUEST, "it is no path\n").map(Either::Left) };
        *request.uri_mut() = path;
        for name in PASSED_ON {
            if let Some(value) = parts.headers.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        if let Ok(host) = HeaderValue::try_from(self.collector.to_string()) {
            request.headers_mut().insert(header::HOST, host);
        }
        match send(self.collector, request).await {
            Ok(mut response) => {
                // Of the connection to the collector.
                response.headers_mut().remove(header::CONNECTION);
                response.map(Either::Right)
            }
            Err(error) => {
                warn!(error = %with_causes(&error), "the collector does not answer");
                plain(StatusCode::BAD_GATEWAY, "the collector does not answer: is its container running?\n")
                    .map(Either::Left)
            }
        }
    }
}

impl Handler for Gate {
    type Body = Body;

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let response = match self.check(&request).await {
            Ok(()) => self.pass_on(request).await,
            Err(response) => response.map(Either::Left),
        };
        self.requests.get_or_create(&Outcome { status: response.status().as_u16() }).inc();
        response
    }
}

/// The page and the counters of frames have no names. Everything else is of namespaces, also what does not exist.
fn required_access(request: &Request<Incoming>) -> Result<Access, String> {
    let (namespaces, path) = Namespaces::of_path(request.uri().path())?;
    let verb = Verb::of(request.method());
    let is_public = matches!(path, "/" | "/status") || path.starts_with("/page/");
    Ok(if is_public && verb == Verb::Get { Access::AnyUser } else { Access::Map(verb, namespaces) })
}

/// The token in `Authorization: Bearer TOKEN` (RFC 6750, section 2.1).
fn token(request: &Request<Incoming>) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && (1..=LONGEST_TOKEN).contains(&token.len())).then_some(token)
}

const NO_TOKEN: &str =
    "send a token of the API server, as of `kubectl create token SERVICEACCOUNT`: Authorization: Bearer TOKEN";

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    match refusal {
        Refusal::Unauthenticated => unauthenticated(
            "Bearer error=\"invalid_token\"",
            "the API server does not accept the token: is it of this cluster, and not expired?",
        ),
        Refusal::Forbidden { user, verb, namespace } => {
            plain(StatusCode::FORBIDDEN, forbidden(user, *verb, namespace.as_deref()))
        }
        Refusal::Unavailable(_) => {
            // The client need not know why.
            warn!(error = %with_causes(refusal), "a client could not be authorized");
            plain(StatusCode::SERVICE_UNAVAILABLE, "the API server does not tell what the token allows: try again\n")
        }
    }
}

fn unauthenticated(challenge: &'static str, message: &str) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::UNAUTHORIZED, format!("{message}\n"));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// Which right is missing, how to ask for it, and how it is granted.
fn forbidden(user: &str, verb: Verb, namespace: Option<&str>) -> String {
    let verb = verb.name();
    let check = format!("kubectl auth can-i {verb} {RESOURCE}.{GROUP} --subresource={SUBRESOURCE}");
    let right = format!("{verb} on {RESOURCE}/{SUBRESOURCE} in the API group {GROUP}");
    match namespace {
        Some(namespace) => format!(
            "{user} may not read the map of the namespace {namespace}: {check} -n {namespace}\n\
             A Role there must allow {right}, as the ClusterRole podtap-map-view does for reading.\n"
        ),
        None => format!(
            "{user} may not read the map of all namespaces: {check} --all-namespaces\n\
             A ClusterRole must allow {right}, as podtap-map-view does for reading. \
             For the namespaces that {user} may read, ask for /namespaces/NAME[,NAME..]/map.\n"
        ),
    }
}

#[cfg(test)]
mod tests;
