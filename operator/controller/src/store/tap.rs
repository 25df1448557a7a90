//! Projections of taps and of the policy.

use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use podtap_api::{FINALIZER, PodTap, PodTapPolicy, PodTapPolicySpec, PodTapSpec, PodTapStatus};
use podtap_model::{TapReference, Uid};

use crate::names;

/// Why an object cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// A tap as the API server has it, not validated.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedTap {
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
    pub created: Timestamp,
    pub generation: i64,
    /// Whether its deletion was requested.
    pub deleting: bool,
    pub finalizers: Vec<String>,
    pub body: Result<(PodTapSpec, PodTapStatus), DecodeError>,
}

impl From<DeserializeGuard<PodTap>> for CachedTap {
    fn from(guard: DeserializeGuard<PodTap>) -> Self {
        let (meta, body) = match guard.0 {
            Ok(tap) => (tap.metadata, Ok((tap.spec, tap.status.unwrap_or_default()))),
            Err(invalid) => (invalid.metadata, Err(DecodeError(invalid.error))),
        };
        Self {
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            uid: names::uid(&meta),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            body,
        }
    }
}

impl CachedTap {
    /// How other objects refer to the tap.
    pub fn reference(&self) -> TapReference {
        TapReference { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }

    /// Whether `new` differs from this only in fields that the controller writes: the status and its own finalizer.
    pub fn differs_only_in_own_fields(&self, new: &Self) -> bool {
        let spec = |tap: &Self| tap.body.as_ref().ok().map(|(spec, _)| spec.clone());
        let others = |tap: &Self| tap.finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect::<Vec<_>>();
        self.uid == new.uid
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
