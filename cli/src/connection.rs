//! Which cluster, as whom, and which namespace: the flags that kubectl has, too.

use std::{env, io, path::PathBuf, time::Duration};

use clap::Args;
use clap_complete::ArgValueCandidates;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use crate::{
    complete,
    exit::{Failure, Outcome, with_causes},
};

/// Flags of every verb. They are written after `podtap`: kubectl takes no flags before the name of a plugin.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Cluster")]
pub struct Connection {
    /// Namespace. Default: that of the context
    #[arg(short, long, global = true, value_name = "NAME", add = ArgValueCandidates::new(complete::namespaces))]
    pub namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME", add = ArgValueCandidates::new(complete::contexts))]
    pub context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Path of the kubeconfig. Default: $KUBECONFIG, or ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate; can be repeated
    #[arg(long, global = true, value_name = "GROUP", requires = "impersonate")]
    pub as_group: Vec<String>,
    /// Most time that the API server may take to answer, for example 10s. 0: no limit
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub request_timeout: Option<Duration>,
}

/// A cluster, and the namespace in it.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The namespace of the flag, or of the context.
    pub namespace: String,
    /// Whether the flag names another namespace than the context does.
    pub is_another_namespace: bool,
}

impl Connection {
    /// The kubeconfig that the flags name.
    pub fn kubeconfig(&self) -> Result<Kubeconfig, KubeconfigError> {
        self.kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from)
    }

    /// The cluster. Nothing is sent yet.
    pub async fn open(&self) -> Outcome<Cluster> {
        let mut config = self.config().await?;
        config.auth_info.impersonate = self.impersonate.clone().or(config.auth_info.impersonate);
        if !self.as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(self.as_group.clone());
        }
        if let Some(limit) = self.request_timeout {
            let limit = Some(limit).filter(|limit| !limit.is_zero());
            (config.connect_timeout, config.read_timeout, config.write_timeout) = (limit, limit, limit);
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let is_another_namespace = namespace != config.default_namespace;
        let client = Client::try_from(config)
            .map_err(|e| Failure::error(format!("this kubeconfig cannot be used: {}", with_causes(&e))))?;
        Ok(Cluster { client, namespace, is_another_namespace })
    }

    async fn config(&self) -> Outcome<Config> {
        let options =
            KubeConfigOptions { context: self.context.clone(), cluster: self.cluster.clone(), user: self.user.clone() };
        let names_none = [&self.context, &self.cluster, &self.user].into_iter().all(Option::is_none);
        let is_default = names_none && self.kubeconfig.is_none() && env::var_os("KUBECONFIG").is_none();
        let config = match self.kubeconfig() {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        };
        match config {
            Ok(config) => Ok(config),
            // As kubectl does in a pod. A kubeconfig with a mistake is of another cluster.
            Err(error) => Config::incluster().ok().filter(|_| is_default && is_absent(&error)).ok_or_else(|| {
                Failure::error(format!(
                    "no cluster: {}; set --kubeconfig, KUBECONFIG or --context",
                    with_causes(&error)
                ))
            }),
        }
    }
}

fn is_absent(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The longest duration that makes sense anywhere: that of a tap.
pub const YEAR: Duration = Duration::from_secs(8760 * 3600);

/// A duration in Go's syntax (`90s`, `1h30m`), or a number of seconds, as kubectl has it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs).ok();
    let in_units = || text.parse::<kube::core::Duration>().ok().filter(|duration| !duration.is_negative());
    let duration = seconds.or_else(|| in_units().map(Duration::from)).filter(|_| !text.is_empty());
    match duration {
        Some(duration) if duration <= YEAR => Ok(duration),
        Some(_) => Err("at most 8760h (a year) is allowed".to_owned()),
        None => Err("not a duration such as 30s, 5m or 1h30m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("0", 0), ("30", 30), ("30s", 30), ("5m", 300), ("1h30m", 5400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5 m", "-5s", "five", "8761h", "18446744073709551615"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
