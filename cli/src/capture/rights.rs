//! The rights that a capture takes: those of the cluster role `podtap-capture`.

use podtap_api::GROUP;

use crate::{
    access::{Right, ask},
    connection::Cluster,
    exit::{Exit, Failure, Outcome, page},
};

/// Verb, group and resource.
const NEEDED: [(&str, &str, &str); 14] = [
    ("create", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("get", "", "pods"),
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("get", "", "pods/portforward"),
    ("create", "", "pods/portforward"),
    ("get", GROUP, "podtaps"),
    ("list", GROUP, "podtaps"),
    ("watch", GROUP, "podtaps"),
    ("create", GROUP, "podtaps"),
    ("delete", GROUP, "podtaps"),
    ("tap", "", "pods"),
    ("create", "", "pods/packetsocket"),
];

/// Refuses to begin what the user may not end, or not read.
pub async fn check(cluster: &Cluster) -> Outcome<()> {
    let right = |(verb, group, resource)| {
        let namespace = Some(cluster.namespace.clone());
        Right { verb, group, resource, namespace, purpose: "capture" }
    };
    let answers = ask(cluster, NEEDED.map(right).to_vec()).await?;
    let missing: Vec<String> =
        answers.iter().filter(|answer| !answer.allowed).map(|answer| answer.right.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::NotPermitted,
        format!(
            "in the namespace {}, you lack the rights to {}: ask an administrator to bind the ClusterRole podtap-capture there, see {}",
            cluster.namespace,
            missing.join(", "),
            page("install.md", "3-who-may-tap")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use k8s_openapi::api::rbac::v1::ClusterRole;

    use super::*;

    /// Besides the rights to read the selectors of targets.
    #[test]
    fn the_role_of_the_chart_has_them_and_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.yaml");
        let manifest = fs::read_to_string(path).expect("it can be read");
        let roles = manifest.split("\n---\n").filter(|document| document.contains("\nkind: ClusterRole\n"));
        let mut roles = roles.filter_map(|document| serde_saphyr::from_str::<ClusterRole>(document).ok());
        let role = roles.find(|role| role.metadata.name.as_deref() == Some("podtap-capture"));
        let granting = role.and_then(|role| role.rules).expect("the chart has it");
        let mut granted = BTreeSet::new();
        for rule in granting.into_iter().filter(|rule| !rule.api_groups.iter().flatten().any(|group| group == "apps")) {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    granted.extend(rule.verbs.iter().map(|verb| (verb.clone(), group.clone(), resource.clone())));
                }
            }
        }
        let needed = NEEDED.map(|(verb, group, resource)| (verb.to_owned(), group.to_owned(), resource.to_owned()));
        assert_eq!(granted, needed.into());
    }
}
