//! Sorts the taps into those that can be worked with and those that cannot.

use k8s_openapi::jiff::Timestamp;
use podtap_api::{PodTapSpec, PodTapStatus};
use podtap_model::{Reason, TapReference, Uid};

use crate::{
    failure::Failure,
    store::{cache::Entry, snapshot::Snapshot, tap::CachedTap},
    validate::{expression::established, options::TapOptions, policy::Policy, spec::TapSpec},
};

/// A tap that is not being deleted.
#[derive(Clone, Debug)]
pub struct Tap {
    pub reference: TapReference,
    pub created: Timestamp,
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: String,
    pub finalizers: Vec<String>,
    /// The last status that was observed.
    pub status: PodTapStatus,
    /// What it requests, or why that is invalid.
    pub spec: Result<TapSpec, Failure>,
}

impl Tap {
    /// Older taps win. Among taps created in the same second, one that is already mirroring wins, then the lower UID, which nobody
    /// can choose.
    pub fn age(&self) -> (Timestamp, bool, &Uid) {
        (self.created, self.status.start_time.is_none(), &self.reference.uid)
    }

    /// Whether it has been Ready for this generation of its spec.
    pub fn is_established(&self) -> bool {
        self.status.established_generation == Some(self.generation)
    }
}

/// The result of this stage.
#[derive(Debug)]
pub struct Validated {
    pub policy: Policy,
    /// Oldest first.
    pub taps: Vec<Tap>,
    /// Objects that cannot be decoded.
    pub unreadable: Vec<Entry<CachedTap>>,
    /// Objects that are being deleted, whether they can be decoded or not.
    pub deleting: Vec<Entry<CachedTap>>,
}

/// Never fails: one bad object stops no other.
pub fn validate(snapshot: &Snapshot) -> Validated {
    let mut validated = Validated {
        policy: Policy::new(snapshot.policy.as_deref()),
        taps: Vec::new(),
        unreadable: Vec::new(),
        deleting: Vec::new(),
    };
    for entry in &snapshot.taps {
        match &entry.object.body {
            _ if entry.object.deleting => validated.deleting.push(entry.clone()),
            Err(_) => validated.unreadable.push(entry.clone()),
            Ok((spec, status)) => validated.taps.push(Tap {
                reference: entry.object.reference(),
                created: entry.object.created,
                generation: entry.object.generation,
                version: entry.version.clone(),
                finalizers: entry.object.finalizers.clone(),
                status: status.clone(),
                spec: self::spec(spec, snapshot, &entry.object.uid),
            }),
        }
    }
    validated.taps.sort_by(|a, b| a.age().cmp(&b.age()));
    validated
}

fn spec(spec: &PodTapSpec, snapshot: &Snapshot, uid: &Uid) -> Result<TapSpec, Failure> {
    // Permanent errors are reported before an expression that is merely not compiled yet.
    let rest =
        TapSpec::without_options(spec).map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
    let options = TapOptions::new(&spec.options, &snapshot.expressions, || established(snapshot, uid))?;
    Ok(TapSpec { options, ..rest })
}

#[cfg(test)]
mod tests;
