//! HTTP requests to a port of a pod, which the API server and the kubelet forward with the user's own rights.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, client::UpgradeConnectionError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::exit::{Exit, Failure, Outcome, with_causes};

/// How long the reason of a refused connection may come after its end.
const REFUSAL: Duration = Duration::from_secs(1);
/// More than any answer has.
const LONGEST_ANSWER: usize = 256 << 20;

/// What a pod answers to `GET` of a path, on a connection of its own.
pub async fn get(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> Outcome<(StatusCode, Bytes)> {
    let mut forwarder = pods.portforward(pod, &[port]).await.map_err(|error| not_forwarded(error, pod))?;
    let (stream, refusal) = (forwarder.take_stream(port), forwarder.take_error(port));
    let stream = stream.ok_or_else(|| Failure::error("the API server forwards no port"))?;
    let answer = exchange(stream, path).await;
    match answer {
        Ok(answer) => {
            forwarder.abort();
            Ok(answer)
        }
        Err(error) => {
            // The kubelet tells why it cannot connect, beside the stream that ends.
            let refusal = timeout(REFUSAL, async { refusal?.await }).await.ok().flatten();
            let why = refusal.unwrap_or_else(|| with_causes(&*error));
            Err(Failure::error(format!("the pod {pod} does not answer: {}", why.trim())))
        }
    }
}

/// A request and its answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    path: &str,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the sender.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, Limited::new(response.into_body(), LONGEST_ANSWER).collect().await?.to_bytes()))
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
