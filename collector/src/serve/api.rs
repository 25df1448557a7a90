//! The map over HTTP: `GET /` for people, `GET /map` in all its forms, `GET /flows`, `GET /status`, and `POST /query` for the clients of
//! Otterize's network mapper.
//!
//! Each of these below `/namespaces/NAME[,NAME..]` tells only of these namespaces: see [`Namespaces`].
//!
//! It has no authentication: it is to listen on the pod's loopback, which is reached by `kubectl port-forward` with the user's own
//! rights, and by `crate::access`, which authorizes requests. Requests that a web page of another origin makes a browser send are
//! refused.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::Arc,
};

use async_graphql::Request as Query;
use clap::ValueEnum as _;
use podtap_runtime::http::{
    BodyExt as _, Bytes, Full, Handler, Incoming, Limited, Method, Metrics, Request, Response, StatusCode,
    header::{self, HeaderValue},
    plain, respond_metrics,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::{
    flows,
    graphql::{self, Schema},
    page,
    status::status,
};
use crate::{
    namespaces::Namespaces,
    output::Print,
    shared::{Readable, Shared},
};

/// Bytes of a query: that of the CLI has about 1000.
const LONGEST_QUERY: usize = 64 << 10;

const THERE_ARE: &str = "there are GET /, GET /map, GET /flows, GET /status, GET /metrics and POST /query\n";

/// Maps and lists of flows that are rendered or sent at once: each may have tens of megabytes. Others wait.
const LARGE: usize = 3;

/// Answers requests about the map.
#[derive(Clone)]
pub struct Api {
    shared: Shared,
    schema: Schema,
    metrics: Metrics,
    large: Arc<Semaphore>,
}

/// A body, and the permission to have it in memory.
struct Large {
    body: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Api {
    /// The metrics are those about the map.
    pub fn new(shared: &Shared, metrics: Metrics) -> Self {
        let large = Arc::new(Semaphore::new(LARGE));
        Self { shared: shared.clone(), schema: graphql::schema(), metrics, large }
    }

    async fn map(&self, request: &Request<Incoming>, readable: Readable) -> Response<Full<Bytes>> {
        let query = request.uri().query();
        let format = query.map_or(Some("map"), |query| query.strip_prefix("format="));
        let format = format.and_then(|format| Print::from_str(format, false).ok());
        let Some(format) = format.filter(|format| format.is_of_map()) else {
            let all = Print::value_variants().iter().filter(|format| format.is_of_map());
            let names: Vec<String> =
                all.filter_map(|format| Some(format.to_possible_value()?.get_name().to_owned())).collect();
            return plain(
                StatusCode::BAD_REQUEST,
                format!("the query must be format= and one of {}\n", names.join(", ")),
            );
        };
        let rendered = self.render(move || {
            let mut text = Vec::new();
            format.write(&mut text, &readable.view()).map(|()| (StatusCode::OK, text))
        });
        match rendered.await {
            Ok((status, body)) => unless_known(request, &body.clone(), typed(status, format.content_type(), body)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                plain(StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n"))
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn flows(&self, query: &str, readable: Readable) -> Response<Full<Bytes>> {
        let query = match flows::Query::parse(query) {
            Ok(query) => query,
            Err(message) => return plain(StatusCode::BAD_REQUEST, format!("{message}\n")),
        };
        match self.render(move || Ok((StatusCode::OK, flows::newest(&readable, &query)))).await {
            Ok((status, body)) => typed(status, "application/x-ndjson; charset=utf-8", body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// On a thread of its own: it may take longer than other clients should wait.
    async fn render(
        &self,
        render: impl FnOnce() -> io::Result<(StatusCode, Vec<u8>)> + Send + 'static,
    ) -> io::Result<(StatusCode, Bytes)> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.large).acquire_owned().await.ok();
        // The permission is that of the thread: it renders on if the client has gone.
        let render =
            move || render().map(|(status, body)| (status, Bytes::from_owner(Large { body, _permit: permit })));
        spawn_blocking(render).await.unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    }

    async fn query(&self, request: Request<Incoming>, readable: Readable) -> Response<Full<Bytes>> {
        let is_json = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.starts_with("application/json"));
        // What a form of another origin sends is never JSON.
        if !request.headers().get(header::CONTENT_TYPE).is_some_and(is_json) {
            return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the query as application/json\n");
        }
        let Ok(body) = Limited::new(request.into_body(), LONGEST_QUERY).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, format!("a query has at most {LONGEST_QUERY} bytes\n"));
        };
        let query: Query = match serde_json::from_slice(&body.to_bytes()) {
            Ok(query) => query,
            Err(error) => return plain(StatusCode::BAD_REQUEST, format!("the body is no GraphQL request: {error}\n")),
        };
        let schema = self.schema.clone();
        let answered = self.render(move || {
            let response = Handle::current().block_on(schema.execute(graphql::for_reader(query, readable)));
            // As the server of Otterize: the CLI tries an older operation when the first one is unknown.
            let is_invalid = response.errors.iter().any(|error| error.path.is_empty());
            let status = if is_invalid { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
            Ok((status, serde_json::to_vec(&response)?))
        });
        match answered.await {
            Ok((status, body)) => typed(status, "application/json", body),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !is_local(&request) {
            return plain(StatusCode::FORBIDDEN, "the host name must be localhost or an address\n");
        }
        let (namespaces, path) = match Namespaces::of_path(request.uri().path()) {
            Ok((namespaces, path)) => (namespaces, path.to_owned()),
            Err(message) => return plain(StatusCode::BAD_REQUEST, format!("{message}\n")),
        };
        let readable = Readable { shared: self.shared.clone(), namespaces };
        // The body of an answer to HEAD is not sent.
        match (request.method(), &*path) {
            (&Method::GET | &Method::HEAD, "/map") => self.map(&request, readable).await,
            (&Method::GET | &Method::HEAD, "/flows") => {
                self.flows(request.uri().query().unwrap_or_default(), readable).await
            }
            (&Method::GET | &Method::HEAD, "/status") => json(StatusCode::OK, &status(&self.shared)),
            (_, "/metrics") if readable.namespaces != Namespaces::All => {
                plain(StatusCode::NOT_FOUND, "metrics are about all namespaces: get /metrics\n")
            }
            (&Method::GET | &Method::HEAD, "/metrics") => respond_metrics(&self.metrics).await,
            (&Method::POST, "/query") => self.query(request, readable).await,
            (method, path) => match page::file(path) {
                Some(response) if matches!(*method, Method::GET | Method::HEAD) => response,
                None if !PATHS.contains(&path) => plain(StatusCode::NOT_FOUND, THERE_ARE),
                _ => plain(StatusCode::METHOD_NOT_ALLOWED, THERE_ARE),
            },
        }
    }
}

/// Those that are no files.
const PATHS: [&str; 5] = ["/map", "/flows", "/status", "/metrics", "/query"];

impl Handler for Api {
    type Body = Full<Bytes>;

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = self.answer(request).await;
        page::confine(&mut response);
        response
    }
}

/// Whether the client calls it by an address or as localhost. A web page that has its own name resolve to this address does not.
fn is_local(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok()
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    typed(status, "application/json", serde_json::to_vec(value).unwrap_or_default().into())
}

fn typed(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = plain(status, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Without the body, if the client has the same one.
fn unless_known(
    request: &Request<Incoming>,
    body: &Bytes,
    mut response: Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let Ok(tag) = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())) else { return response };
    if request.headers().get(header::IF_NONE_MATCH) == Some(&tag) {
        response = plain(StatusCode::NOT_MODIFIED, "");
    }
    response.headers_mut().insert(header::ETAG, tag);
    response
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, SocketAddr, TcpStream},
    };

    use podtap_flow::{
        map::{Edge, Party, Traffic},
        names::Names,
    };
    use podtap_runtime::http::Server;
    use tokio::runtime::Runtime;

    use super::*;

    /// Status, header and body of the answer to a request, which ends before `Host`.
    fn answer(server: SocketAddr, head: &str, host: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(server).expect("it listens");
        write!(stream, "{head}\r\nHost: {host}\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        let (head, body) = text.split_once("\r\n\r\n").expect("a header");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.to_owned())
    }

    fn server() -> (Runtime, Server) {
        let shared = Shared::new(Names::default(), podtap_flow::map::Bounds::default());
        let edge = Edge { client: Party::Node { name: "n1".into() }, server: Party::External { name: None } };
        shared.lock().map.restore(edge, Traffic::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let api = Api::new(&shared, Metrics::new());
        let server = runtime.block_on(Server::spawn((Ipv4Addr::LOCALHOST, 0).into(), api)).expect("it listens");
        (runtime, server)
    }

    #[test]
    fn only_local_pages_get_answers_and_only_to_what_changes_nothing() {
        let (_runtime, server) = server();
        for path in [
            "/",
            "/page/app.js",
            "/map",
            "/map?format=list",
            "/namespaces/shop,team/map",
            "/namespaces/shop/",
            "/flows",
            "/flows?Bytes%3E=1&SrcPort!=53&Failure~=&SrcK8S_Name|DstK8S_Name=x&*=1",
            "/status",
            "/metrics",
        ] {
            let (status, head, body) = answer(server.address(), &format!("GET {path} HTTP/1.1"), "localhost:9090");
            assert_eq!(status, 200, "{path}: {body}");
            assert!(head.contains("\r\ncontent-security-policy: default-src 'none';"), "{path}: {head}");
            let (status, _, body) = answer(server.address(), &format!("HEAD {path} HTTP/1.1"), "127.0.0.1");
            assert_eq!((status, &*body), (200, ""), "{path}");
            // A page whose name resolves to this address.
            let (status, ..) = answer(server.address(), &format!("GET {path} HTTP/1.1"), "attacker.example");
            assert_eq!(status, 403, "{path}");
            for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
                let (status, ..) = answer(server.address(), &format!("{method} {path} HTTP/1.1"), "[::1]:80");
                assert_eq!(status, 405, "{method} {path}");
            }
        }
        for (head, expected) in [
            ("GET /query HTTP/1.1", 405),
            ("GET /nothing HTTP/1.1", 404),
            ("GET /namespaces/shop/metrics HTTP/1.1", 404),
            ("GET /namespaces/shop/namespaces/shop/map HTTP/1.1", 404),
            ("GET /namespaces/Shop/map HTTP/1.1", 400),
            ("GET /namespaces/shop HTTP/1.1", 400),
            ("GET /page/ HTTP/1.1", 404),
            ("GET /map?format=flows HTTP/1.1", 400),
            ("GET /flows?Colour=red HTTP/1.1", 400),
        ] {
            assert_eq!(answer(server.address(), head, "localhost").0, expected, "{head}");
        }
    }

    #[test]
    fn a_map_that_the_client_has_is_not_sent_again() {
        let (_runtime, server) = server();
        let (status, head, body) = answer(server.address(), "GET /map HTTP/1.1", "localhost");
        assert!(status == 200 && body.contains("\"n1\""), "{body}");
        let tag = head.split("etag: ").nth(1).and_then(|rest| rest.lines().next()).expect("a tag").to_owned();
        let known = format!("GET /map HTTP/1.1\r\nIf-None-Match: {tag}");
        let (status, head, body) = answer(server.address(), &known, "localhost");
        assert!(status == 304 && body.is_empty() && head.contains(&tag), "{status} {head} {body}");
        let (status, ..) = answer(server.address(), "GET /map HTTP/1.1\r\nIf-None-Match: \"0\"", "localhost");
        assert_eq!(status, 200);
    }
}
