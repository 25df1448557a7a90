//! Taps of both kinds, and how the command line names them.

use std::{fmt, str::FromStr};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ApiResource, ListParams},
    core::DynamicObject,
};
use podtap_api::{CONDITION_READY, ClusterPodTap, MirrorSpec, PodTap, PodTapStatus};
use serde_json::Value;

use crate::{
    connection::Cluster,
    console::{after, plain, warn},
    exit::{Exit, Failure, Outcome},
    pods::if_permitted,
};

/// Field manager of what this program writes.
pub const MANAGER: &str = "kubectl-podtap";

/// Annotation with the user who asked for a tap, as the API server knew them. A user who may change the tap can write another name into it.
pub const REQUESTED_BY: &str = "podtap.dev/requested-by";

/// Label of a capture that runs without its client, too: for how many seconds.
pub const KEPT: &str = "podtap.dev/kept";

/// A kind of tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Kind {
    /// Of a namespace.
    #[value(name = "podtaps", aliases = ["podtap", "ptap"])]
    PodTap,
    /// Of the cluster.
    #[value(name = "clusterpodtaps", aliases = ["clusterpodtap", "cptap"])]
    ClusterPodTap,
}

/// A tap, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapName {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// A tap.
#[derive(Clone, Debug, PartialEq)]
pub enum Tap {
    /// Of a namespace.
    Namespaced(Box<PodTap>),
    /// Of the cluster.
    Cluster(Box<ClusterPodTap>),
}

impl FromStr for TapName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or(("podtap", text));
        let kind = match kind {
            "podtap" | "podtaps" | "ptap" | "podtap.podtap.dev" => Kind::PodTap,
            "clusterpodtap" | "clusterpodtaps" | "cptap" | "clusterpodtap.podtap.dev" => Kind::ClusterPodTap,
            _ => return Err(format!("{text:?} is not a tap: use NAME, or cptap/NAME for a ClusterPodTap")),
        };
        if name.is_empty() || name.contains('/') {
            return Err(format!("{text:?} has no name of a tap"));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl Kind {
    /// Its resource in the API.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::PodTap => ApiResource::erase::<PodTap>(&()),
            Self::ClusterPodTap => ApiResource::erase::<ClusterPodTap>(&()),
        }
    }

    /// The taps of this kind: of a namespace, if they have one, or all.
    pub fn api(self, cluster: &Cluster, namespace: Option<&str>) -> Api<DynamicObject> {
        match (self, namespace) {
            (Self::PodTap, Some(namespace)) => {
                Api::namespaced_with(cluster.client.clone(), namespace, &self.resource())
            }
            _ => Api::all_with(cluster.client.clone(), &self.resource()),
        }
    }

    /// The name of an object as kubectl prints it.
    pub fn object(self, name: &str) -> String {
        format!("{}.{}/{name}", self.resource().kind.to_lowercase(), podtap_api::GROUP)
    }

    fn tap(self, object: DynamicObject) -> Outcome<Tap> {
        let name = object.name_any();
        let mut value = serde_json::to_value(object).map_err(|error| Failure::error(error.to_string()))?;
        make_plain(&mut value);
        let tap = match self {
            Self::PodTap => serde_json::from_value(value).map(Tap::Namespaced),
            Self::ClusterPodTap => serde_json::from_value(value).map(Tap::Cluster),
        };
        tap.map_err(|error| {
            Failure::error(format!(
                "{name} cannot be read ({error}): it may be of another version; see kubectl podtap version"
            ))
        })
    }
}

/// Without control characters, which any user who may write the object can put into it.
fn make_plain(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(char::is_control) => *text = plain(text),
        Value::Array(items) => items.iter_mut().for_each(make_plain),
        Value::Object(fields) => fields.values_mut().for_each(make_plain),
        _ => {}
    }
}

/// The tap of this name.
pub async fn get(cluster: &Cluster, name: &TapName) -> Outcome<Tap> {
    name.kind.tap(name.kind.api(cluster, Some(&cluster.namespace)).get(&name.name).await?)
}

/// All taps of a kind: of a namespace, or of all. Warns of those that cannot be read.
pub async fn list(cluster: &Cluster, kind: Kind, namespace: Option<&str>) -> Outcome<Vec<Tap>> {
    let (taps, unreadable) = readable(cluster, kind, namespace).await?;
    for message in &unreadable {
        warn(message);
    }
    Ok(taps)
}

/// Likewise, with a message about each of those that cannot be read.
pub async fn readable(cluster: &Cluster, kind: Kind, namespace: Option<&str>) -> Outcome<(Vec<Tap>, Vec<String>)> {
    let objects = kind.api(cluster, namespace).list(&ListParams::default()).await?;
    let mut unreadable = Vec::new();
    let read = |object| kind.tap(object).map_err(|failure| unreadable.push(failure.message)).ok();
    Ok((objects.items.into_iter().filter_map(read).collect(), unreadable))
}

/// Every `ClusterPodTap`, or none if the user may not list them.
pub async fn of_cluster(cluster: &Cluster) -> Outcome<Option<Vec<Tap>>> {
    if_permitted(list(cluster, Kind::ClusterPodTap, None).await)
}

/// The taps of these names. A name without a tap is reported, and changes the exit code.
pub async fn named(cluster: &Cluster, names: &[TapName]) -> (Vec<Tap>, Exit) {
    let (mut taps, mut exit) = (Vec::new(), Exit::Done);
    for name in names {
        match get(cluster, name).await {
            Ok(tap) => taps.push(tap),
            Err(failure) => exit = after(exit, Err(failure)),
        }
    }
    (taps, exit)
}

/// All taps of the namespace, or of the cluster. The exit code is not [`Exit::Done`] if there may be more.
pub async fn all(cluster: &Cluster, all_namespaces: bool) -> Outcome<(Vec<Tap>, Exit)> {
    let namespace = Some(cluster.namespace.as_str()).filter(|_| !all_namespaces);
    let mut taps = list(cluster, Kind::PodTap, namespace).await?;
    let mut exit = Exit::Done;
    if all_namespaces {
        if let Some(of_cluster) = of_cluster(cluster).await? {
            taps.extend(of_cluster);
        } else {
            warn("taps of the kind ClusterPodTap do not change: you may not list them");
            exit = Exit::Partly;
        }
    }
    if taps.is_empty() {
        let scope = namespace.map_or("the cluster".to_owned(), |namespace| format!("the namespace {namespace}"));
        return Err(Failure::new(Exit::Refused, format!("there is no tap in {scope}")));
    }
    Ok((taps, exit))
}

impl Tap {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespaced(_) => Kind::PodTap,
            Self::Cluster(_) => Kind::ClusterPodTap,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Namespaced(tap) => tap.meta(),
            Self::Cluster(tap) => tap.meta(),
        }
    }

    /// Its spec, besides its targets.
    pub fn mirror(&self) -> &MirrorSpec {
        match self {
            Self::Namespaced(tap) => &tap.spec.mirror,
            Self::Cluster(tap) => &tap.spec.mirror,
        }
    }

    /// Its status, if the controller has written one.
    pub fn status(&self) -> Option<&PodTapStatus> {
        match self {
            Self::Namespaced(tap) => tap.status.as_ref(),
            Self::Cluster(tap) => tap.status.as_ref(),
        }
    }

    /// Its namespace; none for a ClusterPodTap.
    pub fn namespace(&self) -> Option<&str> {
        self.meta().namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    /// How the command line names it.
    pub fn arguments(&self) -> String {
        match self.namespace() {
            Some(namespace) => format!("-n {namespace} {}", self.name()),
            None => format!("cptap/{}", self.name()),
        }
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    /// A condition, if it is about the current spec.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        let conditions = &self.status()?.conditions;
        conditions.iter().find(|c| c.type_ == kind && c.observed_generation == self.meta().generation)
    }

    /// The condition Ready.
    pub fn ready(&self) -> Option<&Condition> {
        self.condition(CONDITION_READY)
    }

    /// The taps of its kind and namespace.
    pub fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        self.kind().api(cluster, self.namespace())
    }

    /// How it is called in `status` of a pod: with its namespace in a ClusterPodTap.
    pub fn pod_name(&self, namespace: &str, name: &str) -> String {
        match self {
            Self::Namespaced(_) => name.to_owned(),
            Self::Cluster(_) => format!("{namespace}/{name}"),
        }
    }

    /// Who asked for it: the user that this program has written down, and the program that wrote the spec.
    pub fn author(&self) -> Option<String> {
        let user = self.meta().annotations.as_ref().and_then(|annotations| annotations.get(REQUESTED_BY));
        let wrote_spec = |fields: &Value| fields.get("f:spec").is_some();
        let entries = self.meta().managed_fields.iter().flatten();
        let manager = entries
            .filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| wrote_spec(&fields.0)))
            .find_map(|entry| entry.manager.clone());
        match (user, manager) {
            (Some(user), Some(manager)) => Some(format!("{user}, with {manager}")),
            (Some(one), None) => Some(one.clone()),
            (None, one) => one,
        }
    }

    /// The Job that owns it, as that of a capture does: its name and UID.
    pub fn job(&self) -> Option<(&str, &str)> {
        let mut owners = self.meta().owner_references.iter().flatten();
        owners.find(|owner| owner.kind == "Job").map(|owner| (&*owner.name, &*owner.uid))
    }

    /// If it is of a capture that runs without its client, too: until when.
    pub fn kept_until(&self) -> Option<Timestamp> {
        let seconds = self.meta().labels.as_ref()?.get(KEPT)?.parse().ok()?;
        self.meta().creation_timestamp.as_ref()?.0.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// What the user of such a capture can do.
    pub fn how_to_continue(&self) -> Option<String> {
        let (until, namespace, name) = (self.kept_until()?, self.namespace()?, self.name());
        Some(format!(
            "captures until {until:.0}; continue: kubectl podtap capture -n {namespace} --resume {name}; end: kubectl podtap delete -n \
             {namespace} {name}"
        ))
    }

    /// Whether both ask for the same.
    pub fn has_spec_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Namespaced(one), Self::Namespaced(other)) => one.spec == other.spec,
            (Self::Cluster(one), Self::Cluster(other)) => one.spec == other.spec,
            _ => false,
        }
    }

    /// The same, but not suspended.
    pub fn resumed(&self) -> Self {
        let mut tap = self.clone();
        match &mut tap {
            Self::Namespaced(tap) => tap.spec.mirror.suspend = false,
            Self::Cluster(tap) => tap.spec.mirror.suspend = false,
        }
        tap
    }

    /// The same, as if the controller had not seen it.
    pub fn without_status(mut self) -> Self {
        match &mut self {
            Self::Namespaced(tap) => tap.status = None,
            Self::Cluster(tap) => tap.status = None,
        }
        self
    }

    /// The object of a watch.
    pub fn of(kind: Kind, object: DynamicObject) -> Outcome<Self> {
        kind.tap(object)
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(formatter, "PodTap {namespace}/{}", self.name()),
            None => write!(formatter, "ClusterPodTap {}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_taps() {
        let name = |kind, name: &str| Ok(TapName { kind, name: name.to_owned() });
        for (text, expected) in [
            ("web", name(Kind::PodTap, "web")),
            ("ptap/web", name(Kind::PodTap, "web")),
            ("podtap.podtap.dev/web", name(Kind::PodTap, "web")),
            ("cptap/all", name(Kind::ClusterPodTap, "all")),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for wrong in ["", "ptap/", "pod/web", "ptap/a/b"] {
            assert!(wrong.parse::<TapName>().is_err(), "{wrong}");
        }
        assert_eq!(Kind::PodTap.object("web"), "podtap.podtap.dev/web");
    }
}
