//! The record of VNI claims: one `ConfigMap`, written with optimistic locking.
//!
//! # Guarantees
//! Two controllers cannot record the same VNI for two taps: of two writes that start from the same version, the API server rejects the
//! second. What this process knows is always what was last read or written.
//!
//! # Caveats
//! If the `ConfigMap` is deleted, nothing is lost: it is recreated at the next change, from the status of the taps and from the
//! `NodeTap`s.

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use podtap_runtime::client::in_time;

use crate::{names, plan::vni::Claims};

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the ConfigMap {} of VNI claims", names::CLAIMS)]
    Read(#[source] kube::Error),
    #[error("cannot write the ConfigMap {} of VNI claims", names::CLAIMS)]
    Write(#[source] kube::Error),
    #[error("another client has written the ConfigMap {} of VNI claims", names::CLAIMS)]
    Conflict,
}

/// The record, and what is known of it.
#[derive(Debug)]
pub struct VniRecord {
    api: Api<ConfigMap>,
    namespace: String,
    /// `None` until it is read, and after a failed write. The version is `None` if there is no `ConfigMap` yet.
    known: Option<(Option<String>, Claims)>,
}

impl VniRecord {
    /// Sends no request.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned(), known: None }
    }

    /// What is recorded, if that is known without a request.
    pub fn known(&self) -> Option<&Claims> {
        self.known.as_ref().map(|(_, claims)| claims)
    }

    /// What is recorded.
    pub async fn read(&mut self) -> Result<&Claims, Error> {
        if self.known.is_none() {
            let object = in_time(self.api.get_opt(names::CLAIMS)).await.map_err(Error::Read)?;
            self.known = Some(object.map_or_else(|| (None, Claims::new()), parse));
        }
        Ok(self.known.as_ref().map_or(&EMPTY, |(_, claims)| claims))
    }

    /// Records `claims`. Sends no request if they are already recorded. After an error, the record is read again.
    pub async fn write(&mut self, claims: Claims) -> Result<(), Error> {
        self.read().await?;
        let Some((version, _)) = self.known.take_if(|(_, known)| *known != claims) else { return Ok(()) };
        let exists = version.is_some();
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(names::CLAIMS.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: version,
                labels: Some([("app.kubernetes.io/part-of".to_owned(), names::PRODUCT.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(claims.iter().map(|(vni, claim)| (vni.to_string(), claim.to_string())).collect()),
            ..ConfigMap::default()
        };
        let post = PostParams { field_manager: Some(names::CONTROLLER.to_owned()), ..PostParams::default() };
        let result = if exists {
            in_time(self.api.replace(names::CLAIMS, &post, &object)).await
        } else {
            in_time(self.api.create(&post, &object)).await
        };
        match result {
            Ok(object) => {
                self.known = Some((object.metadata.resource_version, claims));
                Ok(())
            }
            // Not found: deleted between reading and writing.
            Err(kube::Error::Api(status))
                if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
            {
                Err(Error::Conflict)
            }
            Err(error) => Err(Error::Write(error)),
        }
    }
}

static EMPTY: Claims = Claims::new();

/// Entries that cannot be parsed are dropped: the taps' statuses have them.
fn parse(object: ConfigMap) -> (Option<String>, Claims) {
    let entries = object.data.unwrap_or_default().into_iter();
    let entry = |(vni, claim): (String, String)| Some((vni.parse::<u32>().ok()?.try_into().ok()?, claim.parse().ok()?));
    (object.metadata.resource_version, entries.filter_map(entry).collect())
}
