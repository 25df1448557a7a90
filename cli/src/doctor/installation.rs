//! Whether an installation would work: `--pre`.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;

use super::{
    control_plane::{ENFORCE, wrong_level},
    report::{Finding, Group, Level},
    snapshot::Snapshot,
};
use crate::{
    access::{self, Answer, Right},
    connection::Cluster,
    exit::{Outcome, page},
};

/// API group, resource and kind of what the chart and Helm create, and whether it is in PodTap's namespace.
const OBJECTS: [(&str, &str, &str, bool); 13] = [
    ("", "namespaces", "Namespace", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", false),
    ("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding", false),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", false),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", false),
    ("rbac.authorization.k8s.io", "roles", "Role", true),
    ("rbac.authorization.k8s.io", "rolebindings", "RoleBinding", true),
    ("", "configmaps", "ConfigMap", true),
    ("", "serviceaccounts", "ServiceAccount", true),
    ("apps", "deployments", "Deployment", true),
    ("policy", "poddisruptionbudgets", "PodDisruptionBudget", true),
    // Where Helm keeps its releases.
    ("", "secrets", "Secret", true),
];

/// What the answers of the API server tell of an installation that does not exist yet.
pub struct Rehearsal {
    /// What the user may create.
    pub rights: Vec<Answer>,
    /// Whether the user may create roles with rights that the user lacks.
    pub escalate: Option<Answer>,
    /// Whether the namespace admits helper pods: none if that cannot be tried, and the API server's message if it does not.
    pub helper_pod: Option<Result<(), String>>,
}

impl Rehearsal {
    /// Asks the API server, which stores nothing.
    pub async fn read(cluster: &Cluster, snapshot: &Snapshot) -> Outcome<Self> {
        let home = &snapshot.home;
        let right = |verb, group, resource, namespace| Right { verb, group, resource, namespace, purpose: "the chart" };
        let rights = OBJECTS
            .iter()
            .map(|(group, resource, _, is_home)| right("create", group, resource, is_home.then(|| home.clone())));
        let rights = access::ask(cluster, rights.collect()).await?;
        let escalate = right("escalate", "rbac.authorization.k8s.io", "clusterroles", None);
        let escalate = access::ask(cluster, vec![escalate]).await?.pop();
        let exists = matches!(snapshot.namespace, Ok(Some(_)));
        let helper_pod = if exists { dry_run(cluster, home).await? } else { None };
        Ok(Self { rights, escalate, helper_pod })
    }
}

/// A pod with what Pod Security and other admission rules may forbid of helper pods.
fn helper_pod() -> Pod {
    let pod = json!({
        "metadata": {"generateName": "podtap-helper-"},
        "spec": {
            "hostNetwork": true, "hostPID": true, "automountServiceAccountToken": false,
            "containers": [{
                "name": "tap-helper",
                "image": concat!("podtap.dev/podtap:", env!("CARGO_PKG_VERSION")),
                "resources": {"requests": {"cpu": "10m", "memory": "24Mi"}, "limits": {"memory": "64Mi"}},
                "securityContext": {
                    "runAsUser": 0, "readOnlyRootFilesystem": true, "appArmorProfile": {"type": "Unconfined"},
                    "seLinuxOptions": {"type": "spc_t"},
                    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"]},
                },
            }],
        },
    });
    serde_json::from_value(pod).expect("it is a pod")
}

async fn dry_run(cluster: &Cluster, home: &str) -> Outcome<Option<Result<(), String>>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), home);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create(&dry_run, &helper_pod()).await {
        Ok(_) => Ok(Some(Ok(()))),
        // Without the right to create pods, the answer has no other reason.
        Err(kube::Error::Api(status)) if status.message.contains("cannot create resource") => Ok(None),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => Ok(Some(Err(status.message))),
        Err(error) => Err(error.into()),
    }
}

/// The findings about it.
pub fn check(snapshot: &Snapshot, rehearsal: &Rehearsal) -> Vec<Finding> {
    let mut findings = vec![super::cluster::kubernetes(snapshot)];
    findings.extend(super::nodes::machines(snapshot));
    findings.extend(super::cni::check(snapshot));
    findings.extend(creation(rehearsal));
    findings.push(admission(snapshot, rehearsal));
    if let Ok(Some(_)) = snapshot.controller {
        let text = format!("PodTap is installed in the namespace {}: this would be an upgrade", snapshot.home);
        findings.push(Finding::warning(Group::Installation, text).page(page("install.md", "upgrade")));
    }
    findings.push(
        Finding::new(
            Group::Installation,
            Level::Unknown,
            "whether the nodes can pull the image cannot be tested beforehand",
        )
        .hint("Load it into the nodes, or name your registry and its secret: image.repository and image.pullSecrets.")
        .page(page("install.md", "1-the-image")),
    );
    findings
}

fn creation(rehearsal: &Rehearsal) -> Vec<Finding> {
    let missing: Vec<String> = rehearsal
        .rights
        .iter()
        .filter(|answer| !answer.allowed)
        .map(|Answer { right, .. }| format!("{right}{}", right.place()))
        .collect();
    if !missing.is_empty() {
        let text = format!("you may not {}: the chart has such objects", missing.join(", nor "));
        return vec![Finding::error(Group::Installation, text).hint("Install as a cluster administrator.")];
    }
    let mut findings = vec![Finding::ok(Group::Installation, "you may create what the chart has")];
    if rehearsal.escalate.as_ref().is_some_and(|answer| !answer.allowed) {
        findings.push(
            Finding::warning(Group::Installation, "you may only create roles with rights that you have yourself")
                .hint("The roles of the chart are rejected if you lack one of theirs, such as the verb tap on pods."),
        );
    }
    findings
}

fn admission(snapshot: &Snapshot, rehearsal: &Rehearsal) -> Finding {
    let home = &snapshot.home;
    let level = |namespace: &Namespace| namespace.labels().get(ENFORCE).cloned();
    match (&snapshot.namespace, &rehearsal.helper_pod) {
        (Ok(Some(namespace)), Some(Err(message))) if message.contains("PodSecurity") => Finding {
            group: Group::Installation,
            ..wrong_level(home, &level(namespace).unwrap_or_else(|| "a default".to_owned()))
        },
        (_, Some(Err(message))) => {
            Finding::error(Group::Installation, format!("the namespace {home} does not admit helper pods: {message}"))
                .hint("Make an exception for this namespace in the admission rule that rejects them.")
        }
        (_, Some(Ok(()))) => Finding::ok(Group::Installation, format!("the namespace {home} admits helper pods")),
        (Ok(Some(namespace)), None) => match level(namespace) {
            Some(level) if level != "privileged" => Finding { group: Group::Installation, ..wrong_level(home, &level) },
            _ => Finding::new(
                Group::Installation,
                Level::Unknown,
                format!(
                    "you may not create pods in the namespace {home}, so whether it admits helper pods is not known"
                ),
            ),
        },
        (Ok(None), _) => Finding::new(
            Group::Installation,
            Level::Unknown,
            format!("the namespace {home} does not exist, so whether it admits helper pods is not known"),
        )
        .hint("kubectl apply -f deploy/namespace.yaml creates it with the labels that they need."),
        (Err(message), None) => super::unread(Group::Installation, &format!("the namespace {home}"), message),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_kind_of_the_manifest_is_asked_for() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.yaml");
        let manifest = fs::read_to_string(path).expect("the manifest exists");
        let kinds: BTreeSet<&str> = manifest.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
        assert!(kinds.len() > 8, "{kinds:?}");
        for kind in kinds {
            assert!(OBJECTS.iter().any(|(_, _, known, _)| *known == kind), "{kind}");
        }
    }
}
