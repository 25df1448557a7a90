//! The map over HTTP: `GET /map` in all its forms, and `POST /query` for the clients of Otterize's network mapper.
//!
//! It has no authentication: it is to listen on the pod's loopback, which is reached by `kubectl port-forward` with the user's own
//! rights. Requests that a web page of another origin makes a browser send are refused.

use std::io;

use async_graphql::Request as Query;
use clap::ValueEnum as _;
use podtap_runtime::http::{
    BodyExt as _, Bytes, Full, Handler, Incoming, Limited, Method, Metrics, Request, Response, StatusCode,
    header::{self, HeaderValue},
    plain, respond_metrics,
};

use super::graphql::{self, Schema};
use crate::{output::Print, shared::Shared};

/// Bytes of a query: that of the CLI has about 1000.
const LONGEST_QUERY: usize = 64 << 10;

const THERE_ARE: &str = "there are GET /map, GET /metrics and POST /query\n";

/// Answers requests about the map.
#[derive(Clone)]
pub struct Api {
    shared: Shared,
    schema: Schema,
    metrics: Metrics,
}

impl Api {
    /// The metrics are those about the map.
    pub fn new(shared: &Shared, metrics: Metrics) -> Self {
        Self { shared: shared.clone(), schema: graphql::schema(shared), metrics }
    }

    fn map(&self, query: Option<&str>) -> Response<Full<Bytes>> {
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
        let mut text = Vec::new();
        match format.write(&mut text, &self.shared.view()) {
            Ok(()) => typed(StatusCode::OK, format.content_type(), text),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                plain(StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n"))
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn query(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        let response = self.schema.execute(query).await;
        // As the server of Otterize: the CLI tries an older operation when the first one is unknown.
        let is_invalid = response.errors.iter().any(|error| error.path.is_empty());
        let status = if is_invalid { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
        typed(status, "application/json", serde_json::to_vec(&response).unwrap_or_default())
    }
}

impl Handler for Api {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !is_local(&request) {
            return plain(StatusCode::FORBIDDEN, "the host name must be localhost or an address\n");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/map") => self.map(request.uri().query()),
            (&Method::GET, "/metrics") => respond_metrics(&self.metrics).await,
            (&Method::POST, "/query") => self.query(request).await,
            (_, "/map" | "/metrics" | "/query") => plain(StatusCode::METHOD_NOT_ALLOWED, THERE_ARE),
            _ => plain(StatusCode::NOT_FOUND, THERE_ARE),
        }
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

fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = plain(status, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
