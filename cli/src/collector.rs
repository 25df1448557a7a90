//! Requests to the collector. It listens on its pod's loopback only, so each is sent through a port that the API server forwards, with
//! the user's own rights.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Bytes, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams, client::UpgradeConnectionError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome, page, with_causes},
};

/// Where the collector serves the map and flows.
const PORT: u16 = 9090;
/// How long the reason of a refused connection may come after its end.
const REFUSAL: Duration = Duration::from_secs(1);

/// Which collector is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Collector")]
pub struct CollectorFlags {
    /// Namespace of the collector
    #[arg(long, value_name = "NAME", default_value = "podtap-system")]
    collector_namespace: String,
    /// Pod of the collector. Needed if there are several: each knows what its taps mirror
    #[arg(long, value_name = "NAME")]
    collector_pod: Option<String>,
}

/// A pod of the collector.
pub struct Collector {
    pods: Api<Pod>,
    name: String,
}

impl Collector {
    /// The pod to ask.
    pub async fn find(cluster: &Cluster, flags: &CollectorFlags) -> Outcome<Self> {
        let namespace = &flags.collector_namespace;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        if let Some(name) = &flags.collector_pod {
            return Ok(Self { pods, name: name.clone() });
        }
        let labels = "app.kubernetes.io/name=podtap,app.kubernetes.io/component=collector";
        let listed = pods.list(&ListParams::default().labels(labels)).await?;
        let mut ready: Vec<String> =
            listed.items.iter().filter(|pod| is_ready(pod)).map(ResourceExt::name_any).collect();
        ready.sort();
        match &ready[..] {
            [name] => Ok(Self { pods, name: name.clone() }),
            [] if listed.items.is_empty() => Err(Failure::new(
                Exit::Refused,
                format!(
                    "no collector runs in the namespace {namespace}: install it (collector.enabled), or name its namespace with \
                     --collector-namespace. See {}",
                    page("collector.md", "in-a-cluster")
                ),
            )),
            [] => Err(Failure::new(
                Exit::Refused,
                format!("no pod of the collector is ready: kubectl get pods -n {namespace} -l {labels}"),
            )),
            several => Err(Failure::usage(format!(
                "there are several pods of the collector, of which each knows what its taps mirror: choose one with \
                 --collector-pod {}",
                several.join("|")
            ))),
        }
    }

    /// What it answers to `GET` of a path.
    pub async fn get(&self, path: &str) -> Outcome<Bytes> {
        let mut forwarder =
            self.pods.portforward(&self.name, &[PORT]).await.map_err(|error| self.not_forwarded(error))?;
        let (stream, refusal) = (forwarder.take_stream(PORT), forwarder.take_error(PORT));
        let stream = stream.ok_or_else(|| Failure::error("the API server forwards no port"))?;
        let answer = exchange(stream, path).await;
        let (status, body) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // The kubelet tells why it cannot connect, beside the stream that ends.
                let refusal = timeout(REFUSAL, async { refusal?.await }).await.ok().flatten();
                let why = refusal.unwrap_or_else(|| with_causes(&*error));
                return Err(Failure::error(format!("the collector {} does not answer: {}", self.name, why.trim())));
            }
        };
        forwarder.abort();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let message = String::from_utf8_lossy(&body).trim_end().to_owned();
        Err(if status.is_client_error() {
            Failure::new(Exit::Refused, message)
        } else {
            Failure::error(format!("the collector answered {status}: {message}"))
        })
    }

    /// The API server may refuse with a message or, if the right to only one of the verbs is missing, without.
    fn not_forwarded(&self, error: kube::Error) -> Failure {
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
        let name = &self.name;
        Failure::new(
            Exit::NotPermitted,
            format!(
                "you may not forward a port of the pod {name}: that takes the verbs get and create on pods/portforward in its \
                 namespace. The collector can also serve its API to clients with a token, see {}",
                page("collector.md", "for-clients-with-a-token")
            ),
        )
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
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The part of a path that restricts an answer to a namespace; empty for all of them.
pub fn of_namespace(cluster: &Cluster, all_namespaces: bool) -> String {
    if all_namespaces { String::new() } else { format!("/namespaces/{}", cluster.namespace) }
}
