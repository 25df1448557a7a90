//! The client of the API server.
//!
//! # Guarantees
//! A connection on which nothing arrives for 100 seconds is closed and replaced. A request that goes through [`in_time`] takes at
//! most 12 seconds.

use std::time::Duration;

use kube::{Client, Config, client::ClientBuilder};
use tokio::time::timeout;
use tower::util::MapFutureLayer;

use crate::clock::ServerClock;

/// A connection is dead if nothing arrives on it for this long. Idle watches receive a bookmark every minute, so a node that
/// comes back after a network partition notices that its old connection is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

/// How long a request may take. Longer than the default timeout of admission webhooks (10 s), and short enough that a request
/// which is never answered does not hold up unrelated work.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// The response to `request`, or an error after 12 seconds. After a timeout, the request may still have been carried out.
pub async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let timed_out = |_| kube::Error::Service(format!("no response within {} s", REQUEST_TIMEOUT.as_secs()).into());
    timeout(REQUEST_TIMEOUT, request).await.map_err(timed_out)?
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is neither a pod's service account nor a kubeconfig.
    #[error("found no API server: neither a service account (in a pod) nor a kubeconfig")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration is unusable.
    #[error("cannot use the configuration of the API server")]
    Client(#[source] kube::Error),
}

/// A client, and the API server's clock, which each of its responses corrects. The client is configured from the pod's service account
/// or, outside of a pod, from a kubeconfig. It sends nothing yet: an API server that is down is not an error here.
///
/// In a pod, the API server's address comes from the environment as an IP address. No name is resolved: a static binary cannot load
/// glibc's resolver modules, and helper pods would need DNS.
pub async fn connect() -> Result<(Client, ServerClock), Error> {
    let mut config = match Config::incluster_env() {
        Ok(config) => config,
        Err(_) => Config::infer().await.map_err(Error::Config)?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    let clock = ServerClock::default();
    let builder = ClientBuilder::try_from(config).map_err(Error::Client)?;
    let observed = clock.clone();
    let layer = MapFutureLayer::new(move |response| observed.clone().observe_response(response));
    Ok((builder.with_layer(&layer).build(), clock))
}
