//! A pod: which taps mirror it, which do not and why, and who asked for them.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::Serialize;

use super::{events::About, with_verdict};
use crate::{
    connection::Cluster,
    exit::Outcome,
    explain::tree::Tree,
    pods::{Surroundings, Verdict, verdict},
    tap::{Kind, Tap, list, of_cluster},
};

/// What is known of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    namespace: String,
    name: String,
    #[serde(skip)]
    uid: Option<String>,
    node: Option<String>,
    taps: Vec<TapReport>,
    /// Whether the user may read every ClusterPodTap.
    cluster_taps_known: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TapReport {
    tap: String,
    created_by: Option<String>,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Report {
    /// Reads it.
    pub async fn read(cluster: &Cluster, name: &str) -> Outcome<Self> {
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let pod = api.get(name).await?;
        let mut taps = list(cluster, Kind::PodTap, Some(&cluster.namespace)).await?;
        let of_cluster = of_cluster(cluster).await?;
        let cluster_taps_known = of_cluster.is_some();
        taps.extend(of_cluster.unwrap_or_default());
        Ok(Self::of(&pod, &taps, cluster_taps_known, &Surroundings::read(cluster).await?))
    }

    pub(super) fn of(pod: &Pod, taps: &[Tap], cluster_taps_known: bool, around: &Surroundings) -> Self {
        let report = |tap: &Tap| TapReport {
            tap: tap.to_string(),
            created_by: tap.author(),
            verdict: verdict(tap, pod, around),
        };
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            taps: taps.iter().map(report).collect(),
            cluster_taps_known,
        }
    }

    /// What its events are about.
    pub fn about(&self) -> About {
        let namespace = Some(self.namespace.clone());
        About { kind: "Pod", namespace, name: self.name.clone(), uid: self.uid.clone() }
    }

    /// For people.
    pub fn tree(&self) -> Tree {
        let node = self.node.as_ref().map_or(String::new(), |node| format!("  on node {node}"));
        let taps = self.taps.iter().map(|tap| {
            let author = tap.created_by.as_ref().map_or(String::new(), |author| format!(" (by {author})"));
            with_verdict(&format!("{}{author}", tap.tap), &tap.verdict)
        });
        let no_tap = self.taps.is_empty().then(|| Tree::new("no tap in its namespace"));
        let unknown = (!self.cluster_taps_known)
            .then(|| Tree::new("ClusterPodTaps: you may not list them, and they may mirror this pod"));
        Tree::new(format!("pod {}/{}{node}", self.namespace, self.name)).with(taps).with(no_tap).with(unknown)
    }
}
