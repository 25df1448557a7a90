//! TARGET: which pods a tap taps.

use std::{collections::BTreeMap, fmt::Debug, str::FromStr};

use clap::Args;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::Job,
        core::v1::Service,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Api, Resource};
use podtap_api::{DEFAULT_MAX_PODS, ObjectSelector, Targets};
use podtap_model::InterfaceName;
use serde::de::DeserializeOwned;

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome},
    selector,
};

/// What a command line without pods lacks.
pub const NO_TARGET: &str = "name the pods: a TARGET such as deploy/web, or -l SELECTOR, or --all";

/// Which pods, besides TARGET.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pods")]
pub struct PodFlags {
    /// The pods with these labels, instead of TARGET
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector::parse, conflicts_with = "all")]
    pub selector: Option<LabelSelector>,
    /// All pods of the namespace, instead of TARGET; asks
    #[arg(long)]
    pub all: bool,
    /// Interface inside the pods. Default: the one with the pod's primary address
    #[arg(long, value_name = "NAME")]
    pub interface: Option<InterfaceName>,
    /// Most pods to tap; asks if there may be more than 32
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PODS)]
    pub max_pods: u32,
}

impl PodFlags {
    /// What selects pods instead of TARGET.
    pub fn selection(&self) -> Option<Selection> {
        match &self.selector {
            Some(selector) => Some(Selection::Labels(selector.clone())),
            None => self.all.then(Selection::all),
        }
    }

    /// The part of the spec about pods.
    pub fn targets(&self, selection: Selection) -> Targets {
        let (pod_names, pod_selector) = match selection {
            Selection::Names(names) => (Some(names), None),
            Selection::Labels(selector) => (None, Some(ObjectSelector::from(selector))),
        };
        Targets { pod_names, pod_selector, interface: self.interface.clone(), max_pods: self.max_pods }
    }

    /// What the user should confirm.
    pub fn consequences(&self, cluster: &Cluster) -> Vec<String> {
        let mut all = Vec::new();
        if self.all {
            all.push(format!("this mirrors every pod of the namespace {}", cluster.namespace));
        }
        if self.max_pods > DEFAULT_MAX_PODS {
            all.push(format!("this may mirror up to {} pods", self.max_pods));
        }
        if cluster.is_another_namespace {
            all.push(format!("this mirrors pods of {}, which is not the namespace of the context", cluster.namespace));
        }
        all
    }
}

/// Pods, as the command line names them.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Pods by name or label.
    Selected(Selection),
    /// The pods of an object, by the object's own selector, so that the tap follows them.
    Of(Workload, String),
}

/// A kind of object that selects pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// `deploy/NAME`.
    Deployment,
    /// `sts/NAME`.
    StatefulSet,
    /// `ds/NAME`.
    DaemonSet,
    /// `rs/NAME`.
    ReplicaSet,
    /// `job/NAME`.
    Job,
    /// `svc/NAME`.
    Service,
}

/// What a tap selects pods by.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// `podNames`.
    Names(Vec<String>),
    /// `podSelector`.
    Labels(LabelSelector),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        if name.is_empty() || name.contains('/') {
            return Err(format!(
                "{text:?} is not a target: use pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME or svc/NAME"
            ));
        }
        let workload = match kind {
            "pod" | "pods" | "po" => {
                let names: Vec<_> = name.split(',').map(str::to_owned).collect();
                return if names.iter().any(String::is_empty) {
                    Err(format!("{text:?} has an empty name: list pods as pod/web-0,web-1"))
                } else {
                    Ok(Self::Selected(Selection::Names(names)))
                };
            }
            "deploy" | "deployment" | "deployments" => Workload::Deployment,
            "sts" | "statefulset" | "statefulsets" => Workload::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => Workload::DaemonSet,
            "rs" | "replicaset" | "replicasets" => Workload::ReplicaSet,
            "job" | "jobs" => Workload::Job,
            "svc" | "service" | "services" => Workload::Service,
            _ => {
                return Err(format!(
                    "{kind:?} is not a kind that selects pods: use pod, deploy, sts, ds, rs, job or svc"
                ));
            }
        };
        Ok(Self::Of(workload, name.to_owned()))
    }
}

impl Target {
    /// What selects its pods.
    pub async fn selection(self, cluster: &Cluster) -> Outcome<Selection> {
        match self {
            Self::Selected(selection) => Ok(selection),
            Self::Of(workload, name) => workload.selection(&name, cluster).await,
        }
    }

    /// A name for a tap of it: a DNS label.
    pub fn tap_name(&self) -> String {
        match self {
            Self::Of(_, name) => label(name),
            Self::Selected(Selection::Names(names)) => label(&names[0]),
            Self::Selected(Selection::Labels(selector)) if *selector == LabelSelector::default() => "all".to_owned(),
            Self::Selected(Selection::Labels(selector)) => {
                let labels = selector.match_labels.iter().flatten().map(|(_, value)| value.as_str());
                let keys = selector.match_expressions.iter().flatten().map(|requirement| requirement.key.as_str());
                label(&labels.chain(keys).collect::<Vec<_>>().join("-"))
            }
        }
    }
}

impl Selection {
    /// Every pod of the namespace.
    pub fn all() -> Self {
        Self::Labels(LabelSelector::default())
    }
}

impl Workload {
    /// What selects the pods of the object of this name.
    pub async fn selection(self, name: &str, cluster: &Cluster) -> Outcome<Selection> {
        let selector = match self {
            Self::Deployment => get::<Deployment>(cluster, name).await?.spec.map(|spec| spec.selector),
            Self::StatefulSet => get::<StatefulSet>(cluster, name).await?.spec.map(|spec| spec.selector),
            Self::DaemonSet => get::<DaemonSet>(cluster, name).await?.spec.map(|spec| spec.selector),
            Self::ReplicaSet => get::<ReplicaSet>(cluster, name).await?.spec.map(|spec| spec.selector),
            Self::Job => get::<Job>(cluster, name).await?.spec.and_then(|spec| spec.selector),
            Self::Service => get::<Service>(cluster, name).await?.spec.and_then(|spec| spec.selector).map(with_labels),
        };
        // An empty selector would select every pod of the namespace.
        let selector = selector.filter(|selector| *selector != LabelSelector::default());
        selector.map(Selection::Labels).ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                format!(
                    "{self:?} {}/{name} has no selector, so that its pods are unknown: use -l or pod/NAME",
                    cluster.namespace
                ),
            )
        })
    }
}

fn with_labels(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels).filter(|labels| !labels.is_empty()), match_expressions: None }
}

async fn get<K>(cluster: &Cluster, name: &str) -> Outcome<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    Ok(Api::<K>::namespaced(cluster.client.clone(), &cluster.namespace).get(name).await?)
}

/// A DNS label of a text: lower-case letters, digits and hyphens, at most 63.
pub fn label(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain: String = text.to_lowercase().chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let plain: String = plain.trim_matches('-').chars().take(63).collect();
    let plain = plain.trim_end_matches('-');
    if plain.is_empty() { "tap".to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector;

    #[test]
    fn targets() {
        let pods = |names: &[&str]| {
            Ok(Target::Selected(Selection::Names(names.iter().map(|name| (*name).to_owned()).collect())))
        };
        let workload = |kind, name: &str| Ok(Target::Of(kind, name.to_owned()));
        for (text, target) in [
            ("web-0", pods(&["web-0"])),
            ("pod/web-0,web-1", pods(&["web-0", "web-1"])),
            ("deploy/web", workload(Workload::Deployment, "web")),
            ("deployment/web", workload(Workload::Deployment, "web")),
            ("sts/db", workload(Workload::StatefulSet, "db")),
            ("ds/agent", workload(Workload::DaemonSet, "agent")),
            ("rs/web-1", workload(Workload::ReplicaSet, "web-1")),
            ("job/once", workload(Workload::Job, "once")),
            ("svc/web", workload(Workload::Service, "web")),
        ] {
            assert_eq!(text.parse(), target, "{text}");
        }
        for wrong in ["", "pod/", "deploy/", "cronjob/x", "pod/a/b", "pod/a,", "/x"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn taps_are_named_after_their_target() {
        let labels =
            |text: &str| Target::Selected(Selection::Labels(selector::parse(text).expect("a selector"))).tap_name();
        assert_eq!(labels("app=web,!canary"), "web-canary");
        assert_eq!(labels("app="), "tap");
        assert_eq!(Target::Selected(Selection::all()).tap_name(), "all");
        assert_eq!("deploy/web".parse::<Target>().expect("a target").tap_name(), "web");
        assert_eq!("pod/a.b,c".parse::<Target>().expect("a target").tap_name(), "a-b");
        assert_eq!(label(&"x-".repeat(40)).len(), 63);
    }
}
