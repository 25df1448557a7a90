//! Requests to the collector. It listens on its pod's loopback only, so each is sent through a port that the API server forwards, with
//! the user's own rights.

use http::StatusCode;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome, page},
    forward::{self, is_ready},
    installation::{InstallationFlags, component, labels_of},
};

/// The component of its pods.
pub const COMPONENT: &str = "collector";
/// Where the collector serves the map and flows.
const PORT: u16 = 9090;

/// Which collector is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Collector")]
pub struct CollectorFlags {
    #[command(flatten)]
    installation: InstallationFlags,
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
        let namespace = &flags.installation.podtap_namespace;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        if let Some(name) = &flags.collector_pod {
            return Ok(Self { pods, name: name.clone() });
        }
        let listed = pods.list(&component(COMPONENT)).await?;
        let mut ready: Vec<String> =
            listed.items.iter().filter(|pod| is_ready(pod)).map(ResourceExt::name_any).collect();
        ready.sort();
        match &ready[..] {
            [name] => Ok(Self { pods, name: name.clone() }),
            [] if listed.items.is_empty() => Err(Failure::new(
                Exit::Refused,
                format!(
                    "no collector runs in the namespace {namespace}: install it (collector.enabled), or name its namespace with \
                     --podtap-namespace. See {}",
                    page("collector.md", "in-a-cluster")
                ),
            )),
            [] => Err(Failure::new(
                Exit::Refused,
                format!(
                    "no pod of the collector is ready: kubectl get pods -n {namespace} -l {}",
                    labels_of(COMPONENT)
                ),
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
        let answer = forward::get(&self.pods, &self.name, PORT, path).await;
        let (status, body) = answer.map_err(|failure| match failure.exit {
            Exit::NotPermitted => Failure {
                message: format!(
                    "{failure}. The collector can also serve its API to clients with a token, see {}",
                    page("collector.md", "for-clients-with-a-token")
                ),
                ..failure
            },
            _ => failure,
        })?;
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
}

/// The part of a path that restricts an answer to a namespace; empty for all of them.
pub fn of_namespace(cluster: &Cluster, all_namespaces: bool) -> String {
    if all_namespaces { String::new() } else { format!("/namespaces/{}", cluster.namespace) }
}
