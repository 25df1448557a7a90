//! Which rights the verbs of this program need.

use std::collections::BTreeMap;

use podtap_api::GROUP;

use super::report::{Finding, Group};
use crate::{
    access::{Answer, Right},
    console::counted,
    exit::page,
};

/// Verb, group, resource, and the verbs of this program that need it, in the namespace of the taps.
const OF_USERS: [(&str, &str, &str, &str); 14] = [
    ("get", GROUP, "podtaps", "explain, suspend, resume, delete, capture --resume"),
    ("list", GROUP, "podtaps", "list, explain pod/NAME"),
    ("watch", GROUP, "podtaps", "create, list -w"),
    ("create", GROUP, "podtaps", "create, capture"),
    ("patch", GROUP, "podtaps", "create, suspend, resume"),
    ("delete", GROUP, "podtaps", "delete"),
    ("tap", "", "pods", "create, capture"),
    ("get", "", "pods", "explain pod/NAME"),
    ("list", "", "pods", "create, explain"),
    ("create", "batch", "jobs", "capture"),
    ("delete", "batch", "jobs", "capture"),
    ("get", "", "pods/portforward", "capture"),
    ("create", "", "pods/portforward", "capture"),
    ("create", "", "pods/packetsocket", "capture"),
];

/// The same in PodTap's namespace.
const OF_THE_COLLECTOR: [(&str, &str, &str, &str); 3] = [
    ("list", "", "pods", "map, flows, top"),
    ("get", "", "pods/portforward", "map, flows, top"),
    ("create", "", "pods/portforward", "map, flows, top"),
];

/// What the verbs of this program need.
pub fn of_verbs(namespace: &str, home: &str) -> Vec<Right> {
    let in_namespace = |namespace: &str, (verb, group, resource, purpose)| Right {
        verb,
        group,
        resource,
        namespace: Some(namespace.to_owned()),
        purpose,
    };
    let of_users = OF_USERS.into_iter().map(|right| in_namespace(namespace, right));
    of_users.chain(OF_THE_COLLECTOR.into_iter().map(|right| in_namespace(home, right))).collect()
}

/// What the answers mean for users.
pub fn findings(answers: &[Answer]) -> Vec<Finding> {
    let missing: Vec<&Right> = answers.iter().filter(|answer| !answer.allowed).map(|answer| &answer.right).collect();
    if missing.is_empty() {
        return vec![Finding::ok(Group::Cluster, "you may do what every verb of this program needs")];
    }
    let roles = || page("install.md", "3-who-may-tap");
    let may =
        |verb: &str, resource: &str| !missing.iter().any(|right| right.verb == verb && right.resource == resource);
    // Who may create taps, and tap no pod, was meant to be able to: half of the role is missing.
    let (half, others): (Vec<&Right>, Vec<&Right>) =
        missing.iter().partition(|right| right.verb == "tap" && may("create", "podtaps"));
    let mut findings: Vec<_> = half
        .into_iter()
        .map(|right| {
            let text = format!("you may create podtaps, but not {right}{}: the API server rejects them", right.place());
            Finding::error(Group::Cluster, text).page(roles())
        })
        .collect();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for right in others {
        places.entry(right.place()).or_default().push(format!("{right}: needed by {}", right.purpose));
    }
    findings.extend(places.into_iter().map(|(place, rights)| {
        let text = format!("you lack {} that this program can use{place}", counted(rights.len(), "right"));
        Finding::warning(Group::Cluster, text).hint(rights.join("\n")).page(roles())
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::report::Level, *};

    fn without(missing: &[(&str, &str)]) -> Vec<Finding> {
        let answer = |right: Right| {
            let allowed = !missing.contains(&(right.verb, right.resource));
            Answer { right, allowed }
        };
        findings(&of_verbs("shop", "podtap-system").into_iter().map(answer).collect::<Vec<_>>())
    }

    #[test]
    fn a_missing_right_is_named() {
        assert_eq!(without(&[]).iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Ok]);
        let found = without(&[("delete", "podtaps"), ("list", "pods")]);
        let warnings: Vec<_> = found.iter().map(|found| (found.level, &*found.message, &*found.hints[0])).collect();
        assert_eq!(
            warnings,
            [
                (
                    Level::Warning,
                    "you lack 1 right that this program can use in the namespace podtap-system",
                    "list pods: needed by map, flows, top"
                ),
                (
                    Level::Warning,
                    "you lack 2 rights that this program can use in the namespace shop",
                    "delete podtaps.podtap.dev: needed by delete"
                ),
            ]
        );
    }

    #[test]
    fn half_of_a_role_is_an_error() {
        assert_eq!(without(&[("tap", "pods")])[0].level, Level::Error);
        let of_a_viewer = without(&[("tap", "pods"), ("create", "podtaps")]);
        assert!(of_a_viewer.iter().all(|finding| finding.level == Level::Warning), "{of_a_viewer:?}");
    }
}
