//! A tap: its conditions, its destinations, and its pods by node.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt as _;
use podtap_api::{Destination, DestinationStatus};
use serde::Serialize;

use super::{Finding, events::About, with_verdict};
use crate::{
    connection::Cluster,
    console::{BAD, GOOD, styled},
    exit::Outcome,
    explain::tree::Tree,
    pods::{Surroundings, Verdict, matching, verdict},
    tap::{Tap, TapName, get},
};

/// What is known of a tap.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    #[serde(skip)]
    title: String,
    #[serde(skip)]
    uid: String,
    namespace: Option<String>,
    name: String,
    /// Who asked for it, and with what.
    created_by: Option<String>,
    vni: Option<u32>,
    expires: Option<Time>,
    /// Of a capture that runs without its client, too: what to do with it.
    #[serde(skip)]
    kept: Option<String>,
    matched_pods: i32,
    tapped_pods: i32,
    conditions: Vec<Finding>,
    destinations: Vec<DestinationStatus>,
    /// By name; empty for pods that are on none. None if the user may not list pods.
    nodes: Option<BTreeMap<String, Vec<PodReport>>>,
}

#[derive(Debug, Serialize)]
struct PodReport {
    name: String,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Report {
    /// Reads it.
    pub async fn read(cluster: &Cluster, name: &TapName) -> Outcome<Self> {
        let tap = get(cluster, name).await?;
        let (pods, around) = (matching(cluster, &tap).await?, Surroundings::read(cluster).await?);
        Ok(Self::of(&tap, pods.as_deref(), &around))
    }

    pub(super) fn of(tap: &Tap, pods: Option<&[Pod]>, around: &Surroundings) -> Self {
        let status = tap.status().cloned().unwrap_or_default();
        let by_node = |pods: &[Pod]| {
            let mut nodes: BTreeMap<String, Vec<PodReport>> = BTreeMap::new();
            for pod in pods {
                let verdict = verdict(tap, pod, around);
                if !matches!(verdict, Verdict::NotMatched(_)) {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
                    let name = tap.pod_name(&pod.namespace().unwrap_or_default(), &pod.name_any());
                    nodes.entry(node).or_default().push(PodReport { name, verdict });
                }
            }
            nodes
        };
        Self {
            title: tap.to_string(),
            uid: tap.uid().to_owned(),
            namespace: tap.namespace().map(str::to_owned),
            name: tap.name().to_owned(),
            created_by: tap.author(),
            vni: status.vni.map(u32::from),
            expires: status.expiration_time,
            kept: tap.how_to_continue(),
            matched_pods: status.matched_pods,
            tapped_pods: status.tapped_pods,
            conditions: status.conditions.iter().map(Finding::of).collect(),
            destinations: tap.mirror().destinations.iter().map(|d| with_spec(d, &status.destinations)).collect(),
            nodes: pods.map(by_node),
        }
    }

    /// What its events are about.
    pub fn about(&self) -> About {
        let kind = if self.namespace.is_some() { "PodTap" } else { "ClusterPodTap" };
        About { kind, namespace: self.namespace.clone(), name: self.name.clone(), uid: Some(self.uid.clone()) }
    }

    /// For people.
    pub fn tree(&self) -> Tree {
        let details = [
            self.vni.map(|vni| format!("VNI {vni}")),
            self.expires.as_ref().map(|time| format!("expires {}", time.0)),
            self.created_by.as_ref().map(|author| format!("by {author}")),
            Some(format!("{} of {} pods tapped", self.tapped_pods, self.matched_pods)),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        let conditions = if self.conditions.is_empty() {
            vec![Tree::new("no conditions: the controller has not answered; see kubectl podtap version")]
        } else {
            // Ready repeats the first of the others that is a problem.
            let is_shown = |finding: &&Finding| finding.kind == "Ready" || finding.is_problem();
            let mut shown: Vec<_> = self.conditions.iter().filter(is_shown).collect();
            if shown.len() > 1 && shown.iter().any(|f| f.kind == "Ready" && f.is_problem()) {
                shown.retain(|finding| finding.kind != "Ready" && !finding.message.starts_with("see "));
            }
            if shown.is_empty() {
                shown = self.conditions.iter().filter(|finding| finding.kind == "Ready").collect();
            }
            shown.into_iter().map(Finding::tree).collect()
        };
        let nodes = match &self.nodes {
            None => vec![Tree::new("pods: you may not list them")],
            Some(nodes) if nodes.is_empty() => vec![Tree::new("no pod matches")],
            Some(nodes) => nodes.iter().map(|(node, pods)| self.node(node, pods)).collect(),
        };
        let kept = self.kept.as_ref().map(|how| Tree::new(format!("it {how}")));
        Tree::new(format!("{}  {}", self.title, details.join("  "))).with(kept).with(conditions).with(nodes)
    }

    fn node(&self, node: &str, pods: &[PodReport]) -> Tree {
        let name = if node.is_empty() { "on no node yet".to_owned() } else { format!("node {node}") };
        let arrows = |pod: &PodReport| {
            let is_tapped = pod.verdict == Verdict::Tapped;
            self.destinations.iter().filter(move |_| is_tapped).map(arrow)
        };
        let pods = pods.iter().map(|pod| with_verdict(&format!("pod {}", pod.name), &pod.verdict).with(arrows(pod)));
        Tree::new(name).with(pods)
    }
}

/// Where a destination is; what the status does not tell, as the spec has it.
fn with_spec(destination: &Destination, all: &[DestinationStatus]) -> DestinationStatus {
    let known = all.iter().find(|status| status.name == destination.name).cloned();
    let mut status =
        known.unwrap_or_else(|| DestinationStatus { name: destination.name.clone(), ..DestinationStatus::default() });
    status.node = status.node.or_else(|| destination.node.as_ref().map(|node| node.name.clone()));
    status.pod = status.pod.or_else(|| destination.pod.as_ref().and_then(|pod| pod.name.clone()));
    status.address =
        status.address.or_else(|| destination.external.as_ref().map(|external| external.address.to_string()));
    status
}

fn arrow(destination: &DestinationStatus) -> Tree {
    let DestinationStatus { name, node, pod, interface_name, address, vni, ready } = destination;
    let target = match (pod, node, address) {
        (Some(pod), Some(node), _) => format!("pod {pod} on {node}"),
        (Some(pod), None, _) => format!("pod {pod}"),
        (None, Some(node), _) => format!("node {node}"),
        (None, None, Some(address)) => address.clone(),
        (None, None, None) => "nowhere yet".to_owned(),
    };
    let interface = interface_name.as_ref().map(|interface| format!(", interface {interface}")).unwrap_or_default();
    let vni = vni.map(|vni| format!(", VNI {vni}")).unwrap_or_default();
    let state = if *ready { styled(GOOD, "ready") } else { styled(BAD, "not ready") };
    Tree::new(format!("to {name}: {target}{interface}{vni}  {state}"))
}
