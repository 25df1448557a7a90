//! `version`: of this program, and of what runs in the cluster.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::Api;
use podtap_api::{GROUP, PodTap};
use serde::Serialize;
use serde_json::Value;

use crate::{
    connection::{Cluster, Connection},
    console::{data, warn},
    exit::{Exit, Failure, Outcome},
    installation::component,
    manifest,
    pods::if_permitted,
    table::Columns,
};

/// Arguments of `version`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Only of this program
    #[arg(long)]
    client: bool,
    /// Print a document
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

/// What runs where. None: the user may not read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    cluster: Option<InCluster>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InCluster {
    /// Versions of the API that are served.
    served: Vec<String>,
    /// Images of the controller.
    controller: Option<BTreeSet<String>>,
    /// Images of the helper pods.
    helpers: Option<BTreeSet<String>>,
}

/// Prints versions.
pub async fn run(arguments: Arguments, connection: &Connection) -> Outcome {
    // Without a cluster, the version of this program is printed all the same.
    let (cluster, failure) = if arguments.client {
        (None, None)
    } else {
        match cluster(connection).await {
            Ok(cluster) => (Some(cluster), None),
            Err(failure) => (None, Some(failure)),
        }
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), cluster };
    let document = || serde_json::to_value(&versions).map_err(|error| Failure::error(error.to_string()));
    match arguments.output {
        Some(Format::Json) => data(&manifest::json(&document()?)),
        Some(Format::Yaml) => data(&manifest::yaml(&document()?)?),
        None => data(&Columns::default().text(&versions.rows())),
    }
    for warning in versions.warnings() {
        warn(&warning);
    }
    failure.map_or(Ok(Exit::Done), Err)
}

/// What runs in the cluster, as a document.
pub async fn document(cluster: &Cluster) -> Outcome<Value> {
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), cluster: Some(in_cluster(cluster).await?) };
    serde_json::to_value(&versions).map_err(|error| Failure::error(error.to_string()))
}

async fn cluster(connection: &Connection) -> Outcome<InCluster> {
    in_cluster(&connection.open().await?).await
}

async fn in_cluster(cluster: &Cluster) -> Outcome<InCluster> {
    let groups = cluster.client.list_api_groups().await?;
    let served = groups.groups.into_iter().filter(|group| group.name == GROUP).flat_map(|group| group.versions);
    let controllers = Api::<Deployment>::all(cluster.client.clone()).list(&component("controller")).await;
    let helpers = Api::<Pod>::all(cluster.client.clone()).list(&component("helper")).await;
    let controller = if_permitted(controllers)?.map(|list| {
        let specs = list.items.into_iter().filter_map(|deployment| deployment.spec?.template.spec);
        images(specs.flat_map(|spec| spec.containers))
    });
    let helpers = if_permitted(helpers)?
        .map(|list| images(list.items.into_iter().filter_map(|pod| pod.spec).flat_map(|spec| spec.containers)));
    Ok(InCluster { served: served.map(|version| version.version).collect(), controller, helpers })
}

fn images(containers: impl Iterator<Item = k8s_openapi::api::core::v1::Container>) -> BTreeSet<String> {
    containers.filter_map(|container| container.image).collect()
}

impl Versions {
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |name: &str, text: String| vec![name.to_owned(), text];
        let mut rows = vec![row("kubectl podtap", self.client.to_owned())];
        if let Some(cluster) = &self.cluster {
            let images = |images: &Option<BTreeSet<String>>| match images {
                None => "unknown: you may not read it".to_owned(),
                Some(images) if images.is_empty() => "none".to_owned(),
                Some(images) => images.iter().cloned().collect::<Vec<_>>().join(", "),
            };
            let served = if cluster.served.is_empty() { "none".to_owned() } else { cluster.served.join(", ") };
            rows.push(row(GROUP, served));
            rows.push(row("controller", images(&cluster.controller)));
            rows.push(row("helper pods", images(&cluster.helpers)));
        }
        rows
    }

    fn warnings(&self) -> Vec<String> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let mut warnings = Vec::new();
        let own = <PodTap as kube::Resource>::version(&());
        if !cluster.served.contains(&own.to_string()) {
            warnings.push(format!("the cluster does not serve {GROUP}/{own}, which this program uses: install PodTap, or another version of this program"));
        }
        if let (Some(controller), Some(helpers)) = (&cluster.controller, &cluster.helpers)
            && helpers.iter().any(|image| !controller.contains(image))
        {
            warnings.push(
                "some helper pods have another image than the controller: an upgrade is in progress, or has stopped"
                    .to_owned(),
            );
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(images: &[&str]) -> BTreeSet<String> {
        images.iter().map(|image| (*image).to_owned()).collect()
    }

    #[test]
    fn differences_are_warnings() {
        let versions = |served: &[&str], controller, helpers| Versions {
            client: "1",
            cluster: Some(InCluster { served: served.iter().map(|v| (*v).to_owned()).collect(), controller, helpers }),
        };
        let warnings = |served: &[&str], controller, helpers| versions(served, controller, helpers).warnings().len();
        assert_eq!(warnings(&["v1alpha1"], Some(set(&["podtap:1"])), Some(set(&["podtap:1"]))), 0);
        assert_eq!(warnings(&["v1alpha1"], Some(set(&["podtap:2"])), Some(set(&["podtap:1", "podtap:2"]))), 1);
        assert_eq!(warnings(&["v1alpha1"], None, Some(set(&["podtap:1"]))), 0, "what is unknown is no difference");
        assert_eq!(warnings(&["v2"], None, None), 1);
        let text = Columns::default().text(&versions(&[], None, Some(set(&[]))).rows());
        assert!(
            text.contains("podtap.dev       none")
                && text.contains("unknown")
                && text.contains("helper pods      none"),
            "{text}"
        );
    }
}
