//! The API server, the kinds that it serves, and versions.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Resource, ResourceExt as _};
use podtap_api::{GROUP, PodTap, definitions};
use serde_json::Value;

use super::{
    report::{Finding, Group},
    rights,
    snapshot::Snapshot,
};
use crate::exit::page;

/// The oldest version of Kubernetes that PodTap runs on, as docs/install.md has it.
pub const OLDEST: (u32, u32) = (1, 32);
/// The label with the version of what the chart has installed.
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// The findings about them.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = vec![kubernetes(snapshot)];
    findings.push(kinds(snapshot));
    findings.extend(definitions_differ(snapshot));
    findings.extend(snapshot.undecodable.iter().map(|object| {
        Finding::error(Group::Cluster, format!("this program cannot read {object}"))
            .hint("Use the version of this program that was released with the PodTap of the cluster.")
    }));
    findings.extend(versions(snapshot));
    findings.extend(rights::findings(&snapshot.rights));
    findings
}

/// Whether Kubernetes is new enough.
pub fn kubernetes(snapshot: &Snapshot) -> Finding {
    let version = &snapshot.kubernetes;
    // Some vendors write "32+".
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let parsed = version.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    if parsed.is_some_and(|parsed| parsed < OLDEST) {
        return Finding::error(
            Group::Cluster,
            format!("the API server is of Kubernetes {version}: PodTap needs {}.{}", OLDEST.0, OLDEST.1),
        )
        .page(page("install.md", "what-it-needs"));
    }
    Finding::ok(Group::Cluster, format!("the API server answers: Kubernetes {version}"))
}

fn kinds(snapshot: &Snapshot) -> Finding {
    let own = <PodTap as Resource>::version(&()).to_string();
    let served = snapshot.served.iter().cloned().collect::<Vec<_>>().join(", ");
    let error = |message: String| Finding::error(Group::Cluster, message).page(page("install.md", ""));
    if snapshot.served.is_empty() {
        return error(format!("the cluster does not serve the kinds of {GROUP}: install PodTap"));
    }
    if !snapshot.served.contains(&own) {
        return error(format!("the cluster serves {GROUP}/{served}, and this program uses {own}"))
            .hint("Use the version of this program that was released with the PodTap of the cluster.");
    }
    if !snapshot.missing_kinds.is_empty() {
        let missing = snapshot.missing_kinds.join(", ");
        return error(format!("the cluster does not serve the kind {missing} of {GROUP}/{own}")).hint(
            "Install the custom resource definitions again: helm upgrade, or kubectl apply --server-side -f crds/",
        );
    }
    Finding::ok(Group::Cluster, format!("the cluster serves {GROUP}/{own}"))
}

/// The fields of a definition that this program and the cluster do not have in common.
fn definitions_differ(snapshot: &Snapshot) -> Vec<Finding> {
    // Only administrators may read them, and only they can do something about it.
    let Some(found) = snapshot.definitions.as_ref().ok().filter(|found| !found.is_empty()) else { return Vec::new() };
    let mut findings = Vec::new();
    for (_, own) in definitions() {
        let Some(other) = found.iter().find(|other| other.name_any() == own.name_any()) else { continue };
        let (own_fields, other_fields) = (fields(&own), fields(other));
        let kind = &own.spec.names.kind;
        let first = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).next().cloned();
        if let Some(field) = first(&own_fields, &other_fields) {
            findings.push(
                Finding::warning(
                    Group::Cluster,
                    format!("the definition of {kind} in the cluster is older than this program: it has no {field}"),
                )
                .hint(
                    "The API server rejects or drops such fields. Upgrade the custom resource definitions with PodTap.",
                )
                .page(page("install.md", "upgrade")),
            );
        } else if let Some(field) = first(&other_fields, &own_fields) {
            findings.push(Finding::warning(
                Group::Cluster,
                format!(
                    "the definition of {kind} in the cluster is newer than this program, which does not know {field}"
                ),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(Group::Cluster, "the custom resource definitions are those of this program"));
    }
    findings
}

/// The paths of all fields that a definition has.
fn fields(definition: &CustomResourceDefinition) -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(field, &path, found);
            found.insert(path);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(inner) {
                walk(inner, path, found);
            }
        }
    }
    let schemas = definition.spec.versions.iter().filter_map(|version| version.schema.as_ref());
    let mut found = BTreeSet::new();
    for schema in schemas.filter_map(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok()) {
        walk(&schema, "", &mut found);
    }
    found
}

/// Whether this program, the controller and the helper pods are of the same version.
fn versions(snapshot: &Snapshot) -> Vec<Finding> {
    // The findings about the control plane tell if there is none, or if the user may not read it.
    let Ok(Some(controller)) = &snapshot.controller else { return Vec::new() };
    let own = env!("CARGO_PKG_VERSION");
    let mut findings = Vec::new();
    match controller.labels().get(VERSION_LABEL) {
        Some(version) if version != own => findings.push(
            Finding::warning(
                Group::Cluster,
                format!("the controller is of version {version}, and this program of {own}"),
            )
            .hint("They share their kinds and commands only if they are of the same version."),
        ),
        _ => {
            findings.push(Finding::ok(Group::Cluster, format!("this program and the controller are of version {own}")));
        }
    }
    let template = controller.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let images: BTreeSet<&str> = template
        .into_iter()
        .flat_map(|spec| &spec.containers)
        .filter_map(|container| container.image.as_deref())
        .collect();
    let pods = snapshot.pods.iter().flatten().filter(|pod| super::is_component(pod, "helper"));
    let others: BTreeSet<&str> = pods
        .filter_map(|pod| pod.spec.as_ref())
        .flat_map(|spec| &spec.containers)
        .filter_map(|container| container.image.as_deref())
        .filter(|image| !images.contains(image))
        .collect();
    if !others.is_empty() {
        let others = others.into_iter().collect::<Vec<_>>().join(", ");
        findings.push(
            Finding::warning(
                Group::Cluster,
                format!("some helper pods have another image than the controller: {others}"),
            )
            .hint("An upgrade is in progress, or has stopped at a node whose helper pod is not Ready.")
            .page(crate::exit::page_of("HelperRolloutStopped")),
        );
    }
    findings
}
