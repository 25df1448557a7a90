//! Projections of taps and of the policy.

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    core::DeserializeGuard,
};
use podtap_api::{
    ClusterPodTap, ClusterPodTapSpec, ClusterTargets, FINALIZER, MirrorSpec, PodTap, PodTapPolicy, PodTapPolicySpec,
    PodTapSpec, PodTapStatus, Targets,
};
use podtap_model::TapReference;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::names;

/// Why an object cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// A tap of either kind as the API server has it, not validated.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedTap {
    pub reference: TapReference,
    pub created: Timestamp,
    pub generation: i64,
    /// Whether its deletion was requested.
    pub deleting: bool,
    pub finalizers: Vec<String>,
    pub body: Result<(CachedSpec, PodTapStatus), DecodeError>,
}

/// The spec of a tap of either kind.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedSpec {
    pub targets: CachedTargets,
    pub mirror: MirrorSpec,
}

/// Which pods a tap selects.
#[derive(Clone, Debug, PartialEq)]
pub enum CachedTargets {
    /// Of its own namespace.
    Namespaced(Targets),
    /// Of many namespaces.
    Cluster(ClusterTargets),
}

/// The resource of the taps of a namespace or, if that is empty, of the cluster.
pub fn resource(namespace: &str) -> ApiResource {
    if namespace.is_empty() { ApiResource::erase::<ClusterPodTap>(&()) } else { ApiResource::erase::<PodTap>(&()) }
}

/// Requests about the taps of a namespace or, if that is empty, of the cluster. Objects stay undecoded, so that one that this version
/// cannot decode is like any other.
pub fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let resource = resource(namespace);
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

/// Requests about all taps of a kind.
pub fn all<K: Resource<DynamicType = ()>>(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

impl From<DynamicObject> for CachedTap {
    fn from(object: DynamicObject) -> Self {
        let (uid, meta) = (names::uid(&object.metadata), object.metadata);
        let namespace = meta.namespace.unwrap_or_default();
        let name = meta.name.unwrap_or_default();
        let body = if namespace.is_empty() {
            decode(object.data, |ClusterPodTapSpec { targets, mirror }| (CachedTargets::Cluster(targets), mirror))
        } else {
            decode(object.data, |PodTapSpec { targets, mirror }| (CachedTargets::Namespaced(targets), mirror))
        };
        Self {
            reference: TapReference { namespace, name, uid },
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            body,
        }
    }
}

fn decode<S: DeserializeOwned>(
    mut data: Value,
    parts: impl Fn(S) -> (CachedTargets, MirrorSpec),
) -> Result<(CachedSpec, PodTapStatus), DecodeError> {
    let error = |error: serde_json::Error| DecodeError(error.to_string());
    let (targets, mirror) = parts(serde_json::from_value(data["spec"].take()).map_err(error)?);
    let status: Option<PodTapStatus> = serde_json::from_value(data["status"].take()).map_err(error)?;
    Ok((CachedSpec { targets, mirror }, status.unwrap_or_default()))
}

impl CachedTap {
    /// Whether `new` differs from this only in fields that the controller writes: the status and its own finalizer.
    pub fn differs_only_in_own_fields(&self, new: &Self) -> bool {
        let spec = |tap: &Self| tap.body.as_ref().ok().map(|(spec, _)| spec.clone());
        let others = |tap: &Self| tap.finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect::<Vec<_>>();
        self.reference.uid == new.reference.uid
            && self.generation == new.generation
            && self.deleting == new.deleting
            && others(self) == others(new)
            && spec(self) == spec(new)
    }
}

/// The policy named `default`, or why it cannot be decoded.
pub type CachedPolicy = Result<PodTapPolicySpec, DecodeError>;

/// See [`CachedPolicy`].
pub fn cached_policy(guard: DeserializeGuard<PodTapPolicy>) -> CachedPolicy {
    guard.0.map(|policy| policy.spec).map_err(|invalid| DecodeError(invalid.error))
}
