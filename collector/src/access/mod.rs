//! The collector's API for clients with a token of the API server: who may read the map of which namespaces.
//!
//! [`reviews`] asks the API server who a token belongs to and what its user may do, and [`gate`] passes requests that are allowed on to
//! the container that captures, which listens on the loopback of the pod. That container parses frames that anyone may have sent: it gets
//! no token.

mod answers;
#[cfg(test)]
mod fixtures;
mod gate;
mod reviews;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use kube::Client;
use podtap_runtime::http::{Certificate, Metrics, Server};
use tracing::info;

use self::{gate::Gate, reviews::Reviews};

/// Where authorized clients get the map.
#[derive(clap::Args)]
pub struct Exposed {
    /// Address on which the collector's API is served over HTTPS, to clients with a token of the API server: each reads the namespaces in
    /// which its user may get podtaps/map of podtap.dev
    #[arg(long, value_name = "ADDRESS", requires_all = ["tls_certificate", "tls_key"])]
    listen: Option<SocketAddr>,
    /// PEM file with the certificate of --listen, and those of intermediate authorities. Read again when it is replaced, as is its key
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the key of the certificate
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// Where the collector listens (its --listen), which gets requests that are allowed
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)))]
    collector: SocketAddr,
}

/// Starts the server, if an address was requested.
pub async fn serve(arguments: Exposed, client: &Client, metrics: &Metrics) -> Result<Option<Server>> {
    let Exposed { listen: Some(address), tls_certificate: Some(certificate), tls_key: Some(key), collector } =
        arguments
    else {
        return Ok(None);
    };
    let certificate = Certificate::load(&certificate, &key)?;
    let gate = Gate::new(Reviews::new(client.clone()), collector, metrics);
    let server = Server::spawn_tls(address, certificate, gate).await.context("--listen")?;
    info!(address = %server.address(), "serving authorized clients");
    Ok(Some(server))
}
