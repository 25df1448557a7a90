//! The connection to the API server.

use std::time::Duration;

use kube::{Client, Config};
use tokio::time::timeout;

/// A connection on which nothing arrives for so long is dead, and opened anew. An idle watch gets a bookmark every minute,
/// so that a node that comes back after a network partition notices the old connection's death by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

/// Longest wait for one answer. Longer than admission webhooks may take, and short enough that one request which is never
/// answered does not hold up what has nothing to do with it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// The answer to `request`, or an error when it does not come. What the request asked for may have been done then.
pub async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()).into());
    timeout(REQUEST_TIMEOUT, request).await.map_err(late)?
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a pod's service account nor a kubeconfig.
    #[error("found no API server: neither a service account (in a pod) nor a kubeconfig")]
    Config(#[source] kube::config::InferConfigError),
    /// What was found cannot be used.
    #[error("cannot use the configuration of the API server")]
    Client(#[source] kube::Error),
}

/// Nothing is sent yet: an API server that is down is not an error here.
///
/// In a pod, the address comes from the environment as a number. No name is resolved, which a static binary could not do
/// with glibc's modules, and which would need DNS in the helper pods.
pub async fn connect() -> Result<Client, Error> {
    let mut config = match Config::incluster_env() {
        Ok(config) => config,
        Err(_) => Config::infer().await.map_err(Error::Config)?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(Error::Client)
}
