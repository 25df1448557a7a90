//! HTTP requests to a port of a pod, which the API server and the kubelet forward with the user's own rights.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::Portforwarder, client::UpgradeConnectionError};
use tokio::time::timeout;

use crate::exit::{Exit, Failure, Outcome, with_causes};

/// How long the reason of a refused connection may come after its end.
const REFUSAL: Duration = Duration::from_secs(1);
/// More than any answer has.
const LONGEST_ANSWER: usize = 256 << 20;

/// A connection to a port of a pod.
pub struct Forwarded {
    pod: String,
    requests: SendRequest<Empty<Bytes>>,
    forwarder: Portforwarder,
    /// Why the kubelet cannot connect, beside the stream that ends.
    refusal: BoxFuture<'static, Option<String>>,
}

impl Forwarded {
    /// Has the API server forward the port. Whether something listens there, the first request tells.
    pub async fn open(pods: &Api<Pod>, pod: &str, port: u16) -> Outcome<Self> {
        let mut forwarder = pods.portforward(pod, &[port]).await.map_err(|error| not_forwarded(error, pod))?;
        let (stream, refusal) = (forwarder.take_stream(port), forwarder.take_error(port));
        let (stream, refusal) = stream.zip(refusal).ok_or_else(|| Failure::error("the API server forwards no port"))?;
        let (requests, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| Failure::error(with_causes(&error)))?;
        // It ends with the sender of requests.
        tokio::spawn(connection);
        Ok(Self { pod: pod.to_owned(), requests, forwarder, refusal: refusal.boxed() })
    }

    /// The answer to `GET` of a path. After a failure, the connection is of no use.
    pub async fn get(&mut self, path: &str) -> Outcome<(StatusCode, Bytes)> {
        match self.exchange(path).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let refusal = timeout(REFUSAL, &mut self.refusal).await.ok().flatten();
                let why = refusal.unwrap_or_else(|| with_causes(&*error));
                Err(Failure::error(format!("the pod {} does not answer: {}", self.pod, why.trim())))
            }
        }
    }

    async fn exchange(&mut self, path: &str) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::get(path).header(header::HOST, "localhost").body(Empty::new())?;
        self.requests.ready().await?;
        let response = self.requests.send_request(request).await?;
        let status = response.status();
        Ok((status, Limited::new(response.into_body(), LONGEST_ANSWER).collect().await?.to_bytes()))
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

/// Whether what the pod serves can be asked for.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The API server may refuse with a message or, if the right to only one of the verbs is missing, without.
pub fn not_forwarded(error: kube::Error, pod: &str) -> Failure {
    let is_forbidden = match &error {
        kube::Error::Api(status) => status.code == 403,
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            *status == StatusCode::FORBIDDEN
        }
        _ => false,
    };
    if !is_forbidden {
        return error.into();
    }
    Failure::new(
        Exit::NotPermitted,
        format!(
            "you may not forward a port of the pod {pod}: that takes the verbs get and create on pods/portforward in its namespace"
        ),
    )
}
