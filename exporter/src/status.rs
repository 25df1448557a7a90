//! What is served: health, metrics, and the condition of each sink.

use std::sync::Arc;

use podtap_runtime::http::{Bytes, Full, Handler, Incoming, Probes, Request, Response, header};

use crate::{metrics::scrape::Source, sinks::Condition};

/// `/livez`, `/readyz`, `/metrics` and `/status`.
#[derive(Clone, Debug)]
pub struct Status {
    pub probes: Probes<Source>,
    pub conditions: Arc<[Condition]>,
}

impl Handler for Status {
    type Body = Full<Bytes>;

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/status" {
            return self.probes.respond(request).await;
        }
        let told: Vec<_> = self.conditions.iter().map(Condition::told).collect();
        let body = serde_json::to_vec(&told).unwrap_or_default();
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}
