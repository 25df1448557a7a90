//! The record of the nodes that are still to be swept: one `ConfigMap`, written with optimistic locking.
//!
//! # Guarantees
//! It starts with all nodes of the cluster, once per installation, and only shrinks after that. An installation is known by the UID of
//! the controller's service account, which every way to install PodTap creates and every way to uninstall it deletes.
//!
//! # Caveats
//! If the `ConfigMap` is deleted, all nodes are swept again, which changes nothing on a node that is clean.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{authentication::v1::SelfSubjectReview, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use podtap_runtime::client::in_time;
use tracing::info;

use crate::names;

const INSTALLATION: &str = "installation";
const NODES: &str = "nodes";

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot find out which user of the API server this controller is")]
    WhoAmI(#[source] kube::Error),
    #[error("cannot read the ConfigMap {} of nodes to sweep", names::SWEEP)]
    Read(#[source] kube::Error),
    #[error("cannot delete the NodeTaps of an earlier installation")]
    Forget(#[source] kube::Error),
    #[error("cannot write the ConfigMap {} of nodes to sweep", names::SWEEP)]
    Write(#[source] kube::Error),
}

/// The record, and what is known of it.
pub struct SweepRecord {
    client: Client,
    namespace: String,
    /// `None` until it is read, and after a failed write.
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    installation: String,
    /// Version of the `ConfigMap`; `None` if there is none yet.
    version: Option<String>,
    /// `None` if it is about an earlier installation.
    unswept: Option<BTreeSet<String>>,
}

impl SweepRecord {
    /// Sends no request.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), known: None }
    }

    /// The nodes that are still to be swept, if that is known without a request.
    pub fn known(&self) -> Option<&BTreeSet<String>> {
        self.known.as_ref()?.unswept.as_ref()
    }

    /// Reads the record. In a new installation, calls `forget`, which deletes what an earlier one has recorded, and then records that all
    /// of these nodes are to be swept.
    pub async fn begin(
        &mut self,
        nodes: impl FnOnce() -> BTreeSet<String>,
        forget: impl AsyncFnOnce() -> Result<(), kube::Error>,
    ) -> Result<(), Error> {
        if self.known.is_none() {
            let object = in_time(self.api().get_opt(names::SWEEP)).await.map_err(Error::Read)?;
            self.known = Some(parse(object, self.installation().await?));
        }
        if self.known().is_none() {
            let nodes = nodes();
            forget().await.map_err(Error::Forget)?;
            info!(nodes = nodes.len(), "a new installation: every node is swept once");
            self.write(nodes).await?;
        }
        Ok(())
    }

    /// Records the nodes that are still to be swept. Sends no request if they are already recorded. After an error, the record is read
    /// again.
    pub async fn write(&mut self, unswept: BTreeSet<String>) -> Result<(), Error> {
        let Some(known) = self.known.take_if(|known| known.unswept.as_ref() != Some(&unswept)) else { return Ok(()) };
        let Known { installation, version, .. } = known;
        let exists = version.is_some();
        let nodes: Vec<&str> = unswept.iter().map(String::as_str).collect();
        let data = [(INSTALLATION, installation.clone()), (NODES, nodes.join(" "))];
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(names::SWEEP.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: version,
                labels: Some(
                    [names::LABEL_NAME, "app.kubernetes.io/part-of"]
                        .map(|label| (label.to_owned(), names::PRODUCT.to_owned()))
                        .into(),
                ),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
            ..ConfigMap::default()
        };
        let post = PostParams { field_manager: Some(names::CONTROLLER.to_owned()), ..PostParams::default() };
        let api = self.api();
        let written = if exists {
            in_time(api.replace(names::SWEEP, &post, &object)).await
        } else {
            in_time(api.create(&post, &object)).await
        };
        let version = written.map_err(Error::Write)?.metadata.resource_version;
        self.known = Some(Known { installation, version, unswept: Some(unswept) });
        Ok(())
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn installation(&self) -> Result<String, Error> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = in_time(api.create(&PostParams::default(), &SelfSubjectReview::default())).await;
        let user = review.map_err(Error::WhoAmI)?.status.and_then(|status| status.user_info);
        Ok(user.and_then(|user| user.uid).unwrap_or_default())
    }
}

fn parse(object: Option<ConfigMap>, installation: String) -> Known {
    let ConfigMap { metadata, data, .. } = object.unwrap_or_default();
    let data = data.unwrap_or_default();
    let unswept = data.get(INSTALLATION).filter(|recorded| **recorded == installation).map(|_| {
        let nodes = data.get(NODES).map(String::as_str).unwrap_or_default();
        nodes.split_whitespace().map(str::to_owned).collect()
    });
    Known { installation, version: metadata.resource_version, unswept }
}

#[cfg(test)]
mod tests;
