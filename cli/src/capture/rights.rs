//! The rights that a capture takes: those of the cluster role `podtap-capture`.

use podtap_api::GROUP;

use crate::{
    access::{Right, ask},
    connection::Cluster,
    exit::{Exit, Failure, Outcome, page},
};

/// Verb, group and resource.
const NEEDED: [(&str, &str, &str); 10] = [
    ("create", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("get", "", "pods/portforward"),
    ("create", "", "pods/portforward"),
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
    use std::{fs, path::Path};

    use k8s_openapi::api::rbac::v1::ClusterRole;

    use super::*;

    #[test]
    fn the_role_of_the_chart_has_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.yaml");
        let manifest = fs::read_to_string(path).expect("it can be read");
        let roles = manifest.split("\n---\n").filter(|document| document.contains("\nkind: ClusterRole\n"));
        let roles = roles.filter_map(|document| serde_saphyr::from_str::<ClusterRole>(document).ok());
        let role = roles.into_iter().find(|role| role.metadata.name.as_deref() == Some("podtap-capture"));
        let rules = role.and_then(|role| role.rules).expect("the chart has it");
        for (verb, group, resource) in NEEDED {
            let grants = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|found| found == word);
            let is_granted = rules.iter().any(|rule| {
                rule.verbs.iter().any(|found| found == verb)
                    && grants(&rule.api_groups, group)
                    && grants(&rule.resources, resource)
            });
            assert!(is_granted, "{verb} {resource}");
        }
    }
}
