//! The connection to the API server.

use std::time::Duration;

use kube::{Client, Config};

/// A connection on which nothing arrives for so long is dead, and opened anew. An idle watch gets a bookmark every minute,
/// so that a node that comes back after a network partition notices the old connection's death by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

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
