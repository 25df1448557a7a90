//! Sorts the taps into those that can be worked with and those that cannot.

use k8s_openapi::jiff::Timestamp;
use podtap_api::PodTapStatus;
use podtap_model::{Reason, TapReference, Uid, UnixTime};

use crate::{
    expression::compiled::{Texts, compilable},
    failure::Failure,
    store::{
        cache::Entry,
        pod::CachedPod,
        snapshot::Snapshot,
        tap::{CachedSpec, CachedTap},
    },
    validate::{
        expiry::OnNodes,
        expression::established,
        options::TapOptions,
        policy::Policy,
        spec::{RequestedDestination, TapSpec},
        state::{self, TapState},
    },
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
    /// What it requests, or why that is invalid. Of a tap that is not [`Active`](TapState::Active), the mirror options are not checked.
    pub spec: Result<TapSpec, Failure>,
    /// When its first pod was tapped.
    pub start: Option<Timestamp>,
    /// When the nodes stop mirroring even if no controller runs.
    pub expiration: Option<UnixTime>,
    /// Whether it is carried out, as far as that depends on no pod, node or other namespace.
    pub state: TapState,
}

impl Tap {
    /// Older taps win. Among taps created in the same second, one that is already mirroring wins, then the lower UID, which
    /// cannot be chosen.
    pub fn age(&self) -> (Timestamp, bool, &Uid) {
        (self.created, self.status.start_time.is_none(), &self.reference.uid)
    }

    /// A pod as the users of the tap know it: a tap of the cluster has pods of many namespaces.
    pub fn shown(&self, pod: &CachedPod) -> String {
        if self.reference.is_cluster_scoped() { format!("{}/{}", pod.namespace, pod.name) } else { pod.name.clone() }
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
    /// The filter expressions of the active ones.
    pub expressions: Texts,
    /// Objects that cannot be decoded.
    pub unreadable: Vec<Entry<CachedTap>>,
    /// Objects that are being deleted, whether they can be decoded or not.
    pub deleting: Vec<Entry<CachedTap>>,
}

/// Never fails: one bad object stops no other.
pub fn validate(snapshot: &Snapshot) -> Validated {
    let mut validated = Validated {
        policy: Policy::new(snapshot.policy.as_deref(), snapshot.last_policy.as_deref()),
        taps: Vec::new(),
        expressions: Texts::new(),
        unreadable: Vec::new(),
        deleting: Vec::new(),
    };
    for entry in &snapshot.taps {
        match &entry.object.body {
            _ if entry.object.deleting => validated.deleting.push(entry.clone()),
            Err(_) => validated.unreadable.push(entry.clone()),
            Ok((spec, status)) => validated.taps.push(Tap {
                reference: entry.object.reference.clone(),
                created: entry.object.created,
                generation: entry.object.generation,
                version: entry.version.clone(),
                finalizers: entry.object.finalizers.clone(),
                status: status.clone(),
                spec: self::spec(spec, &entry.object.reference.namespace),
                start: None,
                expiration: None,
                state: TapState::Active,
            }),
        }
    }
    let Validated { policy, taps, expressions, .. } = &mut validated;
    taps.sort_by(|a, b| a.age().cmp(&b.age()));
    let on_nodes = OnNodes::of(snapshot);
    for tap in taps.iter_mut() {
        let duration = tap.spec.as_ref().ok().and_then(|spec| spec.duration);
        tap.start = on_nodes.start(tap, duration);
        tap.expiration = on_nodes.expiration(tap, duration);
    }
    state::decide(taps, policy, snapshot.now);
    let active = || taps.iter().filter(|tap| tap.state == TapState::Active);
    *expressions = compilable(active().filter_map(|tap| {
        Some((tap.reference.namespace.as_str(), tap.spec.as_ref().ok()?.options.options.expression()?))
    }));
    for tap in taps.iter_mut().filter(|tap| tap.state == TapState::Active) {
        check_options(tap, snapshot);
    }
    validated
}

/// The spec, with its mirror options as they are.
fn spec(spec: &CachedSpec, namespace: &str) -> Result<TapSpec, Failure> {
    let options = TapOptions { options: spec.mirror.options.clone(), ..TapOptions::default() };
    match TapSpec::without_options(spec, namespace) {
        Ok(rest) => {
            let is_for_collectors = rest.destinations.iter().all(RequestedDestination::is_collector);
            let options = if is_for_collectors { options.for_collectors() } else { options };
            Ok(TapSpec { options, ..rest })
        }
        Err(invalid) => Err(Failure::new(Reason::InvalidSpec, invalid.to_string())),
    }
}

/// Checks the mirror options, with which the tap may be invalid or not ready.
fn check_options(tap: &mut Tap, snapshot: &Snapshot) {
    let Ok(spec) = &mut tap.spec else { return };
    let uid = &tap.reference.uid;
    match TapOptions::new(&spec.options.options, &snapshot.expressions, || established(snapshot, uid)) {
        Ok(options) => spec.options = options,
        Err(failure) => {
            tap.state = TapState::Refused(failure.clone());
            tap.spec = Err(failure);
        }
    }
}

#[cfg(test)]
mod tests;
